//! Some lines of a file that streams by.

/// Collects lines by their number.
#[derive(Debug)]
pub(super) struct Lines {
    skip: u64,
    left: u64,
    most_bytes: usize,
    bytes: Vec<u8>,
}

/// The lines are longer than an answer may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// `offset` counts from 1.
    pub(super) fn new(offset: u64, count: u64, most_bytes: usize) -> Self {
        Self {
            skip: offset.saturating_sub(1),
            left: count,
            most_bytes,
            bytes: Vec::new(),
        }
    }

    /// Bytes that were collected so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the next bytes of the file; says whether more are needed.
    pub(super) fn push(&mut self, mut piece: &[u8]) -> Result<bool, TooLong> {
        while self.left > 0 && !piece.is_empty() {
            let end = piece
                .iter()
                .position(|byte| *byte == b'\n')
                .map(|position| position + 1);
            let (line, rest) = piece.split_at(end.unwrap_or(piece.len()));
            if self.skip == 0 {
                if self.bytes.len() + line.len() > self.most_bytes {
                    return Err(TooLong);
                }
                self.bytes.extend_from_slice(line);
                self.left -= u64::from(end.is_some());
            } else {
                self.skip -= u64::from(end.is_some());
            }
            piece = rest;
        }
        Ok(self.left > 0)
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(offset: u64, count: u64, pieces: &[&str]) -> String {
        let mut lines = Lines::new(offset, count, 1000);
        for piece in pieces {
            if !lines.push(piece.as_bytes()).unwrap() {
                break;
            }
        }
        String::from_utf8(lines.finish()).unwrap()
    }

    #[test]
    fn lines_are_found_wherever_the_pieces_cut_them() {
        let pieces = ["one\ntw", "o\nthr", "ee\n", "four"];
        assert_eq!(lines(1, 1, &pieces), "one\n");
        assert_eq!(lines(2, 2, &pieces), "two\nthree\n");
        assert_eq!(lines(4, 9, &pieces), "four");
        assert_eq!(lines(5, 1, &pieces), "");
    }

    #[test]
    fn lines_over_the_limit_are_refused() {
        assert_eq!(Lines::new(1, 1, 3).push(b"four"), Err(TooLong));
    }
}
