//! Attaching workspaces with CNI: the verbs of [`super::Network`] in mode `bridge`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use skep_names::{BotId, container_id_for};
use tokio::sync::OnceCell;

use super::claim::{Claim, Claimed};
use super::cni::{Answer, Configuration, INTERFACE, Plugins, Record, Records, Target};
use super::config::NetworkConfig;
use super::error::NetworkError;
use super::guard::Guard;
use super::links::{Link, Links, addresses_of};
use super::nft::Nft;
use super::own::OwnNetwork;
use super::rules::{self, Rules};
use super::{Attachment, RulesCheck, firewall};

type Result<T> = std::result::Result<T, NetworkError>;

/// A record younger than this may belong to a start that is under way.
const UNDER_WAY: Duration = Duration::from_secs(60);
/// Where the kernel says whether it forwards IPv4.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// The network in mode `bridge`.
pub(super) struct Wired {
    config: NetworkConfig,
    plugins: Plugins,
    records: Records,
    /// `None`: the user's configuration.
    own: Option<OwnNetwork>,
    /// The user's configuration; ours is written by `prepare`.
    foreign: Option<Configuration>,
    prepared: OnceCell<Prepared>,
}

/// What lasts as long as the server.
struct Prepared {
    configuration: Configuration,
    guard: Guard,
    links: Links,
    nft: Nft,
    claims: Vec<Claim>,
}

/// The host's side of an attachment, once it is isolated.
#[derive(Debug, Default)]
struct HostSide {
    interface: Option<String>,
    ports: Vec<String>,
}

impl Wired {
    /// Reads and checks; changes nothing.
    pub(super) fn new(config: NetworkConfig) -> Result<Self> {
        if !rules::is_table_name(&config.table) {
            return Err(NetworkError::Configuration(format!(
                "network.table {:?} is no table's name",
                config.table
            )));
        }
        let foreign = config
            .cni_conf_dir
            .as_deref()
            .map(Configuration::first_in)
            .transpose()?;
        let own = foreign.is_none().then(|| own_network(&config)).transpose()?;
        let plugins = Plugins::new(config.cni_bin_dir.as_deref());
        if let Some(configuration) = &foreign {
            plugins.require(configuration)?;
            if let Some(bridge) = configuration.bridges().find(|bridge| !rules::is_interface_name(bridge)) {
                return Err(NetworkError::Configuration(format!(
                    "bridge {bridge:?} in {} is no interface's name",
                    configuration.source
                )));
            }
        }
        Ok(Self {
            records: Records::new(config.cni_directory().join("attachments")),
            plugins,
            own,
            foreign,
            prepared: OnceCell::new(),
            config,
        })
    }

    pub(super) async fn prepare(&self) -> Result<Vec<String>> {
        let prepared = self.prepared.get_or_try_init(|| self.begin()).await?;
        enable_forwarding()?;
        if let Some(own) = &self.own {
            own.ensure_bridge(&prepared.links).await?;
        }
        let bridge = prepared.configuration.bridges().next().unwrap_or("veth*").to_owned();
        let mut findings = firewall::forward_findings(&prepared.nft, &bridge).await?;
        if self.own.is_some() && !self.config.resolvers.iter().any(IpAddr::is_ipv4) {
            findings.push("no resolver of the host has an IPv4 address, so workspaces cannot resolve names".into());
        }
        for finding in &findings {
            tracing::warn!("{finding}");
        }
        Ok(findings)
    }

