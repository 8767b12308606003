//! Reading `/data` as a tar stream: of a running workspace over its bridge, with the tenant's own rights; of a stopped or
//! frozen one on the host, exact, as nobody writes.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use skep_bridge_protocol::workspace::{ExportChunk, ExportRequest};
use skep_names::BotId;
use skep_runtime::RuntimeError;
use skep_runtime::layer_access::{ArchiveFormat, DataPlace, DataReader, Pack, Trust};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::chunks_of;
use super::taker::Taker;
use super::turns::Turn;
use crate::backups::file_error;
use crate::bridge::{Bridge, BridgeError, BridgeResult, NEXT_PIECE_WITHIN, SMALL_WITHIN};
use crate::error::{Error, Result};
use crate::skep::Skep;
use crate::workspace::Spare;

/// What becomes of a file that changes each time it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changing {
    /// It goes in as it was read last, and is counted.
    Counted,
    /// The export fails.
    Refused,
}

/// When what is in an export was so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Each file when it was read; the workspace runs on.
    OfEachFile,
    /// All of it at once: the workspace is frozen while it is read.
    OfAll,
}

/// A plain tar stream that has begun.
pub struct Export {
    /// About as many bytes as the tar stream will have: for progress bars.
    pub estimate_bytes: u64,
    pub(super) pieces: Pieces,
    pub(super) turns: (Turn, Option<Turn>),
}

pub(super) type Pieces = BoxStream<'static, Result<TarPiece>>;

/// About how many bytes there will be, and the pieces.
type Begun = (u64, Pieces);

/// The end comes last, and only after everything went well.
pub(super) enum TarPiece {
    Data(Bytes),
    End(Counts),
}

/// What is told of an archive that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Sockets, pipes and devices, which are left out.
    pub skipped: u64,
    /// Files that changed each time they were read.
    pub changed: u64,
}

/// Pieces that are read before they are taken.
const PIECES_UNDER_WAY: usize = 4;
/// So often a workspace may be started or stopped between the look at it and the reading.
const TRIES: u32 = 3;

impl Skep {
    /// Begins to read `/data` of a workspace, which stays what it is: running or stopped.
    ///
    /// # Errors
    /// [`Error::BotNotFound`]; [`Error::ContainerNotFound`]; [`Error::InvalidPath`] when `/data` is no directory, a link too;
    /// [`Error::Unsupported`] by a bridge of an earlier version, and of a stopped one where layers cannot be read from
    /// outside; [`Error::Conflict`] when a workspace would have to be frozen for longer than may be;
    /// [`Error::RateLimited`] while too many exports are under way.
    pub async fn export_data(&self, bot: &BotId, moment: Moment, changing: Changing) -> Result<Export> {
        let owner = self.owner_of(bot).await?;
        let turn = self.turns().exports.take(bot, &owner)?;
        let of_one_moment = match moment {
            Moment::OfAll => Some(self.turns().of_one_moment.take(bot, &owner)?),
            Moment::OfEachFile => None,
        };
        let (estimate_bytes, pieces) = self.begin_export(bot, moment, changing).await?;
        Ok(Export {
            estimate_bytes,
            pieces,
            turns: (turn, of_one_moment),
        })
    }

    /// Whose share of what is under way at once a bot's transfer takes.
    pub(super) async fn owner_of(&self, bot: &BotId) -> Result<String> {
        let row = self.store().bot(bot).await?.ok_or(Error::BotNotFound)?;
        Ok(row.owner_user_id)
    }

    async fn begin_export(&self, bot: &BotId, moment: Moment, changing: Changing) -> Result<Begun> {
        for _ in 1..TRIES {
            match self.usable_bridge(bot, None).await {
                Ok(_) if moment == Moment::OfAll => return self.export_of_frozen(bot).await,
                Ok(bridge) => return of_running(&bridge, changing).await,
                Err(Error::WorkspaceStopped) => {}
                Err(error) => return Err(error),
            }
            match self.export_of_stopped(bot).await {
                // Rejected for its `/data`, or because it was started meanwhile.
                Err(_) if self.observations().is_running(bot) => {}
                result => return result,
            }
        }
        self.export_of_stopped(bot).await
    }

    async fn export_of_stopped(&self, bot: &BotId) -> Result<Begun> {
        let access = self.layer_access()?;
        let place = DataPlace::Workspace(bot.clone());
        let estimate_bytes = access.estimate_data(&place).await.map_err(rejected)?;
        let reader = access.read_data(&place, PLAIN).await.map_err(rejected)?;
        Ok((estimate_bytes, self.pumped(bot, reader)))
    }

