//! Backups: archives of `/data` on the host, kept when a workspace is deleted, and what of them is shown and given.
//!
//! The files are the truth and the store knows what they were when they were verified; a file and its row find each
//! other by size and time, else by digest. Not here: when one is made or put back; that is `workspace/preserve.rs`
//! and `workspace/restore.rs`.

mod files;
mod keep;
mod names;

use std::collections::HashMap;
use std::fs::File;

use chrono::{DateTime, Utc};
use skep_names::BotId;
use skep_runtime::failpoint;
use skep_store::BackupRow;

pub(crate) use files::{BackupFiles, Identity, Partial};
pub(crate) use keep::Verified;
pub(crate) use names::Slot;

use crate::error::{Error, Result};
use crate::skep::Skep;

/// A backup as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub bot_id: BotId,
    /// Of its file.
    pub name: String,
    pub size_bytes: u64,
    /// Files, directories and links; `None` for one that another system left here.
    pub entries: Option<u64>,
    pub sha256: Option<String>,
    pub created_at: DateTime<Utc>,
    /// It was read back whole when it was made, and nothing wrong was found since.
    pub verified: bool,
    /// Whose its bot was when it was made; `None`: nobody knows.
    pub owner_user_id: Option<String>,
}

/// A backup opened for a download.
#[derive(Debug)]
pub struct OpenedBackup {
    pub backup: Backup,
    pub file: File,
}

impl Skep {
    /// The backups of a bot: the current one first, then generations, then what was set aside.
    ///
    /// # Errors
    /// [`Error::Internal`] when they cannot be listed.
    pub async fn backups(&self, bot: &BotId) -> Result<Vec<Backup>> {
        let of = bot.clone();
        let found = self.with_backups(move |files| files.list(Some(&of))).await?;
        let rows = self.store().backups(bot).await?;
        let mut shown = Vec::new();
        for one in found {
            shown.push(self.shown_backup(&one, &rows).await?);
        }
        Ok(shown)
    }

    /// The backups of all bots, those that are gone included.
    ///
    /// # Errors
    /// As [`Skep::backups`].
    pub async fn all_backups(&self) -> Result<Vec<Backup>> {
        let found = self.with_backups(|files| files.list(None)).await?;
        let mut rows: HashMap<BotId, Vec<BackupRow>> = HashMap::new();
        let mut shown = Vec::new();
        for one in found {
            if !rows.contains_key(&one.bot) {
                rows.insert(one.bot.clone(), self.store().backups(&one.bot).await?);
            }
            let known = rows.get(&one.bot).map_or(&[][..], Vec::as_slice);
            shown.push(self.shown_backup(&one, known).await?);
        }
        Ok(shown)
    }

    /// One backup of a bot by its file's name.
    ///
    /// # Errors
    /// [`Error::BackupNotFound`].
    pub async fn backup(&self, bot: &BotId, name: &str) -> Result<Backup> {
        let all = self.backups(bot).await?;
        let found = all.into_iter().find(|backup| backup.name == name);
        found.ok_or_else(|| Error::BackupNotFound(format!("backup {name} not found")))
    }

    /// Opens a backup for reading it whole.
    ///
    /// # Errors
    /// [`Error::BackupNotFound`].
    pub async fn open_backup(&self, bot: &BotId, name: &str) -> Result<OpenedBackup> {
        let backup = self.backup(bot, name).await?;
        let (of, slot) = slot_of(bot, name)?;
        let file = self.with_backups(move |files| files.open(&of, slot)).await?;
        Ok(OpenedBackup { backup, file })
    }

    /// Removes a backup, for good: the one with that digest, when the caller says which he means. One that is made at
    /// the same time moves the others on to other names; none of those is removed in its place.
    ///
    /// # Errors
    /// [`Error::BackupNotFound`]; [`Error::PreconditionFailed`] when another one has that name by now.
    pub async fn delete_backup(&self, bot: &BotId, name: &str, sha256: Option<&str>) -> Result<()> {
        // One look for both: a second one might see another backup.
        let backup = self.backup(bot, name).await?;
        if sha256.is_some() && backup.sha256.as_deref() != sha256 {
            return Err(is_another(name));
        }
        let (of, slot) = slot_of(bot, name)?;
        let looked_at = Identity {
            size_bytes: backup.size_bytes,
            created_at: backup.created_at,
        };
        let removed = self.with_backups(move |files| files.remove_that(&of, slot, looked_at));
        if !removed.await? {
            return Err(is_another(name));
        }
        self.forget_removed(bot, looked_at).await
    }

    /// Refuses a backup that is another one than the caller means.
    pub(crate) async fn check_backup(&self, bot: &BotId, name: &str, sha256: &str) -> Result<()> {
        match self.backup(bot, name).await?.sha256.as_deref() == Some(sha256) {
            true => Ok(()),
            false => Err(is_another(name)),
        }
    }

    /// As [`Skep::check_backup`], of the one that a create would put back.
    pub(crate) async fn check_current_backup(&self, bot: &BotId, sha256: &str) -> Result<()> {
        self.check_backup(bot, &Slot::Current.file_name(bot), sha256).await
    }

