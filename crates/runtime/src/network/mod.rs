//! The network of workspaces: who is attached, and what they may reach.
//!
//! A workspace has a network namespace of its own, `/run/netns/skep-<bot_id>`, which the backend makes
//! before it calls [`Network::attach`]. This module never makes or removes namespaces, and never deletes
//! a bridge because of one workspace.

mod allow;
mod claim;
mod cni;
mod config;
mod error;
mod firewall;
mod guard;
mod host_side;
mod links;
mod nft;
mod nft_events;
mod own;
mod preparation;
mod program;
mod rules;
mod wired;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use skep_names::BotId;

pub use allow::{AllowEntry, InvalidAllowEntry};
pub use config::{NetworkConfig, NetworkMode};
pub use error::NetworkError;
pub use rules::{FLOWS_MAX, is_interface_name, is_table_name};

use crate::{Check, CheckStatus};
use links::Links;
use wired::Wired;

type Result<T> = std::result::Result<T, NetworkError>;

/// Where the namespace of a bot's workspace is bound.
pub fn namespace_path(bot: &BotId) -> PathBuf {
    PathBuf::from(format!("/run/netns/skep-{bot}"))
}

/// What a workspace has once it is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Its address; `None` with mode `none`.
    pub address: Option<IpAddr>,
    /// The interface on the host's side; `None` with mode `none` and in a network that is not isolated.
    pub host_interface: Option<String>,
}

/// Whether the rules were as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RulesCheck {
    /// They were in force.
    InForce,
    /// They were not; traffic was stopped until they were put back, and they are.
    Restored,
    /// The mode has no rules.
    NotUsed,
}

/// The network of all workspaces of one data root. Calls for one bot must not overlap; those for
/// different bots may.
pub struct Network {
    mode: NetworkMode,
    /// `None` with mode `none`.
    wired: Option<Box<Wired>>,
}

impl Network {
    /// Reads the configuration, a CNI one included, and changes nothing.
    ///
    /// # Errors
    /// A configuration that can never work; names the key.
    pub fn new(config: NetworkConfig) -> Result<Self> {
        let mode = config.mode;
        let wired = match mode {
            NetworkMode::Bridge => Some(Box::new(Wired::new(config)?)),
            NetworkMode::None => None,
        };
        Ok(Self { mode, wired })
    }

    /// Claims bridge and table, loads the rules, turns forwarding on and makes the bridge; must have
    /// succeeded before the first `attach`. Returns what a person should know (another firewall in the way,
    /// and the mend), a sentence each. May be repeated.
    ///
    /// # Errors
    /// [`NetworkError::Claimed`] when another data root uses bridge or table; the server must not start then.
    pub async fn prepare(&self) -> Result<Vec<String>> {
        match &self.wired {
            Some(wired) => wired.prepare().await,
            None => Ok(Vec::new()),
        }
    }

    /// Attaches a namespace that exists and has no process yet: `lo` up, address, routes, isolation.
    /// What an earlier attachment of this bot left is released first. On failure nothing is left; what a
    /// dropped call leaves, the next `attach`, `detach` or a sweep releases.
    ///
    /// # Errors
    /// [`NetworkError::RulesMissing`] while the rules are not in force; else why both tries failed.
    pub async fn attach(&self, bot: &BotId, netns: &Path) -> Result<Attachment> {
        if let Some(wired) = &self.wired {
            return wired.attach(bot, netns).await;
        }
        Links::inside(netns).await?.loopback_up().await?;
        Ok(Attachment {
            address: None,
            host_interface: None,
        })
    }

    /// Releases what `attach` made, also when the namespace is gone, and also when nothing was attached.
    /// Call it when no process of the workspace is left, and remove the namespace right before or after:
    /// its interfaces go with it.
    ///
    /// # Errors
    /// Why it is still held; a repeat, or a sweep, tries again.
    pub async fn detach(&self, bot: &BotId, netns: &Path) -> Result<()> {
        match &self.wired {
            Some(wired) => wired.detach(bot, netns).await,
            None => Ok(()),
        }
    }

