//! Terminals: a shell, or a process that was started with a terminal, as a person's window shows it.
//!
//! The window's own protocol is the server's; here is what a terminal is to a workspace.

use std::time::Duration;

use crate::bridge::{Bridge, BridgeError, BridgeResult};
use crate::exec::{
    self, ExecEvents, ExecId, ExecRequest, ExecStdin, LogLimits, OutputRange, Program, TerminalSize, WhenStreamEnds,
};

/// The largest size either way; more is cut to it.
pub const LARGEST_SIZE: u16 = 1000;

/// What a window on a session that was there before shows first, in bytes.
const REPLAYED_BYTES: u64 = 256 * 1024;
/// The first generation of bridges that has sessions.
const SESSIONS_SINCE: u32 = 6;

/// The name of a shell that outlives its windows: 1–64 of `A–Z a–z 0–9 - _`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionName(String);

impl SessionName {
    /// Reads a name.
    ///
    /// # Errors
    /// `InvalidArgument` for another form.
    pub fn parse(text: &str) -> BridgeResult<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if (1..=64).contains(&text.len()) && text.bytes().all(is_plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(BridgeError::InvalidArgument(
            "session: 1 to 64 of A-Z a-z 0-9 - _".to_owned(),
        ))
    }
}

/// A shell to be started.
#[derive(Debug, Clone, Copy)]
pub struct ShellRequest {
    /// Its terminal's size.
    pub size: TerminalSize,
    /// What is kept of it.
    pub log: LogLimits,
}

/// A terminal that a window is open on.
pub struct Terminal {
    /// The process behind it.
    pub id: ExecId,
    /// What it shows. Dropped, it ends a shell with its whole session, and leaves an attached process running.
    pub events: ExecEvents,
}

/// A size within its limits: 0 and nothing mean the default.
pub fn size(cols: Option<u32>, rows: Option<u32>) -> TerminalSize {
    let default = TerminalSize::default();
    let limited = |given: Option<u32>, default: u16| match given {
        None | Some(0) => default,
        Some(given) => u16::try_from(given).unwrap_or(LARGEST_SIZE).min(LARGEST_SIZE),
    };
    TerminalSize {
        cols: limited(cols, default.cols),
        rows: limited(rows, default.rows),
    }
}

/// Starts the workspace's shell in `/data`; it lives as long as the window.
///
/// # Errors
/// `NotStarted`, `Unreachable`.
pub async fn open(bridge: &Bridge, wanted: ShellRequest) -> BridgeResult<Terminal> {
    let id = ExecId::random();
    let events = exec::run(bridge, &id, shell(bridge, wanted).await?).await?;
    Ok(Terminal { id, events })
}

async fn shell(bridge: &Bridge, wanted: ShellRequest) -> BridgeResult<ExecRequest> {
    let shell = exec::shell(bridge).await?;
    Ok(ExecRequest {
        stdin: ExecStdin::Open(bytes::Bytes::new()),
        terminal: Some(wanted.size),
        log: wanted.log,
        when_stream_ends: WhenStreamEnds::Ends,
        env: vec![("TERM".to_owned(), "xterm-256color".to_owned())],
        ..ExecRequest::of(Program::Argv(vec![shell]))
    })
}

/// Whether the workspace's bridge has sessions.
///
/// # Errors
/// `Unsupported` when it was made before there were any.
pub fn check_sessions(bridge: &Bridge) -> BridgeResult<()> {
    match bridge.generation() >= SESSIONS_SINCE {
        true => Ok(()),
        false => Err(BridgeError::Unsupported(
            "sessions that outlive their window".to_owned(),
        )),
    }
}

/// How a session is opened.
#[derive(Debug, Clone, Copy)]
pub struct SessionTerms {
    /// How long its shell lives on without a window.
    pub keep: Duration,
    /// Only one that runs: its shell is not replaced when it has ended.
    pub resume: bool,
}

/// Opens a window on the session of that name: the shell that runs, with the last of what it showed, or a new one.
///
/// # Errors
/// As [`open`]; `NotFound` when none runs that could be resumed.
pub async fn open_session(
    bridge: &Bridge,
    name: &SessionName,
    wanted: ShellRequest,
    terms: SessionTerms,
) -> BridgeResult<Terminal> {
    let shell = shell(bridge, wanted).await?;
    let (status, is_new) = exec::open_session(bridge, &name.0, shell, terms.keep).await?;
    if is_new && terms.resume {
        // A bridge starts one where none runs, and does not say so before.
        exec::remove(bridge, &status.id).await?;
        return Err(BridgeError::NotFound("the session has ended".to_owned()));
    }
    let shown_from = status.stdout_bytes.saturating_sub(REPLAYED_BYTES);
    let terminal = attach(bridge, status.id, shown_from).await?;
    match exec::resize(bridge, &terminal.id, wanted.size).await {
        // One that has ended by now still shows its output.
        Ok(()) | Err(BridgeError::Conflict(_)) => Ok(terminal),
        Err(error) => Err(error),
    }
}

/// Opens a window on a process that has a terminal, from the byte `offset` of its output on.
///
/// # Errors
/// `NotFound`; `InvalidArgument` when it has no terminal.
pub async fn attach(bridge: &Bridge, id: ExecId, offset: u64) -> BridgeResult<Terminal> {
    let status = exec::status(bridge, &id).await?;
    if !status.has_terminal {
        return Err(BridgeError::InvalidArgument("this process has no terminal".to_owned()));
    }
    let range = OutputRange {
        stdout: Some(offset),
        stderr: None,
        follow: true,
    };
    let events = exec::output(bridge, &id, range).await?;
    Ok(Terminal { id, events })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_stay_within_their_limits() {
        let shown = |cols, rows| {
            let size = size(cols, rows);
            (size.cols, size.rows)
        };
        assert_eq!(shown(None, Some(0)), (80, 24));
        assert_eq!(shown(Some(5000), Some(u32::MAX)), (1000, 1000));
        assert_eq!(shown(Some(1), Some(50)), (1, 50));
    }
}