    /// The rules come first: no port is up before they hold.
    async fn begin(&self) -> Result<Prepared> {
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

    fn prepared(&self) -> Result<&Prepared> {
        let prepared = self.prepared.get().ok_or_else(|| NetworkError::RulesMissing {
            reason: "the network has not been prepared".into(),
        })?;
        prepared.guard.in_force()?;
        Ok(prepared)
    }

    pub(super) async fn attach(&self, bot: &BotId, netns: &Path) -> Result<Attachment> {
        let prepared = self.prepared()?;
        if let Some(left) = self.records.load(bot)? {
            self.delete(&left, present(&[netns, &left.netns])).await?;
            self.forget(&left).await?;
        }
        let inside = async { Links::inside(netns).await?.loopback_up().await };
        let (looped, added) = tokio::join!(inside, self.add_in_two_tries(prepared, bot, netns));
        let record = added?;
        if let Err(error) = looped.and_then(|()| prepared.guard.in_force()) {
            self.undo(&record).await?;
            self.forget(&record).await?;
            return Err(error);
        }
        Ok(Attachment {
            address: record.address,
            host_interface: record.host_interface,
        })
    }

    /// An address that is given out already, or an interface that is left over: released, then once more.
    async fn add_in_two_tries(&self, prepared: &Prepared, bot: &BotId, netns: &Path) -> Result<Record> {
        let mut record = Record {
            bot: bot.clone(),
            container_id: container_id_for(bot),
            netns: netns.to_path_buf(),
            configuration: prepared.configuration.clone(),
            result: None,
            address: None,
            host_interface: None,
            ports: Vec::new(),
            own_network: self.own.is_some(),
        };
        self.records.save(&record)?;
        let first = match self.add(prepared, &mut record).await {
            Ok(()) => return Ok(record),
            Err(error) => error,
        };
        tracing::warn!(%bot, error = first.chain(), "attaching failed; what it left is released, then once more");
        self.undo(&record).await?;
        if matches!(first, NetworkError::Configuration(_) | NetworkError::Unisolated { .. }) {
            self.records.remove(bot)?;
            return Err(first);
        }
        record.result = None;
        match self.add(prepared, &mut record).await {
            Ok(()) => Ok(record),
            Err(error) => {
                self.undo(&record).await?;
                self.records.remove(bot)?;
                Err(error)
            }
        }
    }

    async fn add(&self, prepared: &Prepared, record: &mut Record) -> Result<()> {
        let target = Target {
            container_id: &record.container_id,
            netns: Some(&record.netns),
        };
        let result = self.plugins.add(&record.configuration, target).await?;
        record.address = result.address();
        record.result = Some(result);
        let host = match &record.result {
            Some(result) => self.isolate(prepared, &record.configuration, result).await?,
            None => HostSide::default(),
        };
        record.host_interface = host.interface;
        record.ports = host.ports;
        // Ports before the rules, and both before the task: whatever comes in between is closed.
        self.records.save(record)?;
        prepared.guard.protect(record.ports.clone()).await
    }

    /// Isolates the bridge port and says for which interfaces the rules must hold.
    async fn isolate(&self, prepared: &Prepared, configuration: &Configuration, result: &Answer) -> Result<HostSide> {
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

    pub(super) async fn detach(&self, bot: &BotId, netns: &Path) -> Result<()> {
        match self.records.load(bot)? {
            Some(record) => self.release(&record, netns).await,
            None => Ok(()),
        }
    }

    async fn release(&self, record: &Record, netns: &Path) -> Result<()> {
        // Taking the pair of interfaces apart costs 30 ms of the answer, and the kernel does it by itself when
        // the namespace goes. Our own plugins release the address without it; of others we do not know.
        let netns = if record.own_network {
            None
        } else {
            present(&[netns, &record.netns])
        };
        self.delete(record, netns).await?;
        self.forget(record).await
    }

    /// Takes it out of the rules, and its record away.
    async fn forget(&self, record: &Record) -> Result<()> {
        if let Some(prepared) = self.prepared.get() {
            let shared: BTreeSet<&str> = record.configuration.bridges().collect();
            let mut gone = Vec::new();
            for port in &record.ports {
                // A bridge has other ports; an interface of its own goes with it.
                let of_others = shared.contains(port.as_str())
                    || prepared
                        .links
                        .find(port)
                        .await?
                        .is_some_and(|link| link.kind == "bridge");
                if !of_others {
                    gone.push(port.clone());
                }
            }
            if !gone.is_empty() {
                prepared.guard.release(gone).await?;
            }
        }
        self.records.remove(&record.bot)
    }

    /// After a failed ADD: its record stays when this fails, so that a sweep tries again.
    async fn undo(&self, record: &Record) -> Result<()> {
        self.delete(record, present(&[&record.netns])).await
    }

    async fn delete(&self, record: &Record, netns: Option<&Path>) -> Result<()> {
        let target = Target {
            container_id: &record.container_id,
            netns,
        };
        self.plugins
            .del(&record.configuration, target, record.result.as_ref())
            .await
    }

    pub(super) async fn check(&self, bot: &BotId, netns: &Path) -> Result<()> {
        let prepared = self.prepared()?;
        let broken = |reason: String| NetworkError::Broken {
            bot: bot.to_string(),
            reason,
        };
        let record = self.records.load(bot)?;
        let (record, result) = match record.map(|mut record| (record.result.take(), record)) {
            Some((Some(result), record)) => (record, result),
            _ => return Err(broken("it was never attached".into())),
        };
        for port in &record.ports {
            match prepared.links.find(port).await? {
                Some(link) if link.up => {}
                Some(_) => return Err(broken(format!("{port} is down"))),
                None => return Err(broken(format!("{port} is gone"))),
            }
        }
        if let Some(name) = &record.host_interface {
            self.check_host_side(prepared, name)
                .await?
                .map_or(Ok(()), |reason| Err(broken(reason)))?;
        }
        check_inside(netns, record.address)
            .await?
            .map_or(Ok(()), |reason| Err(broken(reason)))?;
        if record.own_network {
            return Ok(());
        }
        let target = Target {
            container_id: &record.container_id,
            netns: Some(netns),
        };
        self.plugins.check(&record.configuration, target, &result).await
    }

    /// What is wrong; a port that lost its isolation gets it back first.
    async fn check_host_side(&self, prepared: &Prepared, name: &str) -> Result<Option<String>> {
        let Some(link) = prepared.links.find(name).await? else {
            return Ok(Some(format!("{name} is gone")));
        };
        if !link.up {
            return Ok(Some(format!("{name} is down")));
        }
        if link.controller.is_some() && !link.isolated && !self.config.unisolated {
            tracing::warn!(interface = name, "a bridge port was no longer isolated; it is again");
            prepared.links.isolate_port(link.index).await?;
        }
        Ok(None)
    }

    pub(super) async fn sweep(&self, live: &BTreeSet<BotId>) -> Result<()> {
        let prepared = self.prepared()?;
        let mut kept = Vec::new();
        for (bot, age) in self.records.all()? {
            if live.contains(&bot) || age < UNDER_WAY {
                kept.push(container_id_for(&bot));
                continue;
            }
            tracing::info!(%bot, "releasing the network of a workspace that does not run");
            if let Some(record) = self.records.load(&bot)? {
                self.release(&record, &super::namespace_path(&bot)).await?;
            }
        }
        self.plugins.collect_garbage(&prepared.configuration, &kept).await
    }

    pub(super) async fn check_rules(&self) -> Result<RulesCheck> {
        match self.prepared.get() {
            Some(prepared) => prepared.guard.verify().await,
            None => self.prepared().map(|_| RulesCheck::InForce),
        }
    }

    pub(super) async fn set_resolvers(&self, resolvers: Vec<IpAddr>) -> Result<()> {
        self.prepared()?
            .guard
            .set_resolvers(resolvers.into_iter().collect())
            .await
    }

    pub(super) fn address(&self, bot: &BotId) -> Result<Option<IpAddr>> {
        Ok(self.records.load(bot)?.and_then(|record| record.address))
    }

    /// What a workspace could be attached to now, in a sentence.
    pub(super) async fn ready(&self) -> Result<String> {
        let prepared = self.prepared()?;
        for bridge in prepared.configuration.bridges() {
            // A bridge of the user's is made by its plugin, with the first workspace.
            let link = prepared.links.find(bridge).await?;
            if link.as_ref().is_some_and(|link| !link.up) || (link.is_none() && self.own.is_some()) {
                return Err(NetworkError::RulesMissing {
                    reason: format!("bridge {bridge} is not up"),
                });
            }
        }
        self.plugins.require(&prepared.configuration)?;
        Ok(format!(
            "CNI network {} ({}), rules in table inet {}",
            prepared.configuration.name, prepared.configuration.source, self.config.table
        ))
    }

    pub(super) async fn teardown(&self) -> Result<()> {
        let Some(prepared) = self.prepared.get() else {
            return Ok(());
        };
        if !self.records.all()?.is_empty() {
            return Err(NetworkError::Configuration(
                "workspaces are still attached to the network; stop them first".into(),
            ));
        }
        prepared.guard.unload().await?;
        if let Some(own) = &self.own
            && let Some(link) = prepared.links.find(&own.bridge).await?
        {
            prepared.links.delete(link.index).await?;
        }
        prepared.claims.iter().try_for_each(Claim::remove)
    }
}

fn own_network(config: &NetworkConfig) -> Result<OwnNetwork> {
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

fn unisolated(configuration: &Configuration) -> NetworkError {
    NetworkError::Unisolated {
        configuration: configuration.source.clone(),
    }
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

/// The first of these that is a namespace.
fn present<'a>(paths: &[&'a Path]) -> Option<&'a Path> {
    paths.iter().copied().find(|path| is_namespace(path))
}

/// A namespace that is bound there; an empty file is what is left when it is gone.
fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}

async fn check_inside(netns: &Path, address: Option<IpAddr>) -> Result<Option<String>> {
    let inside = Links::inside(netns).await?;
    let Some(link) = inside.find(INTERFACE).await? else {
        return Ok(Some(format!("{INTERFACE} is gone inside")));
    };
    let addresses = inside.addresses().await?;
    let missing = address.filter(|address| !addresses_of(&addresses, link.index).any(|own| own == *address));
    Ok(missing.map(|address| format!("{address} is gone inside")))
}

fn enable_forwarding() -> Result<()> {
    let path = PathBuf::from(FORWARDING);
    let now = std::fs::read_to_string(&path).map_err(NetworkError::other(format!("reading {FORWARDING}")))?;
    if now.trim() == "1" {
        return Ok(());
    }
    std::fs::write(&path, "1").map_err(NetworkError::other(format!("writing {FORWARDING}")))?;
    tracing::info!("turned IPv4 forwarding on");
    Ok(())
}