    /// Whether a running workspace is still attached as `attach` left it. A bridge port that lost its
    /// isolation gets it back, and what an older server attached loses its neighbours in our own network.
    ///
    /// # Errors
    /// [`NetworkError::Broken`] says what is missing: stop the workspace and start it again.
    pub async fn check(&self, bot: &BotId, netns: &Path) -> Result<()> {
        match &self.wired {
            Some(wired) => wired.check(bot, netns).await,
            None => Ok(()),
        }
    }

    /// As [`Network::check`], by a few questions to the kernel alone, for all that run, again and again: the plugins of a
    /// configuration of the user's are not asked.
    ///
    /// # Errors
    /// As [`Network::check`].
    pub async fn look(&self, bot: &BotId, netns: &Path) -> Result<()> {
        match &self.wired {
            Some(wired) => wired.look(bot, netns).await.map(drop),
            None => Ok(()),
        }
    }

    /// Makes our own bridge again when somebody deleted it; `true`: it was. Workspaces that were its ports are so again
    /// when they are started anew.
    ///
    /// # Errors
    /// [`NetworkError::RulesMissing`] while the rules are not in force.
    pub async fn restore_bridge(&self) -> Result<bool> {
        match &self.wired {
            Some(wired) => wired.restore_bridge().await,
            None => Ok(false),
        }
    }

    /// Releases what bots outside `live` hold: addresses, interfaces, records. Attachments made within
    /// the last minute are left alone, as their task may not be there yet.
    pub async fn sweep(&self, live: &BTreeSet<BotId>) -> Result<()> {
        match &self.wired {
            Some(wired) => wired.sweep(live).await,
            None => Ok(()),
        }
    }

    /// Compares the rules in the kernel with ours and puts them back when they differ, with the network
    /// closed meanwhile. For reconcile; nftables' own events do the same at once.
    pub async fn check_rules(&self) -> Result<RulesCheck> {
        match &self.wired {
            Some(wired) => wired.check_rules().await,
            None => Ok(RulesCheck::NotUsed),
        }
    }

    /// Opens port 53 to these resolvers in place of those known so far.
    pub async fn set_resolvers(&self, resolvers: Vec<IpAddr>) -> Result<()> {
        match &self.wired {
            Some(wired) => wired.set_resolvers(resolvers).await,
            None => Ok(()),
        }
    }

    /// The address of an attached workspace. Local state only.
    pub fn address(&self, bot: &BotId) -> Result<Option<IpAddr>> {
        Ok(self.attachment(bot)?.and_then(|attachment| attachment.address))
    }

    /// What an attached workspace has. Local state only.
    pub(crate) fn attachment(&self, bot: &BotId) -> Result<Option<Attachment>> {
        self.wired.as_ref().map_or(Ok(None), |wired| wired.attachment(bot))
    }

    /// The first IPv4 address of a namespace that somebody else made and attached, its loopback's excepted.
    ///
    /// # Errors
    /// The namespace cannot be looked into.
    pub(crate) async fn address_inside(&self, netns: &Path) -> Result<Option<IpAddr>> {
        let addresses = Links::inside(netns).await?.addresses().await?;
        let found = addresses.iter().map(|(_, address)| address.addr());
        Ok(found
            .into_iter()
            .find(|address| address.is_ipv4() && !address.is_loopback()))
    }

    /// As configured; `as_str` is what `isolation.network` shows.
    pub fn mode(&self) -> NetworkMode {
        self.mode
    }

    /// The check `network` of `/ready`.
    pub async fn readiness(&self) -> Check {
        let (status, detail) = match &self.wired {
            None => (CheckStatus::Ok, "loopback only, as network.mode says".to_owned()),
            Some(wired) => match wired.ready().await {
                Ok(detail) => match wired.findings() {
                    findings if findings.is_empty() => (CheckStatus::Ok, detail),
                    findings => (CheckStatus::Warn, findings.join("; ")),
                },
                Err(error) => (CheckStatus::Error, error.chain()),
            },
        };
        Check {
            name: "network",
            status,
            detail,
        }
    }

    /// Removes rules, bridge and claims of this data root, for `skep down`: also those of a server that has
    /// ended, without `prepare`. Nothing can be attached afterwards.
    ///
    /// # Errors
    /// Refused while a workspace is attached.
    pub async fn teardown(&self) -> Result<()> {
        match &self.wired {
            Some(wired) => wired.teardown().await,
            None => Ok(()),
        }
    }
}
