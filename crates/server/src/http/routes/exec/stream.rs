//! A process as server-sent events: its start, its output, and always an end: `exit` or `error`.

use std::collections::VecDeque;

use axum::response::Response;
use base64::Engine;
use futures::Stream;
use skep_api::{Encoding, ExecOutput, ExecStreamEvent};
use skep_core::bridge::{BridgeError, BridgeResult};
use skep_core::exec::{ExecEvent, ExecEvents, ExecStatus, OutputStream, TextPiece, TextPieces};

use super::super::files::refused;
use super::interruption::{Watch, restarted};
use crate::http::error::ApiResult;
use crate::http::sse;

pub(super) struct Following {
    events: ExecEvents,
    watch: Watch,
    snapshot_version: Option<u64>,
    request_id: String,
    texts: [TextPieces; 2],
    ready: VecDeque<ExecStreamEvent>,
    ended: bool,
}

fn numbered(following: Following) -> impl Stream<Item = (u64, ExecStreamEvent)> + Send {
    futures::stream::unfold((following, 0_u64), |(mut following, number)| async move {
        loop {
            if let Some(event) = following.ready.pop_front() {
                return Some(((number, event), (following, number + 1)));
            }
            if following.ended {
                return None;
            }
            let event = following.events.next().await;
            following.take(event);
        }
    })
}

impl Following {
    pub(super) fn new(events: ExecEvents, watch: Watch, request_id: String) -> Self {
        Self {
            events,
            watch,
            snapshot_version: None,
            request_id,
            texts: [TextPieces::default(), TextPieces::default()],
            ready: VecDeque::new(),
            ended: false,
        }
    }

    /// Follows a process. What cannot be started at all is a status, not a stream.
    pub(super) async fn answer(mut self, snapshot_version: Option<u64>) -> ApiResult<Response> {
        self.snapshot_version = snapshot_version;
        let first = self.events.next().await.map_err(refused)?;
        self.take(Ok(first));
        Ok(sse::stream(numbered(self), sse::Ids::Without))
    }

    fn take(&mut self, event: BridgeResult<Option<ExecEvent>>) {
        match event {
            Ok(Some(ExecEvent::Started(status))) => self.ready.push_back(ExecStreamEvent::Start {
                exec_id: status.id.as_str().to_owned(),
                pid: status.pid,
                snapshot_version: self.snapshot_version,
            }),
            Ok(Some(ExecEvent::Output { stream, offset, data })) => {
                let pieces = self.texts[stream as usize].push(offset, &data);
                self.ready.extend(pieces.into_iter().map(|piece| output(stream, piece)));
            }
            Ok(Some(ExecEvent::Exited(status))) => self.end(&status),
            Ok(None) => self.fail(BridgeError::Unreachable(
                "the stream ended before the process did".to_owned(),
            )),
            Err(error) => self.fail(error),
        }
    }

    fn end(&mut self, status: &ExecStatus) {
        if self.watch.has_ended(status) {
            return self.fail(BridgeError::Unreachable("its workspace was stopped".to_owned()));
        }
        self.flush();
        let Some(end) = &status.end else {
            return self.fail(BridgeError::Untrustworthy("an end that is none".to_owned()));
        };
        self.ready.push_back(ExecStreamEvent::Exit {
            exec_id: status.id.as_str().to_owned(),
            exit_code: end.exit_code,
            signal: end.signal.clone(),
            timed_out: end.timed_out,
            duration_ms: status.duration_milliseconds(),
            stdout_bytes: status.stdout_bytes,
            stderr_bytes: status.stderr_bytes,
        });
        self.ended = true;
    }

    fn fail(&mut self, error: BridgeError) {
        self.flush();
        let error = match self.watch.was_interrupted() {
            true => restarted(),
            false => refused(error),
        };
        let event = ExecStreamEvent::Error {
            message: error.to_string(),
            code: error.code(),
            request_id: self.request_id.clone(),
        };
        self.ready.push_back(event);
        self.ended = true;
    }

    fn flush(&mut self) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let held = self.texts[stream as usize].finish();
            self.ready.extend(held.map(|piece| output(stream, piece)));
        }
    }
}

fn output(stream: OutputStream, (offset, piece): (u64, TextPiece)) -> ExecStreamEvent {
    let (data, encoding) = match piece {
        TextPiece::Text(text) => (text, Encoding::Utf8),
        TextPiece::Bytes(bytes) => (
            base64::engine::general_purpose::STANDARD.encode(bytes),
            Encoding::Base64,
        ),
    };
    let output = ExecOutput { offset, data, encoding };
    match stream {
        OutputStream::Stdout => ExecStreamEvent::Stdout(output),
        OutputStream::Stderr => ExecStreamEvent::Stderr(output),
    }
}
