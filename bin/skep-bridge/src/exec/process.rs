//! One running process: what watches its time and tells its end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::end::{LeftBehind, Target};
use super::output::{Outcome, Output, Which};
use super::output_log::{LAG_AFTER_END_BYTES, OutputLog};
use super::pipes::{self, Attached, Input, Pace, Source};
use super::start::{self, Started};
use crate::log;
use crate::reaper::Ended;
use crate::system;

/// How long children that keep the output open may delay the exit: a multiple of it while the disk is waited for.
const DRAIN: Duration = Duration::from_secs(1);
/// How long an exit waits for a disk that takes nothing.
const DISK_WITHIN: Duration = Duration::from_secs(30);

pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) started_unix_nanos: i64,
    pub(crate) output: Arc<Output>,
    pub(crate) target: Target,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    stdin: Option<mpsc::Sender<Input>>,
    end_requested: CancellationToken,
    pace: Pace,
    /// Streams that keep a process alive which ends with them, and how many there ever were.
    holders: AtomicU32,
    holders_ever: AtomicU64,
    /// How long it lives on without any.
    outlives_stream: Duration,
    /// When it ended, in clock ticks since the boot.
    ended: OnceLock<u64>,
}

/// How a process is watched.
#[derive(Clone, Copy)]
pub(crate) struct Watch {
    pub(crate) timeout: Option<Duration>,
    pub(crate) pace: Pace,
    /// The process ends so long after the last stream that shows it is gone; none: it goes on.
    pub(crate) outlives_stream: Option<Duration>,
}

/// What comes before everything else on stdin, and whether more may come.
pub(crate) struct FirstInput {
    pub(crate) data: Bytes,
    pub(crate) more: bool,
}

/// Below zero where the clock is before 1970; the nearest that the wire can tell before 1677 and after 2262.
pub(crate) fn unix_nanos() -> i64 {
    nanos_from_1970(SystemTime::now())
}

fn nanos_from_1970(time: SystemTime) -> i64 {
    let told = |distance: Duration| i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => told(after),
        Err(before) => -told(before.duration()),
    }
}

impl Process {
    /// Takes a started process over. The future watches it to its very end (also children that keep the output open)
    /// and must be driven; the exit itself is told through `output`.
    pub(crate) fn take(
        started: Started,
        output: Arc<Output>,
        watch: Watch,
        first: FirstInput,
    ) -> io::Result<(Arc<Self>, impl Future<Output = ()> + Send + 'static)> {
        let Started { pid, ended, ends } = started;
        let mut work = JoinSet::new();
        let Attached {
            stdin,
            terminal,
            sources,
        } = pipes::attach(ends, &output, (watch.pace, first), &mut work)?;
        let target = if terminal.is_some() {
            Target::Session(pid)
        } else {
            Target::Group(pid)
        };
        let process = Arc::new(Self {
            pid,
            started_unix_nanos: unix_nanos(),
            output,
            target,
            terminal,
            stdin,
            end_requested: CancellationToken::new(),
            pace: watch.pace,
            holders: AtomicU32::new(0),
            holders_ever: AtomicU64::new(0),
            outlives_stream: watch.outlives_stream.unwrap_or_default(),
            ended: OnceLock::new(),
        });
        let watched = Arc::clone(&process);
        let reading = (work, sources);
        Ok((process, async move { watched.run(ended, reading, watch.timeout).await }))
    }

