//! How the content of a read is told.

use axum::response::Response;
use skep_api::{Encoding, FileContent};

use crate::http::error::ApiResult;
use crate::http::held::{self, Held, WrittenAs};
use crate::http::room::Room;

/// How a content is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Text,
    Base64,
    Auto,
}

/// `told` with the content that is held in this room.
///
/// # Errors
/// 500 for an answer that cannot be written, which is a defect.
pub(super) fn answer(told: FileContent, (bytes, room): (Vec<u8>, Vec<Room>), wanted: Wanted) -> ApiResult<Response> {
    let is_text = wanted != Wanted::Base64 && std::str::from_utf8(&bytes).is_ok();
    let encoding = match wanted {
        Wanted::Text => None,
        Wanted::Auto if is_text => Some(Encoding::Utf8),
        Wanted::Auto | Wanted::Base64 => Some(Encoding::Base64),
    };
    let told = FileContent {
        lossy: wanted == Wanted::Text && !is_text,
        encoding,
        ..told
    };
    let written_as = match encoding {
        Some(Encoding::Base64) => WrittenAs::Base64,
        Some(Encoding::Utf8) | None => WrittenAs::Text,
    };
    let content = Held {
        bytes,
        written_as,
        room,
    };
    held::document(&told, [("content", content)])
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::http::held::PIECE_BYTES;

    fn written(bytes: &[u8], wanted: Wanted) -> FileContent {
        let told = FileContent {
            path: "/data/\"content\":\"\"".to_owned(),
            content: String::new(),
            size: bytes.len() as u64,
            lossy: false,
            encoding: None,
            etag: Some("\"1\"".to_owned()),
        };
        let response = answer(told, (bytes.to_vec(), Vec::new()), wanted).unwrap();
        let body = futures::executor::block_on(axum::body::to_bytes(response.into_body(), usize::MAX)).unwrap();
        let content: FileContent = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (content.path.as_str(), content.size),
            ("/data/\"content\":\"\"", bytes.len() as u64)
        );
        content
    }

    #[test]
    fn a_content_of_many_pieces_is_what_it_is_in_one() {
        for part in ["a", "é\u{0}\"\\\n", "€", "𝄞x"] {
            let text = part.repeat(3 * PIECE_BYTES / part.len() + 7);
            // What is cut is cut at another byte of a character each time.
            for text in (0..4).map(|shift| "-".repeat(shift) + &text) {
                let content = written(text.as_bytes(), Wanted::Text);
                assert_eq!((content.content == text, content.lossy), (true, false), "{part:?}");
                assert_eq!(written(text.as_bytes(), Wanted::Auto).encoding, Some(Encoding::Utf8));
            }
        }
        assert_eq!(written(b"", Wanted::Text).content, "");
    }

    #[test]
    fn what_is_not_utf8_is_replaced_or_in_base64_as_if_in_one_piece() {
        for part in [&b"\x80"[..], b"\xff", b"\xe2\x82", b"\xf0\x9d\x84", b"a\xc3"] {
            for shift in 0..4 {
                let bytes = [b"-".repeat(shift), part.repeat(2 * PIECE_BYTES / part.len() + 7)].concat();
                let content = written(&bytes, Wanted::Text);
                assert!(
                    content.lossy && content.content == String::from_utf8_lossy(&bytes),
                    "{part:?}"
                );
                for wanted in [Wanted::Auto, Wanted::Base64] {
                    let content = written(&bytes, wanted);
                    assert_eq!((content.encoding, content.lossy), (Some(Encoding::Base64), false));
                    assert!(STANDARD.decode(content.content).unwrap() == bytes, "{part:?}");
                }
            }
        }
    }
}
