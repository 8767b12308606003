//! What came of the trials, and the one line that sums it up.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::runner::Failure;

#[derive(Default)]
struct Counts {
    points: usize,
    trials: usize,
    lost_bytes: u64,
    lost_workspaces: usize,
    lost_versions: usize,
    leaks: usize,
    worst: Duration,
    failures: Vec<(String, String)>,
}

/// Shared by all lanes.
#[derive(Default)]
pub(crate) struct Report(Mutex<Counts>);

impl Report {
    fn locked(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn found_points(&self, count: usize) {
        self.locked().points += count;
    }

    /// A trial that went well, with the time from the new server's first moment until all was as it should be.
    pub(crate) fn converged(&self, took: Option<Duration>) {
        let mut counts = self.locked();
        counts.trials += 1;
        counts.worst = counts.worst.max(took.unwrap_or_default());
    }

    pub(crate) fn failed(&self, trial: &str, failure: &Failure) {
        let mut counts = self.locked();
        counts.trials += 1;
        counts.lost_bytes += failure.lost_bytes;
        counts.lost_workspaces += usize::from(failure.lost_workspace);
        counts.lost_versions += failure.lost_versions;
        counts.leaks += failure.leaks;
        say(&format!("crash: {trial} FAILED: {}", failure.why));
        counts
            .failures
            .push((trial.to_owned(), format!("{}\n{}", failure.why, failure.log)));
    }

    pub(crate) fn failures(&self) -> Vec<(String, String)> {
        self.locked().failures.clone()
    }

    pub(crate) fn summary(&self) -> String {
        let counts = self.locked();
        format!(
            "crash: {} points found, {} trials, {} failed; lost: {} bytes, {} workspaces, {} versions; leaks: {}; \
             worst time to converge: {:.1} s",
            counts.points,
            counts.trials,
            counts.failures.len(),
            counts.lost_bytes,
            counts.lost_workspaces,
            counts.lost_versions,
            counts.leaks,
            counts.worst.as_secs_f64()
        )
    }
}

/// To the terminal also when the test passes: what the test harness captures are the print macros alone.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stderr().lock();
    out.write_all(format!("{line}\n").as_bytes())
        .expect("standard error can be written");
}
