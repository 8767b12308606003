//! One process that callers know, and what is told of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use skep_bridge_protocol::workspace::ExecStatus;
use tokio_util::task::TaskTracker;

use super::output::{Outcome, Which};
use super::process::{Holder, Process};
use crate::log::tell;

/// In the log, in place of the id of an exec that has none.
pub(super) const UNLISTED: &str = "-";

pub(crate) struct Exec {
    pub(crate) id: String,
    pub(super) command: String,
    pub(super) argv: Vec<Vec<u8>>,
    pub(super) keep_milliseconds: u64,
    pub(crate) process: Arc<Process>,
    pub(super) ends_with_stream: bool,
    pub(super) removed: AtomicBool,
    pub(super) end_told: AtomicBool,
    /// It has ended, with all that wrote to its outputs, and could not be put on disk.
    pub(super) is_unstored: AtomicBool,
}

impl Exec {
    pub(super) fn hold(&self, tasks: TaskTracker) -> Option<Holder> {
        self.ends_with_stream
            .then(|| Holder::new(Arc::clone(&self.process), tasks))
    }

    /// As it is called in the log.
    pub(super) fn name(&self) -> &str {
        if self.id.is_empty() { UNLISTED } else { &self.id }
    }

    pub(super) fn tell_end(&self) {
        if self.end_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(outcome) = self.process.output.outcome() else {
            return;
        };
        let how = match outcome.ended.signal {
            0 => format!("exit code {}", outcome.ended.exit_code),
            signal => format!("signal {signal}"),
        };
        let late = if outcome.timed_out { ", its time was over" } else { "" };
        tell!("exec {} ended, pid {}, {how}{late}", self.name(), self.process.pid);
    }

    /// Lets go of what is on disk of its output, whose files are removed with their directory.
    pub(super) fn forget_output(&self) {
        for which in [Which::Stdout, Which::Stderr] {
            self.process.output.log(which).forget();
        }
    }

    pub(crate) fn status(&self) -> ExecStatus {
        let output = &self.process.output;
        let (stdout, stderr) = (output.log(Which::Stdout), output.log(Which::Stderr));
        let mut status = ExecStatus {
            exec_id: self.id.clone(),
            pid: self.process.pid,
            started_unix_nanos: self.process.started_unix_nanos,
            stdout_bytes: stdout.end(),
            stderr_bytes: stderr.end(),
            stdout_oldest: stdout.oldest(),
            stderr_oldest: stderr.oldest(),
            dropped_bytes: stdout.oldest() + stderr.oldest(),
            pty: self.process.has_terminal(),
            command: self.command.clone(),
            argv: self.argv.clone(),
            keep_milliseconds: self.keep_milliseconds,
            ..ExecStatus::default()
        };
        if let Some(outcome) = output.outcome() {
            add_outcome(&mut status, &outcome);
        }
        status
    }
}

/// The end as it is told after the output, from a status that was made before: what was written by then and could not be
/// shown is among the bytes.
pub(crate) fn end_of(mut status: ExecStatus, outcome: &Outcome) -> ExecStatus {
    add_outcome(&mut status, outcome);
    let [stdout, stderr] = outcome.written;
    status.stdout_bytes = status.stdout_bytes.max(stdout);
    status.stderr_bytes = status.stderr_bytes.max(stderr);
    status
}

fn add_outcome(status: &mut ExecStatus, outcome: &Outcome) {
    status.exited = true;
    status.exit_code = outcome.ended.exit_code;
    status.signal = outcome.ended.signal;
    status.timed_out = outcome.timed_out;
    status.finished_unix_nanos = outcome.finished_unix_nanos;
}
