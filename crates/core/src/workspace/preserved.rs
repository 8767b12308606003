//! Data of a bot that is kept outside of its layer: its current backup, or the directory that was the `/data` of a
//! container from before the bridge. A backup wins over it.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skep_names::BotId;
use skep_runtime::layer_access::Trust;

use super::request::DeleteData;
use crate::backups::{Identity, Slot, Verified};
use crate::error::{Error, Result};
use crate::skep::Skep;

/// What a directory that was taken over is called from then on.
const MIGRATED: &str = ".migrated";
/// What one is called that a backup won over: its content is nowhere else.
const SUPERSEDED: &str = ".superseded";

/// What is to be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Preserved {
    /// A backup, read whole and found to be what it was.
    Backup {
        slot: Slot,
        identity: Identity,
        trust: Trust,
        /// Entries that do not come back as they are.
        altered: u64,
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
    /// A backup that holds more than came back of it.
    InPart,
    Legacy,
}

impl Preserved {
    pub(crate) fn put_back(&self) -> PutBack {
        match self {
            Self::Backup { altered: 1.., .. } => PutBack::InPart,
            Self::Backup { identity, .. } => PutBack::Backup {
                size_bytes: identity.size_bytes,
                created_at: identity.created_at,
            },
            Self::Legacy(_) => PutBack::Legacy,
        }
    }

    /// For whoever has it put back.
    pub(crate) fn warning(&self) -> Option<String> {
        match self {
            Self::Backup { altered: 0, .. } | Self::Legacy(_) => None,
            Self::Backup { altered, .. } => Some(format!(
                "the backup was not made here, and {altered} of its entries did not come back as they are in it: devices, \
                 pipes and sockets are left out, owners that a workspace does not have become nobody, setuid and setgid \
                 are cleared; it stays where it is"
            )),
        }
    }
}

impl Skep {
    /// Data of the bot is kept that a create puts back: the current backup, or a legacy directory that was not migrated.
    pub(crate) async fn has_preserved_data(&self, bot: &BotId) -> Result<bool> {
        Ok(!self.preserved_among(std::slice::from_ref(bot)).await?.is_empty())
    }

    /// Data of the bot is kept anywhere outside of its layer: also what a create does not put back by itself, an older
    /// backup, one that was set aside, or a legacy directory under the name it was given later.
    pub(crate) async fn has_data_elsewhere(&self, bot: &BotId) -> Result<bool> {
        let (directory, bot) = (legacy_path(&self.settings().data_root, bot), bot.clone());
        self.with_backups(move |files| {
            if !files.list(Some(&bot))?.is_empty() || is_directory(&directory)? {
                return Ok(true);
            }
            // Where there is one by that name, there is the first of them.
            Ok(is_directory(&renamed(&directory, MIGRATED, 1))? || is_directory(&renamed(&directory, SUPERSEDED, 1))?)
        })
        .await
    }

    /// Those of these bots of which data is kept that a create puts back.
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
            Ok(Verified::Whole {
                identity,
                trust,
                altered,
            }) => {
                let backup = Preserved::Backup {
                    slot: Slot::Current,
                    identity,
                    trust,
                    altered,
                };
                warnings.extend(backup.warning());
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
        self.rename_legacy_directory(bot, MIGRATED).await
    }

    /// A backup was put back in its place: what is in it was never in the workspace. Repeatable.
    pub(crate) async fn mark_superseded(&self, bot: &BotId) -> Result<()> {
        self.rename_legacy_directory(bot, SUPERSEDED).await
    }

    async fn rename_legacy_directory(&self, bot: &BotId, ending: &'static str) -> Result<()> {
        let Some(directory) = self.legacy_directory(bot).await? else {
            return Ok(());
        };
        let failed = |error| Error::internal("renaming a legacy data directory", error);
        let renamed = tokio::task::spawn_blocking(move || rename_to(&directory, ending)).await;
        renamed
            .map_err(|panic| Error::internal("renaming a legacy data directory", panic))?
            .map_err(failed)
    }

    /// Removes the legacy directory with what it was renamed to: only the removal of its bot does that. One that keeps
    /// the data keeps what is nowhere else.
    pub(crate) async fn remove_legacy_directories(&self, bot: &BotId, data: DeleteData) -> Result<()> {
        let path = legacy_path(&self.settings().data_root, bot);
        let endings = match data {
            DeleteData::Preserve => &[MIGRATED][..],
            DeleteData::Remove => &[MIGRATED, SUPERSEDED],
        };
        let removed = tokio::task::spawn_blocking(move || remove_all_of(&path, endings)).await;
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

fn renamed(directory: &Path, ending: &str, number: u32) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(ending);
    if number > 1 {
        name.push(format!(".{number}"));
    }
    name.into()
}

/// Never over one that was renamed earlier.
fn rename_to(directory: &Path, ending: &str) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags};
    let mut number = 1;
    loop {
        let to = renamed(directory, ending, number);
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

fn remove_all_of(directory: &Path, endings: &[&str]) -> std::io::Result<()> {
    remove_if_there(directory)?;
    for ending in endings {
        // The last one that there is comes before the first that is not.
        let mut number = 1;
        while remove_if_there(&renamed(directory, ending, number))? {
            number += 1;
        }
    }
    Ok(())
}

/// `false`: there was none.
fn remove_if_there(directory: &Path) -> std::io::Result<bool> {
    match std::fs::remove_dir_all(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
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
            rename_to(&directory, MIGRATED).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(root.path().join(name).join("file")).unwrap();
        assert_eq!(
            (read("bot.migrated").as_str(), read("bot.migrated.2").as_str()),
            ("first", "second")
        );
        std::fs::create_dir(&directory).unwrap();
        rename_to(&directory, SUPERSEDED).unwrap();
        remove_all_of(&directory, &[MIGRATED]).unwrap();
        assert!(root.path().join("bot.superseded").is_dir());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
        remove_all_of(&directory, &[MIGRATED, SUPERSEDED]).unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
