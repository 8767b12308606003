//! The state of a process as its bridge tells it, checked.

use chrono::{DateTime, Utc};
use skep_bridge_protocol::workspace as wire;

use super::{ExecId, Program, signal};
use crate::bridge::{BridgeError, BridgeResult};

/// How much of a command a listing shows, in characters.
const LONGEST_LISTED: usize = 1024;

/// The state of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecStatus {
    /// Its id.
    pub id: ExecId,
    /// What was started, as it was given.
    pub program: Program,
    /// As seen inside; `None` where the bridge does not tell.
    pub pid: Option<u32>,
    /// When it was started.
    pub started_at: DateTime<Utc>,
    /// How it ended; `None` while it runs.
    pub end: Option<ExecEnd>,
    /// Bytes it wrote to stdout in all.
    pub stdout_bytes: u64,
    /// Bytes it wrote to stderr in all.
    pub stderr_bytes: u64,
    /// Bytes of both that are no longer kept.
    pub dropped_bytes: u64,
    /// The first byte of stdout that is still kept.
    pub stdout_oldest: u64,
    /// The first byte of stderr that is still kept.
    pub stderr_oldest: u64,
    /// It has a terminal.
    pub has_terminal: bool,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecEnd {
    /// When.
    pub finished_at: DateTime<Utc>,
    /// 0–255, or 128 + signal.
    pub exit_code: u8,
    /// The signal that ended it, as `SIGKILL`.
    pub signal: Option<String>,
    /// Its time was over.
    pub timed_out: bool,
}

impl ExecStatus {
    /// The state of the process `id`, checked: codes and times that cannot be are refused.
    pub(super) fn from_wire(status: wire::ExecStatus, id: &ExecId) -> BridgeResult<Self> {
        if status.exec_id != id.as_str() {
            return Err(BridgeError::Untrustworthy("the state of another process".to_owned()));
        }
        let end = match status.exited {
            true => Some(end_of(&status)?),
            false => None,
        };
        let program = match status.command.is_empty() {
            false => Program::Command(status.command),
            true => Program::Argv(
                status
                    .argv
                    .iter()
                    .map(|part| String::from_utf8_lossy(part).into_owned())
                    .collect(),
            ),
        };
        Ok(Self {
            id: id.clone(),
            program,
            pid: Some(status.pid).filter(|pid| *pid != 0),
            started_at: time(status.started_unix_nanos),
            end,
            stdout_bytes: status.stdout_bytes,
            stderr_bytes: status.stderr_bytes,
            dropped_bytes: status.dropped_bytes,
            stdout_oldest: status.stdout_oldest.min(status.stdout_bytes),
            stderr_oldest: status.stderr_oldest.min(status.stderr_bytes),
            has_terminal: status.pty,
        })
    }

    /// How long it ran, or has run until now, in milliseconds.
    pub fn duration_milliseconds(&self) -> u64 {
        let until = self.end.as_ref().map_or_else(Utc::now, |end| end.finished_at);
        u64::try_from((until - self.started_at).num_milliseconds()).unwrap_or(0)
    }

    /// What of it has no fixed size, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        match &self.program {
            Program::Command(command) => command.len(),
            Program::Argv(argv) => argv.iter().map(|part| size_of::<String>() + part.len()).sum(),
        }
    }
}

/// The same with a command of bounded length. Cut before anything is made of it: a stranger wrote it, and what a
/// text or a list once had room for stays with it.
pub(super) fn shortened(mut status: wire::ExecStatus) -> wire::ExecStatus {
    status.command = cut(&status.command);
    let mut left = LONGEST_LISTED;
    let parts = status.argv.iter().map_while(|part| {
        let part = (left > 0).then(|| cut(&String::from_utf8_lossy(part)))?;
        left = left.saturating_sub(part.chars().count() + 1);
        Some(part.into_bytes())
    });
    status.argv = parts.collect();
    status
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST_LISTED) {
        Some((position, _)) => format!("{}…", &text[..position]),
        None => text.to_owned(),
    }
}

fn end_of(status: &wire::ExecStatus) -> BridgeResult<ExecEnd> {
    let exit_code = u8::try_from(status.exit_code)
        .map_err(|_| BridgeError::Untrustworthy("an exit code that cannot be".to_owned()))?;
    let signal = match status.signal {
        0 => None,
        number => Some(signal::signal_name(number)),
    };
    Ok(ExecEnd {
        finished_at: time(status.finished_unix_nanos),
        exit_code,
        signal,
        timed_out: status.timed_out,
    })
}

/// Every number of nanoseconds is a time between the years 1677 and 2262.
fn time(nanos: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_nanos(nanos)
}
