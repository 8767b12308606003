//! Between gRPC streams and blocking work on files: bounded channels, one worker thread for each stream.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::failure;
use crate::files::{self, Commit, NewFile};
use skep_bridge_protocol::workspace::FileInfo;

pub(crate) type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Chunks on their way between the network and a thread.
const IN_FLIGHT: usize = 4;

/// Runs blocking work on a worker thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| failure::worker_gone())?
}

/// Like [`blocking`], for work whose error is about one path.
pub(crate) async fn on_path<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    blocking(move || work(&path).map_err(|error| failure::of_path(&error, &path))).await
}

/// Like [`on_path`], for work from one path to another: its error names the one that is at fault.
pub(crate) async fn from_path_to_path(
    from: PathBuf,
    to: PathBuf,
    work: impl FnOnce(&Path, &Path) -> io::Result<()> + Send + 'static,
) -> Result<(), Status> {
    blocking(move || {
        work(&from, &to).map_err(|error| failure::of_path(&error, failure::path_at_fault(&error, &from, &to)))
    })
    .await
}

/// What a producer on a worker thread writes to. When the caller is gone every send fails, which ends the producer.
pub(crate) struct Outlet<T>(mpsc::Sender<Result<T, Status>>);

impl<T> Outlet<T> {
    pub(crate) fn send(&self, item: T) -> io::Result<()> {
        self.0
            .blocking_send(Ok(item))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A response stream that `produce` fills from a worker thread. Its error is the last thing in the stream.
pub(crate) fn produced<T: Send + 'static>(
    produce: impl FnOnce(&Outlet<T>) -> Result<(), Status> + Send + 'static,
) -> ResponseStream<T> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    // Not joined: it ends with the stream, by its own end or by a send that fails.
    tokio::task::spawn_blocking(move || {
        let outlet = Outlet(sender);
        if let Err(status) = produce(&outlet) {
            // Nobody reads it when the caller has gone.
            drop(outlet.0.blocking_send(Err(status)));
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// A piece of what a client sends.
pub(crate) enum Piece {
    Data(Bytes),
    /// The client said that this is all; a channel that closes without it was cut.
    Finish,
}

/// Hands a client's pieces to a worker that consumes them, and returns what the worker says.
pub(crate) async fn consumed<T: Send + 'static>(
    work: impl FnOnce(mpsc::Receiver<Piece>) -> Result<T, Status> + Send + 'static,
    pieces: impl Stream<Item = Result<Piece, Status>> + Send,
) -> Result<T, Status> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let worker = tokio::task::spawn_blocking(move || work(receiver));
    let mut pieces = std::pin::pin!(pieces);
    // A send that fails means that the worker has ended with an error, which is told below.
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        let finished = matches!(piece, Piece::Finish);
        if sender.send(piece).await.is_err() || finished {
            break;
        }
    }
    drop(sender);
    worker.await.map_err(|_| failure::worker_gone())?
}

/// A client's messages, the first of which was already read, as pieces; `split` tells a message's data and whether it
/// is the last.
pub(crate) fn pieces<T: Send + 'static>(
    first: T,
    rest: tonic::Streaming<T>,
    split: impl Fn(T) -> (Bytes, bool) + Send,
) -> impl Stream<Item = Result<Piece, Status>> + Send {
    stream::once(std::future::ready(Ok(first)))
        .chain(rest)
        .flat_map(move |message| {
            let (piece, last) = match message.map(&split) {
                Ok((data, last)) => (Ok(Piece::Data(data)), last),
                Err(status) => (Err(status), false),
            };
            stream::iter([Some(piece), last.then_some(Ok(Piece::Finish))].into_iter().flatten())
        })
}

/// Writes what comes into a file that is visible only when all of it has come.
pub(crate) fn write_pieces(
    path: &Path,
    modes: &Commit,
    mut pieces: mpsc::Receiver<Piece>,
    check: impl Fn(&files::Target) -> Result<(), Status>,
) -> Result<(u64, FileInfo), Status> {
    let told = |error: io::Error| failure::of_path(&error, path);
    let target = files::Target::find(path).map_err(told)?;
    check(&target)?;
    let mut new: NewFile = target.begin().map_err(told)?;
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Data(data)) => new.write(&data).map_err(told)?,
            Some(Piece::Finish) => break,
            None => return Err(cut(path)),
        }
    }
    check(new.target())?;
    new.commit(modes).map_err(told)
}

pub(crate) fn cut(path: &Path) -> Status {
    Status::aborted(format!("{}: the upload ended before its end", path.display()))
}

/// A client's pieces as something that can be read. A cut stream is an error, not an end.
pub(crate) struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    finished: bool,
    cut: bool,
}

impl PieceReader {
    pub(crate) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
            finished: false,
            cut: false,
        }
    }

    /// The client's stream ended before it was finished.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.finished {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::Finish) => self.finished = true,
                None => {
                    self.cut = true;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// Reads up to a chunk; empty at the end.
pub(crate) fn read_chunk(file: &mut impl Read, most: u64) -> io::Result<Bytes> {
    let most = most.min(skep_bridge_protocol::STREAM_CHUNK_BYTES as u64);
    let mut data = Vec::with_capacity(most as usize);
    file.by_ref().take(most).read_to_end(&mut data)?;
    Ok(data.into())
}
