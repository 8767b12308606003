//! What comes before the first workspace: claims, rules, forwarding.

use std::collections::BTreeSet;

use super::claim::{Claim, Claimed};
use super::cni::{Configuration, Records};
use super::config::NetworkConfig;
use super::error::NetworkError;
use super::guard::Guard;
use super::links::Links;
use super::nft::Nft;
use super::own::OwnNetwork;
use super::rules::{self, Rules};
use super::wired::Wired;

type Result<T> = std::result::Result<T, NetworkError>;

/// Where the kernel says whether it forwards IPv4.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// What lasts as long as the server.
pub(super) struct Prepared {
    pub(super) configuration: Configuration,
    pub(super) guard: Guard,
    pub(super) links: Links,
    pub(super) nft: Nft,
    pub(super) claims: Vec<Claim>,
}

impl Wired {
    /// The rules come first: no port is up before they hold.
    pub(super) async fn begin(&self) -> Result<Prepared> {
        let links = Links::here()?;
        let configuration = match (&self.own, &self.foreign) {
            (Some(own), _) => own.configuration(&self.config.cni_directory(), links.uplink_mtu().await?)?,
            (None, Some(foreign)) => foreign.clone(),
            (None, None) => return Err(NetworkError::Configuration("there is no CNI configuration".into())),
        };
        self.plugins.require(&configuration)?;
        let claims = self.claim(&configuration)?;
        let nft = Nft {
            program: self.config.nft.clone(),
            table: self.config.table.clone(),
        };
        let rules = Rules {
            table: self.config.table.clone(),
            subnet: self.own.as_ref().map(|own| own.subnet),
            allow: self.config.allow.clone(),
            resolvers: self.config.resolvers.iter().copied().collect(),
        };
        let guard = Guard::start(nft.clone(), rules)?;
        guard.load(self.known_ports(&configuration)?).await?;
        Ok(Prepared {
            configuration,
            guard,
            links,
            nft,
            claims,
        })
    }

    fn claim(&self, configuration: &Configuration) -> Result<Vec<Claim>> {
        let directory = self.config.claims_directory();
        let bridge_key = if self.own.is_some() {
            "network.bridge"
        } else {
            "workspace.cni_conf_dir"
        };
        let table = Claimed {
            kind: "nftables table",
            prefix: "table",
            name: &self.config.table,
            key: "network.table",
        };
        let bridges = configuration.bridges().map(|name| Claimed {
            kind: "bridge",
            prefix: "bridge",
            name,
            key: bridge_key,
        });
        let in_use = |holder: &str| has_attachments(&self.config, holder);
        bridges
            .chain([table])
            .map(|claimed| Claim::take(&directory, claimed, &self.config.data_root_id, in_use))
            .collect()
    }

    /// Bridges of the configuration, and what attachments of an earlier server use.
    fn known_ports(&self, configuration: &Configuration) -> Result<BTreeSet<String>> {
        let mut ports: BTreeSet<String> = configuration.bridges().map(str::to_owned).collect();
        for (bot, _) in self.records.all()? {
            ports.extend(self.records.load(&bot)?.into_iter().flat_map(|record| record.ports));
        }
        Ok(ports)
    }
}

/// Bridge and subnet of our own network, if they can be.
pub(super) fn own_network(config: &NetworkConfig) -> Result<OwnNetwork> {
    if !rules::is_interface_name(&config.bridge) {
        return Err(NetworkError::Configuration(format!(
            "network.bridge {:?} is no interface's name",
            config.bridge
        )));
    }
    if config.subnet.prefix_len() > 29 || config.subnet.addr() != config.subnet.network() {
        return Err(NetworkError::Configuration(format!(
            "network.subnet {} is no network of at least 8 addresses, as in 10.88.0.0/16",
            config.subnet
        )));
    }
    Ok(OwnNetwork {
        bridge: config.bridge.clone(),
        subnet: config.subnet,
    })
}

/// Whether another data root has workspaces that are attached, its server running or not.
fn has_attachments(config: &NetworkConfig, data_root_id: &str) -> bool {
    let other = NetworkConfig {
        data_root_id: data_root_id.to_owned(),
        ..config.clone()
    };
    let records = Records::new(other.cni_directory().join("attachments"));
    // What cannot be read is taken for used: the safe answer.
    records.all().map_or(true, |all| !all.is_empty())
}

/// Workspaces reach nothing beyond this host without it.
pub(super) fn enable_forwarding() -> Result<()> {
    let now = std::fs::read_to_string(FORWARDING).map_err(NetworkError::other(format!("reading {FORWARDING}")))?;
    if now.trim() == "1" {
        return Ok(());
    }
    std::fs::write(FORWARDING, "1").map_err(NetworkError::other(format!("writing {FORWARDING}")))?;
    tracing::info!("turned IPv4 forwarding on");
    Ok(())
}
