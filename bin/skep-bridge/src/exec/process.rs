//! One running process: what reads its output, feeds its input, watches its time and tells its end.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::end::Target;
use super::output::{Outcome, Output, Which};
use super::output_log::READER_LAG_BYTES;
use super::start::{self, Ends, Started};
use crate::log;
use crate::reaper::Ended;
use crate::system;

const PIECE_BYTES: usize = 64 * 1024;
/// How long children that keep the output open may delay the exit.
const DRAIN: Duration = Duration::from_secs(1);
const END_OF_TRANSMISSION: u8 = 4;

thread_local! {
    // One for all: no await lies between a read and the copy out of it.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE_BYTES]);
}

pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) started_unix_nanos: i64,
    pub(crate) output: Arc<Output>,
    pub(crate) target: Target,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    stdin: Option<mpsc::Sender<Input>>,
    end_requested: CancellationToken,
    /// Streams that keep a process alive which ends with them, and how many there ever were.
    holders: AtomicU32,
    holders_ever: AtomicU64,
    /// How long it lives on without any.
    outlives_stream: Duration,
}

/// How a process is watched.
#[derive(Clone, Copy)]
pub(crate) struct Watch {
    pub(crate) timeout: Option<Duration>,
    pub(crate) wait_for_reader: bool,
    /// The process ends so long after the last stream that shows it is gone; none: it goes on.
    pub(crate) outlives_stream: Option<Duration>,
}

/// What comes before everything else on stdin, and whether more may come.
pub(crate) struct FirstInput {
    pub(crate) data: Bytes,
    pub(crate) more: bool,
}

