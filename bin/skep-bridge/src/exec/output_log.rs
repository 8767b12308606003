//! What one stream of a process wrote, as far as it is kept: the newest bytes in memory, older ones in segment files,
//! the oldest dropped and counted. Any offset can be read as often as wanted, also while it grows.
//!
//! A `true` or an `ls` never touches a disk here: only what outgrows the memory part is spilled.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::disk_use::DiskUse;
use super::record;
use crate::log;

/// What outgrows this goes to disk.
const MEMORY_BYTES: u64 = 128 * 1024;
/// How far a process may be ahead of its fastest reader when it waits for readers.
pub(crate) const READER_LAG_BYTES: u64 = 256 * 1024;
/// And how much further when it has ended: as much as a pipe may hold, so that all it wrote is taken in, however slowly
/// it is read.
pub(crate) const LAG_AFTER_END_BYTES: u64 = 1024 * 1024;
/// Kept in memory at most where there is no disk part: a reader that is waited for never loses a byte.
const MEMORY_ONLY_BYTES: u64 = 2 * READER_LAG_BYTES + LAG_AFTER_END_BYTES;
/// The same where there is one that cannot be written.
const UNWRITTEN_BYTES: u64 = 2 * READER_LAG_BYTES;
/// One read hands out at most this much.
const READ_BYTES: u64 = 256 * 1024;

/// Where and how much is kept.
#[derive(Clone)]
pub(crate) struct LogPolicy {
    /// The directory of segment files and the name they begin with; none keeps in memory only.
    pub(crate) spill: Option<(PathBuf, &'static str)>,
    /// Kept at most, in bytes.
    pub(crate) keep_bytes: u64,
    /// What all logs hold on disk together.
    pub(crate) disk: Arc<DiskUse>,
}

pub(crate) struct OutputLog {
    policy: LogPolicy,
    state: Mutex<State>,
    is_being_spilled: AtomicBool,
}

#[derive(Default)]
struct State {
    end: u64,
    memory: VecDeque<Bytes>,
    memory_start: u64,
    segments: VecDeque<Segment>,
    /// Where those are that the process waits for.
    readers: HashMap<u64, u64>,
    next_reader: u64,
    spill_failed: bool,
}

#[derive(Clone)]
struct Segment {
    start: u64,
    length: u64,
    path: PathBuf,
}

/// A piece found in memory, or the place on disk where it is.
pub(crate) enum Piece {
    Nothing,
    InMemory {
        offset: u64,
        data: Bytes,
    },
    OnDisk {
        offset: u64,
        path: PathBuf,
        position: u64,
        length: u64,
    },
}

impl OutputLog {
    pub(crate) fn new(policy: LogPolicy) -> Self {
        Self {
            policy,
            state: Mutex::default(),
            is_being_spilled: AtomicBool::new(false),
        }
    }

    /// The log of a process that ended before this bridge started, or that was put on disk.
    pub(crate) fn stored(policy: LogPolicy, end: u64, memory: Bytes) -> io::Result<Self> {
        let log = Self::new(policy);
        {
            let mut state = log.state();
            state.segments = log.segments_on_disk()?;
            state.memory_start = end - memory.len() as u64;
            state.end = end;
            state.memory.push_back(memory);
        }
        Ok(log)
    }

    fn segments_on_disk(&self) -> io::Result<VecDeque<Segment>> {
        let Some((directory, prefix)) = &self.policy.spill else {
            return Ok(VecDeque::new());
        };
        let mut segments = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let start: Option<u64> = name
                .to_str()
                .and_then(|name| name.strip_prefix(prefix)?.strip_prefix('.')?.parse().ok());
            let length = entry.metadata()?.len();
            if let Some(start) = start
                && length.checked_add(start).is_some()
            {
                let path = entry.path();
                segments.push(Segment { start, length, path });
            }
        }
        segments.sort_by_key(|segment: &Segment| segment.start);
        Ok(segments.into())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics between two changes of the state, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn append(&self, data: Bytes) {
        let mut state = self.state();
        state.end += data.len() as u64;
        state.memory.push_back(data);
        let limit = match (&self.policy.spill, state.spill_failed) {
            (Some(_), false) => return,
            // The oldest is on disk, and goes first.
            (Some(_), true) if !state.segments.is_empty() => return,
            // A full disk must not make the bridge grow: what cannot be spilled is dropped, and so counted.
            (Some(_), true) => self.unwritten_bytes(&state),
            (None, _) => self.policy.keep_bytes.clamp(1, MEMORY_ONLY_BYTES),
        };
        state.drop_memory_beyond(limit);
    }

