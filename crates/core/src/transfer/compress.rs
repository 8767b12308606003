//! Compressing a tar stream on a thread of its own, in pieces, with back-pressure both ways. Who takes nothing is given
//! up, as the server has only so many threads.
//!
//! An archive that fails midway must never look whole: its end is written only when the tree was read to its end, and
//! whoever reads the pieces gets the error in its place.

use std::convert::Infallible;
use std::io::{self, Write};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use sha2::{Digest as _, Sha256};
use skep_archive::{Compressed, Format};
use tokio::sync::mpsc;

use super::export::{Counts, Export, Pieces, TarPiece};
use super::taker::TAKEN_WITHIN;
use crate::error::{Error, Result};

/// Pieces under way on each side of the thread.
const PIECES_UNDER_WAY: usize = 4;
const PIECE_BYTES: usize = 128 * 1024;

/// What an archive is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// Nothing.
    Tar,
    /// gzip, at the fastest level that pays.
    TarGz,
    /// zstd.
    TarZst,
}

impl From<ArchiveFormat> for Format {
    fn from(format: ArchiveFormat) -> Self {
        match format {
            ArchiveFormat::Tar => Self::Tar,
            ArchiveFormat::TarGz => Self::Gzip,
            ArchiveFormat::TarZst => Self::Zstd,
        }
    }
}

/// Whether the digest of the archive is wanted, which costs about as much as reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digest {
    /// SHA-256.
    Taken,
    /// None.
    NotTaken,
}

/// A part of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Its next bytes.
    Data(Bytes),
    /// All of it was there; the last piece of one that is whole.
    End {
        /// SHA-256 of all bytes, in hexadecimal, when it was wanted.
        sha256: Option<String>,
        /// What was left out or never held still.
        counts: Counts,
    },
}

/// The pieces of an archive; an error is the last one.
pub type Archive = BoxStream<'static, Result<Piece>>;

impl Export {
    /// Compresses it as it is read. Who takes nothing for a minute is given up.
    pub fn compressed(self, format: ArchiveFormat, digest: Digest) -> Archive {
        self.compressed_within(TAKEN_WITHIN, format, digest)
    }

    fn compressed_within(self, limit: Duration, format: ArchiveFormat, digest: Digest) -> Archive {
        let (tar, tar_pieces) = mpsc::channel(PIECES_UNDER_WAY);
        let (archive, made) = mpsc::channel(PIECES_UNDER_WAY);
        let (client, taken) = mpsc::channel(1);
        let thread = tokio::task::spawn_blocking(move || {
            let output = Output {
                archive,
                pending: BytesMut::new(),
                is_given_up: false,
                hash: (digest == Digest::Taken).then(Sha256::new),
            };
            compress(tar_pieces, output, format.into());
        });
        let Self { pieces, turns, .. } = self;
        tokio::spawn(async move {
            let reading = feed(pieces, tar);
            tokio::select! {
                () = hand_on(made, client, limit) => {}
                never = reading => match never {},
            }
            // With nobody at either end of it the thread ends too. What panicked there is told by the missing end.
            drop(thread.await);
            drop(turns);
        });
        whole(taken).boxed()
    }
}

/// Gives the thread what is read; when all is read, waits for the thread.
async fn feed(mut pieces: Pieces, tar: mpsc::Sender<Result<TarPiece>>) -> Infallible {
    while let Some(piece) = pieces.next().await {
        if tar.send(piece).await.is_err() {
            break;
        }
    }
    drop((pieces, tar));
    std::future::pending().await
}

/// Until the thread has ended, the client has gone, or he took nothing for as long as `limit`.
async fn hand_on(mut made: mpsc::Receiver<Result<Piece>>, client: mpsc::Sender<Result<Piece>>, limit: Duration) {
    loop {
        let piece = tokio::select! {
            () = client.closed() => return,
            piece = made.recv() => piece,
        };
        let Some(piece) = piece else { return };
        if client.send_timeout(piece, limit).await.is_err() {
            return;
        }
    }
}

