//! What was started on this host and is not released yet: kept in memory and, one file each, below `/run`,
//! so that a bridge is found when containerd is away and a new server knows what the last one started.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skep_names::BotId;

use crate::Isolation;
use crate::isolation::{HostPaths, IdBlock, Result, Tried, make_directory, remove_file};
use crate::spec;

/// A workspace that was started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) container_id: String,
    /// `None`: root inside is root outside.
    pub(super) ids: Option<IdBlock>,
    pub(super) seccomp: bool,
    // One that an older server started has none.
    #[serde(default)]
    pub(super) apparmor: bool,
    /// `bridge`, `none`.
    pub(super) network: String,
    /// Below each cgroup file system.
    pub(super) cgroup: String,
    pub(super) started_at: DateTime<Utc>,
    /// Where it is reached, when its network was made by somebody else.
    #[serde(default)]
    pub(super) address: Option<IpAddr>,
    /// The process that was found at that address, when somebody else started it.
    #[serde(default)]
    pub(super) found: Option<FoundProcess>,
    /// The servers in the resolver file that it was started with.
    #[serde(default)]
    pub(super) resolvers: Vec<IpAddr>,
}

/// A process of the host, told from one that has its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FoundProcess {
    pid: u32,
    /// In ticks since the host came up.
    started: u64,
}

impl FoundProcess {
    /// `None`: there is none of that number.
    pub(super) fn look(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may hold anything, comes the third field; this is the 22nd.
        let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, started })
    }

    fn is_there(self) -> bool {
        Self::look(self.pid) == Some(self)
    }
}

/// The network of what somebody else started.
pub(super) const FOREIGN_NETWORK: &str = "foreign";

impl Running {
    /// What was found running may have been started anew by others, and have another address by now: then its old one
    /// may be somebody else's.
    pub(super) fn is_still_there(&self) -> bool {
        self.network != FOREIGN_NETWORK || self.found.is_some_and(FoundProcess::is_there)
    }

    /// The host's uid of the workspace's root.
    pub(super) fn root_uid(&self) -> u32 {
        self.ids.map_or(0, IdBlock::base)
    }

    pub(super) fn isolation(&self) -> Isolation {
        let guards = Guards {
            user_namespace: self.ids.is_some(),
            seccomp: self.seccomp,
            apparmor: self.apparmor,
        };
        guards.isolation(&self.network)
    }
}

/// What differs between hosts and configurations of what a start puts in force.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guards {
    pub(super) user_namespace: bool,
    pub(super) seccomp: bool,
    pub(super) apparmor: bool,
}

impl Guards {
    pub(super) fn isolation(self, network: &str) -> Isolation {
        Isolation {
            user_namespace: self.user_namespace,
            seccomp: self.seccomp,
            apparmor: self.apparmor,
            no_new_privileges: true,
            capabilities: spec::capabilities(self.user_namespace),
            network: network.to_owned(),
            storage_quota: "soft".to_owned(),
        }
    }
}

/// All records of this data root.
pub(super) struct Records {
    directory: PathBuf,
    known: Mutex<HashMap<BotId, Running>>,
}

impl Records {
    /// Reads what the last server left. A broken file is told and left to the sweep.
    pub(super) fn load(paths: &HostPaths) -> Result<Self> {
        let directory = paths.records();
        let mut known = HashMap::new();
        for bot in HostPaths::bots_below(&directory)? {
            let file = directory.join(bot.as_str());
            let read = std::fs::read(&file).and_then(|bytes| Ok(serde_json::from_slice::<Running>(&bytes)?));
            match read {
                Ok(running) => {
                    known.insert(bot, running);
                }
                Err(error) => tracing::warn!(%bot, %error, "the record of a started workspace cannot be read"),
            }
        }
        Ok(Self {
            directory,
            known: Mutex::new(known),
        })
    }

    pub(super) fn get(&self, bot: &BotId) -> Option<Running> {
        self.locked().get(bot).cloned()
    }

    /// Whose workspaces were started.
    pub(super) fn bots(&self) -> Vec<BotId> {
        self.locked().keys().cloned().collect()
    }

    /// The servers that any of them was started with.
    pub(super) fn resolvers(&self) -> BTreeSet<IpAddr> {
        let known = self.locked();
        known
            .values()
            .flat_map(|running| running.resolvers.iter().copied())
            .collect()
    }

    /// Blocks for a file write.
    pub(super) fn put(&self, bot: &BotId, running: Running) -> Result<()> {
        make_directory(&self.directory, 0o700)?;
        let (file, draft) = (
            self.directory.join(bot.as_str()),
            self.directory.join(format!(".{bot}")),
        );
        let written = serde_json::to_vec(&running).map_err(io::Error::from);
        written
            .and_then(|text| std::fs::write(&draft, text))
            .and_then(|()| std::fs::rename(&draft, &file))
            .tried(|| format!("writing {}", file.display()))?;
        self.locked().insert(bot.clone(), running);
        Ok(())
    }

    /// Repeatable.
    pub(super) fn remove(&self, bot: &BotId) -> Result<()> {
        remove_file(&self.directory.join(bot.as_str()))?;
        self.locked().remove(bot);
        Ok(())
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<BotId, Running>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_started_anew_is_not_what_was_found() {
        let found = FoundProcess::look(std::process::id()).expect("this very process");
        let running = |network: &str, found| Running {
            container_id: String::new(),
            ids: None,
            seccomp: false,
            apparmor: false,
            network: network.to_owned(),
            cgroup: String::new(),
            started_at: Utc::now(),
            address: None,
            found,
            resolvers: Vec::new(),
        };
        assert!(running(FOREIGN_NETWORK, Some(found)).is_still_there());
        let another = FoundProcess {
            started: found.started + 1,
            ..found
        };
        assert!(!running(FOREIGN_NETWORK, Some(another)).is_still_there());
        assert!(
            !running(FOREIGN_NETWORK, None).is_still_there(),
            "an older server noted no process"
        );
        assert!(running("bridge", None).is_still_there(), "its address is ours to give");
    }
}
