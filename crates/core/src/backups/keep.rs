//! Making a backup, verifying one, and keeping rows and files together.

use std::io;

use chrono::{DateTime, SubsecRound, Utc};
use skep_names::BotId;
use skep_runtime::failpoint;
use skep_runtime::layer_access::{ArchiveFormat, DataPlace, DataReader, LayerAccess, Pack, Packed, Trust};
use skep_store::BackupRow;
use tokio::sync::mpsc;

use super::files::{BackupFiles, Content, Found, Identity, Partial, Unreadable};
use super::{Slot, file_error};
use crate::error::{Error, Result};
use crate::skep::Skep;
use crate::workspace::Spare;

const OPERATION: &str = "keeping a backup";
/// Pieces of an archive that wait for the disk.
const WAITING: usize = 8;

/// How a backup was found that is to be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verified {
    /// It is whole, and if its digest is known, what it was when it was made.
    Whole {
        identity: Identity,
        trust: Trust,
        /// As [`Content::altered`].
        altered: u64,
    },
    /// It is not: the sentence.
    Damaged(String),
}

impl Skep {
    /// What the backend can reach of layers from outside.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub(crate) fn layer_access(&self) -> Result<&dyn LayerAccess> {
        let access = self.runtime().layer_access();
        access.ok_or_else(|| {
            let backend = self.capabilities().backend;
            Error::Unsupported(format!("backups are not supported on the {backend} backend"))
        })
    }

    /// Makes an archive of that `/data` the bot's current backup. Nothing that was there before is touched until
    /// the new one is on the disk, was read back whole and is known to the store; then it is one generation older.
    /// A repeat of one that was cut off keeps one.
    ///
    /// # Errors
    /// [`Error::DiskFull`], also where only the host's reserve is free; others when it could not be made, or was not read back as it was written.
    pub(crate) async fn back_up(&self, bot: &BotId, place: &DataPlace) -> Result<()> {
        let is_current = |slot| slot == Slot::Current;
        self.back_up_unless(bot, place, is_current, Partial::put_in_place).await
    }

    /// As [`Skep::back_up`], but nothing is done when the very same is kept where one more backup does not drop it.
    ///
    /// # Errors
    /// As [`Skep::back_up`].
    pub(crate) async fn back_up_before_another(&self, bot: &BotId, place: &DataPlace) -> Result<()> {
        let keep = self.settings().keep_backups;
        let stays = move |slot| match slot {
            Slot::Current => true,
            Slot::Generation(number) => u64::from(number) < keep,
            Slot::SetAside(_) => false,
        };
        self.back_up_unless(bot, place, stays, Partial::put_in_place).await
    }

    /// Makes an archive of that `/data` the newest backup but the current one, which stays it. Nothing is done when the very
    /// same is kept in any of the bot's backups.
    ///
    /// # Errors
    /// As [`Skep::back_up`].
    pub(crate) async fn back_up_behind_the_current(&self, bot: &BotId, place: &DataPlace) -> Result<()> {
        let is_kept = |slot| !matches!(slot, Slot::SetAside(_));
        self.back_up_unless(bot, place, is_kept, Partial::put_behind).await
    }

    /// Unless it is kept already in one of the places that `counts` takes.
    async fn back_up_unless(
        &self,
        bot: &BotId,
        place: &DataPlace,
        counts: impl Fn(Slot) -> bool + Send + Sync,
        put: fn(Partial, &BackupFiles, &BotId) -> io::Result<()>,
    ) -> Result<()> {
        let owner = self.store().bot(bot).await?.map(|bot| bot.owner_user_id);
        let created_at = Utc::now().trunc_subsecs(6);
        let (partial, content) = self.write_whole(bot, place, created_at).await?;
        point("backup.verified")?;
        if self.is_kept(bot, &content, counts).await? {
            return Ok(());
        }
        self.store()
            .put_backup(&BackupRow {
                bot_id: bot.clone(),
                created_at,
                sha256: content.sha256,
                size_bytes: content.size_bytes,
                entries: content.entries,
                owner_user_id: owner.unwrap_or_default(),
                verified: true,
            })
            .await?;
        point("backup.recorded")?;
        let of = bot.clone();
        self.with_backups(move |files| put(partial, files, &of)).await?;
        point("backup.placed")?;
        let (of, keep) = (bot.clone(), self.settings().keep_backups);
        self.with_backups(move |files| files.drop_old(&of, keep)).await?;
        self.forget_rows_without_files(bot, |_| true).await
    }

    /// An archive of that `/data` that is no backup: it is gone when it is dropped, and after a crash.
    ///
    /// # Errors
    /// As [`Skep::back_up`].
    pub(crate) async fn copy_for_now(&self, bot: &BotId, place: &DataPlace) -> Result<Partial> {
        Ok(self.write_whole(bot, place, Utc::now()).await?.0)
    }

    /// Writes the archive beside those that are there, and reads it back.
    async fn write_whole(
        &self,
        bot: &BotId,
        place: &DataPlace,
        created_at: DateTime<Utc>,
    ) -> Result<(Partial, Content)> {
        let (partial, packed) = self.write_partial(bot, place).await?;
        point("backup.written")?;
        let files = self.backup_files();
        let read_back = blocking(move || {
            let mut partial = partial;
            partial.finish(&files, created_at).map(|content| (partial, content))
        });
        let (partial, content) = read_back.await?.map_err(unreadable)?;
        if content.entries != packed.entries {
            let (written, read) = (packed.entries, content.entries);
            return Err(damaged(&format!("{written} entries were written and {read} read back")));
        }
        Ok((partial, content))
    }

    async fn write_partial(&self, bot: &BotId, place: &DataPlace) -> Result<(Partial, Packed)> {
        let pack = Pack {
            format: ArchiveFormat::TarGz,
            trust: Trust::Ours,
        };
        let mut reader = self.layer_access()?.read_data(place, pack).await?;
        let of = bot.clone();
        let mut partial = self.with_backups(move |files| files.begin(&of)).await?;
        let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(WAITING);
        // Dropped with this call, the channel ends the writer, and the writer what it wrote.
        let writer = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = receiver.blocking_recv() {
                partial.write(&chunk)?;
            }
            Ok::<_, std::io::Error>(partial)
        });
        let read = pass_on(&mut reader, sender, self.spare()).await;
        let written = writer.await.map_err(|panic| Error::internal(OPERATION, panic))?;
        // A disk that is full ends the reading too, and is the cause.
        let partial = written.map_err(|error| file_error(OPERATION, error))?;
        read?;
        let packed = reader.packed().copied();
        let packed = packed.ok_or_else(|| damaged("the archive has no end"))?;
        Ok((partial, packed))
    }

    /// Whether the very same is kept already: the last try came so far.
    async fn is_kept(
        &self,
        bot: &BotId,
        content: &Content,
        counts: impl Fn(Slot) -> bool + Send + Sync,
    ) -> Result<bool> {
        let of = bot.clone();
        let found = self.with_backups(move |files| files.list(Some(&of))).await?;
        let is_alike = |one: &&Found| counts(one.slot) && one.identity.size_bytes == content.size_bytes;
        for one in found.iter().filter(is_alike) {
            let (of, slot) = (bot.clone(), one.slot);
            let digest = self.with_backups(move |files| files.digest(&of, slot)).await?;
            if digest == content.sha256 && self.row(bot, &one.identity).await?.is_some_and(|row| row.verified) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads a backup whole, and compares it with what is known of it.
    ///
    /// # Errors
    /// [`Error::BackupNotFound`]; others when it could not be read, which says nothing of it.
    pub(crate) async fn verify_backup(&self, bot: &BotId, slot: Slot) -> Result<Verified> {
        let of = bot.clone();
        let identity = self.with_backups(move |files| files.identity(&of, slot)).await?;
        let identity =
            identity.ok_or_else(|| Error::BackupNotFound(format!("backup {} not found", slot.file_name(bot))))?;
        let found = Found {
            bot: bot.clone(),
            slot,
            identity,
        };
        let rows = self.store().backups(bot).await?;
        let row = self.row_of(&found, &rows).await?;
        let (identity, trust) = match row {
            Some(row) => {
                let created_at = row.created_at;
                (Identity { created_at, ..identity }, Trust::Ours)
            }
            // From another system: as good as what a client sends.
            None => (identity, Trust::Strangers),
        };
        let (files, path) = (self.backup_files(), self.backup_files().path(bot, slot));
        let content = match blocking(move || files.verify(&path, trust)).await? {
            Ok(content) => content,
            Err(Unreadable::Damaged(why)) => return Ok(Verified::Damaged(why)),
            Err(Unreadable::Failed(error)) => return Err(file_error("reading a backup", error)),
        };
        if row.is_some_and(|row| row.sha256 != content.sha256 || row.entries != content.entries) {
            return Ok(Verified::Damaged("it is not what it was when it was made".to_owned()));
        }
        let altered = content.altered;
        Ok(Verified::Whole {
            identity,
            trust,
            altered,
        })
    }

    /// Keeps a backup that does not verify under a name that says so.
    pub(crate) async fn set_backup_aside(&self, bot: &BotId, slot: Slot) -> Result<String> {
        let of = bot.clone();
        let (identity, aside) = self
            .with_backups(move |files| Ok((files.identity(&of, slot)?, files.set_aside(&of, slot)?)))
            .await?;
        if let Some(identity) = identity {
            self.store().mark_backup_damaged(bot, identity.created_at).await?;
        }
        Ok(aside.file_name(bot))
    }

    /// Removes the current backup if it is that one still.
    pub(crate) async fn remove_restored(&self, bot: &BotId, restored: Identity) -> Result<()> {
        let of = bot.clone();
        self.with_backups(move |files| files.remove_that(&of, Slot::Current, restored))
            .await?;
        self.forget_rows_without_files(bot, |_| true).await
    }

    async fn row(&self, bot: &BotId, identity: &Identity) -> Result<Option<BackupRow>> {
        let rows = self.store().backups(bot).await?;
        Ok(rows.into_iter().find(|row| is_of(row, identity)))
    }

    /// What is known of a file. One whose time was lost in a copy is found by its digest, and gets its time back.
    pub(super) async fn row_of<'a>(&self, found: &Found, rows: &'a [BackupRow]) -> Result<Option<&'a BackupRow>> {
        if let Some(row) = rows.iter().find(|row| is_of(row, &found.identity)) {
            return Ok(Some(row));
        }
        let same_size = |row: &&BackupRow| row.size_bytes == found.identity.size_bytes;
        if !rows.iter().any(|row| same_size(&row)) {
            return Ok(None);
        }
        let (of, slot) = (found.bot.clone(), found.slot);
        let digest = self.with_backups(move |files| files.digest(&of, slot)).await?;
        let Some(row) = rows.iter().find(|row| row.sha256 == digest) else {
            return Ok(None);
        };
        let (of, at) = (found.bot.clone(), row.created_at);
        self.with_backups(move |files| files.set_time(&of, slot, at)).await?;
        Ok(Some(row))
    }

    /// The row of a backup that was removed, and no other: one that is being made has its row before its file.
    pub(super) async fn forget_removed(&self, bot: &BotId, removed: Identity) -> Result<()> {
        self.forget_rows_without_files(bot, |row| is_of(row, &removed)).await
    }

    pub(super) async fn forget_rows_without_files(
        &self,
        bot: &BotId,
        may_go: impl Fn(&BackupRow) -> bool,
    ) -> Result<()> {
        let of = bot.clone();
        let found = self.with_backups(move |files| files.list(Some(&of))).await?;
        let rows = self.store().backups(bot).await?;
        // A file whose time was lost still has its size: its row is needed to know it.
        let unknown = |one: &&Found| !rows.iter().any(|row| is_of(row, &one.identity));
        for row in rows.iter().filter(|row| may_go(row)) {
            let has_file = found.iter().any(|one| is_of(row, &one.identity));
            let size = |one: &Found| one.identity.size_bytes == row.size_bytes;
            if !has_file && !found.iter().filter(unknown).any(size) {
                self.store().forget_backup(bot, row.created_at).await?;
            }
        }
        Ok(())
    }
}

fn is_of(row: &BackupRow, identity: &Identity) -> bool {
    (row.size_bytes, row.created_at) == (identity.size_bytes, identity.created_at)
}

/// Hands the archive on, piece by piece, while there is space to spare; a writer that went away ends it.
async fn pass_on(reader: &mut DataReader, sender: mpsc::Sender<bytes::Bytes>, mut spare: Spare) -> Result<()> {
    while let Some(chunk) = reader.next_chunk().await? {
        spare.look().await?;
        if sender.send(chunk).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| Error::internal(OPERATION, panic))
}

fn unreadable(error: Unreadable) -> Error {
    match error {
        Unreadable::Failed(error) => file_error(OPERATION, error),
        Unreadable::Damaged(why) => damaged(&why),
    }
}

fn damaged(why: &str) -> Error {
    Error::internal(OPERATION, std::io::Error::other(why.to_owned()))
}

fn point(name: &str) -> Result<()> {
    failpoint::pass(name).map_err(|error| Error::internal("passing a failpoint", error))
}
