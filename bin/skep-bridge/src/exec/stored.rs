//! Ended processes on disk: reading them back, and which of them are dropped.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skep_bridge_protocol::workspace::ExecStatus;

use super::disk_use::DiskUse;
use super::end::LeftBehind;
use super::output::{Outcome, Output};
use super::output_log::{LogPolicy, OutputLog};
use super::process::unix_nanos;
use super::record;
use crate::log;
use crate::reaper::Ended;

/// How much is kept of ended processes: whichever limit is met first drops the oldest end.
pub(crate) const MOST_BYTES: u64 = 1024 * 1024 * 1024;
pub(crate) const MOST_EXECS: usize = 20_000;
/// How much output of ended processes is kept in memory, where it cannot be put on disk.
pub(crate) const MOST_UNSTORED_BYTES: u64 = 64 * 1024 * 1024;
const KEEP_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Copy)]
pub(crate) struct Stored {
    pub(crate) started_unix_nanos: i64,
    pub(crate) finished_unix_nanos: i64,
    /// After its end.
    pub(crate) keep: Duration,
    /// On disk, its record included.
    pub(crate) bytes: u64,
    /// `None`: an earlier bridge started it, and who knows whose its numbers are now.
    pub(crate) left_behind: Option<LeftBehind>,
}

/// How long is asked for; 0: no time of its own.
pub(crate) fn keep_of(milliseconds: u64) -> Duration {
    match milliseconds {
        0 => KEEP_DEFAULT,
        asked => Duration::from_millis(asked),
    }
}

/// Which ones are to go: too old, or the oldest ends of those that are `spare` processes too many, or bytes too much.
pub(crate) fn too_many<'a>(
    stored: impl Iterator<Item = (&'a String, Stored)>,
    mut spare: (usize, u64),
) -> Vec<(String, Stored)> {
    let now = unix_nanos();
    let too_old = |stored: &Stored| {
        let age = now.saturating_sub(stored.finished_unix_nanos);
        u128::try_from(age).is_ok_and(|age| age > stored.keep.as_nanos())
    };
    if spare == (0, 0) {
        let old = stored.filter(|(_, stored)| too_old(stored));
        return old.map(|(id, stored)| (id.clone(), stored)).collect();
    }
    let mut by_age: Vec<(&String, Stored)> = stored.collect();
    by_age.sort_by_key(|(_, stored)| stored.finished_unix_nanos);
    // More than needed, so that the next end, or the next piece of output, does not sort again.
    if spare.0 > 0 {
        spare.0 = spare.0.max(100);
    }
    if spare.1 > 0 {
        spare.1 += MOST_BYTES / 64;
    }
    let mut dropped = Vec::new();
    for (id, stored) in by_age {
        if !too_old(&stored) && spare == (0, 0) {
            continue;
        }
        spare = (spare.0.saturating_sub(1), spare.1.saturating_sub(stored.bytes));
        dropped.push((id.clone(), stored));
    }
    dropped
}

/// What an earlier bridge left.
#[derive(Default)]
pub(crate) struct Left {
    pub(crate) ended: Vec<(String, Stored)>,
    /// Names of what has no whole record: of a process that its bridge did not see to the end, or of one that runs now.
    pub(crate) without_record: Vec<OsString>,
}

/// Blocks.
pub(crate) fn load(directory: &Path) -> Left {
    let mut left = Left::default();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return left,
        Err(error) => {
            log::tell!("read {}: {error}", directory.display());
            return left;
        }
    };
    for entry in entries.flatten() {
        match load_one(&entry.path()) {
            Ok(stored) => left
                .ended
                .extend(entry.file_name().into_string().ok().map(|id| (id, stored))),
            Err(_) => left.without_record.push(entry.file_name()),
        }
    }
    left
}

