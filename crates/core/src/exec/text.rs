//! Output as text where it is text: pieces may cut a character in two.

/// The longest character of UTF-8.
const LONGEST_CHARACTER: usize = 4;

/// Some output, as it can be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextPiece {
    /// Whole characters.
    Text(String),
    /// Bytes that are not UTF-8.
    Bytes(Vec<u8>),
}

/// Joins what the pieces of one stream cut.
#[derive(Debug, Default)]
pub struct TextPieces {
    held: Vec<u8>,
    next_offset: u64,
}

impl TextPieces {
    /// Takes a piece that begins at `offset`; gives what can be shown of it and of what was held back, with the
    /// offset of its first byte. Holds back at most the first bytes of one character.
    pub fn push(&mut self, offset: u64, piece: &[u8]) -> Vec<(u64, TextPiece)> {
        let mut ready = Vec::new();
        if offset != self.next_offset {
            ready.extend(self.finish());
        }
        let begin = offset - self.held.len() as u64;
        self.next_offset = offset + piece.len() as u64;
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(piece);
        match String::from_utf8(bytes) {
            Ok(text) => ready.push((begin, TextPiece::Text(text))),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let is_cut = error.utf8_error().error_len().is_none();
                let mut bytes = error.into_bytes();
                if is_cut {
                    self.held = bytes.split_off(valid);
                    debug_assert!(self.held.len() < LONGEST_CHARACTER);
                }
                ready.push((begin, piece_of(bytes)));
            }
        }
        ready.retain(|(_, piece)| !piece.is_empty());
        ready
    }

    /// What was held back and never became whole.
    pub fn finish(&mut self) -> Option<(u64, TextPiece)> {
        let held = std::mem::take(&mut self.held);
        let begin = self.next_offset - held.len() as u64;
        (!held.is_empty()).then_some((begin, TextPiece::Bytes(held)))
    }
}

impl TextPiece {
    fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
        }
    }
}

fn piece_of(bytes: Vec<u8>) -> TextPiece {
    match String::from_utf8(bytes) {
        Ok(text) => TextPiece::Text(text),
        Err(error) => TextPiece::Bytes(error.into_bytes()),
    }
}

/// All of an output. What was cut off behind its end may have cut a character: that is left out then.
pub(super) fn whole(mut bytes: Vec<u8>, is_truncated: bool) -> TextPiece {
    if is_truncated
        && let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
    piece_of(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(piece: TextPiece) -> Vec<u8> {
        match piece {
            TextPiece::Text(text) => text.into_bytes(),
            TextPiece::Bytes(bytes) => bytes,
        }
    }

    #[test]
    fn a_character_cut_by_a_piece_is_held_back() {
        let mut pieces = TextPieces::default();
        assert_eq!(pieces.push(0, b"a\xe2\x82"), vec![(0, TextPiece::Text("a".to_owned()))]);
        assert_eq!(
            pieces.push(3, b"\xacb"),
            vec![(1, TextPiece::Text("\u{20ac}b".to_owned()))]
        );
        assert_eq!(pieces.finish(), None);
        assert_eq!(pieces.push(5, b"\xff"), vec![(5, TextPiece::Bytes(vec![0xff]))]);
        assert_eq!(pieces.push(6, b"\xf0\x9f"), vec![]);
        assert_eq!(pieces.finish(), Some((6, TextPiece::Bytes(vec![0xf0, 0x9f]))));
    }

    #[test]
    fn a_gap_ends_what_was_held_back() {
        let mut pieces = TextPieces::default();
        assert_eq!(pieces.push(0, b"\xe2"), vec![]);
        let ready = pieces.push(100, b"x");
        assert_eq!(
            ready,
            vec![
                (0, TextPiece::Bytes(vec![0xe2])),
                (100, TextPiece::Text("x".to_owned()))
            ]
        );
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_moved(cuts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..40)) {
            let mut pieces = TextPieces::default();
            let (mut offset, mut shown) = (0_u64, Vec::new());
            for cut in &cuts {
                for (begin, piece) in pieces.push(offset, cut) {
                    prop_assert_eq!(begin, shown.len() as u64);
                    shown.extend(bytes_of(piece));
                }
                offset += cut.len() as u64;
            }
            shown.extend(pieces.finish().into_iter().flat_map(|(_, piece)| bytes_of(piece)));
            prop_assert_eq!(shown, cuts.concat());
        }

        #[test]
        fn text_stays_text_wherever_it_is_cut(text in "\\PC{0,40}", size in 1_usize..5) {
            let mut pieces = TextPieces::default();
            let mut offset = 0;
            for cut in text.as_bytes().chunks(size) {
                for (_, piece) in pieces.push(offset, cut) {
                    prop_assert!(matches!(piece, TextPiece::Text(_)));
                }
                offset += cut.len() as u64;
            }
            prop_assert_eq!(pieces.finish(), None);
        }
    }
}