    async fn run(
        &self,
        mut ended: oneshot::Receiver<Ended>,
        (mut work, sources): (JoinSet<()>, [Source; 2]),
        limit: Option<Duration>,
    ) {
        let mut ending = JoinSet::new();
        let mut timed_out = false;
        // A time beyond what the clock can count is no limit.
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut ended => break ended,
                () = self.end_requested.cancelled(), if ending.is_empty() => {
                    ending.spawn(self.target.end());
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() && !timed_out => {
                    timed_out = true;
                    ending.spawn(self.target.end());
                }
            }
        };
        let Ok(ended) = ended else {
            // The reaper owns the other end until it has the status, and lives as long as the bridge.
            log::tell!("the reaper lost process {}", self.pid);
            return;
        };
        self.ended.get_or_init(system::ticks_since_boot);
        // A pump that waits for its reader reads nothing, and what is in the pipe was written before the end.
        self.output.tell_over();
        // Children that keep the output open go on being read below.
        let all_read = self.read_rest(&mut work).await;
        let stream_ends = [Which::Stdout, Which::Stderr].map(|which| self.output.log(which).end());
        let mut written = stream_ends;
        if !all_read {
            for (written, source) in written.iter_mut().zip(&sources) {
                *written += source.unread();
            }
        }
        self.output.set_outcome(Outcome {
            ended,
            timed_out,
            finished_unix_nanos: unix_nanos(),
            stream_ends,
            written,
        });
        if !all_read {
            while work.join_next().await.is_some() {}
        }
        if self.end_requested.is_cancelled() && ending.is_empty() {
            self.end_left_behind().await;
        }
        while ending.join_next().await.is_some() {}
    }

    /// Reads what the process left in its pipes; false: they are not at their end, as children keep them open. A pump that
    /// waits for the disk has not seen all of what was in its pipe at the end, unless it has read as much as a pipe may hold
    /// since; a disk that takes nothing for half a minute is waited for no longer, and what is left in the pipe is counted.
    async fn read_rest(&self, work: &mut JoinSet<()>) -> bool {
        let logs = [Which::Stdout, Which::Stderr].map(|which| self.output.log(which));
        let ends = logs.map(OutputLog::end);
        let mut drained = std::pin::pin!(async { while work.join_next().await.is_some() {} });
        let begun = Instant::now();
        while timeout(DRAIN, &mut drained).await.is_err() {
            let is_behind =
                |(log, end): (&OutputLog, u64)| log.is_being_spilled() && log.end() - end < LAG_AFTER_END_BYTES;
            if begun.elapsed() > DISK_WITHIN || !logs.into_iter().zip(ends).any(is_behind) {
                return false;
            }
        }
        true
    }

    /// Whom it may have left, once it has ended.
    pub(crate) fn left_behind(&self) -> Option<LeftBehind> {
        self.ended.get().map(|&leader_ended| LeftBehind {
            target: self.target,
            leader_ended,
        })
    }

    /// Ends what it left, once it has ended: its number may be another's by now.
    async fn end_left_behind(&self) {
        if let Some(left_behind) = self.left_behind() {
            left_behind.end().await;
        }
    }

    /// Ends the group (or the terminal's session) in the way of timeouts, and returns when it is gone.
    pub(crate) async fn end(&self) {
        if self.output.outcome().is_some() {
            return self.end_left_behind().await;
        }
        self.end_requested.cancel();
        self.output.exited().await;
        self.target.gone().await;
    }

    /// Writes to stdin; waits as long as the process does not read.
    ///
    /// # Errors
    /// BrokenPipe when stdin is closed or the process is over.
    pub(crate) async fn write_stdin(&self, data: Bytes, end: bool) -> io::Result<()> {
        let stdin = self.stdin.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let (done, written) = oneshot::channel();
        let exited = self.output.exited();
        let write = async {
            stdin
                .send(Input { data, end, done })
                .await
                .map_err(|_| io::ErrorKind::BrokenPipe)?;
            written.await.map_err(|_| io::ErrorKind::BrokenPipe)?
        };
        tokio::select! {
            result = write => result,
            _ = exited => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// # Errors
    /// `NotConnected` when it has no terminal.
    pub(crate) fn resize(&self, cols: u16, rows: u16) -> io::Result<()> {
        let terminal = self.terminal.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        start::set_size(terminal.get_ref(), cols, rows)
    }

    pub(crate) fn waits_for_reader(&self) -> bool {
        self.pace == Pace::OfReader
    }

    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Ends it when its time without a stream is over, and no stream has come meanwhile. Also after the exit: what a
    /// shell left running in its session goes with the terminal.
    async fn end_unless_shown_again(&self, shown_until_now: u64) {
        tokio::select! {
            () = tokio::time::sleep(self.outlives_stream) => {}
            _ = self.output.exited() => {}
        }
        let is_shown = self.holders.load(Ordering::Relaxed) > 0;
        if is_shown || self.holders_ever.load(Ordering::Relaxed) != shown_until_now {
            return;
        }
        self.end_requested.cancel();
        if self.output.outcome().is_some() {
            self.end_left_behind().await;
        }
    }
}

/// Ends its process, at once or in a while, when the last one is dropped: for a stream whose loss is the end of what it
/// shows.
pub(crate) struct Holder(Arc<Process>, tokio_util::task::TaskTracker);

impl Holder {
    pub(crate) fn new(process: Arc<Process>, tasks: tokio_util::task::TaskTracker) -> Self {
        process.holders.fetch_add(1, Ordering::Relaxed);
        process.holders_ever.fetch_add(1, Ordering::Relaxed);
        Self(process, tasks)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if self.0.holders.fetch_sub(1, Ordering::Relaxed) == 1 {
            let process = Arc::clone(&self.0);
            let shown_until_now = process.holders_ever.load(Ordering::Relaxed);
            self.1
                .spawn(async move { process.end_unless_shown_again(shown_until_now).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_bridge_protocol::workspace::ExecStatus;

    use super::super::feigned::{EXITED, process, take};
    use super::super::listed::end_of;
    use super::*;

    #[test]
    fn a_clock_before_1970_is_told_as_it_is() {
        assert_eq!(
            nanos_from_1970(UNIX_EPOCH - Duration::from_millis(1500)),
            -1_500_000_000
        );
        assert_eq!(nanos_from_1970(UNIX_EPOCH + Duration::from_nanos(7)), 7);
    }

    async fn until(mut is_so: impl FnMut() -> bool) {
        let wait = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), wait).await.expect("in time");
    }

    /// What is left in the pipe, in bytes.
    const LEFT: u64 = 50_000;

    /// A runtime whose one thread for the disk is busy until the sender is dropped.
    fn runtime_with_a_stuck_disk() -> (tokio::runtime::Runtime, std::sync::mpsc::Sender<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        let (free, until_free) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || until_free.recv());
        (runtime, free)
    }

    /// Writes until the disk is waited for, and then what is left in the pipe. Returns how many bytes in all.
    async fn write_more_than_is_read(writer: &OwnedFd, log: &OutputLog) -> u64 {
        let mut written = 0;
        while !log.is_being_spilled() {
            written += rustix::io::write(writer, &[b'x'; 4096]).expect("room") as u64;
            until(|| log.end() == written).await;
        }
        written + rustix::io::write(writer, &[b'y'; LEFT as usize]).expect("room") as u64
    }

    #[test]
    fn what_is_in_the_pipe_while_the_disk_is_waited_for_is_read_before_the_end_is_told() {
        let (runtime, free) = runtime_with_a_stuck_disk();
        let directory = tempfile::tempdir().expect("a directory");
        runtime.block_on(async {
            let (started, output, writer, end) = process(directory.path());
            let (_process, watched) = take(started, &output);
            let written = write_more_than_is_read(&writer, output.log(Which::Stdout)).await;
            drop(writer);
            end.send(EXITED).expect("it is waited for");
            let too_early = timeout(DRAIN * 3 / 2, output.exited()).await;
            assert!(too_early.is_err(), "not all is read: {too_early:?}");
            drop(free);
            let outcome = timeout(Duration::from_secs(20), output.exited())
                .await
                .expect("in time");
            assert_eq!((outcome.stream_ends, outcome.written), ([written, 0], [written, 0]));
            watched.await.expect("to its end");
        });
    }

    #[test]
    fn what_is_in_the_pipe_when_the_disk_is_waited_for_no_longer_is_told_with_the_end() {
        let (runtime, free) = runtime_with_a_stuck_disk();
        let directory = tempfile::tempdir().expect("a directory");
        runtime.block_on(async {
            let (started, output, writer, end) = process(directory.path());
            let (_process, watched) = take(started, &output);
            let log = output.log(Which::Stdout);
            let written = write_more_than_is_read(&writer, log).await;
            drop(writer);
            end.send(EXITED).expect("it is waited for");
            let outcome = timeout(DISK_WITHIN * 4, output.exited()).await.expect("in time");
            assert_eq!(outcome.stream_ends, [written - LEFT, 0]);
            let told = end_of(ExecStatus::default(), &outcome);
            assert_eq!((told.stdout_bytes, told.stderr_bytes), (written, 0));
            drop(free);
            watched.await.expect("to its end");
            assert_eq!(log.end(), written, "it comes in the log");
        });
    }

    #[tokio::test]
    async fn children_that_write_without_end_do_not_hold_back_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let (started, output, writer, end) = process(directory.path());
        let (_process, watched) = take(started, &output);
        let log = output.log(Which::Stdout);
        end.send(EXITED).expect("it is waited for");
        until(|| {
            // Whenever it is looked at, the disk is waited for.
            let written = rustix::io::write(&writer, &[b'x'; 32 << 10]);
            assert!(matches!(written, Ok(_) | Err(rustix::io::Errno::AGAIN)), "{written:?}");
            log.set_being_spilled(true);
            output.outcome().is_some()
        })
        .await;
        drop(writer);
        watched.await.expect("to its end");
    }
}
