//! Answers with long contents in them, written as they are sent: escaped for JSON a content can be six times as long.

use std::collections::VecDeque;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;

use crate::http::error::{ApiError, ApiResult};
use crate::http::room::{HoldsRoom, Room};

/// How much of a content is written at a time; a multiple of three, so that base64 goes on without padding.
pub(super) const PIECE_BYTES: usize = 48 * 1024;

/// How a content stands in the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrittenAs {
    /// What is not UTF-8 is replaced by U+FFFD.
    Text,
    Base64,
}

/// A content, and the room that it takes until it is written.
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    pub(super) written_as: WrittenAs,
    pub(super) room: Vec<Room>,
}

/// `told` as JSON, with each content in the place of the field of that name, which is an empty text in `told`; the names in
/// the order of the fields.
///
/// # Errors
/// 500 for an answer that cannot be written, which is a defect.
pub(super) fn document(
    told: &impl Serialize,
    contents: impl IntoIterator<Item = (&'static str, Held)>,
) -> ApiResult<Response> {
    let frame = serde_json::to_string(told).map_err(ApiError::internal)?;
    let mut rest = frame.as_str();
    let mut parts = VecDeque::new();
    for (name, held) in contents {
        // Inside of a text its quotes would be escaped.
        let (before, after) = rest
            .split_once(&format!("\"{name}\":\"\""))
            .ok_or_else(|| ApiError::internal(format!("an answer without a place for its {name}")))?;
        // The quote that ends the one before.
        let end = if parts.is_empty() { "" } else { "\"" };
        parts.push_back(Part {
            before: format!("{end}{before}\"{name}\":\""),
            bytes: held.bytes,
            written: 0,
            written_as: held.written_as,
            _room: held.room,
        });
        rest = after;
    }
    let end = if parts.is_empty() { "" } else { "\"" };
    let pieces = Pieces {
        after: Some(format!("{end}{rest}")),
        parts,
    };
    Ok(in_pieces(pieces))
}

/// JSON that comes in pieces, and must be taken in time.
pub(super) fn in_pieces<P>(pieces: P) -> Response
where
    P: Iterator<Item = serde_json::Result<Bytes>> + Send + 'static,
{
    let mut response = Response::new(Body::from_stream(futures::stream::iter(pieces)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.extensions_mut().insert(HoldsRoom);
    response
}

/// A content, with what stands between it and the one before.
struct Part {
    before: String,
    bytes: Vec<u8>,
    written: usize,
    written_as: WrittenAs,
    _room: Vec<Room>,
}

impl Part {
    fn write_some(&mut self, text: &mut String) -> serde_json::Result<()> {
        text.push_str(&std::mem::take(&mut self.before));
        let rest = &self.bytes[self.written..];
        match self.written_as {
            WrittenAs::Base64 => {
                let piece = &rest[..rest.len().min(PIECE_BYTES)];
                STANDARD.encode_string(piece, text);
                self.written += piece.len();
            }
            WrittenAs::Text => {
                let piece = &rest[..length_of_text(rest)];
                let quoted = serde_json::to_string(&String::from_utf8_lossy(piece))?;
                text.push_str(&quoted[1..quoted.len() - 1]);
                self.written += piece.len();
            }
        }
        Ok(())
    }
}

/// The answer from its start to its end.
struct Pieces {
    parts: VecDeque<Part>,
    /// `None`: all of it was given.
    after: Option<String>,
}

impl Iterator for Pieces {
    type Item = serde_json::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        self.after.as_ref()?;
        let mut text = String::new();
        while let Some(part) = self.parts.front_mut() {
            if let Err(error) = part.write_some(&mut text) {
                self.after = None;
                return Some(Err(error));
            }
            if part.written < part.bytes.len() {
                return Some(Ok(text.into()));
            }
            self.parts.pop_front();
        }
        text.push_str(&self.after.take()?);
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
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn contents_stand_in_their_fields_whatever_the_others_hold() {
        #[derive(Serialize)]
        struct Told {
            name: &'static str,
            first: &'static str,
            between: u8,
            second: &'static str,
            third: &'static str,
        }
        let told = Told {
            name: "\"first\":\"\"",
            first: "",
            between: 7,
            second: "",
            third: "",
        };
        for length in [0, 1, PIECE_BYTES, 2 * PIECE_BYTES + 1] {
            let held = |written_as| Held {
                bytes: vec![b'"'; length],
                written_as,
                room: Vec::new(),
            };
            let contents = [
                ("first", held(WrittenAs::Text)),
                ("second", held(WrittenAs::Base64)),
                ("third", held(WrittenAs::Text)),
            ];
            let response = document(&told, contents).unwrap();
            let body = futures::executor::block_on(axum::body::to_bytes(response.into_body(), usize::MAX)).unwrap();
            let text = "\"".repeat(length);
            let expected = json!({"name": told.name, "first": text, "between": 7, "second": STANDARD.encode(&text),
                "third": text});
            assert!(serde_json::from_slice::<Value>(&body).unwrap() == expected, "{length}");
        }
    }
}