    /// Bytes written in all.
    pub(crate) fn end(&self) -> u64 {
        self.state().end
    }

    /// The first offset still kept.
    pub(crate) fn oldest(&self) -> u64 {
        self.state().oldest()
    }

    /// Bytes in segment files.
    pub(crate) fn on_disk(&self) -> u64 {
        self.state().segments.iter().map(|segment| segment.length).sum()
    }

    /// Bytes in memory.
    pub(crate) fn in_memory(&self) -> u64 {
        self.state().in_memory()
    }

    /// What is held in memory, to be stored with the record of the process.
    pub(crate) fn memory(&self) -> Vec<u8> {
        let state = self.state();
        state.memory.iter().flat_map(|piece| piece.iter().copied()).collect()
    }

    pub(crate) fn needs_spill(&self) -> bool {
        let state = self.state();
        match (&self.policy.spill, state.spill_failed) {
            (None, _) => false,
            (Some(_), false) => state.in_memory() > MEMORY_BYTES,
            (Some(_), true) => !state.segments.is_empty() && state.in_memory() > self.unwritten_bytes(&state),
        }
    }

    /// How much is kept in memory when the disk cannot be written: at least what the fastest reader has not read.
    fn unwritten_bytes(&self, state: &State) -> u64 {
        let kept = self.policy.keep_bytes.clamp(1, UNWRITTEN_BYTES);
        kept.max(state.reader_lag().min(MEMORY_ONLY_BYTES))
    }

    /// Whether the one pump of this stream waits for the disk, and reads nothing.
    pub(super) fn is_being_spilled(&self) -> bool {
        self.is_being_spilled.load(Ordering::Relaxed)
    }

    pub(super) fn set_being_spilled(&self, is_so: bool) {
        self.is_being_spilled.store(is_so, Ordering::Relaxed);
    }

    /// Writes what is in memory to disk, or where that has failed drops what is on disk. Blocks; must not run twice at once
    /// (the one pump of a stream calls it).
    pub(crate) fn spill(&self) {
        let Some((directory, prefix)) = &self.policy.spill else {
            return;
        };
        let (pieces, last, start) = {
            let mut state = self.state();
            if state.spill_failed {
                return self.drop_segments(&mut state);
            }
            (state.memory.clone(), state.segments.back().cloned(), state.memory_start)
        };
        let length = pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let segment = match last.filter(|last| last.length < self.segment_bytes()) {
            Some(last) => last,
            None => Segment {
                start,
                length: 0,
                path: directory.join(format!("{prefix}.{start}")),
            },
        };
        match write_at_end(&segment, &pieces) {
            Ok(()) => self.spilled(segment, length, pieces.len()),
            Err(error) => self.spill_failed(&segment, &error),
        }
    }

    fn segment_bytes(&self) -> u64 {
        (self.policy.keep_bytes / 16).clamp(64 * 1024, 4 * 1024 * 1024)
    }

    fn spilled(&self, segment: Segment, length: u64, pieces: usize) {
        let mut dropped = Vec::new();
        {
            let mut state = self.state();
            let mut over = self.policy.disk.grow(length);
            let grown = Segment {
                length: segment.length + length,
                ..segment
            };
            match state.segments.back_mut().filter(|last| last.start == grown.start) {
                Some(last) => *last = grown,
                None => state.segments.push_back(grown),
            }
            state.memory.drain(..pieces);
            state.memory_start += length;
            while state.may_drop_oldest() && (state.end - state.oldest() > self.policy.keep_bytes || over > 0) {
                let oldest = state.segments.pop_front();
                over = over.saturating_sub(oldest.as_ref().map_or(0, |oldest| oldest.length));
                dropped.extend(oldest);
            }
        }
        for segment in dropped {
            self.policy.disk.shrink(segment.length);
            if let Err(error) = fs::remove_file(&segment.path) {
                log::tell!("remove {}: {error}", segment.path.display());
            }
        }
    }

