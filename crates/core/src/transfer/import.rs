//! Receiving an archive that is to be imported: into a file below the data root, read to its end and checked there,
//! before anything is stopped for it.
//!
//! The file is there until its operation has ended. Whatever comes between removes it: a guard while it is received,
//! the end of the operation, and the next start for what a crash left.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use skep_archive::{ArchiveError, Checked, Limits, Reason, Refusal, Source, Trust};
use skep_names::BotId;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::turns::Turn;
use crate::backups::file_error;
use crate::bridge::BridgeError;
use crate::error::{Error, Result};
use crate::operations::OperationHandle;
use crate::requester::Requester;
use crate::settings::ImportLimits;
use crate::skep::Skep;
use crate::workspace::{ImportPlan, Request, RestoreMode, Spare};

/// Only the server's own user reads what tenants send.
const PRIVATE: u32 = 0o600;
const PRIVATE_DIRECTORY: u32 = 0o700;
/// The most that an archive holds for an entry beside its bytes: headers, and names and attributes of the longest.
const MOST_OVERHEAD_BYTES: u64 = 4096;
/// Names and links of an archive together. They are sorted on the disk to check them, which takes up to twice as much.
const MOST_NAME_BYTES: u64 = 4 << 30;

/// Of an archive that is received so much must come in each minute that it is waited for: what came before lies on the
/// disk meanwhile.
const LEAST_BYTES: u64 = 64 * 1024;
const MINUTE: Duration = Duration::from_secs(60);

/// The directory of archives that were received.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    directory: PathBuf,
    /// For what is noted of an archive while it is checked, and for what is exported of one moment.
    spill: PathBuf,
}

impl Spool {
    pub(crate) fn below(data_root: &Path) -> Self {
        Self {
            directory: data_root.join("imports"),
            spill: data_root.join("spool"),
        }
    }

    /// A file without a name, which is gone when it is closed.
    pub(crate) fn nameless(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.spill)
    }

    /// Of an archive by the name that [`ReceivedArchive`] gave it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes the directories, and removes what no unfinished operation needs. Only before anything is received.
    pub(crate) fn sweep(&self, needed: &HashSet<String>) -> io::Result<()> {
        for directory in [&self.directory, &self.spill] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(PRIVATE_DIRECTORY)
                .create(directory)?;
        }
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(|name| needed.contains(name)) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// One that is gone is fine.
    pub(crate) fn remove(&self, name: &str) {
        match std::fs::remove_file(self.path(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, name, "a received archive could not be removed"),
        }
    }
}

/// An archive that was received whole and is one that is taken. Dropped before it is imported, it is removed.
#[derive(Debug)]
pub struct ReceivedArchive {
    spool: Spool,
    name: String,
    sha256: String,
    checked: Checked,
    handed_over: bool,
    /// The next one is received when this one waits for its turn or is gone.
    _turn: Arc<Turn>,
}

impl Drop for ReceivedArchive {
    fn drop(&mut self) {
        if !self.handed_over {
            self.spool.remove(&self.name);
        }
    }
}

impl ReceivedArchive {
    /// Of its bytes, in hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

impl Skep {
    pub(crate) fn spool(&self) -> Spool {
        Spool::below(&self.settings().data_root)
    }

    /// Receives an archive for a workspace and checks it whole, while the workspace does what it does.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::BotNotFound`]; [`Error::Unsupported`] where layers cannot be changed from outside;
    /// [`Error::ArchiveRefused`]; [`Error::RateLimited`] while another one is received for the workspace or checked;
    /// [`Error::DiskFull`], also over the limit of storage and where only the host's
    /// reserve is free; those of the source.
    pub async fn receive_archive(
        &self,
        bot: &BotId,
        source: impl Stream<Item = Result<Bytes>>,
    ) -> Result<ReceivedArchive> {
        self.can_change_data(bot).await?;
        self.require_room(bot).await?;
        let owner = self.owner_of(bot).await?;
        let turn = Arc::new(self.turns().imports.take(bot, &owner)?);
        let mut received = ReceivedArchive {
            spool: self.spool(),
            name: uuid::Uuid::now_v7().to_string(),
            sha256: String::new(),
            checked: Checked::default(),
            handed_over: false,
            _turn: Arc::clone(&turn),
        };
        let limits = self.settings().import;
        received.sha256 = receive(source, received.spool.path(&received.name), (&limits, self.spare())).await?;
        let path = received.spool.path(&received.name);
        received.checked = self.while_spare(self.check_received(path, &owner, turn)).await?;
        Ok(received)
    }

    /// On a thread that ends when this is dropped, soon after.
    async fn check_received(&self, path: PathBuf, owner: &str, turn: Arc<Turn>) -> Result<Checked> {
        let permits = self.turns().checks.take(owner).await?;
        let (limits, spill) = (self.settings().import, self.spool().spill);
        let unwanted = CancellationToken::new();
        let is_wanted = {
            let unwanted = unwanted.clone();
            move || !unwanted.is_cancelled()
        };
        let _ended_with_this = unwanted.drop_guard();
        let checking = tokio::task::spawn_blocking(move || {
            let checked = check(&path, &limits, &spill, &is_wanted);
            drop((turn, permits));
            checked
        });
        checking
            .await
            .map_err(|panic| Error::internal("checking an archive", panic))?
    }

