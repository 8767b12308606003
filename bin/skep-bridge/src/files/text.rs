//! Lines of a text, for `ReadFile`: bounded in memory whatever the file is.

use std::fs::File;
use std::io::{self, Read};

use skep_bridge_protocol::bridgepb::ReadFileResponse;

/// Where a NUL makes a file binary.
const BINARY_PROBE_BYTES: usize = 8 * 1024;
const MOST_LINES: i32 = 2000;
/// A message is at most 16 MiB; what is left is for what surrounds the content.
const MOST_CONTENT_BYTES: usize = 12 * 1024 * 1024;
/// Set aside for each line that is still to come, so that one that does not fit can at least say so.
const CUT_MARK_BYTES: usize = 64;

/// Reads `n_lines` from `line_offset` (from 1) on, and counts all.
pub(crate) fn read_lines(file: &mut File, line_offset: i32, n_lines: i32) -> io::Result<ReadFileResponse> {
    let wanted = if (1..=MOST_LINES).contains(&n_lines) {
        n_lines
    } else {
        MOST_LINES
    };
    let first = u64::from(line_offset.max(1).cast_unsigned());
    let mut lines = Lines::new(first, first + u64::from(wanted.cast_unsigned()));
    let mut buffer = vec![0; 64 * 1024];
    let mut probed = 0;
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        let probe = length.min(BINARY_PROBE_BYTES.saturating_sub(probed));
        if buffer[..probe].contains(&0) {
            return Ok(ReadFileResponse {
                binary: true,
                ..ReadFileResponse::default()
            });
        }
        probed += probe;
        lines.take(&buffer[..length]);
    }
    Ok(lines.finish())
}

struct Lines {
    first: u64,
    end: u64,
    /// The number of the line that is being read.
    number: u64,
    line: Vec<u8>,
    line_bytes: u64,
    content: String,
}

impl Lines {
    fn new(first: u64, end: u64) -> Self {
        Self {
            first,
            end,
            number: 1,
            line: Vec::new(),
            line_bytes: 0,
            content: String::new(),
        }
    }

    fn take(&mut self, data: &[u8]) {
        let mut pieces = data.split(|&byte| byte == b'\n');
        // The last piece has no end of line yet.
        let last = pieces.next_back().unwrap_or_default();
        for piece in pieces {
            self.extend(piece);
            self.end_line();
        }
        self.extend(last);
    }

    fn is_wanted(&self) -> bool {
        (self.first..self.end).contains(&self.number)
    }

    fn extend(&mut self, piece: &[u8]) {
        self.line_bytes += piece.len() as u64;
        if self.is_wanted() {
            // One more than fits: that is how a line that is too long is known.
            let room = (self.room() + 2).saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
        }
    }

    fn room(&self) -> usize {
        let to_come = (self.end - self.number) as usize;
        MOST_CONTENT_BYTES.saturating_sub(self.content.len() + to_come * CUT_MARK_BYTES)
    }

    fn end_line(&mut self) {
        if self.is_wanted() {
            let held_whole = self.line.len() as u64 == self.line_bytes;
            if held_whole && self.line.ends_with(b"\r") {
                self.line.pop();
            }
            let text = String::from_utf8_lossy(&self.line);
            let room = self.room();
            if held_whole && text.len() <= room {
                self.content.push_str(&text);
            } else {
                let end = (0..=room.min(text.len()))
                    .rev()
                    .find(|&at| text.is_char_boundary(at))
                    .unwrap_or(0);
                self.content.push_str(&text[..end]);
                self.content
                    .push_str(&format!("… [cut: {} bytes in this line]", self.line_bytes));
            }
            self.content.push('\n');
        }
        self.number += 1;
        self.line.clear();
        self.line_bytes = 0;
    }

    fn finish(mut self) -> ReadFileResponse {
        if self.line_bytes > 0 {
            self.end_line();
        }
        let total_lines = i32::try_from(self.number - 1).unwrap_or(i32::MAX);
        ReadFileResponse {
            content: self.content,
            total_lines,
            binary: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn read(content: &[u8], offset: i32, lines: i32) -> ReadFileResponse {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content).expect("written");
        file.rewind().expect("rewound");
        read_lines(&mut file, offset, lines).expect("read")
    }

    #[test]
    fn lines_are_counted_from_one_and_end_with_a_newline() {
        let text = b"one\r\ntwo\n\nfour";
        let all = read(text, 0, 0);
        assert_eq!((all.content.as_str(), all.total_lines), ("one\ntwo\n\nfour\n", 4));
        let some = read(text, 2, 2);
        assert_eq!((some.content.as_str(), some.total_lines), ("two\n\n", 4));
        assert_eq!(read(text, 9, 1).content, "");
        assert_eq!(read(b"", 1, 1), ReadFileResponse::default());
    }

    #[test]
    fn a_number_of_lines_out_of_range_is_two_thousand() {
        let text: String = (0..5000).map(|line| format!("{line}\n")).collect();
        for lines in [0, -1, 2001] {
            let read = read(text.as_bytes(), 11, lines);
            assert_eq!((read.content.lines().count(), read.total_lines), (2000, 5000));
            assert!(read.content.starts_with("10\n"));
        }
    }

    #[test]
    fn a_nul_in_the_first_eight_kibibytes_is_binary() {
        let mut text = vec![b'x'; 10_000];
        text[8191] = 0;
        assert_eq!(
            read(&text, 1, 1),
            ReadFileResponse {
                binary: true,
                ..ReadFileResponse::default()
            }
        );
        text[8191] = b'x';
        text[8192] = 0;
        assert!(!read(&text, 1, 1).binary);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced() {
        assert_eq!(read(b"a\xffb\n", 1, 1).content, "a\u{fffd}b\n");
    }

    #[test]
    fn a_long_line_is_whole_and_what_follows_it_is_there() {
        let text = [vec![b'x'; 5_000_000], b"\nlast\n".to_vec()].concat();
        let read = read(&text, 1, 10);
        assert_eq!(read.total_lines, 2);
        assert_eq!(read.content.len(), text.len());
        assert!(read.content.ends_with("x\nlast\n"));
    }

    #[test]
    fn a_line_beyond_the_message_is_marked_cut_and_what_follows_it_is_there() {
        let text = [vec![b'x'; 20_000_000], b"\nlast\n".to_vec()].concat();
        let read = read(&text, 1, 2000);
        assert_eq!(read.total_lines, 2);
        assert!(read.content.len() < 16 * 1024 * 1024);
        assert!(read.content.contains("… [cut: 20000000 bytes in this line]\n"));
        assert!(read.content.ends_with("\nlast\n"));
    }
}
