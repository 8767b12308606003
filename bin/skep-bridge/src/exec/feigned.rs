//! Processes for tests, which exist here alone.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;

use super::disk_use::DiskUse;
use super::output::Output;
use super::output_log::{LogPolicy, OutputLog};
use super::pipes::Pace;
use super::process::{FirstInput, Process, Watch};
use super::start::{Ends, Started};
use crate::reaper::Ended;

/// A process whose outputs are kept in `directory`, what it writes its stdout to, and what ends it.
pub(super) fn process(directory: &Path) -> (Started, Arc<Output>, OwnedFd, oneshot::Sender<Ended>) {
    let pipe = || pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
    let ((stdout, writer), (stderr, _)) = (pipe(), pipe());
    let (end, ended) = oneshot::channel();
    let ends = Ends::Pipes {
        stdin: None,
        stdout,
        stderr,
    };
    // No process has this number.
    let pid = u32::MAX >> 1;
    let log = |name| {
        OutputLog::new(LogPolicy {
            spill: Some((directory.to_path_buf(), name)),
            keep_bytes: 64 << 20,
            disk: Arc::new(DiskUse::new(u64::MAX)),
        })
    };
    let output = Arc::new(Output::new(["stdout", "stderr"].map(log), None));
    (Started { pid, ended, ends }, output, writer, end)
}

pub(super) type Watched = tokio::task::JoinHandle<()>;

pub(super) fn take(started: Started, output: &Arc<Output>) -> (Arc<Process>, Watched) {
    let watch = Watch {
        timeout: None,
        pace: Pace::Own,
        outlives_stream: None,
    };
    let first = FirstInput {
        data: Bytes::new(),
        more: false,
    };
    let (process, watched) = Process::take(started, Arc::clone(output), watch, first).expect("taken over");
    (process, tokio::spawn(watched))
}

pub(super) const EXITED: Ended = Ended {
    exit_code: 0,
    signal: 0,
};
