//! What is kept of processes that have ended: put on disk, read back by the next bridge, and dropped when it is too old or
//! too much.

use std::collections::hash_map;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::listed::Exec;
use super::output::Which;
use super::output_log::OutputLog;
use super::record;
use super::registry::{Entry, Registry, lock};
use super::stored::{self, Left, Stored};
use crate::log::tell;

/// How often the age of what is kept is looked at, and what could not be put on disk is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(600);

impl Registry {
    /// Reads what an earlier bridge left, then drops what is too old or too much: now, every ten minutes, and when running
    /// processes need the room.
    pub(crate) async fn keep_store(self: Arc<Self>) {
        self.load().await;
        let mut turns = tokio::time::interval(LOOK_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = turns.tick() => self.store_again().await,
                () = self.disk.too_much() => {}
            }
            self.prune().await;
        }
    }

    async fn load(&self) {
        let directory = self.directory.clone();
        match tokio::task::spawn_blocking(move || stored::load(&directory)).await {
            Ok(left) => self.adopt(left).await,
            Err(error) => tell!("read {}: {error}", self.directory.display()),
        }
        self.loaded.send_replace(true);
    }

    /// What was not written to its end (its bridge was killed) is removed.
    async fn adopt(&self, left: Left) {
        let (mut torn, mut reserved) = (Vec::new(), Vec::new());
        {
            let mut entries = lock(&self.entries);
            for (id, stored) in left.ended {
                // One that was started meanwhile under the same id is the newer truth.
                if let hash_map::Entry::Vacant(vacant) = entries.entry(id) {
                    self.disk.keep_ended(stored.bytes, stored.bytes);
                    vacant.insert(Entry::Stored(stored));
                }
            }
            for name in left.without_record {
                if let Some(id) = name.to_str() {
                    // One that this bridge started has its record when it ends. None is started while this one is removed.
                    let hash_map::Entry::Vacant(vacant) = entries.entry(id.to_owned()) else {
                        continue;
                    };
                    vacant.insert(Entry::Starting);
                    reserved.push(id.to_owned());
                }
                tell!("drop {}: it has no whole record", self.directory.join(&name).display());
                torn.push(self.directory.join(name));
            }
        }
        stored::remove_all(torn).await;
        {
            let mut entries = lock(&self.entries);
            for id in reserved {
                entries.remove(&id);
            }
        }
        self.changed.send_replace(());
    }

    pub(super) async fn write_record(&self, exec: &Arc<Exec>) -> Option<u64> {
        if exec.removed.load(Ordering::Relaxed) {
            return None;
        }
        let (directory, exec) = (self.directory_of(&exec.id), Arc::clone(exec));
        let write = move || {
            let tails = [Which::Stdout, Which::Stderr].map(|which| exec.process.output.log(which).memory());
            let written = record::write(&directory, &exec.status(), [&tails[0], &tails[1]]);
            (written, directory)
        };
        match tokio::task::spawn_blocking(write).await {
            Ok((Ok(bytes), _)) => Some(bytes),
            Ok((Err(error), directory)) => {
                tell!("keep the end of a process in {}: {error}", directory.display());
                None
            }
            Err(error) => {
                tell!("keep the end of a process: {error}");
                None
            }
        }
    }

    /// Puts an ended process on disk and lets go of its memory. Where that fails it stays in memory, until it is tried again.
    pub(super) async fn store(&self, exec: Arc<Exec>) {
        let Some(known) = self.put_on_disk(&exec).await else {
            return;
        };
        // Age is looked at by the clock alone: looking at thousands here would make each process wait.
        if known > stored::MOST_EXECS || self.disk.is_too_much() || exec.is_unstored.load(Ordering::Relaxed) {
            self.prune().await;
        }
    }

    /// Returns how many are known; `None`: this one is no more.
    async fn put_on_disk(&self, exec: &Arc<Exec>) -> Option<usize> {
        let written = self.write_record(exec).await;
        let known = {
            let mut entries = lock(&self.entries);
            // Looked at under the lock: who removes it says so before he takes the entry.
            let known = !exec.removed.load(Ordering::Relaxed);
            known.then(|| {
                exec.is_unstored.store(written.is_none(), Ordering::Relaxed);
                if let Some(written) = written {
                    let stored = stored_of(exec, written + bytes(exec, OutputLog::on_disk));
                    self.disk.keep_ended(stored.bytes, written);
                    entries.insert(exec.id.clone(), Entry::Stored(stored));
                }
                entries.len()
            })
        };
        if known.is_none() {
            exec.forget_output();
            stored::remove(self.directory_of(&exec.id)).await;
        }
        known
    }

    /// Those that could not be put on disk when they ended.
    async fn store_again(&self) {
        let unstored: Vec<Arc<Exec>> = {
            let entries = lock(&self.entries);
            entries.values().filter_map(unstored).cloned().collect()
        };
        for exec in unstored {
            self.put_on_disk(&exec).await;
        }
    }

    pub(super) async fn prune(&self) {
        let dropped = {
            let mut entries = lock(&self.entries);
            let in_memory = entries.iter().filter_map(|(id, entry)| {
                let exec = unstored(entry)?;
                Some((id, stored_of(exec, bytes(exec, OutputLog::in_memory))))
            });
            let all_in_memory: u64 = in_memory.clone().map(|(_, stored)| stored.bytes).sum();
            let too_much = all_in_memory.saturating_sub(stored::MOST_UNSTORED_BYTES);
            let mut dropped = stored::too_many(in_memory, (0, too_much));
            let ended = entries.iter().filter_map(|(id, entry)| match entry {
                Entry::Stored(stored) => Some((id, *stored)),
                entry => unstored(entry).map(|exec| (id, stored_of(exec, bytes(exec, OutputLog::on_disk)))),
            });
            let spare = (
                entries.len().saturating_sub(stored::MOST_EXECS),
                self.disk.all().saturating_sub(stored::MOST_BYTES),
            );
            dropped.extend(stored::too_many(ended, spare));
            for (id, _) in &dropped {
                match entries.remove(id) {
                    Some(Entry::Stored(stored)) => self.disk.drop_ended(stored.bytes),
                    Some(Entry::Live(exec)) => {
                        exec.removed.store(true, Ordering::Relaxed);
                        exec.forget_output();
                    }
                    Some(Entry::Starting) | None => {}
                }
            }
            dropped
        };
        if !dropped.is_empty() {
            let directories = dropped.iter().map(|(id, _)| self.directory_of(id)).collect();
            stored::remove_all(directories).await;
        }
    }
}

