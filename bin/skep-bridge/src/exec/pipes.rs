//! What a process reads and writes: its outputs into the log, its input from whoever writes to it.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::output::{Output, Which};
use super::process::FirstInput;
use super::start::Ends;
use crate::log;
use crate::system;

const PIECE_BYTES: usize = 64 * 1024;
const END_OF_TRANSMISSION: u8 = 4;

thread_local! {
    // One for all: no await lies between a read and the copy out of it.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE_BYTES]);
}

/// How fast a process may write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As it likes.
    Own,
    /// As the fastest of its readers reads; as it likes while it has none.
    OfReader,
}

/// A piece of input, and whom to tell that the process's pipe has taken it.
pub(super) struct Input {
    pub(super) data: Bytes,
    pub(super) end: bool,
    pub(super) done: oneshot::Sender<io::Result<()>>,
}

/// What an output is read from, as long as it is read.
pub(super) struct Source(Weak<AsyncFd<OwnedFd>>);

impl Source {
    /// Bytes that are there to be read.
    pub(super) fn unread(&self) -> u64 {
        let Some(source) = self.0.upgrade() else {
            return 0;
        };
        rustix::io::ioctl_fionread(source.get_ref()).unwrap_or_else(|error| {
            log::tell!("count unread output: {error}");
            0
        })
    }
}

pub(super) struct Attached {
    pub(super) stdin: Option<mpsc::Sender<Input>>,
    pub(super) terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    pub(super) sources: [Source; 2],
}

/// Starts what reads the outputs, in `work`, and what writes to the input.
///
/// # Errors
/// A descriptor that cannot be watched.
pub(super) fn attach(
    ends: Ends,
    output: &Arc<Output>,
    (pace, first): (Pace, FirstInput),
    work: &mut JoinSet<()>,
) -> io::Result<Attached> {
    let mut pump = |which, source: Arc<AsyncFd<OwnedFd>>| {
        let read_from = Source(Arc::downgrade(&source));
        work.spawn(
            Pump {
                source,
                output: Arc::clone(output),
                which,
                pace,
            }
            .run(),
        );
        read_from
    };
    match ends {
        Ends::Pipes { stdin, stdout, stderr } => {
            let sources = [
                pump(Which::Stdout, Arc::new(system::watch_descriptor(stdout)?)),
                pump(Which::Stderr, Arc::new(system::watch_descriptor(stderr)?)),
            ];
            let stdin = match stdin {
                Some(stdin) => Some(feed(Arc::new(system::watch_descriptor(stdin)?), None, first, output)),
                None => None,
            };
            Ok(Attached {
                stdin,
                terminal: None,
                sources,
            })
        }
        Ends::Terminal { master } => {
            let master = Arc::new(system::watch_descriptor(master)?);
            let sources = [pump(Which::Stdout, Arc::clone(&master)), Source(Weak::new())];
            let stdin = feed(Arc::clone(&master), Some(END_OF_TRANSMISSION), first, output);
            Ok(Attached {
                stdin: Some(stdin),
                terminal: Some(master),
                sources,
            })
        }
    }
}

struct Pump {
    source: Arc<AsyncFd<OwnedFd>>,
    output: Arc<Output>,
    which: Which,
    pace: Pace,
}

impl Pump {
    async fn run(self) {
        let log = self.output.log(self.which);
        loop {
            if self.pace == Pace::OfReader {
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
                log.set_being_spilled(true);
                if let Err(error) = tokio::task::spawn_blocking(move || output.log(which).spill()).await {
                    log::tell!("keep output: {error}");
                }
                log.set_being_spilled(false);
            }
        }
    }

    async fn wait_for_room(&self) {
        let mut changes = self.output.changes();
        loop {
            changes.borrow_and_update();
            if self.output.log(self.which).reader_lag() < self.output.allowed_lag() || changes.changed().await.is_err()
            {
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