    fn spill_failed(&self, segment: &Segment, error: &io::Error) {
        log::tell!("keep output in {}: {error}", segment.path.display());
        let mut state = self.state();
        state.spill_failed = true;
        if state.in_memory() > self.unwritten_bytes(&state) {
            self.drop_segments(&mut state);
        }
    }

    /// What is on disk would no longer join what memory keeps: the oldest goes first, as ever.
    fn drop_segments(&self, state: &mut State) {
        for segment in state.segments.drain(..) {
            self.policy.disk.shrink(segment.length);
            if let Err(error) = fs::remove_file(&segment.path) {
                log::tell!("remove {}: {error}", segment.path.display());
            }
        }
        state.drop_memory_beyond(self.unwritten_bytes(state));
    }

    /// Lets go of what is on disk, whose files are removed with their directory.
    pub(crate) fn forget(&self) {
        let freed: u64 = self.state().segments.drain(..).map(|segment| segment.length).sum();
        self.policy.disk.shrink(freed);
    }

    /// The next piece at `offset`, or at the oldest kept if that is later.
    pub(crate) fn find(&self, offset: u64) -> Piece {
        let state = self.state();
        let offset = offset.max(state.oldest());
        if offset >= state.end {
            return Piece::Nothing;
        }
        if offset >= state.memory_start {
            return state.in_memory_at(offset);
        }
        for segment in &state.segments {
            let end = segment.start + segment.length;
            if offset < end && offset >= segment.start {
                let length = (end - offset).min(READ_BYTES);
                return Piece::OnDisk {
                    offset,
                    path: segment.path.clone(),
                    position: offset - segment.start,
                    length,
                };
            }
        }
        state.in_memory_at(state.memory_start)
    }

    /// Registers a reader, so that a process that waits for readers waits for this one.
    pub(crate) fn add_reader(&self, position: u64) -> u64 {
        let mut state = self.state();
        let id = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(id, position);
        id
    }

    pub(crate) fn move_reader(&self, id: u64, position: u64) {
        self.state().readers.insert(id, position);
    }

    pub(crate) fn remove_reader(&self, id: u64) {
        self.state().readers.remove(&id);
    }

    /// How far the fastest reader is behind; 0 without readers: nobody is waited for then. A slower one reads what is on
    /// disk: it must not hold up those who read.
    pub(crate) fn reader_lag(&self) -> u64 {
        self.state().reader_lag()
    }
}

impl State {
    fn reader_lag(&self) -> u64 {
        self.fastest_reader()
            .map_or(0, |position| self.end.saturating_sub(position))
    }

    fn oldest(&self) -> u64 {
        self.segments.front().map_or(self.memory_start, |segment| segment.start)
    }

    fn fastest_reader(&self) -> Option<u64> {
        self.readers.values().copied().max()
    }

    /// The newest segment stays, and so does what nobody of those has read whom the process waits for.
    fn may_drop_oldest(&self) -> bool {
        let Some(oldest) = self.segments.front().filter(|_| self.segments.len() > 1) else {
            return false;
        };
        self.fastest_reader()
            .is_none_or(|position| oldest.start + oldest.length <= position)
    }

    fn in_memory(&self) -> u64 {
        self.end - self.memory_start
    }

    fn drop_memory_beyond(&mut self, limit: u64) {
        while self.in_memory() > limit {
            let excess = self.in_memory() - limit;
            let Some(front) = self.memory.front_mut() else { return };
            if front.len() as u64 <= excess {
                self.memory_start += front.len() as u64;
                self.memory.pop_front();
            } else {
                // A copy, so that the dropped part's memory is really given back.
                *front = Bytes::copy_from_slice(&front[excess as usize..]);
                self.memory_start += excess;
            }
        }
    }

