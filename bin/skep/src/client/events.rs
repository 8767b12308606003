//! Server-sent events, read so that a stream that merely stops is never taken for a good end.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::progress::ProgressView;

/// The server sends a comment every 10 s; this much silence means that it is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// No command runs longer: the contract's limit of a day, and as much again.
const LONGEST_COMMAND: Duration = Duration::from_secs(48 * 3600);
/// No event is longer: output comes in pieces of at most 64 KiB, base64 and JSON around it.
const EVENT_LIMIT_BYTES: usize = 4 << 20;

/// Splits a body into the JSON of its `data:` lines.
pub(crate) struct EventReader<S> {
    body: S,
    held: Vec<u8>,
    scanned: usize,
    silence_limit: Duration,
}

impl<S, E> EventReader<S>
where
    S: Stream<Item = std::result::Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    /// Reads events from this body.
    pub(crate) fn new(body: S) -> Self {
        Self {
            body,
            held: Vec::new(),
            scanned: 0,
            silence_limit: SILENCE_LIMIT,
        }
    }

    /// For a stream that may be silent for as long as a command is; TCP notices a dead server.
    pub(crate) fn without_silence_limit(self) -> Self {
        Self {
            silence_limit: LONGEST_COMMAND,
            ..self
        }
    }

    /// The next event; `None` when the body ended, whatever that means.
    ///
    /// # Errors
    /// The connection broke, nothing came for a minute, or it is no event stream of ours.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(line) = self.take_line() {
                if let Some(data) = line.strip_prefix(b"data:") {
                    return parse(data).map(Some);
                }
                continue;
            }
            if self.held.len() > EVENT_LIMIT_BYTES {
                return Err(unexpected("an event is too long"));
            }
            match tokio::time::timeout(self.silence_limit, self.body.next()).await {
                Err(_) => {
                    return Err(unexpected(format!(
                        "nothing came for {} s",
                        self.silence_limit.as_secs()
                    )));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Ok(bytes))) => self.held.extend_from_slice(&bytes),
                Ok(Some(Err(error))) => return Err(unexpected(error.to_string())),
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let Some(found) = self.held[self.scanned..].iter().position(|byte| *byte == b'\n') else {
            self.scanned = self.held.len();
            return None;
        };
        let mut line: Vec<u8> = self.held.drain(..=self.scanned + found).collect();
        self.scanned = 0;
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Some(line)
    }
}

fn parse(data: &[u8]) -> Result<Value> {
    serde_json::from_slice(data).map_err(|error| unexpected(error.to_string()))
}

fn unexpected(what: impl Into<String>) -> Failure {
    Failure::Unexpected {
        doing: "sending events",
        what: what.into(),
    }
}

/// Follows a stream that must end in `complete` or `error`, shows its progress, and returns the
/// `complete` event.
///
/// # Errors
/// The stream told an error, or ended without telling how it went.
pub(crate) async fn follow_to_the_end(answer: reqwest::Response, view: &mut ProgressView) -> Result<Value> {
    let mut events = EventReader::new(answer.bytes_stream());
    while let Some(event) = events.next().await? {
        match event.get("type").and_then(Value::as_str) {
            Some("complete") => {
                view.finish();
                return Ok(event);
            }
            Some("error") => {
                view.abandon();
                let text = |key: &str| event.get(key).and_then(Value::as_str).map(str::to_owned);
                return Err(Failure::StreamFailed {
                    code: text("code"),
                    message: text("message").unwrap_or_else(|| "the server told no reason".into()),
                });
            }
            _ => view.show(&event),
        }
    }
    view.abandon();
    Err(Failure::CutOff("it worked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Piece = std::result::Result<Bytes, std::io::Error>;

    fn reader(pieces: Vec<&'static [u8]>) -> EventReader<impl Stream<Item = Piece> + Unpin> {
        EventReader::new(futures::stream::iter(
            pieces.into_iter().map(|piece| Ok(Bytes::from_static(piece))),
        ))
    }

    #[tokio::test]
    async fn events_are_found_however_the_bytes_are_cut() {
        let text: &'static [u8] =
            b": hello\n\nid: 1\ndata: {\"type\":\"a\"}\n\nid: 2\r\ndata: {\"type\":\"b\"}\r\n\r\n";
        for size in 1..text.len() {
            let mut events = reader(text.chunks(size).collect());
            assert_eq!(events.next().await.unwrap().unwrap()["type"], "a");
            assert_eq!(events.next().await.unwrap().unwrap()["type"], "b");
            assert!(events.next().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn an_event_that_is_cut_off_is_not_an_event() {
        let mut events = reader(vec![b"data: {\"type\":\"comp"]);
        assert!(events.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn junk_is_an_error() {
        assert!(reader(vec![b"data: nonsense\n\n"]).next().await.is_err());
    }
}