/// What comes without its end is an error.
fn whole(pieces: mpsc::Receiver<Result<Piece>>) -> impl Stream<Item = Result<Piece>> {
    stream::try_unfold(Some(pieces), |pieces| async move {
        let Some(mut pieces) = pieces else { return Ok(None) };
        match pieces.recv().await.transpose()? {
            Some(end @ Piece::End { .. }) => Ok(Some((end, None))),
            Some(data) => Ok(Some((data, Some(pieces)))),
            None => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        }
    })
}

fn compress(tar: mpsc::Receiver<Result<TarPiece>>, output: Output, format: Format) {
    let archive = output.archive.clone();
    // Nobody reads the end when the caller has gone.
    drop(archive.blocking_send(write(tar, output, format)));
}

fn write(mut tar: mpsc::Receiver<Result<TarPiece>>, output: Output, format: Format) -> Result<Piece> {
    let mut compressed = Compressed::new(output, format).map_err(failed)?;
    match write_tree(&mut tar, &mut compressed) {
        Ok(counts) => {
            let output = compressed.finish().map_err(failed)?;
            Ok(Piece::End {
                sha256: output.hash.map(|hash| hex::encode(hash.finalize())),
                counts,
            })
        }
        Err(error) => {
            compressed.output_mut().is_given_up = true;
            Err(error)
        }
    }
}

