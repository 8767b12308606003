//! The host's side of an attachment: isolated, named to the rules, and checked later on.

use std::net::IpAddr;

use super::cni::{Answer, Configuration, INTERFACE};
use super::error::NetworkError;
use super::links::{Link, Links, addresses_of};
use super::preparation::Prepared;
use super::rules;
use super::wired::Wired;

type Result<T> = std::result::Result<T, NetworkError>;

/// The host's side of an attachment, once it is isolated.
#[derive(Debug, Default)]
pub(super) struct HostSide {
    pub(super) interface: Option<String>,
    pub(super) ports: Vec<String>,
}

impl Wired {
    /// Isolates the bridge port and says for which interfaces the rules must hold.
    pub(super) async fn isolate(
        &self,
        prepared: &Prepared,
        configuration: &Configuration,
        result: &Answer,
    ) -> Result<HostSide> {
        let mut host = HostSide::default();
        for name in result.host_interfaces() {
            let Some(link) = prepared.links.find(name).await? else {
                continue;
            };
            if link.kind == "bridge" {
                host.ports.push(link.name);
                continue;
            }
            let port = self.isolated_port(prepared, configuration, &link).await?;
            host.ports.extend(port);
            host.interface = Some(link.name);
        }
        host.ports.sort();
        host.ports.dedup();
        if host.interface.is_none() && !self.config.unisolated {
            return Err(unisolated(configuration));
        }
        if let Some(name) = host.ports.iter().find(|name| !rules::is_interface_name(name)) {
            return Err(NetworkError::Configuration(format!(
                "no rule can name the interface {name:?}"
            )));
        }
        Ok(host)
    }

    /// The name the rules see packets of this interface under: its bridge's, else its own.
    async fn isolated_port(
        &self,
        prepared: &Prepared,
        configuration: &Configuration,
        link: &Link,
    ) -> Result<Option<String>> {
        let Some(index) = link.controller else {
            return Ok(Some(link.name.clone()));
        };
        match prepared.links.by_index(index).await? {
            Some(controller) if controller.kind == "bridge" => {
                prepared.links.isolate_port(link.index).await?;
                Ok(Some(controller.name))
            }
            // Another switch (Open vSwitch, a bond): neither port isolation nor our rules reach into it.
            _ if self.config.unisolated => Ok(None),
            _ => Err(unisolated(configuration)),
        }
    }

    /// What is wrong; a port that lost its isolation gets it back first. It has to be a port of one of `bridges`, if any
    /// are given.
    pub(super) async fn check_host_side(
        &self,
        prepared: &Prepared,
        name: &str,
        bridges: Option<&[u32]>,
    ) -> Result<Option<String>> {
        let Some(link) = prepared.links.find(name).await? else {
            return Ok(Some(format!("{name} is gone")));
        };
        if !link.up {
            return Ok(Some(format!("{name} is down")));
        }
        let is_cut_off = |bridges: &[u32]| link.controller.is_none_or(|index| !bridges.contains(&index));
        if !self.config.unisolated && bridges.is_some_and(is_cut_off) {
            return Ok(Some(format!("{name} is no port of its bridge any more")));
        }
        if link.controller.is_some() && !link.isolated && !self.config.unisolated {
            tracing::warn!(interface = name, "a bridge port was no longer isolated; it is again");
            prepared.links.isolate_port(link.index).await?;
        }
        Ok(None)
    }
}

fn unisolated(configuration: &Configuration) -> NetworkError {
    NetworkError::Unisolated {
        configuration: configuration.source.clone(),
    }
}

/// The index of the workspace's interface; else what is wrong with its side.
pub(super) async fn check_inside(inside: &Links, address: Option<IpAddr>) -> Result<std::result::Result<u32, String>> {
    let Some(link) = inside.find(INTERFACE).await? else {
        return Ok(Err(format!("{INTERFACE} is gone inside")));
    };
    let addresses = inside.addresses().await?;
    let missing = address.filter(|address| !addresses_of(&addresses, link.index).any(|own| own == *address));
    Ok(match missing {
        Some(address) => Err(format!("{address} is gone inside")),
        None => Ok(link.index),
    })
}