/// The process of an entry that has ended and is not on disk.
fn unstored(entry: &Entry) -> Option<&Arc<Exec>> {
    match entry {
        Entry::Live(exec) => Some(exec).filter(|exec| exec.is_unstored.load(Ordering::Relaxed)),
        Entry::Starting | Entry::Stored(_) => None,
    }
}

fn bytes(exec: &Exec, of: fn(&OutputLog) -> u64) -> u64 {
    let logs = [Which::Stdout, Which::Stderr].map(|which| exec.process.output.log(which));
    logs.into_iter().map(of).sum()
}

fn stored_of(exec: &Exec, bytes: u64) -> Stored {
    let outcome = exec.process.output.outcome();
    Stored {
        started_unix_nanos: exec.process.started_unix_nanos,
        finished_unix_nanos: outcome.map_or(0, |outcome| outcome.finished_unix_nanos),
        keep: stored::keep_of(exec.keep_milliseconds),
        bytes,
        left_behind: exec.process.left_behind(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs::{self, File};
    use std::path::Path;
    use std::sync::atomic::AtomicBool;
    use std::time::SystemTime;

    use bytes::Bytes;

    use super::super::feigned::{EXITED, process, take};
    use super::super::process::Process;
    use super::*;
    use crate::reaper::Reaper;

    fn registry(directory: &Path) -> Arc<Registry> {
        Registry::new(Vec::new(), Arc::new(Reaper::default()), directory.to_path_buf())
    }

    /// A process of `registry` that runs.
    fn live(registry: &Registry, id: &str, process: &Arc<Process>) -> Arc<Exec> {
        let exec = Arc::new(Exec {
            id: id.into(),
            command: String::new(),
            argv: Vec::new(),
            keep_milliseconds: 0,
            process: Arc::clone(process),
            ends_with_stream: false,
            removed: AtomicBool::new(false),
            end_told: AtomicBool::new(false),
            is_unstored: AtomicBool::new(false),
        });
        lock(&registry.entries).insert(id.into(), Entry::Live(Arc::clone(&exec)));
        exec
    }

    /// One that has ended and wrote `output`.
    async fn ended(directory: &Path, output: Bytes) -> Arc<Process> {
        let (started, log, writer, end) = process(directory);
        let (process, watched) = take(started, &log);
        drop(writer);
        log.log(Which::Stdout).append(output);
        end.send(EXITED).expect("it is waited for");
        watched.await.expect("to its end");
        process
    }

    fn known(registry: &Registry) -> HashSet<String> {
        lock(&registry.entries).keys().cloned().collect()
    }

    fn is_live(registry: &Registry, id: &str) -> bool {
        matches!(lock(&registry.entries).get(id), Some(Entry::Live(_)))
    }

    #[tokio::test]
    async fn what_runs_when_the_store_is_read_keeps_its_output() {
        let directory = tempfile::tempdir().expect("a directory");
        let registry = registry(directory.path());
        let (started, output, _writer, _end) = process(directory.path());
        live(&registry, "runs", &take(started, &output).0);
        let names = ["runs", "torn"].map(|id| directory.path().join(id));
        for name in &names {
            fs::create_dir(name).expect("a directory");
            fs::write(name.join("stdout.0"), b"output").expect("a segment");
            let of_yesterday = SystemTime::now() - Duration::from_secs(86_400);
            let opened = File::open(name).expect("opened");
            opened.set_modified(of_yesterday).expect("an old time");
        }
        registry.load().await;
        assert_eq!(names.map(|name| name.join("stdout.0").exists()), [true, false]);
        assert_eq!(known(&registry), HashSet::from(["runs".to_owned()]));
    }

    #[tokio::test]
    async fn an_end_that_cannot_be_stored_is_stored_as_soon_as_it_can() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = directory.path().join("exec");
        fs::write(&store, b"in the way").expect("a file");
        let registry = registry(&store);
        let process = ended(&store, Bytes::from_static(b"hello")).await;
        registry.store(live(&registry, "one", &process)).await;
        registry.store_again().await;
        assert!(is_live(&registry, "one"), "it is known, and not on disk");
        fs::remove_file(&store).expect("out of the way");
        registry.store_again().await;
        assert!(!is_live(&registry, "one"));
        let (output, status) = stored::open(&store.join("one")).expect("stored");
        assert_eq!(
            (output.log(Which::Stdout).memory(), status.exited),
            (b"hello".to_vec(), true)
        );
    }

    #[tokio::test]
    async fn ends_that_cannot_be_stored_are_bounded_in_number_and_size() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = directory.path().join("exec");
        fs::write(&store, b"in the way").expect("a file");
        let registry = registry(&store);
        let large = Bytes::from(vec![b'x'; 30 << 20]);
        for id in ["oldest", "older", "newer", "newest"] {
            let process = ended(&store, large.clone()).await;
            registry.store(live(&registry, id, &process)).await;
        }
        assert_eq!(known(&registry), HashSet::from(["newer", "newest"].map(str::to_owned)));
        let process = ended(&store, Bytes::new()).await;
        for number in 0..stored::MOST_EXECS {
            let exec = live(&registry, &number.to_string(), &process);
            exec.is_unstored.store(true, Ordering::Relaxed);
        }
        registry.store(live(&registry, "last", &process)).await;
        assert!(known(&registry).len() <= stored::MOST_EXECS);
        assert!(!known(&registry).contains("newer"), "the oldest ends go first");
    }
}
