//! A process as it goes: its start, its output, its end.

use std::time::Duration;

use bytes::Bytes;
use skep_bridge_protocol::workspace::{ExecEvent as WireEvent, exec_event::Event};
use tokio::time::{Instant, timeout};
use tonic::{Status, Streaming};

use super::text::{TextPiece, whole};
use super::{ExecId, ExecStatus};
use crate::bridge::{BridgeError, BridgeResult};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output; everything of a process with a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What happens to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It was started.
    Started(Box<ExecStatus>),
    /// It wrote.
    Output {
        /// To where.
        stream: OutputStream,
        /// How much it had written there before.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// It ended; nothing follows.
    Exited(Box<ExecStatus>),
}

/// The events of one process.
pub struct ExecEvents {
    events: Streaming<WireEvent>,
    id: ExecId,
    started: bool,
    ended: bool,
    next: [u64; 2],
    /// How long the bridge may still be waited for.
    left: Option<Duration>,
    /// How long it may be waited for each event.
    each: Option<Duration>,
}

impl ExecEvents {
    pub(super) fn new(events: Streaming<WireEvent>, id: ExecId) -> Self {
        Self {
            events,
            id,
            started: false,
            ended: false,
            next: [0, 0],
            left: None,
            each: None,
        }
    }

    /// Gives up when the bridge was waited for so long in all: the time in which nobody asks for the next event is the
    /// reader's own, and does not count.
    #[must_use]
    pub(crate) fn within(mut self, limit: Option<Duration>) -> Self {
        self.left = limit;
        self
    }

    /// Gives up when the bridge was waited for so long for one event: of what is there already, none is far.
    #[must_use]
    pub(super) fn each_within(mut self, limit: Duration) -> Self {
        self.each = Some(limit);
        self
    }

    /// The next event; `None` after the end of the process, or of what was asked for. Waits as long as the process
    /// is silent and its time is not over: that the bridge lives is seen by the connection's own pings.
    ///
    /// # Errors
    /// The bridge was lost, or answered what cannot be: an output that goes back, one that is empty, a second start.
    pub async fn next(&mut self) -> BridgeResult<Option<ExecEvent>> {
        if self.ended {
            return Ok(None);
        }
        let event = self.receive().await.inspect_err(|_| self.ended = true)?;
        let Some(event) = event else {
            self.ended = true;
            return Ok(None);
        };
        match event.event {
            Some(Event::Started(_)) if self.started => self.untrustworthy("a process that starts again"),
            Some(Event::Started(status)) => {
                self.started = true;
                let status = ExecStatus::from_wire(status, &self.id)?;
                Ok(Some(ExecEvent::Started(Box::new(status))))
            }
            Some(Event::Stdout(data) | Event::Stderr(data)) if data.data.is_empty() => {
                self.untrustworthy("an output with nothing in it")
            }
            Some(Event::Stdout(data)) => self.output(OutputStream::Stdout, data.offset, data.data).map(Some),
            Some(Event::Stderr(data)) => self.output(OutputStream::Stderr, data.offset, data.data).map(Some),
            Some(Event::Exit(status)) => {
                self.ended = true;
                let status = ExecStatus::from_wire(status, &self.id)?;
                if status.end.is_none() {
                    return Err(BridgeError::Untrustworthy("an end of a process that runs".to_owned()));
                }
                Ok(Some(ExecEvent::Exited(Box::new(status))))
            }
            None => Err(BridgeError::Untrustworthy("an event that is none".to_owned())),
        }
    }

    fn untrustworthy(&mut self, what: &str) -> BridgeResult<Option<ExecEvent>> {
        self.ended = true;
        Err(BridgeError::Untrustworthy(what.to_owned()))
    }

    async fn receive(&mut self) -> Result<Option<WireEvent>, Status> {
        let Some(limit) = [self.left, self.each].into_iter().flatten().min() else {
            return self.events.message().await;
        };
        let too_late = || Err(Status::deadline_exceeded(""));
        // One that always has something to say must be given up too.
        if limit.is_zero() {
            return too_late();
        }
        let begun = Instant::now();
        let event = timeout(limit, self.events.message())
            .await
            .unwrap_or_else(|_| too_late());
        self.left = self.left.map(|left| left.saturating_sub(begun.elapsed()));
        event
    }

    fn output(&mut self, stream: OutputStream, offset: u64, data: Bytes) -> BridgeResult<ExecEvent> {
        let next = &mut self.next[stream as usize];
        let end = offset.checked_add(data.len() as u64);
        match end {
            Some(end) if offset >= *next => {
                *next = end;
                Ok(ExecEvent::Output { stream, offset, data })
            }
            _ => Err(BridgeError::Untrustworthy("an output that goes back".to_owned())),
        }
    }
}

/// One stream of a finished process, as far as it is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectedOutput {
    /// The output's beginning.
    pub piece: TextPiece,
    /// There is more of it in the log, or on its way there.
    pub truncated: bool,
}

/// A finished process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Its end.
    pub status: ExecStatus,
    /// What it wrote to stdout.
    pub stdout: CollectedOutput,
    /// What it wrote to stderr.
    pub stderr: CollectedOutput,
}

#[derive(Default)]
struct Collector {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Collector {
    fn take(&mut self, offset: u64, data: &[u8], most: usize) {
        // A gap means that the log has dropped what was not read in time.
        let has_gap = offset != self.bytes.len() as u64;
        let room = if has_gap { 0 } else { most - self.bytes.len() };
        self.truncated = data.len() > room;
        self.bytes.extend_from_slice(&data[..data.len().min(room)]);
    }

    fn finish(self, written: u64) -> CollectedOutput {
        let truncated = self.truncated || written > self.bytes.len() as u64;
        CollectedOutput {
            piece: whole(self.bytes, truncated),
            truncated,
        }
    }
}

/// Room in memory for what a process writes while it runs.
pub trait OutputRoom: Send {
    /// So many bytes of this stream are about to be held in all. False: there is no room, and the rest of it is not kept.
    fn cover(&mut self, stream: OutputStream, bytes: usize) -> impl Future<Output = bool> + Send;
}

/// For ever so much.
impl OutputRoom for () {
    async fn cover(&mut self, _stream: OutputStream, _bytes: usize) -> bool {
        true
    }
}

/// Follows a process to its end and keeps the first `most_bytes` of each stream, as far as there is room for them.
///
/// # Errors
/// The bridge was lost before the end was known: no end is made up.
pub async fn collect(
    mut events: ExecEvents,
    most_bytes: usize,
    room: &mut impl OutputRoom,
) -> BridgeResult<ExecOutcome> {
    let mut outputs = [Collector::default(), Collector::default()];
    while let Some(event) = events.next().await? {
        match event {
            ExecEvent::Started(_) => {}
            ExecEvent::Output { stream, offset, data } => {
                let output = &mut outputs[stream as usize];
                if output.truncated {
                    continue;
                }
                match room
                    .cover(stream, (output.bytes.len() + data.len()).min(most_bytes))
                    .await
                {
                    true => output.take(offset, &data, most_bytes),
                    false => output.truncated = true,
                }
            }
            ExecEvent::Exited(status) => {
                let [stdout, stderr] = outputs;
                return Ok(ExecOutcome {
                    stdout: stdout.finish(status.stdout_bytes),
                    stderr: stderr.finish(status.stderr_bytes),
                    status: *status,
                });
            }
        }
    }
    Err(BridgeError::Unreachable(
        "the stream ended before the process did".to_owned(),
    ))
}
