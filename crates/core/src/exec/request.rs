//! What a caller wants to have run.

use std::time::Duration;

use bytes::Bytes;
use skep_bridge_protocol::workspace::StartExecRequest;

use super::ExecId;
use crate::bridge::{BridgeError, BridgeResult};

/// The longest time limit of a process.
pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// All arguments and variables together: what fits one message with room to spare.
const MOST_ARGUMENT_BYTES: usize = 2 * 1024 * 1024;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// By `/bin/sh -c`.
    Command(String),
    /// Directly.
    Argv(Vec<String>),
}

/// What a process reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecStdin {
    /// Nothing.
    Closed,
    /// These bytes, and then the end.
    Bytes(Bytes),
    /// These bytes first, then what is written to it until it is closed.
    Open(Bytes),
}

/// Size of a terminal, 1–1000 each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

impl Default for TerminalSize {
    fn default() -> Self {
        Self { cols: 80, rows: 24 }
    }
}

/// What a lost stream of output means for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenStreamEnds {
    /// Nothing: it goes on until its end or its time limit.
    GoesOn,
    /// Its session is ended; and while it runs it waits for a slow reader.
    Ends,
}

/// How much is kept of what a process wrote, and for how long after its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of each output, the oldest dropped; 0: the bridge's default.
    pub bytes: u64,
    /// `None`: the bridge's default, a day. Bridges before generation 7 know no other.
    pub keep: Option<Duration>,
}

/// A process to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// What to run.
    pub program: Program,
    /// Where; `None`: `/data`.
    pub work_dir: Option<String>,
    /// Over the workspace's own.
    pub env: Vec<(String, String)>,
    /// What it reads.
    pub stdin: ExecStdin,
    /// `None`: no limit; at most [`LONGEST_TIMEOUT`].
    pub timeout: Option<Duration>,
    /// With a terminal of this size.
    pub terminal: Option<TerminalSize>,
    /// Name, uid, `name:group` or `uid:gid`; `None`: root.
    pub user: Option<String>,
    /// What is kept of it.
    pub log: LogLimits,
    /// What a lost stream means.
    pub when_stream_ends: WhenStreamEnds,
}

impl ExecRequest {
    /// Runs a program with everything else as it is by default.
    pub fn of(program: Program) -> Self {
        Self {
            program,
            work_dir: None,
            env: Vec::new(),
            stdin: ExecStdin::Closed,
            timeout: None,
            terminal: None,
            user: None,
            log: LogLimits::default(),
            when_stream_ends: WhenStreamEnds::GoesOn,
        }
    }

    /// What no process can be started with.
    ///
    /// # Errors
    /// `InvalidArgument` that names it.
    pub fn check(&self) -> BridgeResult<()> {
        let invalid = |text: &str| Err(BridgeError::InvalidArgument(text.to_owned()));
        let arguments: Vec<&str> = match &self.program {
            Program::Command(command) if command.trim().is_empty() => return invalid("command is required"),
            Program::Command(command) => vec![command.as_str()],
            Program::Argv(argv) if argv.first().is_none_or(String::is_empty) => {
                return invalid("argv needs a program");
            }
            Program::Argv(argv) => argv.iter().map(String::as_str).collect(),
        };
        for (key, _) in &self.env {
            if key.is_empty() || key.contains('=') {
                return invalid("the name of a variable cannot be empty or hold a =");
            }
        }
        let variables = self.env.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]);
        let rest = [self.work_dir.as_deref(), self.user.as_deref()].into_iter().flatten();
        let mut total = 0;
        for text in arguments.into_iter().chain(variables).chain(rest) {
            if text.contains('\0') {
                return invalid("no argument, variable or path can hold a NUL byte");
            }
            total += text.len();
        }
        if total > MOST_ARGUMENT_BYTES {
            return invalid("the arguments and variables are over 2 MiB; send what is long by stdin");
        }
        if self.timeout.is_some_and(|timeout| timeout > LONGEST_TIMEOUT) {
            return invalid("a process may take at most 24 hours");
        }
        Ok(())
    }

    pub(super) fn into_wire(self, id: &ExecId) -> StartExecRequest {
        let (argv, command) = match self.program {
            Program::Command(command) => (vec!["/bin/sh".to_owned(), "-c".to_owned(), command.clone()], command),
            Program::Argv(argv) => (argv, String::new()),
        };
        let (stdin, stdin_data) = match self.stdin {
            ExecStdin::Closed => (false, Bytes::new()),
            ExecStdin::Bytes(bytes) => (false, bytes),
            ExecStdin::Open(bytes) => (true, bytes),
        };
        let ends = self.when_stream_ends == WhenStreamEnds::Ends;
        let size = self.terminal.unwrap_or_default();
        StartExecRequest {
            exec_id: id.as_str().to_owned(),
            argv: argv.into_iter().map(String::into_bytes).collect(),
            work_dir: self.work_dir.unwrap_or_default().into(),
            env: self
                .env
                .iter()
                .map(|(key, value)| format!("{key}={value}").into())
                .collect(),
            timeout_milliseconds: self.timeout.map_or(0, milliseconds),
            pty: self.terminal.is_some(),
            cols: u32::from(size.cols),
            rows: u32::from(size.rows),
            user: self.user.unwrap_or_default(),
            stdin,
            log_bytes: self.log.bytes,
            end_with_stream: ends,
            command,
            stdin_data,
            wait_for_reader: ends,
            keep_milliseconds: self.log.keep.map_or(0, milliseconds),
        }
    }
}

/// Never 0, which would mean no limit, or the default one.
fn milliseconds(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_started_is_refused_before_it_is_sent() {
        let good = ExecRequest::of(Program::Command("true".to_owned()));
        assert_eq!(good.check(), Ok(()));
        let bad = [
            ExecRequest::of(Program::Command("  ".to_owned())),
            ExecRequest::of(Program::Argv(Vec::new())),
            ExecRequest::of(Program::Argv(vec![String::new()])),
            ExecRequest::of(Program::Argv(vec!["a\0b".to_owned()])),
            ExecRequest::of(Program::Command("x".repeat(3 << 20))),
            ExecRequest {
                env: vec![("A=B".to_owned(), String::new())],
                ..good.clone()
            },
            ExecRequest {
                timeout: Some(LONGEST_TIMEOUT + Duration::from_millis(1)),
                ..good.clone()
            },
        ];
        for request in bad {
            assert!(request.check().is_err(), "{request:?}");
        }
    }

    #[test]
    fn a_time_limit_is_never_sent_as_none() {
        let request = ExecRequest {
            timeout: Some(Duration::from_nanos(1)),
            ..ExecRequest::of(Program::Command("true".to_owned()))
        };
        assert_eq!(request.into_wire(&ExecId::random()).timeout_milliseconds, 1);
    }
}
