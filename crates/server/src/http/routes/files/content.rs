//! The answer of a read, written as it is sent: escaped for JSON a file can be six times as long.

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use skep_api::{Encoding, FileContent};

use crate::http::error::{ApiError, ApiResult};
use crate::http::room::{HoldsRoom, Room};

/// How much of a file is written at a time; a multiple of three, so that base64 goes on without padding.
const PIECE_BYTES: usize = 48 * 1024;
/// Where the content comes in the answer. Inside of a text its quotes would be escaped.
const NO_CONTENT: &str = "\"content\":\"\"";

/// How a content is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Text,
    Base64,
    Auto,
}

/// A content, and the room that it takes.
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    pub(super) _rooms: Vec<Room>,
}

/// `told` with the content that is held.
///
/// # Errors
/// 500 for an answer that cannot be written, which is a defect.
pub(super) fn answer(told: FileContent, held: Held, wanted: Wanted) -> ApiResult<Response> {
    let is_text = wanted != Wanted::Base64 && std::str::from_utf8(&held.bytes).is_ok();
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
    let frame = serde_json::to_string(&told).map_err(ApiError::internal)?;
    let (before, after) = frame
        .split_once(NO_CONTENT)
        .ok_or_else(|| ApiError::internal("an answer without a place for its content"))?;
    let pieces = Pieces {
        before: format!("{before}\"content\":\""),
        held,
        written: 0,
        after: Some(format!("\"{after}")),
        in_base64: encoding == Some(Encoding::Base64),
    };
    let mut response = Response::new(Body::from_stream(futures::stream::iter(pieces)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.extensions_mut().insert(HoldsRoom);
    Ok(response)
}

/// The answer from its start to its end.
struct Pieces {
    before: String,
    held: Held,
    written: usize,
    /// `None`: all of it was given.
    after: Option<String>,
    in_base64: bool,
}

impl Iterator for Pieces {
    type Item = serde_json::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        self.after.as_ref()?;
        let rest = &self.held.bytes[self.written..];
        let piece = &rest[..if self.in_base64 {
            rest.len().min(PIECE_BYTES)
        } else {
            length_of_text(rest)
        }];
        let mut text = std::mem::take(&mut self.before);
        if self.in_base64 {
            STANDARD.encode_string(piece, &mut text);
        } else {
            match serde_json::to_string(&String::from_utf8_lossy(piece)) {
                Ok(quoted) => text.push_str(&quoted[1..quoted.len() - 1]),
                Err(error) => return Some(Err(error)),
            }
        }
        self.written += piece.len();
        if self.written == self.held.bytes.len() {
            text.push_str(&self.after.take()?);
        }
        Some(Ok(text.into()))
    }
}

/// How much of it is written next: no character is cut. Of four bytes in a row that only go on with one, none belongs
/// to any.
fn length_of_text(rest: &[u8]) -> usize {
    let goes_on = |at: &usize| rest.get(*at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let most = rest.len().min(PIECE_BYTES);
    let nearest = most.saturating_sub(3)..=most;
    nearest.rev().find(|at| !goes_on(at)).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8], wanted: Wanted) -> FileContent {
        let told = FileContent {
            path: "/data/\"content\":\"\"".to_owned(),
            content: String::new(),
            size: bytes.len() as u64,
            lossy: false,
            encoding: None,
            etag: Some("\"1\"".to_owned()),
        };
        let held = Held {
            bytes: bytes.to_vec(),
            _rooms: Vec::new(),
        };
        let response = answer(told, held, wanted).unwrap();
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