    fn in_memory_at(&self, offset: u64) -> Piece {
        let mut start = self.memory_start;
        for piece in &self.memory {
            let end = start + piece.len() as u64;
            if offset < end {
                return Piece::InMemory {
                    offset,
                    data: piece.slice((offset - start) as usize..),
                };
            }
            start = end;
        }
        Piece::Nothing
    }
}

fn write_at_end(segment: &Segment, pieces: &VecDeque<Bytes>) -> io::Result<()> {
    if segment.length == 0
        && let Some(directory) = segment.path.parent()
    {
        record::make_directory(directory)?;
    }
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(record::PLAIN_FILE_ONLY)
        .open(&segment.path)?;
    for piece in pieces {
        if let Err(error) = file.write_all(piece) {
            // A part of a piece must not shift what follows.
            file.set_len(segment.length)?;
            return Err(error);
        }
    }
    Ok(())
}

/// Reads a piece from disk. Blocks. A segment that was dropped meanwhile is `NotFound`: ask the log again.
pub(crate) fn read_segment(path: &std::path::Path, position: u64, length: u64) -> io::Result<Bytes> {
    let mut data = vec![0; length as usize];
    record::open_stored(path)?.read_exact_at(&mut data, position)?;
    Ok(data.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(directory: &std::path::Path, keep_bytes: u64) -> LogPolicy {
        LogPolicy {
            spill: Some((directory.join("exec"), "stdout")),
            keep_bytes,
            disk: Arc::new(DiskUse::new(u64::MAX)),
        }
    }

    fn write(log: &OutputLog, from: u64, to: u64) {
        for number in from..to {
            log.append(format!("{number:07}\n").into_bytes().into());
            if log.needs_spill() {
                log.spill();
            }
        }
    }

    fn read_from(log: &OutputLog, mut offset: u64) -> (u64, Vec<u8>) {
        let (mut first, mut all) = (None, Vec::new());
        loop {
            let (at, data) = match log.find(offset) {
                Piece::Nothing => return (first.unwrap_or(offset), all),
                Piece::InMemory { offset, data } => (offset, data),
                Piece::OnDisk {
                    offset,
                    path,
                    position,
                    length,
                } => (offset, read_segment(&path, position, length).expect("a segment")),
            };
            first.get_or_insert(at);
            offset = at + data.len() as u64;
            all.extend_from_slice(&data);
        }
    }

    #[test]
    fn every_offset_reads_the_same_bytes_from_memory_and_disk() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = OutputLog::new(policy(directory.path(), 64 << 20));
        write(&log, 0, 100_000);
        let (_, all) = read_from(&log, 0);
        assert_eq!(all.len() as u64, log.end());
        for offset in [1, 8, 65_535, 131_072, 400_003, 799_999] {
            assert_eq!(read_from(&log, offset).1, all[offset as usize..], "from {offset}");
        }
        assert!(read_from(&log, log.end() + 5).1.is_empty());
    }

    #[test]
    fn the_oldest_is_dropped_and_the_newest_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let policy = policy(directory.path(), 1 << 20);
        let log = OutputLog::new(policy.clone());
        write(&log, 0, 1_000_000);
        let kept = log.end() - log.oldest();
        assert!(kept <= (1 << 20) + MEMORY_BYTES && kept > (1 << 20) / 2, "{kept}");
        let (first, all) = read_from(&log, 0);
        assert_eq!(first, log.oldest());
        assert!(all.starts_with(format!("{:07}\n", first / 8).as_bytes()) && all.ends_with(b"0999999\n"));
        let files = fs::read_dir(directory.path().join("exec")).expect("segments");
        let on_disk: u64 = files
            .map(|file| file.expect("a file").metadata().expect("its size").len())
            .sum();
        assert_eq!(on_disk, policy.disk.all());
    }

