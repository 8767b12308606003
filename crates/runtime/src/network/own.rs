//! Our own network, used when no CNI configuration is given: one bridge, addresses by host-local.

use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};
use serde_json::json;

use super::cni::{Configuration, INTERFACE};
use super::error::NetworkError;
use super::links::{Links, addresses_of, in_namespace};

type Result<T> = std::result::Result<T, NetworkError>;

/// The file's name, as CNI's tools expect one.
const FILE: &str = "10-skep.conflist";

/// Bridge and subnet.
#[derive(Debug, Clone)]
pub(super) struct OwnNetwork {
    pub(super) bridge: String,
    pub(super) subnet: Ipv4Net,
}

impl OwnNetwork {
    /// The first address of the subnet.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.subnet.hosts().next().unwrap_or(self.subnet.addr())
    }

    /// Written below `directory` for whoever wants to see it, and read back like any other.
    ///
    /// Version 0.4.0 is the newest that plugins of every age speak. No `ipMasq`: that would be iptables, at
    /// 12 ms for each workspace, where our table masquerades once.
    pub(super) fn configuration(&self, directory: &Path, mtu: Option<u32>) -> Result<Configuration> {
        let mut bridge = json!({
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": true,
            "ipMasq": false,
            "hairpinMode": false,
            "ipam": {
                "type": "host-local",
                "dataDir": directory.join("leases"),
                "ranges": [[{"subnet": self.subnet, "gateway": self.gateway()}]],
                "routes": [{"dst": "0.0.0.0/0"}]
            }
        });
        if let Some(mtu) = mtu {
            bridge["mtu"] = json!(mtu);
        }
        let list = json!({"cniVersion": "0.4.0", "name": "skep", "plugins": [bridge]});
        let file = directory.join(FILE);
        let text = serde_json::to_vec_pretty(&list).map_err(NetworkError::other("writing our CNI configuration"))?;
        let write = || {
            std::fs::create_dir_all(directory)?;
            let draft = file.with_extension("new");
            std::fs::write(&draft, &text)?;
            std::fs::rename(&draft, &file)
        };
        write().map_err(NetworkError::other(format!("writing {}", file.display())))?;
        Configuration::parse(&text, &file.display().to_string())
    }

    /// Makes the bridge with the gateway's address and brings it up; what is there already is kept.
    ///
    /// # Errors
    /// The subnet is in use elsewhere on this host, or the name is some other interface's: names the key.
    pub(super) async fn ensure_bridge(&self, links: &Links) -> Result<()> {
        let found = links.find(&self.bridge).await?;
        if let Some(link) = found.as_ref().filter(|link| link.kind != "bridge") {
            return Err(NetworkError::Configuration(format!(
                "interface {} exists and is no bridge ({}): choose another name with `network.bridge`",
                self.bridge, link.kind
            )));
        }
        self.refuse_taken_subnet(links, found.as_ref().map(|link| link.index))
            .await?;
        if found.is_none() {
            links.add_bridge(&self.bridge).await?;
        }
        let link = links.find(&self.bridge).await?.ok_or_else(|| NetworkError::Other {
            operation: format!("making bridge {}", self.bridge),
            source: "it is gone again".into(),
        })?;
        self.without_ipv6()?;
        self.refuse_other_addresses(links, link.index).await?;
        let address = IpNet::new(self.gateway().into(), self.subnet.prefix_len())
            .map_err(NetworkError::other("the gateway's address"))?;
        links.add_address(link.index, address).await?;
        links.set_up(link.index).await
    }

    /// No link-local address of the host's towards workspaces.
    fn without_ipv6(&self) -> Result<()> {
        disable_ipv6(&self.bridge).map_err(NetworkError::other(format!("disabling IPv6 of {}", self.bridge)))
    }

    /// Leaves an attached workspace one neighbour, the gateway. The kernel has one table of neighbours for the host and all
    /// its network namespaces: who could ask for every address of the subnet would fill it for everybody.
    pub(super) async fn narrow(&self, netns: &Path) -> Result<()> {
        in_namespace(netns, "limiting the neighbours", || {
            // Any IPv6 destination below fe80:: would be one.
            disable_ipv6(INTERFACE)?;
            // The host tells who asks the gateway for a neighbour that there is a shorter way.
            for interface in ["all", INTERFACE] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/accept_redirects"), "0")?;
            }
            Ok(())
        })
        .await?;
        let inside = Links::inside(netns).await?;
        let index = interface_inside(&inside).await?;
        inside.narrow_to(index, self.gateway(), self.subnet).await
    }

    /// The same for one that runs: a server of before may have attached it, and did less.
    pub(super) async fn keep_narrow(&self, netns: &Path, (inside, index): (&Links, u32)) -> Result<()> {
        if inside.is_narrow(index, self.subnet).await? {
            return Ok(());
        }
        tracing::info!(netns = %netns.display(), "a workspace that runs is left one neighbour, the gateway");
        self.narrow(netns).await
    }

    async fn refuse_taken_subnet(&self, links: &Links, own: Option<u32>) -> Result<()> {
        let taken = links.routes_within(self.subnet).await?;
        let Some((index, route)) = taken.into_iter().find(|(index, _)| Some(*index) != own) else {
            return Ok(());
        };
        let name = links
            .by_index(index)
            .await?
            .map_or_else(|| index.to_string(), |link| link.name);
        Err(NetworkError::Configuration(format!(
            "the subnet {} meets {route}, which this host reaches through {name}: choose another one with \
             `network.subnet`",
            self.subnet
        )))
    }

    async fn refuse_other_addresses(&self, links: &Links, index: u32) -> Result<()> {
        let addresses = links.addresses().await?;
        let gateway = std::net::IpAddr::V4(self.gateway());
        let other = addresses_of(&addresses, index).find(|address| address.is_ipv4() && *address != gateway);
        let Some(other) = other else { return Ok(()) };
        Err(NetworkError::Configuration(format!(
            "bridge {} has the address {other} and not {gateway}: delete it once its workspaces are stopped, or choose \
             another name with `network.bridge`",
            self.bridge
        )))
    }
}

async fn interface_inside(inside: &Links) -> Result<u32> {
    let link = inside.find(INTERFACE).await?.ok_or_else(|| NetworkError::Other {
        operation: "limiting the neighbours".into(),
        source: format!("{INTERFACE} is gone inside").into(),
    })?;
    Ok(link.index)
}

fn disable_ipv6(interface: &str) -> std::io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_the_first_address() {
        let own = OwnNetwork {
            bridge: "skep0".into(),
            subnet: "10.88.0.0/16".parse().unwrap(),
        };
        assert_eq!(own.gateway(), Ipv4Addr::new(10, 88, 0, 1));
    }

    #[test]
    fn our_configuration_is_one_plugin_without_iptables() {
        let directory = tempfile::tempdir().unwrap();
        let own = OwnNetwork {
            bridge: "skep0".into(),
            subnet: "10.88.0.0/16".parse().unwrap(),
        };
        let read = own.configuration(directory.path(), Some(1400)).unwrap();
        assert_eq!(read.plugins.len(), 1);
        assert_eq!(read.plugins[0]["ipMasq"], json!(false));
        assert_eq!(read.plugins[0]["mtu"], json!(1400));
        assert_eq!(read.bridges().collect::<Vec<_>>(), ["skep0"]);
        assert!(directory.path().join(FILE).is_file());
    }
}