    /// Which of a bot's files is the backup that had that name and digest when it was asked for. Others that were
    /// made since may have moved it on.
    ///
    /// # Errors
    /// [`Error::BackupNotFound`]; [`Error::PreconditionFailed`] when it is not there any more.
    pub(crate) async fn slot_of_backup(&self, bot: &BotId, name: &str, sha256: Option<&str>) -> Result<Slot> {
        let named = slot_of(bot, name)?.1;
        let Some(sha256) = sha256 else {
            return Ok(named);
        };
        let backups = self.backups(bot).await?;
        let mut same = backups.iter().filter(|one| one.sha256.as_deref() == Some(sha256));
        let found = match same.clone().find(|one| one.name == name) {
            Some(found) => Some(found),
            None => same.find(|one| one.verified),
        };
        match found {
            Some(found) => Ok(slot_of(bot, &found.name)?.1),
            None => Err(is_another(name)),
        }
    }

    /// One backup of any bot by its file's name.
    ///
    /// # Errors
    /// [`Error::BackupNotFound`].
    pub async fn backup_of_any(&self, name: &str) -> Result<Backup> {
        match Slot::parse(name) {
            Some((bot, _)) => self.backup(&bot, name).await,
            None => Err(Error::BackupNotFound(format!("backup {name} not found"))),
        }
    }

    /// Makes a backup the current one of a new bot too, before that is there; it stays what it was.
    ///
    /// # Errors
    /// [`Error::PreconditionFailed`] when another one has its name by now.
    pub(crate) async fn give_backup(&self, backup: &Backup, to: &BotId) -> Result<()> {
        let (from, slot) = slot_of(&backup.bot_id, &backup.name)?;
        let looked_at = Identity {
            size_bytes: backup.size_bytes,
            created_at: backup.created_at,
        };
        let bot = to.clone();
        let given = self.with_backups(move |files| files.give((&from, slot), looked_at, &bot));
        if !given.await? {
            return Err(is_another(&backup.name));
        }
        failpoint::pass_or_abort("backup.given");
        if let (Some(sha256), Some(entries), Some(owner)) = (&backup.sha256, backup.entries, &backup.owner_user_id) {
            self.store()
                .put_backup(&BackupRow {
                    bot_id: to.clone(),
                    created_at: backup.created_at,
                    sha256: sha256.clone(),
                    size_bytes: backup.size_bytes,
                    entries,
                    owner_user_id: owner.clone(),
                    verified: backup.verified,
                })
                .await?;
        }
        Ok(())
    }

    /// The bot that a backup was given to is there.
    pub(crate) async fn confirm_given_backup(&self, bot: &BotId) -> Result<()> {
        let of = bot.clone();
        self.with_backups(move |files| files.confirm_given(&of)).await
    }

    /// Undoes [`Skep::give_backup`].
    pub(crate) async fn take_backup_back(&self, bot: &BotId) -> Result<()> {
        let of = bot.clone();
        self.with_backups(move |files| {
            files.remove(&of, Slot::Current)?;
            files.confirm_given(&of)
        })
        .await?;
        self.forget_rows_without_files(bot, |_| true).await
    }

    /// What was given to bots of which a crash may have made none. Only before any is made.
    pub(crate) async fn settle_given_backups(&self) -> Result<()> {
        for bot in self.with_backups(BackupFiles::given).await? {
            if self.store().bot(&bot).await?.is_some() {
                self.confirm_given_backup(&bot).await?;
                continue;
            }
            let of = bot.clone();
            self.with_backups(move |files| files.take_given_back(&of)).await?;
            self.forget_rows_without_files(&bot, |_| true).await?;
        }
        Ok(())
    }

    async fn shown_backup(&self, found: &files::Found, rows: &[BackupRow]) -> Result<Backup> {
        let row = self.row_of(found, rows).await?;
        Ok(Backup {
            bot_id: found.bot.clone(),
            name: found.slot.file_name(&found.bot),
            size_bytes: found.identity.size_bytes,
            entries: row.map(|row| row.entries),
            sha256: row.map(|row| row.sha256.clone()),
            // The file's own time may have been lost in a copy.
            created_at: row.map_or(found.identity.created_at, |row| row.created_at),
            verified: row.is_some_and(|row| row.verified) && !matches!(found.slot, Slot::SetAside(_)),
            owner_user_id: row.map(|row| row.owner_user_id.clone()),
        })
    }

    /// Works on the files, on a thread that may block.
    pub(crate) async fn with_backups<T: Send + 'static>(
        &self,
        work: impl FnOnce(&BackupFiles) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let files = self.backup_files();
        match tokio::task::spawn_blocking(move || work(&files)).await {
            Ok(done) => done.map_err(|error| file_error("working on the files of backups", error)),
            Err(panic) => Err(Error::internal("working on the files of backups", panic)),
        }
    }

    pub(crate) fn backup_files(&self) -> BackupFiles {
        BackupFiles::below(&self.settings().data_root)
    }
}

fn slot_of(bot: &BotId, name: &str) -> Result<(BotId, Slot)> {
    match Slot::parse(name) {
        Some((of, slot)) if of == *bot => Ok((of, slot)),
        Some(_) | None => Err(Error::BackupNotFound(format!("backup {name} not found"))),
    }
}

fn is_another(name: &str) -> Error {
    Error::PreconditionFailed(format!(
        "the backup {name} is another one by now, or gone; list them again"
    ))
}

pub(crate) fn file_error(operation: &str, error: std::io::Error) -> Error {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => Error::NoSpace {
            operation: operation.to_owned(),
        },
        _ => Error::internal(operation, error),
    }
}
