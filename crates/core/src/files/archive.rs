//! Trees as tar streams, out of a workspace and into it.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use skep_bridge_protocol::STREAM_CHUNK_BYTES;
use skep_bridge_protocol::workspace::{ArchiveInChunk, ArchiveInResult, ArchiveOutRequest, ExtractRequest};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::path::WorkspacePath;
use super::roomy::RoomyBridge;
use crate::bridge::{Bridge, BridgeError, BridgeResult, LARGE_WITHIN, NEXT_PIECE_WITHIN, SMALL_WITHIN};

/// Pieces under way between the caller and the bridge.
const PIECES_UNDER_WAY: usize = 2;

/// What an unpacked archive held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveReport {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// A tar stream of `paths`: a directory's entries are relative to it, a file is one entry; several are each below their
/// own last names.
///
/// # Errors
/// `NotFound`, `PermissionDenied`, `Unreachable`; one in the middle of the stream is its last item.
pub async fn read_archive(
    bridge: &Bridge,
    paths: &[WorkspacePath],
) -> BridgeResult<impl Stream<Item = BridgeResult<Bytes>> + Send + use<>> {
    let mut client = bridge.workspace();
    let request = ArchiveOutRequest {
        paths: paths.iter().map(WorkspacePath::to_bytes).collect(),
    };
    let chunks = Bridge::answer(SMALL_WITHIN, client.archive_out(request)).await?;
    Ok(futures::stream::try_unfold(chunks, |mut chunks| async move {
        match timeout(NEXT_PIECE_WITHIN, chunks.message()).await {
            Ok(Ok(Some(chunk))) if chunk.data.is_empty() => {
                Err(BridgeError::Untrustworthy("a piece without a byte".to_owned()))
            }
            Ok(Ok(Some(chunk))) => Ok(Some((chunk.data, chunks))),
            Ok(Ok(None)) => Ok(None),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(BridgeError::late("the next piece of the archive")),
        }
    }))
}

/// Unpacks a tar stream into the directory `path`, which is made when it is missing.
///
/// # Errors
/// `InvalidArgument` for what is no archive or holds what is not accepted, `NoSpace`; what came before it stays unpacked.
pub async fn write_archive(
    bridge: &RoomyBridge,
    path: &WorkspacePath,
    source: impl Stream<Item = BridgeResult<Bytes>> + Send,
) -> BridgeResult<ArchiveReport> {
    let mut client = bridge.workspace();
    let (sender, receiver) = mpsc::channel(PIECES_UNDER_WAY);
    let first = ArchiveInChunk {
        path: path.to_bytes(),
        ..ArchiveInChunk::default()
    };
    let call = client.archive_in(ReceiverStream::new(receiver));
    let taken = source.map(|bytes| {
        let bytes = bytes?;
        bridge.take(bytes.len())?;
        Ok(bytes)
    });
    let feed = feed(first, taken, sender);
    tokio::pin!(call, feed);
    let answer = tokio::select! {
        answer = &mut call => answer,
        fed = &mut feed => {
            fed?;
            timeout(LARGE_WITHIN, &mut call).await.map_err(|_| BridgeError::late("the end of the unpacking"))?
        }
    };
    Ok(report_of(&answer?.into_inner()))
}

/// Unpacks an archive that lies in the workspace, ZIP or tar as it is, by gzip or by zstd, into the directory `to` or
/// where it lies.
///
/// # Errors
/// As [`write_archive`], and as [`stat`](super::stat).
pub async fn extract(
    bridge: &RoomyBridge,
    archive: &WorkspacePath,
    to: Option<&WorkspacePath>,
) -> BridgeResult<ArchiveReport> {
    let mut client = bridge.workspace();
    let request = ExtractRequest {
        path: archive.to_bytes(),
        to: to.map(WorkspacePath::to_bytes).unwrap_or_default(),
    };
    let result = Bridge::answer(LARGE_WITHIN, client.extract(request)).await?;
    Ok(report_of(&result))
}

fn report_of(result: &ArchiveInResult) -> ArchiveReport {
    ArchiveReport {
        entries: result.entries,
        bytes: result.bytes,
    }
}

/// Ends well, too, when the bridge takes no more: its answer then tells why.
async fn feed(
    first: ArchiveInChunk,
    source: impl Stream<Item = BridgeResult<Bytes>>,
    sender: mpsc::Sender<ArchiveInChunk>,
) -> BridgeResult<()> {
    tokio::pin!(source);
    let mut next = Some(first);
    loop {
        if let Some(chunk) = next.take() {
            let is_last = chunk.finish;
            match timeout(NEXT_PIECE_WITHIN, sender.send(chunk)).await {
                Ok(Ok(())) if !is_last => {}
                Ok(_) => return Ok(()),
                Err(_) => return Err(BridgeError::late("the next piece of the archive")),
            }
        }
        match source.next().await.transpose()? {
            None => {
                next = Some(ArchiveInChunk {
                    finish: true,
                    ..ArchiveInChunk::default()
                });
            }
            Some(bytes) => {
                for piece in pieces(bytes) {
                    let chunk = ArchiveInChunk {
                        data: piece,
                        ..ArchiveInChunk::default()
                    };
                    match timeout(NEXT_PIECE_WITHIN, sender.send(chunk)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return Ok(()),
                        Err(_) => return Err(BridgeError::late("the next piece of the archive")),
                    }
                }
            }
        }
    }
}

fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!bytes.is_empty()).then(|| bytes.split_to(bytes.len().min(STREAM_CHUNK_BYTES))))
}
