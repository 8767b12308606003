//! Why a job came to nothing, as the report tells it.

use std::io;

use rustix::process::WaitStatus;
use skep_layer_protocol::{FailureKind, Report};

/// One failure; the sentence names no path of the host.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: FailureKind,
    message: String,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The program was not started as it should be.
    pub(crate) fn usage(message: &str) -> Self {
        Self::new(FailureKind::Other, message)
    }

    pub(crate) fn time(seconds: u64) -> Self {
        Self::new(FailureKind::Limit, format!("not done within {seconds} s"))
    }

    pub(crate) fn not_a_directory() -> Self {
        Self::new(FailureKind::NotADirectory, "/data is not a directory")
    }

    /// The worker ended without a word: killed, or out of the memory that it may use.
    pub(crate) fn died(status: &WaitStatus) -> Self {
        let how = match status.terminating_signal() {
            Some(signal) => format!("ended by signal {signal}"),
            None => format!("ended with status {}", status.exit_status().unwrap_or(-1)),
        };
        Self::new(FailureKind::Limit, format!("the worker was {how}"))
    }

    pub(crate) fn io(what: &str, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::NoSpace,
            io::ErrorKind::OutOfMemory => FailureKind::Limit,
            _ => FailureKind::Other,
        };
        Self::new(kind, format!("{what}: {error}"))
    }

    pub(crate) fn report(self) -> Report {
        Report::Failed {
            failure: self.kind,
            message: self.message,
        }
    }
}

/// Adds what was tried.
pub(crate) trait Tried<T> {
    fn tried(self, what: &str) -> Result<T>;
}

impl<T, E: Into<io::Error>> Tried<T> for std::result::Result<T, E> {
    fn tried(self, what: &str) -> Result<T> {
        self.map_err(|error| Failure::io(what, &error.into()))
    }
}