/// All of the tree; what is told of it.
fn write_tree(tar: &mut mpsc::Receiver<Result<TarPiece>>, compressed: &mut Compressed<Output>) -> Result<Counts> {
    loop {
        match tar.blocking_recv() {
            Some(Ok(TarPiece::Data(data))) => compressed.write_all(&data).map_err(failed)?,
            Some(Ok(TarPiece::End(counts))) => return Ok(counts),
            Some(Err(error)) => return Err(error),
            None => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

fn failed(error: io::Error) -> Error {
    Error::internal("compressing an archive", error)
}

struct Output {
    archive: mpsc::Sender<Result<Piece>>,
    pending: BytesMut,
    /// What is written from now on is the end that a compressor writes when it is dropped.
    is_given_up: bool,
    hash: Option<Sha256>,
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.is_given_up {
            return Ok(data.len());
        }
        self.pending.extend_from_slice(data);
        if self.pending.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = self.pending.split().freeze();
        if piece.is_empty() {
            return Ok(());
        }
        if let Some(hash) = &mut self.hash {
            hash.update(&piece);
        }
        let sent = self.archive.blocking_send(Ok(Piece::Data(piece)));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skep_names::BotId;

    use super::*;
    use crate::transfer::Turns;

    const COUNTS: Counts = Counts { skipped: 2, changed: 3 };

    fn export(pieces: Vec<Result<TarPiece>>) -> Export {
        export_of(stream::iter(pieces).boxed())
    }

    fn export_of(pieces: Pieces) -> Export {
        let turn = Turns::default().exports.take(&BotId::random(), "ada");
        Export {
            estimate_bytes: 0,
            pieces,
            turns: (turn.expect("the first"), None),
        }
    }

    fn data(byte: u8) -> Result<TarPiece> {
        Ok(TarPiece::Data(vec![byte; 300_000].into()))
    }

    /// What no format makes smaller.
    fn noise(size: usize) -> Bytes {
        let blocks = (0u64..).flat_map(|block| Sha256::digest(block.to_le_bytes()).to_vec());
        blocks.take(size).collect::<Vec<u8>>().into()
    }

    async fn read(archive: Archive) -> (Vec<u8>, Option<Result<Piece>>) {
        let (mut bytes, mut last) = (Vec::new(), None);
        let mut archive = archive;
        while let Some(piece) = archive.next().await {
            assert!(last.is_none(), "something after the end");
            match piece {
                Ok(Piece::Data(piece)) => bytes.extend_from_slice(&piece),
                end => last = Some(end),
            }
        }
        (bytes, last)
    }

    #[tokio::test]
    async fn every_format_holds_the_stream_and_its_digest_is_that_of_its_bytes() {
        for format in [ArchiveFormat::Tar, ArchiveFormat::TarGz, ArchiveFormat::TarZst] {
            let pieces = vec![data(1), data(2), Ok(TarPiece::End(COUNTS))];
            let (bytes, last) = read(export(pieces).compressed(format, Digest::Taken)).await;
            let sha256 = Some(hex::encode(Sha256::digest(&bytes)));
            assert_eq!(
                last.expect("an end").expect("whole"),
                Piece::End { sha256, counts: COUNTS }
            );
            let mut tar = Vec::new();
            let mut source = skep_archive::Source::open(bytes.as_slice()).expect("a source");
            io::Read::read_to_end(&mut source, &mut tar).expect("whole");
            assert_eq!(tar, [vec![1; 300_000], vec![2; 300_000]].concat(), "{format:?}");
        }
    }

    #[tokio::test]
    async fn one_that_fails_midway_is_never_whole() {
        let failures = || [Some(Err(Error::Conflict("gone".to_owned()))), None];
        // Whatever lies ready when it fails, up to the brink of a piece: nothing that follows makes it whole.
        let sizes = [300_000, 2 * PIECE_BYTES - 40, 2 * PIECE_BYTES - 200];
        for (format, size) in [ArchiveFormat::TarGz, ArchiveFormat::TarZst]
            .into_iter()
            .flat_map(|format| sizes.map(|size| (format, size)))
        {
            for failure in failures() {
                let pieces = [Ok(TarPiece::Data(noise(size)))].into_iter().chain(failure).collect();
                let (bytes, last) = read(export(pieces).compressed(format, Digest::NotTaken)).await;
                assert!(last.expect("an error").is_err());
                assert!(!bytes.is_empty(), "{format:?}: nothing was under way");
                let mut source = skep_archive::Source::open(bytes.as_slice()).expect("a source");
                let whole = io::Read::read_to_end(&mut source, &mut Vec::new());
                assert!(whole.is_err(), "{format:?}");
            }
        }
    }

    /// Without end; what it reads of is held by the second value too.
    fn endless() -> (Export, Arc<()>) {
        let held = Arc::new(());
        let reads = Arc::clone(&held);
        let pieces = stream::repeat_with(move || {
            let _reads = &reads;
            Ok(TarPiece::Data(noise(100_000)))
        });
        (export_of(pieces.boxed()), held)
    }

    async fn until_alone(held: &Arc<()>) {
        let alone = async {
            while Arc::strong_count(held) > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), alone).await;
        ended.expect("it is read on for nobody");
    }

    #[tokio::test]
    async fn who_takes_nothing_is_given_up_and_sees_no_end() {
        let (export, held) = endless();
        let archive = export.compressed_within(Duration::from_millis(50), ArchiveFormat::TarGz, Digest::NotTaken);
        until_alone(&held).await;
        let (_, last) = read(archive).await;
        assert!(last.expect("an error").is_err());
    }

    #[tokio::test]
    async fn nothing_is_read_on_for_who_has_gone() {
        let (export, held) = endless();
        let mut archive = export.compressed(ArchiveFormat::TarGz, Digest::NotTaken);
        assert!(matches!(archive.next().await, Some(Ok(Piece::Data(_)))));
        drop(archive);
        until_alone(&held).await;
    }

    #[tokio::test]
    async fn an_export_is_under_way_until_its_thread_has_ended() {
        let (turns, bot) = (Turns::default(), BotId::random());
        let (mut export, held) = endless();
        export.turns.0 = turns.exports.take(&bot, "ada").expect("the first");
        let archive = export.compressed(ArchiveFormat::TarGz, Digest::NotTaken);
        let others: Vec<_> = std::iter::from_fn(|| turns.exports.take(&bot, "ada").ok()).collect();
        assert_eq!(others.len(), 3, "with this one");
        drop(archive);
        until_alone(&held).await;
        let again = async {
            while turns.exports.take(&bot, "ada").is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let again = tokio::time::timeout(Duration::from_secs(60), again).await;
        again.expect("its turn is over");
    }
}
