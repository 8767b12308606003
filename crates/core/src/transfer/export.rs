//! Reading `/data` of a running workspace as a tar stream, over its bridge, with the tenant's own rights.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use skep_bridge_protocol::workspace::{ExportChunk, ExportRequest};
use tokio::time::timeout;
use tonic::Streaming;

use crate::bridge::{Bridge, BridgeError, BridgeResult, NEXT_PIECE_WITHIN, SMALL_WITHIN};
use crate::error::{Error, Result};

/// What becomes of a file that changes each time it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changing {
    /// It goes in as it was read last, and is counted.
    Counted,
    /// The export fails.
    Refused,
}

/// A plain tar stream that has begun.
pub struct Export {
    /// About as many bytes as the tar stream will have: for progress bars.
    pub estimate_bytes: u64,
    pub(super) pieces: BoxStream<'static, Result<TarPiece>>,
}

/// The end comes last, and only after everything went well.
pub(super) enum TarPiece {
    Data(Bytes),
    End { changed: u64 },
}

impl Export {
    /// Begins to read `/data` of a running workspace, which runs on.
    ///
    /// # Errors
    /// `InvalidPath` when `/data` is no directory, a link too; `Unsupported` by a bridge of an earlier version.
    pub async fn of_running(bridge: &Bridge, changing: Changing) -> Result<Self> {
        if bridge.generation() < FIRST_GENERATION {
            return Err(BridgeError::Unsupported("exports".to_owned()).into());
        }
        let mut client = bridge.workspace();
        let request = ExportRequest {
            strict: changing == Changing::Refused,
        };
        let mut chunks = Bridge::answer(SMALL_WITHIN, client.export(request)).await?;
        let first = next(&mut chunks).await?;
        let first = first.ok_or_else(|| BridgeError::Untrustworthy("an export without a beginning".to_owned()))?;
        let estimate_bytes = first.estimate_bytes;
        let pieces = stream::try_unfold(Some((first, chunks)), following);
        Ok(Self {
            estimate_bytes,
            pieces: pieces.boxed(),
        })
    }
}

/// The generation of the bridge's service that has exports.
const FIRST_GENERATION: u32 = 2;

type Rest = Option<(ExportChunk, Streaming<ExportChunk>)>;

/// Turns a chunk into a piece and fetches the next one.
async fn following(rest: Rest) -> Result<Option<(TarPiece, Rest)>> {
    let Some((chunk, mut chunks)) = rest else {
        return Ok(None);
    };
    if let Some(report) = chunk.report {
        return Ok(Some((
            TarPiece::End {
                changed: report.changed,
            },
            None,
        )));
    }
    let Some(more) = next(&mut chunks).await? else {
        return Err(Error::from(BridgeError::Unreachable(
            "the export ended before its end".to_owned(),
        )));
    };
    Ok(Some((TarPiece::Data(chunk.data), Some((more, chunks)))))
}

async fn next(chunks: &mut Streaming<ExportChunk>) -> BridgeResult<Option<ExportChunk>> {
    match timeout(NEXT_PIECE_WITHIN, chunks.message()).await {
        Ok(chunk) => Ok(chunk?),
        Err(_) => Err(BridgeError::late("the next piece of the export")),
    }
}
