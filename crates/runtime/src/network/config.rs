//! What the network of workspaces is made from; the `[network]` section as this crate sees it.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

use super::allow::AllowEntry;

/// `network.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// Each workspace is attached to a network and reaches the internet.
    #[default]
    Bridge,
    /// Loopback only.
    None,
}

impl NetworkMode {
    /// As the configuration and `isolation.network` write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::None => "none",
        }
    }
}

/// Everything the network needs to know. [`NetworkConfig::new`] has the defaults of the configuration file.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// `network.mode`.
    pub mode: NetworkMode,
    /// `network.bridge`: the bridge of our own network; not used with a CNI configuration of the user's.
    pub bridge: String,
    /// `network.subnet`: of our own network; its first address is the gateway's.
    pub subnet: Ipv4Net,
    /// `network.table`: the nftables table, of family `inet`, that holds every rule of ours.
    pub table: String,
    /// `network.allow`: private destinations that workspaces may reach all the same.
    pub allow: Vec<AllowEntry>,
    /// `network.unisolated`: accept a network whose traffic the host cannot see.
    pub unisolated: bool,
    /// `workspace.cni_bin_dir`; `None`: `/opt/cni/bin`, else `/usr/lib/cni`.
    pub cni_bin_dir: Option<PathBuf>,
    /// `workspace.cni_conf_dir`: its first configuration is used; `None`: our own.
    pub cni_conf_dir: Option<PathBuf>,
    /// The resolvers workspaces have in their `resolv.conf`: port 53 is open to them wherever they are.
    pub resolvers: Vec<IpAddr>,
    /// The data root's id; two data roots share neither bridge nor table.
    pub data_root_id: String,
    /// Where everything lies that must not outlive a reboot: `/run/skep`.
    pub run_root: PathBuf,
    /// The `nft` program.
    pub nft: PathBuf,
}

impl NetworkConfig {
    /// The defaults, for this data root.
    pub fn new(data_root_id: impl Into<String>) -> Self {
        Self {
            mode: NetworkMode::Bridge,
            bridge: "skep0".into(),
            subnet: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 88, 0, 0), 16),
            table: "skep".into(),
            allow: Vec::new(),
            unisolated: false,
            cni_bin_dir: None,
            cni_conf_dir: None,
            resolvers: Vec::new(),
            data_root_id: data_root_id.into(),
            run_root: "/run/skep".into(),
            nft: "nft".into(),
        }
    }

    /// CNI's configuration, leases and results of this data root.
    pub(super) fn cni_directory(&self) -> PathBuf {
        self.run_root.join(&self.data_root_id).join("cni")
    }

    /// Where data roots say which bridge and table they use.
    pub(super) fn claims_directory(&self) -> PathBuf {
        self.run_root.join("claims")
    }
}