    /// Read into a file first: the workspace must not wait for a client.
    async fn export_of_frozen(&self, bot: &BotId) -> Result<Begun> {
        let most = self.settings().freeze_max;
        let begun = Instant::now();
        let (file, counts) = match timeout(most, self.spooled_frozen(bot, most)).await {
            Ok(Ok(spooled)) => spooled,
            Ok(Err(error)) if begun.elapsed() < most => return Err(error),
            // Also when it did not stand still in time.
            Ok(Err(_)) | Err(_) => {
                return Err(Error::Conflict(format!(
                    "/data cannot be read within {} s, the longest that export.freeze_max lets a workspace stand still",
                    most.as_secs()
                )));
            }
        };
        let estimate_bytes = file.metadata().await.map_err(spooling)?.len();
        let data = chunks_of(file).map(|chunk| chunk.map(TarPiece::Data).map_err(spooling));
        let end = stream::once(async move { Ok(TarPiece::End(counts)) });
        // What comes after an error is not read.
        Ok((estimate_bytes, data.chain(end).boxed()))
    }

    /// It runs on when this returns or is dropped.
    async fn spooled_frozen(&self, bot: &BotId, limit: Duration) -> Result<(File, Counts)> {
        let file = self.spool().nameless().map_err(spooling)?;
        let reader = self.layer_access()?.read_frozen(bot, PLAIN, limit).await;
        spool(reader.map_err(rejected)?, file.into(), self.spare()).await
    }

    fn pumped(&self, bot: &BotId, reader: DataReader) -> Pieces {
        let (sender, pieces) = mpsc::channel(PIECES_UNDER_WAY);
        let (skep, taker) = (self.clone(), Taker::new(bot, sender));
        self.tasks().spawn(async move {
            tokio::select! {
                () = skep.letting_go().cancelled() => {}
                () = pump(&skep, reader, taker) => {}
            }
        });
        ReceiverStream::new(pieces).boxed()
    }
}

const PLAIN: Pack = Pack {
    format: ArchiveFormat::Tar,
    trust: Trust::Strangers,
};

fn rejected(error: RuntimeError) -> Error {
    match error {
        RuntimeError::Rejected { reason } => Error::InvalidPath(reason),
        error => error.into(),
    }
}

fn spooling(error: io::Error) -> Error {
    file_error("keeping an export of one moment", error)
}

/// All of an archive, in a file that stands at its beginning. It goes with the file when the host has no space to spare.
async fn spool(mut reader: DataReader, mut file: File, mut spare: Spare) -> Result<(File, Counts)> {
    while let Some(chunk) = reader.next_chunk().await? {
        spare.look().await?;
        file.write_all(&chunk).await.map_err(spooling)?;
    }
    let counts = counts_of(&reader)?;
    // The workspace runs on.
    drop(reader);
    file.flush().await.map_err(spooling)?;
    file.rewind().await.map_err(spooling)?;
    Ok((file, counts))
}

/// Of an archive that was read to its end.
fn counts_of(reader: &DataReader) -> Result<Counts> {
    let packed = reader.packed().ok_or_else(|| Error::Internal {
        operation: "reading an archive without its report".to_owned(),
        source: None,
    })?;
    Ok(Counts {
        skipped: packed.skipped,
        changed: packed.changed,
    })
}

/// Reads on its own, so that a client who takes nothing more is given up rather than waited for.
async fn pump(skep: &Skep, mut reader: DataReader, mut taker: Taker) {
    loop {
        let piece = match reader.next_chunk().await {
            Ok(Some(data)) => Ok(TarPiece::Data(data)),
            Ok(None) => break,
            Err(error) => Err(Error::from(error)),
        };
        let is_over = piece.is_err();
        if !taker.take(skep, piece).await || is_over {
            return;
        }
    }
    let end = counts_of(&reader).map(TarPiece::End);
    // The workspace may be started again.
    drop(reader);
    taker.take_end(end).await;
}

/// Over the bridge of a workspace that runs.
async fn of_running(bridge: &Bridge, changing: Changing) -> Result<Begun> {
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
    Ok((estimate_bytes, pieces.boxed()))
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
            TarPiece::End(Counts {
                skipped: report.skipped,
                changed: report.changed,
            }),
            None,
        )));
    }
    let Some(more) = next(&mut chunks).await? else {
        return Err(Error::from(BridgeError::Unreachable(
            "the export ended before its end".to_owned(),
        )));
    };
    if more.data.is_empty() && more.report.is_none() {
        return Err(BridgeError::Untrustworthy("a piece without a byte".to_owned()).into());
    }
    Ok(Some((TarPiece::Data(chunk.data), Some((more, chunks)))))
}

async fn next(chunks: &mut Streaming<ExportChunk>) -> BridgeResult<Option<ExportChunk>> {
    match timeout(NEXT_PIECE_WITHIN, chunks.message()).await {
        Ok(chunk) => Ok(chunk?),
        Err(_) => Err(BridgeError::late("the next piece of the export")),
    }
}
