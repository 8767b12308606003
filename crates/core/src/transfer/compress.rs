//! Compressing a tar stream on a thread of its own, in pieces, with back-pressure both ways.
//!
//! An archive that fails midway must never look whole: its end is written only when the tree was read to its end, and
//! whoever reads the pieces gets the error in its place.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use sha2::{Digest as _, Sha256};
use skep_archive::{Compressed, Format};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::export::{Counts, Export, TarPiece};
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
    /// Compresses it as it is read.
    pub fn compressed(self, format: ArchiveFormat, digest: Digest) -> Archive {
        let (tar, tar_pieces) = mpsc::channel(PIECES_UNDER_WAY);
        let (archive, archive_pieces) = mpsc::channel(PIECES_UNDER_WAY);
        let mut pieces = self.pieces;
        // It is driven by whoever reads the archive: gone with it, it ends the thread and the reading.
        let feed = async move {
            while let Some(piece) = pieces.next().await {
                if tar.send(piece).await.is_err() {
                    break;
                }
            }
        };
        let thread = tokio::task::spawn_blocking(move || {
            let output = Output {
                archive,
                pending: BytesMut::new(),
                is_given_up: false,
                hash: (digest == Digest::Taken).then(Sha256::new),
            };
            compress(tar_pieces, output, format.into());
        });
        let fed = stream::once(async move {
            feed.await;
            thread.await
        });
        let fed = fed.filter_map(async |ended| {
            ended
                .err()
                .map(|error| Err(Error::internal("compressing an archive", error)))
        });
        stream::select(ReceiverStream::new(archive_pieces), fed).boxed()
    }
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
    use super::*;

    const COUNTS: Counts = Counts { skipped: 2, changed: 3 };

    fn export(pieces: Vec<Result<TarPiece>>) -> Export {
        Export {
            estimate_bytes: 0,
            pieces: stream::iter(pieces).boxed(),
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
}