fn load_one(directory: &Path) -> io::Result<Stored> {
    let status = record::read_status(directory)?;
    Ok(Stored {
        started_unix_nanos: status.started_unix_nanos,
        finished_unix_nanos: status.finished_unix_nanos,
        keep: keep_of(status.keep_milliseconds),
        bytes: record::size(directory)?,
        left_behind: None,
    })
}

/// The output of an ended process. Blocks.
pub(crate) fn open(directory: &Path) -> io::Result<(Output, ExecStatus)> {
    let record::Record { status, tails } = record::read(directory)?;
    let [stdout, stderr] = tails;
    let policy = |name| LogPolicy {
        spill: Some((directory.to_path_buf(), name)),
        keep_bytes: u64::MAX,
        disk: Arc::new(DiskUse::new(u64::MAX)),
    };
    let logs = [
        OutputLog::stored(policy("stdout"), status.stdout_bytes, stdout)?,
        OutputLog::stored(policy("stderr"), status.stderr_bytes, stderr)?,
    ];
    let outcome = Outcome {
        ended: Ended {
            exit_code: status.exit_code,
            signal: status.signal,
        },
        timed_out: status.timed_out,
        finished_unix_nanos: status.finished_unix_nanos,
        stream_ends: [status.stdout_bytes, status.stderr_bytes],
        written: [status.stdout_bytes, status.stderr_bytes],
    };
    Ok((Output::new(logs, Some(outcome)), status))
}

pub(crate) async fn remove(directory: PathBuf) {
    remove_all(vec![directory]).await;
}

pub(crate) async fn remove_all(directories: Vec<PathBuf>) {
    let remove = move || directories.iter().for_each(|directory| remove_now(directory));
    if let Err(error) = tokio::task::spawn_blocking(remove).await {
        log::tell!("forget ended processes: {error}");
    }
}

fn remove_now(directory: &Path) {
    match fs::remove_dir_all(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => log::tell!("remove {}: {error}", directory.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(ends_seconds_ago: &[i64]) -> Vec<(String, Stored)> {
        let stored = |&seconds: &i64| Stored {
            started_unix_nanos: 0,
            finished_unix_nanos: unix_nanos() - seconds * 1_000_000_000,
            keep: keep_of(0),
            bytes: 400 << 20,
            left_behind: None,
        };
        ends_seconds_ago
            .iter()
            .enumerate()
            .map(|(index, seconds)| (index.to_string(), stored(seconds)))
            .collect()
    }

    fn dropped(stored: &[(String, Stored)], known: usize) -> Vec<String> {
        let bytes: u64 = stored.iter().map(|(_, stored)| stored.bytes).sum();
        let iter = stored.iter().map(|(id, stored)| (id, *stored));
        let spare = (known.saturating_sub(MOST_EXECS), bytes.saturating_sub(MOST_BYTES));
        too_many(iter, spare).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn what_is_older_than_a_day_goes() {
        assert_eq!(dropped(&kept(&[10, 90_000]), 2), ["1"]);
    }

    #[test]
    fn each_is_kept_as_long_as_it_was_asked_for() {
        let mut stored = kept(&[3_700, 3_500, 90_000]);
        for (number, keep) in [(0, 3_600_000), (1, 3_600_000), (2, 3 * 86_400_000)] {
            stored[number].1.keep = keep_of(keep);
            stored[number].1.bytes = 0;
        }
        assert_eq!(dropped(&stored, 3), ["0"]);
    }

    #[test]
    fn beyond_a_gibibyte_the_oldest_end_goes() {
        assert_eq!(dropped(&kept(&[10, 30, 20]), 3), ["1"]);
    }

    #[test]
    fn within_the_limits_nothing_goes() {
        assert!(dropped(&kept(&[10, 30]), 2).is_empty());
    }

    #[test]
    fn beyond_twenty_thousand_the_oldest_ends_go() {
        let few = kept(&[10, 30]);
        assert_eq!(dropped(&few, 20_001), ["1", "0"]);
    }
}
