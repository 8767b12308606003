//! Between gRPC streams and blocking work on files: bounded channels, and as few threads as the work allows. What can be
//! done piece by piece takes a thread for each piece, and none while its caller does not read or write; an
//! archive or a search keeps one, in a lane of its own.

use std::future::ready;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::failure;
use crate::files::{self, Commit, NewFile};
use crate::workers::{Lane, Place, asked, blocking, blocking_while};
use skep_bridge_protocol::workspace::FileInfo;

pub(crate) type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Chunks on their way between the network and a thread.
const IN_FLIGHT: usize = 4;
/// Pieces that are made before they can be sent: the next one, while one is sent.
const AHEAD: usize = 1;

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
///
/// # Errors
/// As [`Lane::place`].
pub(crate) async fn produced<T: Send + 'static>(
    lane: Lane,
    produce: impl FnOnce(&Outlet<T>) -> Result<(), Status> + Send + 'static,
) -> Result<ResponseStream<T>, Status> {
    let place = lane.place().await?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    // Not joined: it ends with the stream, by its own end or by a send that fails.
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let outlet = Outlet(sender);
        // The caller may have gone before there was a thread.
        if !outlet.0.is_closed()
            && let Err(status) = produce(&outlet)
        {
            // Nobody reads it when the caller has gone.
            drop(outlet.0.blocking_send(Err(status)));
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// A response stream of `first` and then of what `next` gives, until that is nothing. No thread waits for a caller that does
/// not read.
pub(crate) fn pulled<T: Send + 'static>(
    place: Place,
    first: T,
    mut next: impl FnMut() -> Result<Option<T>, Status> + Send + 'static,
) -> ResponseStream<T> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    // Not joined: it ends with the stream, by its own end or when there is nobody to make room.
    tokio::spawn(async move {
        let _place = place;
        while let Ok(room) = sender.reserve().await {
            match blocking(move || Ok((next()?, next))).await {
                Ok((Some(item), again)) => {
                    next = again;
                    room.send(Ok(item));
                }
                Ok((None, _)) => return,
                Err(status) => return room.send(Err(status)),
            }
        }
    });
    Box::pin(stream::once(ready(Ok(first))).chain(ReceiverStream::new(receiver)))
}

/// A piece of what a client sends.
pub(crate) enum Piece {
    Data(Bytes),
    /// The client said that this is all; a channel that closes without it was cut.
    Finish,
}

/// Hands a client's pieces to a worker that consumes them, and returns what the worker says.
///
/// # Errors
/// Those of the worker and of the pieces, and as [`Lane::place`].
pub(crate) async fn consumed<T: Send + 'static>(
    lane: Lane,
    work: impl FnOnce(mpsc::Receiver<Piece>) -> Result<T, Status> + Send + 'static,
    pieces: impl Stream<Item = Result<Piece, Status>> + Send,
) -> Result<T, Status> {
    let place = lane.place().await?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let (_waiting, asked) = asked();
    let worker = tokio::spawn(blocking_while(asked, move || {
        let _place = place;
        work(receiver)
    }));
    let mut pieces = pin!(pieces);
    let mut sent = Ok(());
    // A send that fails means that the worker has ended with an error, which is told below.
    while let Some(piece) = pieces.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(status) => {
                sent = Err(status);
                break;
            }
        };
        let finished = matches!(piece, Piece::Finish);
        if sender.send(piece).await.is_err() || finished {
            break;
        }
    }
    drop(sender);
    // Whatever is told, nothing is still being done then.
    let worked = worker.await.map_err(|_| failure::worker_gone())?;
    sent.and(worked)
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
pub(crate) async fn write_pieces(
    path: PathBuf,
    modes: Commit,
    pieces: impl Stream<Item = Result<Piece, Status>> + Send,
    check: impl Fn(&files::Target) -> Result<(), Status> + Clone + Send + 'static,
) -> Result<(u64, FileInfo), Status> {
    let told = {
        let path = path.clone();
        move |error: io::Error| failure::of_path(&error, &path)
    };
    let (begin, checked, failed) = (path.clone(), check.clone(), told.clone());
    let begun = blocking(move || {
        let target = files::Target::find(&begin).map_err(&failed)?;
        checked(&target)?;
        target.begin().map_err(failed)
    });
    let mut unfinished = Unfinished(Some(begun.await?));
    if let Err(status) = fill(&mut unfinished, &path, pieces, &told).await {
        // Before the caller hears of it: what failed has left nothing behind.
        if let Some(file) = unfinished.0.take() {
            blocking(move || {
                drop(file);
                Ok(())
            })
            .await?;
        }
        return Err(status);
    }
    let file = unfinished.take()?;
    blocking(move || {
        let ready = file.ready().map_err(&told)?;
        check(ready.target())?;
        ready.commit(&modes).map_err(told)
    })
    .await
}

async fn fill(
    unfinished: &mut Unfinished,
    path: &Path,
    pieces: impl Stream<Item = Result<Piece, Status>> + Send,
    told: &(impl Fn(io::Error) -> Status + Clone + Send + 'static),
) -> Result<(), Status> {
    let mut pieces = pin!(pieces);
    loop {
        match pieces.next().await.transpose()? {
            Some(Piece::Data(data)) if data.is_empty() => {}
            Some(Piece::Data(data)) => {
                let (mut file, failed) = (unfinished.take()?, told.clone());
                let written = blocking(move || file.write(&data).map(|()| file).map_err(failed));
                unfinished.0 = Some(written.await?);
            }
            Some(Piece::Finish) => return Ok(()),
            None => return Err(cut(path)),
        }
    }
}

/// A file on its way. Given up, its bytes are let go by a worker: a large one takes its time.
struct Unfinished(Option<NewFile>);

impl Unfinished {
    fn take(&mut self) -> Result<NewFile, Status> {
        self.0.take().ok_or_else(failure::worker_gone)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(file) = self.0.take() {
            tokio::task::spawn_blocking(move || drop(file));
        }
    }
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
