//! Both streams of one process and its end, as readers see them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::output_log::{LAG_AFTER_END_BYTES, OutputLog, Piece, READER_LAG_BYTES, read_segment};
use crate::reaper::Ended;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) ended: Ended,
    pub(crate) timed_out: bool,
    pub(crate) finished_unix_nanos: i64,
    /// Where the streams were when the exit was told: what children write later comes after these.
    pub(crate) stream_ends: [u64; 2],
    /// Bytes written to each by then, of a terminal at least so many: more than `stream_ends` where some were in its pipe
    /// still.
    pub(crate) written: [u64; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which {
    Stdout = 0,
    Stderr = 1,
}

pub(crate) struct Output {
    logs: [OutputLog; 2],
    outcome: Mutex<Option<Outcome>>,
    /// The process is over, and what it wrote may still be on its way here.
    is_over: AtomicBool,
    changed: watch::Sender<()>,
}

/// What a reader gets next.
pub(crate) enum Next {
    Data { which: Which, offset: u64, data: Bytes },
    Exit(Outcome),
}

impl Output {
    pub(crate) fn new(logs: [OutputLog; 2], outcome: Option<Outcome>) -> Self {
        Self {
            logs,
            is_over: AtomicBool::new(outcome.is_some()),
            outcome: Mutex::new(outcome),
            changed: watch::Sender::new(()),
        }
    }

    pub(crate) fn log(&self, which: Which) -> &OutputLog {
        &self.logs[which as usize]
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_outcome(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.tell_readers();
    }

    /// Lets in what the process left in its pipes, however far its readers are behind.
    pub(crate) fn tell_over(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.tell_readers();
    }

    /// How far a process that waits for its readers may be ahead of them.
    pub(crate) fn allowed_lag(&self) -> u64 {
        match self.is_over.load(Ordering::Relaxed) {
            true => READER_LAG_BYTES + LAG_AFTER_END_BYTES,
            false => READER_LAG_BYTES,
        }
    }

    pub(crate) fn tell_readers(&self) {
        self.changed.send_replace(());
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits until the process has exited and what it wrote is read.
    pub(crate) async fn exited(&self) -> Outcome {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            // The sender lives in self, so this only ends by a change.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// One reader's way through the output.
pub(crate) struct Reader {
    output: Arc<Output>,
    changes: watch::Receiver<()>,
    /// The next offset of each stream that is wanted.
    positions: [Option<u64>; 2],
    limits: Option<[u64; 2]>,
    registered: [Option<u64>; 2],
    follow: bool,
    finished: bool,
    turn: usize,
}

impl Reader {
    pub(crate) fn new(output: Arc<Output>, positions: [Option<u64>; 2], follow: bool) -> Self {
        let changes = output.changes();
        // One that comes after the exit also gets what children wrote since, up to now: so that it ends.
        let limits = output
            .outcome()
            .map(|_| [0, 1].map(|which: usize| output.logs[which].end()));
        Self {
            output,
            changes,
            positions,
            limits,
            registered: [None, None],
            follow,
            finished: false,
            turn: 0,
        }
    }

    /// A process that waits for its readers waits for this one.
    #[must_use]
    pub(crate) fn waited_for(mut self) -> Self {
        for (which, position) in self.positions.into_iter().enumerate() {
            self.registered[which] = position.map(|position| self.output.logs[which].add_reader(position));
        }
        self
    }

    /// `None`: all that was asked for has been given.
    pub(crate) async fn next(&mut self) -> Option<std::io::Result<Next>> {
        while !self.finished {
            self.changes.borrow_and_update();
            // Looked at before the logs: all that belongs before the exit is in them by then.
            let outcome = self.output.outcome();
            let limits = self.limits.or(outcome.map(|outcome| outcome.stream_ends));
            for _ in 0..2 {
                self.turn ^= 1;
                match self.read_one(self.turn, limits.map(|limits| limits[self.turn])).await {
                    Ok(None) => {}
                    Ok(Some(next)) => return Some(Ok(next)),
                    Err(error) => {
                        self.finished = true;
                        return Some(Err(error));
                    }
                }
            }
            if let Some(outcome) = outcome {
                self.finished = true;
                return Some(Ok(Next::Exit(outcome)));
            }
            if !self.follow || self.changes.changed().await.is_err() {
                self.finished = true;
            }
        }
        None
    }

    async fn read_one(&mut self, turn: usize, limit: Option<u64>) -> std::io::Result<Option<Next>> {
        let Some(position) = self.positions[turn] else {
            return Ok(None);
        };
        let (offset, mut data) = match self.find(turn, position).await? {
            Some(found) => found,
            None => return Ok(None),
        };
        if let Some(limit) = limit {
            data.truncate(limit.saturating_sub(offset).try_into().unwrap_or(usize::MAX));
        }
        if data.is_empty() {
            return Ok(None);
        }
        let after = offset + data.len() as u64;
        self.positions[turn] = Some(after);
        if let Some(id) = self.registered[turn] {
            self.output.logs[turn].move_reader(id, after);
            // A pump may be waiting for this reader.
            self.output.tell_readers();
        }
        let which = if turn == 0 { Which::Stdout } else { Which::Stderr };
        Ok(Some(Next::Data { which, offset, data }))
    }

    async fn find(&self, turn: usize, position: u64) -> std::io::Result<Option<(u64, Bytes)>> {
        loop {
            match self.output.logs[turn].find(position) {
                Piece::Nothing => return Ok(None),
                Piece::InMemory { offset, data } => return Ok(Some((offset, data))),
                Piece::OnDisk {
                    offset,
                    path,
                    position,
                    length,
                } => {
                    let read = tokio::task::spawn_blocking(move || read_segment(&path, position, length)).await;
                    match read.map_err(std::io::Error::other)? {
                        Ok(data) => return Ok(Some((offset, data))),
                        // Dropped since: the log now begins later. One that did not move is lost, and told.
                        Err(error) if self.output.logs[turn].oldest() <= offset => return Err(error),
                        Err(_) => {}
                    }
                }
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for (log, id) in self.output.logs.iter().zip(self.registered) {
            if let Some(id) = id {
                log.remove_reader(id);
            }
        }
        self.output.tell_readers();
    }
}
