//! Processes in a workspace, over its bridge. The bridge keeps their output and their end; a lost stream or a
//! restarted server loses nothing, and an exit code comes from the bridge's own `wait` or not at all.

mod events;
mod list;
mod request;
mod signal;
mod status;
mod text;

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use skep_bridge_protocol::STREAM_CHUNK_BYTES;
use skep_bridge_protocol::workspace::{
    self as wire, ExecId as WireId, ExecOutputRequest, ExecStdinChunk, OpenSessionRequest, ResizeExecRequest,
    SignalExecRequest,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use crate::bridge::{Bridge, BridgeError, BridgeResult, NEXT_PIECE_WITHIN, SMALL_WITHIN};

pub use events::{CollectedOutput, ExecEvent, ExecEvents, ExecOutcome, OutputRoom, OutputStream, collect};
pub use list::{ProcessPages, list};
pub use request::{ExecRequest, ExecStdin, LONGEST_TIMEOUT, LogLimits, Program, TerminalSize, WhenStreamEnds};
pub use signal::signal_number;
pub use status::{ExecEnd, ExecStatus};
pub use text::{TextPiece, TextPieces};

/// The first generation of bridges that gives a slow reader also what a process wrote just before its end.
const WAITS_WHOLLY_SINCE: u32 = 7;
/// How long the end of a process whose time is over may take to be told. A bridge of ours needs 3 s for it.
const END_WITHIN: Duration = Duration::from_secs(30);
/// How long a process may leave its input unread before a caller who writes to it is told.
const STDIN_WITHIN: Duration = Duration::from_secs(60 * 60);

/// An exec's id: 1–128 of `A–Z a–z 0–9 - _`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecId(String);

impl ExecId {
    /// A new one that nobody has had.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }

    /// Reads an id.
    ///
    /// # Errors
    /// `InvalidArgument` for another form.
    pub fn parse(text: &str) -> BridgeResult<Self> {
        let is_plain = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if is_plain && (1..=128).contains(&text.len()) {
            return Ok(Self(text.to_owned()));
        }
        Err(BridgeError::InvalidArgument("malformed exec id".to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Starts a process and follows it: the first event is its start, the last one its end. It waits for whoever reads the
/// events slowly.
///
/// # Errors
/// `NotStarted` when it cannot be started at all, `InvalidArgument`, `Unreachable`.
pub async fn run(bridge: &Bridge, id: &ExecId, request: ExecRequest) -> BridgeResult<ExecEvents> {
    let mut client = bridge.workspace();
    let limit = request.timeout.map(|limit| limit.saturating_add(END_WITHIN));
    let mut wire = request.into_wire(id);
    // Whoever follows it wants every byte. Gone, he holds up nobody.
    wire.wait_for_reader |= bridge.generation() >= WAITS_WHOLLY_SINCE;
    let events = Bridge::answer(SMALL_WITHIN, client.run_exec(wire)).await?;
    Ok(ExecEvents::new(events, id.clone()).within(limit))
}

/// Starts a process that nobody follows. The same id again gives the one there is.
///
/// # Errors
/// As [`run`].
pub async fn start(bridge: &Bridge, id: &ExecId, request: ExecRequest) -> BridgeResult<ExecStatus> {
    let mut client = bridge.workspace();
    let status = Bridge::answer(SMALL_WITHIN, client.start_exec(request.into_wire(id))).await?;
    ExecStatus::from_wire(status, id)
}

/// The process of that name, or the one that is asked for when none of that name runs, and whether it is the latter. It
/// ends when nobody has read its output for `keep`.
///
/// # Errors
/// As [`run`]; `Unsupported` by a bridge that has no sessions.
pub(crate) async fn open_session(
    bridge: &Bridge,
    name: &str,
    request: ExecRequest,
    keep: Duration,
) -> BridgeResult<(ExecStatus, bool)> {
    let mut client = bridge.workspace();
    let own = ExecId::random();
    let request = OpenSessionRequest {
        name: name.to_owned(),
        exec: Some(request.into_wire(&own)),
        keep_milliseconds: u64::try_from(keep.as_millis()).unwrap_or(u64::MAX),
    };
    let status = Bridge::answer(SMALL_WITHIN, client.open_session(request)).await?;
    let id = ExecId::parse(&status.exec_id)
        .map_err(|_| BridgeError::Untrustworthy("an id that no process has".to_owned()))?;
    Ok((ExecStatus::from_wire(status, &id)?, id == own))
}

/// Which output to read, and from where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputRange {
    /// Whether stdout is read, and from which offset.
    pub stdout: Option<u64>,
    /// Whether stderr is read, and from which offset.
    pub stderr: Option<u64>,
    /// Go on until the process has ended.
    pub follow: bool,
}

/// What is kept of a process's output.
///
/// # Errors
/// `NotFound` when there is no such process (any more), `Unreachable`.
pub async fn output(bridge: &Bridge, id: &ExecId, range: OutputRange) -> BridgeResult<ExecEvents> {
    output_within(NEXT_PIECE_WITHIN, bridge, id, range).await
}

/// As [`output`], with another limit for each event of what is not followed.
pub(crate) async fn output_within(
    limit: Duration,
    bridge: &Bridge,
    id: &ExecId,
    range: OutputRange,
) -> BridgeResult<ExecEvents> {
    let mut client = bridge.workspace();
    let request = ExecOutputRequest {
        exec_id: id.0.clone(),
        stdout_offset: range.stdout.unwrap_or(0),
        stderr_offset: range.stderr.unwrap_or(0),
        follow: range.follow,
        stdout: range.stdout.is_some(),
        stderr: range.stderr.is_some(),
    };
    let events = Bridge::answer(SMALL_WITHIN, client.exec_output(request)).await?;
    let events = ExecEvents::new(events, id.clone());
    Ok(match range.follow {
        true => events,
        false => events.each_within(limit),
    })
}

/// The state of one process.
///
/// # Errors
/// `NotFound`, `Unreachable`.
pub async fn status(bridge: &Bridge, id: &ExecId) -> BridgeResult<ExecStatus> {
    let mut client = bridge.workspace();
    let status = Bridge::answer(SMALL_WITHIN, client.get_exec(wire_id(id))).await?;
    ExecStatus::from_wire(status, id)
}

/// Sends a signal to the process's whole group.
///
/// # Errors
/// `NotFound`; `Conflict` when it is over.
pub async fn signal(bridge: &Bridge, id: &ExecId, signal: i32) -> BridgeResult<()> {
    let mut client = bridge.workspace();
    let exec_id = id.0.clone();
    Bridge::answer(SMALL_WITHIN, client.signal_exec(SignalExecRequest { exec_id, signal }))
        .await
        .map(|_| ())
}

/// Gives the process's terminal another size.
///
/// # Errors
/// `NotFound`; `Conflict` when it is over or has no terminal.
pub async fn resize(bridge: &Bridge, id: &ExecId, size: TerminalSize) -> BridgeResult<()> {
    let mut client = bridge.workspace();
    let request = ResizeExecRequest {
        exec_id: id.0.clone(),
        cols: u32::from(size.cols),
        rows: u32::from(size.rows),
    };
    Bridge::answer(SMALL_WITHIN, client.resize_exec(request))
        .await
        .map(|_| ())
}

/// Ends the whole group and forgets it and its output.
///
/// # Errors
/// `NotFound`, `Unreachable`.
pub async fn remove(bridge: &Bridge, id: &ExecId) -> BridgeResult<()> {
    let mut client = bridge.workspace();
    Bridge::answer(SMALL_WITHIN, client.remove_exec(wire_id(id)))
        .await
        .map(|_| ())
}

/// The shell that a terminal starts.
///
/// # Errors
/// `Unreachable`, `Unsupported`.
pub async fn shell(bridge: &Bridge) -> BridgeResult<String> {
    let mut client = bridge.workspace();
    let answer = Bridge::answer(SMALL_WITHIN, client.shell(wire::Empty {})).await?;
    if !answer.path.starts_with('/') || answer.path.len() > 4095 || answer.path.contains('\0') {
        return Err(BridgeError::Untrustworthy("a shell that is no path".to_owned()));
    }
    Ok(answer.path)
}

/// What happens to a process's input after the bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputEnd {
    /// It stays open for more.
    Open,
    /// It is closed.
    Closed,
}

/// Writes to a process's input; returns when the process's pipe has taken all of it.
///
/// # Errors
/// `NotFound`; `Conflict` when the process or its input is closed; `Unreachable` after an hour in which the process
/// read nothing.
pub async fn write_stdin(
    bridge: &Bridge,
    id: &ExecId,
    source: impl Stream<Item = BridgeResult<Bytes>> + Send,
    end: InputEnd,
) -> BridgeResult<()> {
    let mut client = bridge.workspace();
    let (sender, receiver) = mpsc::channel(2);
    let call = client.exec_stdin(ReceiverStream::new(receiver));
    let feed = feed_stdin(id, source, end, sender);
    tokio::pin!(call, feed);
    let answer = tokio::select! {
        answer = &mut call => answer,
        fed = &mut feed => {
            fed?;
            timeout(STDIN_WITHIN, &mut call).await.map_err(|_| BridgeError::late("the process's reading of its input"))?
        }
    };
    answer?;
    Ok(())
}

async fn feed_stdin(
    id: &ExecId,
    source: impl Stream<Item = BridgeResult<Bytes>>,
    end: InputEnd,
    sender: mpsc::Sender<ExecStdinChunk>,
) -> BridgeResult<()> {
    let chunk = |data: Bytes, eof: bool| ExecStdinChunk {
        exec_id: id.0.clone(),
        data,
        eof,
    };
    // The first message names the process even when there are no bytes. A refused send means that the call is
    // over, and tells why.
    if sender.send(chunk(Bytes::new(), false)).await.is_err() {
        return Ok(());
    }
    tokio::pin!(source);
    while let Some(mut bytes) = source.next().await.transpose()? {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(STREAM_CHUNK_BYTES));
            match timeout(STDIN_WITHIN, sender.send(chunk(piece, false))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(BridgeError::late("the process's reading of its input")),
            }
        }
    }
    if end == InputEnd::Closed && sender.send(chunk(Bytes::new(), true)).await.is_err() {
        return Ok(());
    }
    Ok(())
}

fn wire_id(id: &ExecId) -> WireId {
    WireId { exec_id: id.0.clone() }
}
