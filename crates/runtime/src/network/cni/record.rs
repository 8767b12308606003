//! Which attachments there are: one file each, written before ADD, so that no crash leaves one unknown.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use skep_names::BotId;

use super::super::Attachment;
use super::super::error::NetworkError;
use super::{Answer, Configuration};

/// One attachment, or the intent to make one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::network) struct Record {
    pub(in crate::network) bot: BotId,
    pub(in crate::network) container_id: String,
    pub(in crate::network) netns: PathBuf,
    pub(in crate::network) configuration: Configuration,
    /// Absent: ADD has not answered, or it failed.
    pub(in crate::network) result: Option<Answer>,
    pub(in crate::network) address: Option<IpAddr>,
    pub(in crate::network) host_interface: Option<String>,
    /// What the rules name for it: a bridge, or the host-side interface itself.
    pub(in crate::network) ports: Vec<String>,
    /// Of our own network, whose plugins we know.
    pub(in crate::network) own_network: bool,
}

/// The directory of records, on a tmpfs: a reboot forgets them as it forgets the networks.
#[derive(Debug)]
pub(in crate::network) struct Records {
    directory: PathBuf,
    /// As the files have them, of those that were asked for: a list of workspaces asks for hundreds at once.
    known: Mutex<HashMap<BotId, Attachment>>,
}

type Result<T> = std::result::Result<T, NetworkError>;

impl Records {
    pub(in crate::network) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            known: Mutex::default(),
        }
    }

    /// Address and interface of a bot's attachment, when it has one.
    pub(in crate::network) fn attachment(&self, bot: &BotId) -> Result<Option<Attachment>> {
        // Held while the file is read: one that is written meanwhile must not be answered for by its past.
        let mut known = self.known();
        if let Some(attachment) = known.get(bot) {
            return Ok(Some(attachment.clone()));
        }
        let Some(record) = self.load(bot)? else { return Ok(None) };
        let attachment = Attachment {
            address: record.address,
            host_interface: record.host_interface,
        };
        known.insert(bot.clone(), attachment.clone());
        Ok(Some(attachment))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<BotId, Attachment>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a bot's attachment.
    pub(in crate::network) fn load(&self, bot: &BotId) -> Result<Option<Record>> {
        let path = self.path(bot);
        let reading = || format!("reading {}", path.display());
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(NetworkError::other(reading())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NetworkError::other(reading())(error)),
        }
    }

    /// Writes it in one step.
    pub(in crate::network) fn save(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.bot);
        let draft = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(&self.directory)?;
            std::fs::write(&draft, serde_json::to_vec(record)?)?;
            std::fs::rename(&draft, &path)
        };
        let mut known = self.known();
        known.remove(&record.bot);
        write().map_err(NetworkError::other(format!("writing {}", path.display())))
    }

    /// Forgets it; one that is not there is a success.
    pub(in crate::network) fn remove(&self, bot: &BotId) -> Result<()> {
        let path = self.path(bot);
        let mut known = self.known();
        known.remove(bot);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(NetworkError::other(format!("removing {}", path.display()))(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Every bot with a record, and how long ago that was written.
    pub(in crate::network) fn all(&self) -> Result<Vec<(BotId, Duration)>> {
        list(&self.directory).map_err(NetworkError::other(format!("listing {}", self.directory.display())))
    }

    fn path(&self, bot: &BotId) -> PathBuf {
        self.directory.join(format!("{bot}.json"))
    }
}

fn list(directory: &Path) -> std::io::Result<Vec<(BotId, Duration)>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
        let Some(bot) = name.and_then(|name| name.parse().ok()) else {
            continue;
        };
        match entry.metadata().and_then(|data| data.modified()) {
            // A clock that was set back makes it fresh: left alone until the clock has caught up.
            Ok(at) => found.push((bot, SystemTime::now().duration_since(at).unwrap_or_default())),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