    /// Removes what a crash left of archives that nobody imports any more.
    pub(crate) async fn sweep_spool(&self) -> Result<()> {
        let unfinished = self.store().unfinished_operations().await?;
        let needed = unfinished
            .into_iter()
            .filter_map(|row| match serde_json::from_value(row.request) {
                Ok(Request::Import(plan)) => Some(plan.archive),
                Ok(_) | Err(_) => None,
            })
            .collect();
        let spool = self.spool();
        let swept = tokio::task::spawn_blocking(move || spool.sweep(&needed)).await;
        swept
            .map_err(|panic| Error::internal("removing left archives", panic))?
            .map_err(|error| file_error("removing left archives", error))
    }

    /// Puts a received archive into `/data`, all or nothing; the workspace is down meanwhile.
    ///
    /// # Errors
    /// As a request is refused; the archive is gone then too.
    pub async fn import_data(
        &self,
        bot: &BotId,
        (mut archive, mode): (ReceivedArchive, RestoreMode),
        requester: &Requester,
    ) -> Result<OperationHandle> {
        let plan = ImportPlan {
            archive: archive.name.clone(),
            mode,
            entries: archive.checked.entries,
            bytes: archive.checked.bytes,
            cleared: archive.checked.cleared,
        };
        let handle = self.submit(bot, Request::Import(plan), requester).await?;
        // From here on it is removed by the end of its operation.
        archive.handed_over = true;
        Ok(handle)
    }
}

/// Writes what comes into a new file, flushed to the disk; returns its digest.
async fn receive(
    source: impl Stream<Item = Result<Bytes>>,
    path: PathBuf,
    (limits, mut spare): (&ImportLimits, Spare),
) -> Result<String> {
    let failed = |error| file_error("keeping a received archive", error);
    let file = tokio::task::spawn_blocking(move || create(&path)).await;
    let file = file.map_err(|panic| Error::internal("keeping a received archive", panic))?;
    let mut file = tokio::fs::File::from_std(file.map_err(failed)?);
    let overhead = limits.max_entries.saturating_mul(MOST_OVERHEAD_BYTES);
    let most = limits.max_bytes.saturating_add(overhead);
    let (mut hash, mut length) = (Sha256::new(), 0_u64);
    tokio::pin!(source);
    let mut pace = Pace::default();
    while let Some(piece) = pace.next(&mut source).await? {
        length += piece.len() as u64;
        if length > most {
            return Err(refused(&Refusal {
                name: Vec::new(),
                reason: Reason::TooManyBytes(limits.max_bytes),
            }));
        }
        spare.look().await?;
        hash.update(&piece);
        file.write_all(&piece).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    Ok(hex::encode(hash.finalize()))
}

/// What came in the minute that is under way. Only the time of the client counts, not that of the disk.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    async fn next(&mut self, source: &mut (impl Stream<Item = Result<Bytes>> + Unpin)) -> Result<Option<Bytes>> {
        let begun = Instant::now();
        let Some(piece) = source.next().await.transpose()? else {
            return Ok(None);
        };
        match self.is_kept(begun.elapsed(), piece.len() as u64) {
            true => Ok(Some(piece)),
            false => Err(BridgeError::SourceBroken("the archive comes too slowly".to_owned()).into()),
        }
    }

    fn is_kept(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        let is_over = self.waited >= MINUTE;
        let is_kept = !is_over || self.bytes >= LEAST_BYTES;
        if is_over {
            *self = Self::default();
        }
        is_kept
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path)
}

fn check(path: &Path, limits: &ImportLimits, spill: &Path, is_wanted: &dyn Fn() -> bool) -> Result<Checked> {
    let failed = |error| file_error("checking an archive", error);
    let source = Source::open(File::open(path).map_err(failed)?).map_err(failed)?;
    let limits = Limits {
        max_bytes: limits.max_bytes,
        max_entries: limits.max_entries,
        max_name_bytes: MOST_NAME_BYTES,
        max_ratio: limits.max_ratio,
    };
    let checked = skep_archive::check_while(source, &limits, Trust::Stranger, spill, is_wanted);
    checked.map_err(|error| match error {
        ArchiveError::Refused(refusal) => refused(&refusal),
        ArchiveError::Io { source, .. } => failed(source),
        changed @ ArchiveError::Changed { .. } => Error::internal("checking an archive", changed),
    })
}

fn refused(refusal: &Refusal) -> Error {
    Error::ArchiveRefused(refusal.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_sends_next_to_nothing_is_not_waited_for() {
        let seconds = Duration::from_secs;
        let mut pace = Pace::default();
        assert!(pace.is_kept(seconds(59), 1), "everybody has a minute");
        assert!(!pace.is_kept(seconds(60), 1), "a byte now and then");
        let mut pace = Pace::default();
        assert!(pace.is_kept(Duration::ZERO, 64 << 30), "as fast as can be");
        assert!(pace.is_kept(seconds(60), 0));
        assert!(
            !pace.is_kept(seconds(60), LEAST_BYTES - 1),
            "what came before does not count"
        );
        for _ in 0..1000 {
            assert!(pace.is_kept(seconds(30), LEAST_BYTES / 2));
        }
    }
}
