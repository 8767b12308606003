//! Data of a bot that is kept outside of its layer: its current backup, or the directory that was the `/data` of a
//! container from before the bridge. A backup wins over it.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skep_names::BotId;
use skep_runtime::layer_access::Trust;

use crate::backups::{Identity, Slot, Verified};
use crate::error::{Error, Result};
use crate::skep::Skep;

/// What a directory that was taken over is called from then on.
const MIGRATED: &str = ".migrated";

/// What is to be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Preserved {
    /// A backup, read whole and found to be what it was.
    Backup {
        slot: Slot,
        identity: Identity,
        trust: Trust,
    },
    /// A legacy directory that was not migrated.
    Legacy(PathBuf),
}

/// What was put back, as the journal keeps it until that is not needed elsewhere any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub(crate) enum PutBack {
    Backup {
        size_bytes: u64,
        created_at: chrono::DateTime<chrono::Utc>,
    },
    Legacy,
}

impl Preserved {
    pub(crate) fn put_back(&self) -> PutBack {
        match self {
            Self::Backup { identity, .. } => PutBack::Backup {
                size_bytes: identity.size_bytes,
                created_at: identity.created_at,
            },
            Self::Legacy(_) => PutBack::Legacy,
        }
    }
}

impl Skep {
    /// Data of the bot is kept outside of its layer: a backup, or a legacy directory that was not migrated.
    pub(crate) async fn has_preserved_data(&self, bot: &BotId) -> Result<bool> {
        Ok(!self.preserved_among(std::slice::from_ref(bot)).await?.is_empty())
    }

    /// Those of these bots of which data is kept outside of their layers.
    pub(crate) async fn preserved_among(&self, bots: &[BotId]) -> Result<HashSet<BotId>> {
        let (root, bots) = (self.settings().data_root.clone(), bots.to_vec());
        // All on one thread for that: hundreds of them are asked about at once.
        self.with_backups(move |files| {
            let mut found = HashSet::new();
            for bot in bots {
                let has_backup = files.identity(&bot, Slot::Current)?.is_some();
                if has_backup || is_directory(&legacy_path(&root, &bot))? {
                    found.insert(bot);
                }
            }
            Ok(found)
        })
        .await
    }

    /// The legacy directory of a bot, when there is one that was not migrated.
    pub(crate) async fn legacy_directory(&self, bot: &BotId) -> Result<Option<PathBuf>> {
        let directory = legacy_path(&self.settings().data_root, bot);
        let looked = directory.clone();
        let is_there = self.with_backups(move |_| is_directory(&looked)).await?;
        Ok(is_there.then_some(directory))
    }

    /// What a create puts back, with a warning for each backup that did not verify and was set aside. An older
    /// generation never takes its place by itself.
    pub(crate) async fn find_preserved(&self, bot: &BotId) -> Result<(Option<Preserved>, Vec<String>)> {
        let mut warnings = Vec::new();
        match self.verify_backup(bot, Slot::Current).await {
            Ok(Verified::Whole { identity, trust }) => {
                let backup = Preserved::Backup {
                    slot: Slot::Current,
                    identity,
                    trust,
                };
                return Ok((Some(backup), warnings));
            }
            Ok(Verified::Damaged(why)) => {
                let name = self.set_backup_aside(bot, Slot::Current).await?;
                tracing::error!(%bot, name, why, "a backup does not verify and is set aside");
                warnings.push(format!(
                    "the backup does not verify ({why}) and is set aside as {name}; nothing of it was put back"
                ));
            }
            Err(Error::BackupNotFound(_)) => {}
            Err(error) => return Err(error),
        }
        let legacy = self.legacy_directory(bot).await?;
        Ok((legacy.map(Preserved::Legacy), warnings))
    }

    /// The legacy directory is not needed any more: it keeps its content under another name. Repeatable.
    pub(crate) async fn mark_migrated(&self, bot: &BotId) -> Result<()> {
        let Some(directory) = self.legacy_directory(bot).await? else {
            return Ok(());
        };
        let failed = |error| Error::internal("renaming a legacy data directory", error);
        let renamed = tokio::task::spawn_blocking(move || rename_migrated(&directory)).await;
        renamed
            .map_err(|panic| Error::internal("renaming a legacy data directory", panic))?
            .map_err(failed)
    }

    /// Removes the legacy directory with what it was renamed to: only the removal of its bot does that.
    pub(crate) async fn remove_legacy_directories(&self, bot: &BotId) -> Result<()> {
        let path = legacy_path(&self.settings().data_root, bot);
        let removed = tokio::task::spawn_blocking(move || remove_all_of(&path)).await;
        let removed = removed.map_err(|panic| Error::internal("removing the bot's legacy data directory", panic))?;
        removed.map_err(|error| Error::internal("removing the bot's legacy data directory", error))
    }
}

fn legacy_path(data_root: &Path, bot: &BotId) -> PathBuf {
    data_root.join("bots").join(bot.as_str())
}

/// A link is none of ours, and is never followed.
fn is_directory(path: &Path) -> std::io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn migrated(directory: &Path, number: u32) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(MIGRATED);
    if number > 1 {
        name.push(format!(".{number}"));
    }
    name.into()
}

/// Never over one that was renamed earlier.
fn rename_migrated(directory: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags};
    let mut number = 1;
    loop {
        let to = migrated(directory, number);
        match rustix::fs::renameat_with(CWD, directory, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => break,
            Err(rustix::io::Errno::EXIST) => number += 1,
            Err(error) => return Err(error.into()),
        }
    }
    match directory.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn remove_all_of(directory: &Path) -> std::io::Result<()> {
    let mut number = 0;
    loop {
        let path = match number {
            0 => directory.to_owned(),
            number => migrated(directory, number),
        };
        match std::fs::remove_dir_all(&path) {
            Ok(()) => {}
            // The last one that there is comes before the first that is not, but for the plain one.
            Err(error) if error.kind() == ErrorKind::NotFound && number > 0 => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_migrated_earlier_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("bot");
        for content in ["first", "second"] {
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("file"), content).unwrap();
            rename_migrated(&directory).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(root.path().join(name).join("file")).unwrap();
        assert_eq!(
            (read("bot.migrated").as_str(), read("bot.migrated.2").as_str()),
            ("first", "second")
        );
        remove_all_of(&directory).unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