struct Input {
    data: Bytes,
    end: bool,
    done: oneshot::Sender<io::Result<()>>,
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
        let (stdin, terminal) = attach(ends, &output, watch, first, &mut work)?;
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
            holders: AtomicU32::new(0),
            holders_ever: AtomicU64::new(0),
            outlives_stream: watch.outlives_stream.unwrap_or_default(),
        });
        let watched = Arc::clone(&process);
        Ok((process, async move { watched.run(ended, work, watch.timeout).await }))
    }

    async fn run(&self, mut ended: oneshot::Receiver<Ended>, mut work: JoinSet<()>, limit: Option<Duration>) {
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
        let drained = async { while work.join_next().await.is_some() {} };
        // Children that keep the output open go on being read below.
        let all_read = timeout(DRAIN, drained).await.is_ok();
        self.output.set_outcome(Outcome {
            ended,
            timed_out,
            finished_unix_nanos: unix_nanos(),
            stream_ends: [Which::Stdout, Which::Stderr].map(|which| self.output.log(which).end()),
        });
        if !all_read {
            while work.join_next().await.is_some() {}
        }
        if self.end_requested.is_cancelled() && ending.is_empty() {
            ending.spawn(self.target.end());
        }
        while ending.join_next().await.is_some() {}
    }

    /// Ends the group (or the terminal's session) in the way of timeouts, and returns when it is gone.
    pub(crate) async fn end(&self) {
        if self.output.outcome().is_some() {
            // The leader is over; what it left behind in its group is not.
            return self.target.end().await;
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
            self.target.end().await;
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

type Attached = (Option<mpsc::Sender<Input>>, Option<Arc<AsyncFd<OwnedFd>>>);

fn attach(
    ends: Ends,
    output: &Arc<Output>,
    watch: Watch,
    first: FirstInput,
    work: &mut JoinSet<()>,
) -> io::Result<Attached> {
    let mut pump = |which, source| {
        work.spawn(
            Pump {
                source,
                output: Arc::clone(output),
                which,
                wait_for_reader: watch.wait_for_reader,
            }
            .run(),
        );
    };
    match ends {
        Ends::Pipes { stdin, stdout, stderr } => {
            pump(Which::Stdout, Arc::new(system::watch_descriptor(stdout)?));
            pump(Which::Stderr, Arc::new(system::watch_descriptor(stderr)?));
            let stdin = match stdin {
                Some(stdin) => Some(feed(Arc::new(system::watch_descriptor(stdin)?), None, first, output)),
                None => None,
            };
            Ok((stdin, None))
        }
        Ends::Terminal { master } => {
            let master = Arc::new(system::watch_descriptor(master)?);
            pump(Which::Stdout, Arc::clone(&master));
            let stdin = feed(Arc::clone(&master), Some(END_OF_TRANSMISSION), first, output);
            Ok((Some(stdin), Some(master)))
        }
    }
}

struct Pump {
    source: Arc<AsyncFd<OwnedFd>>,
    output: Arc<Output>,
    which: Which,
    wait_for_reader: bool,
}

impl Pump {
    async fn run(self) {
        let log = self.output.log(self.which);
        loop {
            if self.wait_for_reader {
                self.wait_for_room().await;
            }
            match read_piece(&self.source).await {
                Ok(piece) if piece.is_empty() => break,
                Ok(piece) => log.append(piece),
                Err(error) => {
                    log::tell!("read output: {error}");
                    break;
                }
            }
            self.output.tell_readers();
            if log.needs_spill() {
                let (output, which) = (Arc::clone(&self.output), self.which);
                if let Err(error) = tokio::task::spawn_blocking(move || output.log(which).spill()).await {
                    log::tell!("keep output: {error}");
                }
            }
        }
    }

    async fn wait_for_room(&self) {
        let mut changes = self.output.changes();
        loop {
            changes.borrow_and_update();
            if self.output.log(self.which).reader_lag() < READER_LAG_BYTES || changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The next bytes; empty at the end.
async fn read_piece(source: &AsyncFd<OwnedFd>) -> io::Result<Bytes> {
    loop {
        let mut ready = source.readable().await?;
        let read = ready.try_io(|source| {
            SCRATCH.with_borrow_mut(|scratch| {
                let length = rustix::io::retry_on_intr(|| rustix::io::read(source, &mut scratch[..]))?;
                Ok(Bytes::copy_from_slice(&scratch[..length]))
            })
        });
        match read {
            // A terminal whose last process has gone says EIO.
            Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::IO) => return Ok(Bytes::new()),
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// Starts the one that writes to stdin: the initial data first, then what is sent to it.
fn feed(
    sink: Arc<AsyncFd<OwnedFd>>,
    end_byte: Option<u8>,
    first: FirstInput,
    output: &Arc<Output>,
) -> mpsc::Sender<Input> {
    let (sender, mut inputs) = mpsc::channel::<Input>(1);
    let output = Arc::clone(output);
    // Owned by the process: it ends when the process does, or when its last sender is gone.
    tokio::spawn(async move {
        let write_all = async {
            if !first.data.is_empty() {
                write_piece(&sink, &first.data).await?;
            }
            if !first.more {
                return end_input(&sink, end_byte).await;
            }
            while let Some(input) = inputs.recv().await {
                let mut result = write_piece(&sink, &input.data).await;
                let end = input.end || result.is_err();
                if result.is_ok() && input.end {
                    result = end_input(&sink, end_byte).await;
                }
                // Whoever sent it may have gone meanwhile.
                drop(input.done.send(result));
                if end && end_byte.is_none() {
                    break;
                }
            }
            Ok(())
        };
        tokio::select! {
            result = write_all => match result {
                // A process need not read what it is given.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    log::tell!("write to stdin: {error}");
                }
                _ => {}
            },
            _ = output.exited() => {}
        }
        // Dropping the sink closes a pipe.
    });
    sender
}

async fn end_input(sink: &AsyncFd<OwnedFd>, end_byte: Option<u8>) -> io::Result<()> {
    match end_byte {
        Some(byte) => write_piece(sink, &[byte]).await,
        None => Ok(()),
    }
}

async fn write_piece(sink: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = sink.writable().await?;
        match ready.try_io(|sink| Ok(rustix::io::retry_on_intr(|| rustix::io::write(sink, data))?)) {
            Ok(written) => data = &data[written?..],
            Err(_would_block) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_before_1970_is_told_as_it_is() {
        assert_eq!(
            nanos_from_1970(UNIX_EPOCH - Duration::from_millis(1500)),
            -1_500_000_000
        );
        assert_eq!(nanos_from_1970(UNIX_EPOCH + Duration::from_nanos(7)), 7);
    }
}