    #[test]
    fn what_is_forgotten_counts_no_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let policy = policy(directory.path(), 64 << 20);
        let log = OutputLog::new(policy.clone());
        write(&log, 0, 50_000);
        assert!(policy.disk.all() > 0);
        log.forget();
        assert_eq!(policy.disk.all(), 0);
    }

    #[test]
    fn a_stored_log_reads_like_the_one_that_was_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let policy = policy(directory.path(), 64 << 20);
        let log = OutputLog::new(policy.clone());
        write(&log, 0, 50_000);
        let stored = OutputLog::stored(policy, log.end(), log.memory().into()).expect("stored");
        assert_eq!(read_from(&stored, 12_345), read_from(&log, 12_345));
    }

    #[test]
    fn without_a_disk_the_newest_stay_in_memory() {
        let policy = LogPolicy {
            spill: None,
            keep_bytes: 1000,
            disk: Arc::new(DiskUse::new(0)),
        };
        let log = OutputLog::new(policy);
        write(&log, 0, 1000);
        assert_eq!(log.end() - log.oldest(), 1000);
        assert!(read_from(&log, 0).1.ends_with(b"0000999\n"));
    }

    #[test]
    fn a_disk_that_cannot_be_written_drops_and_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("exec"), b"in the way").expect("a file");
        let log = OutputLog::new(policy(directory.path(), 64 << 20));
        write(&log, 0, 200_000);
        assert_eq!(log.end(), 1_600_000);
        assert_eq!(log.end() - log.oldest(), UNWRITTEN_BYTES);
    }

    #[test]
    fn what_the_fastest_reader_has_not_read_is_kept_when_the_disk_is_full() {
        let directory = tempfile::tempdir().expect("a directory");
        let policy = policy(directory.path(), 64 << 10);
        let log = OutputLog::new(policy.clone());
        let reader = log.add_reader(0);
        write(&log, 0, 17_000);
        // The first segment is full: there can be no other.
        let next = log.state().memory_start;
        fs::create_dir(directory.path().join(format!("exec/stdout.{next}"))).expect("in the way");
        write(&log, 17_000, 40_000);
        assert!(log.state().spill_failed);
        let (first, all) = read_from(&log, 0);
        assert_eq!((first, all.len()), (0, 320_000));
        log.move_reader(reader, 200_000);
        write(&log, 40_000, 75_000);
        let (first, all) = read_from(&log, 200_000);
        assert_eq!((first, all.len(), policy.disk.all()), (200_000, 400_000, 0));
        assert_eq!(log.oldest(), 200_000, "what it has read is dropped");
        log.remove_reader(reader);
        write(&log, 75_000, 75_001);
        assert_eq!(log.end() - log.oldest(), 64 << 10);
    }

    #[test]
    fn what_the_fastest_reader_has_not_read_is_kept_beyond_all_limits() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = OutputLog::new(policy(directory.path(), 64 << 10));
        let slow = log.add_reader(0);
        write(&log, 0, 100_000);
        assert_eq!((log.oldest(), log.reader_lag()), (0, 800_000));
        let fast = log.add_reader(600_000);
        assert_eq!(log.reader_lag(), 200_000, "the fastest is the one that is waited for");
        write(&log, 100_000, 150_000);
        assert!(log.oldest() > 0 && log.oldest() <= 600_000, "{}", log.oldest());
        log.remove_reader(slow);
        log.remove_reader(fast);
        assert_eq!(log.reader_lag(), 0);
    }

    #[test]
    fn a_running_process_keeps_its_log_while_there_is_one_of_an_ended_process_to_drop() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = Arc::new(DiskUse::new(1 << 20));
        disk.keep_ended(1 << 20, 1 << 20);
        let log = OutputLog::new(LogPolicy {
            disk: Arc::clone(&disk),
            ..policy(directory.path(), 4 << 20)
        });
        write(&log, 0, 100_000);
        assert_eq!(log.oldest(), 0);
        disk.drop_ended(1 << 20);
        write(&log, 100_000, 300_000);
        assert!(log.oldest() > 0 && disk.all() <= 1 << 20, "{}", disk.all());
    }
}
