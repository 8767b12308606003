//! Attaching workspaces with CNI: the verbs of [`super::Network`] in mode `bridge`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use skep_names::{BotId, container_id_for};
use tokio::sync::OnceCell;

use super::claim::Claim;
use super::cni::{Answer, Configuration, Plugins, Record, Records, Target};
use super::config::NetworkConfig;
use super::error::NetworkError;
use super::host_side::{HostSide, check_inside};
use super::links::Links;
use super::own::OwnNetwork;
use super::preparation::{Prepared, enable_forwarding, own_network};
use super::rules;
use super::{Attachment, RulesCheck, firewall};
use crate::failpoint;

type Result<T> = std::result::Result<T, NetworkError>;

/// A record younger than this may belong to a start that is under way.
const UNDER_WAY: Duration = Duration::from_secs(60);

/// The network in mode `bridge`.
pub(super) struct Wired {
    pub(super) config: NetworkConfig,
    pub(super) plugins: Plugins,
    pub(super) records: Records,
    /// `None`: the user's configuration.
    pub(super) own: Option<OwnNetwork>,
    /// The user's configuration; ours is written by `prepare`.
    pub(super) foreign: Option<Configuration>,
    pub(super) prepared: OnceCell<Prepared>,
    /// What the last `prepare` found that a person should know.
    findings: Mutex<Vec<String>>,
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
            findings: Mutex::default(),
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
        self.findings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&findings);
        Ok(findings)
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
        let narrowed = match &self.own {
            Some(own) => own.narrow(netns).await,
            // What neighbours a network of the user's has is theirs to say.
            None => Ok(()),
        };
        if let Err(error) = looped.and(narrowed).and_then(|()| prepared.guard.in_force()) {
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
        passed(failpoint::ATTACHMENT_INTENDED)?;
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
        passed(failpoint::ATTACHED)?;
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
        passed(failpoint::ATTACHMENT_RECORDED)?;
        prepared.guard.protect(record.ports.clone()).await?;
        passed(failpoint::PROTECTED)
    }

    pub(super) async fn detach(&self, bot: &BotId, netns: &Path) -> Result<()> {
        match self.records.load(bot)? {
            Some(record) => self.release(&record, netns).await,
            None => Ok(()),
        }
    }

    async fn release(&self, record: &Record, netns: &Path) -> Result<()> {
        // Taking the pair of interfaces apart costs 30 ms of the answer, and the kernel does it by itself when
        // the namespace goes. The address of our own network is released without it; of others we do not know.
        if record.own_network {
            let target = Target {
                container_id: &record.container_id,
                netns: None,
            };
            self.plugins.release_addresses(&record.configuration, target).await?;
        } else {
            self.delete(record, present(&[netns, &record.netns])).await?;
        }
        passed(failpoint::DETACHED)?;
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
        let (record, result) = self.look(bot, netns).await?;
        if record.own_network {
            return Ok(());
        }
        let target = Target {
            container_id: &record.container_id,
            netns: Some(netns),
        };
        self.plugins.check(&record.configuration, target, &result).await
    }

    /// As `check`, by netlink alone: no plugin is asked.
    pub(super) async fn look(&self, bot: &BotId, netns: &Path) -> Result<(Record, Answer)> {
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
        let mut bridges = Vec::new();
        for port in &record.ports {
            match prepared.links.find(port).await? {
                Some(link) if link.up && link.kind == "bridge" => bridges.push(link.index),
                Some(link) if link.up => {}
                Some(_) => return Err(broken(format!("{port} is down"))),
                None => return Err(broken(format!("{port} is gone"))),
            }
        }
        if let Some(name) = &record.host_interface {
            // By its own name the rules see what is no port of a bridge.
            let bridges = (!record.ports.contains(name)).then_some(&*bridges);
            self.check_host_side(prepared, name, bridges)
                .await?
                .map_or(Ok(()), |reason| Err(broken(reason)))?;
        }
        if !is_namespace(netns) {
            return Err(broken("its network namespace is gone".into()));
        }
        // A thread goes in there for it: once is enough.
        let inside = Links::inside(netns).await?;
        let index = check_inside(&inside, record.address).await?.map_err(broken)?;
        if let Some(own) = self.own.as_ref().filter(|_| record.own_network) {
            own.keep_narrow(netns, (&inside, index)).await?;
        }
        Ok((record, result))
    }

    /// `true`: our own bridge was gone, and is there again, without its ports.
    pub(super) async fn restore_bridge(&self) -> Result<bool> {
        let prepared = self.prepared()?;
        let Some(own) = &self.own else { return Ok(false) };
        if prepared.links.find(&own.bridge).await?.is_some() {
            return Ok(false);
        }
        own.ensure_bridge(&prepared.links).await?;
        Ok(true)
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

    pub(super) fn attachment(&self, bot: &BotId) -> Result<Option<Attachment>> {
        self.records.attachment(bot)
    }

    /// What the last `prepare` found.
    pub(super) fn findings(&self) -> Vec<String> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        if !self.records.all()?.is_empty() {
            return Err(NetworkError::Configuration(
                "workspaces are still attached to the network; stop them first".into(),
            ));
        }
        // The server that made it all is gone: taking it up first shows that nobody else's is removed.
        let prepared = self.prepared.get_or_try_init(|| self.begin()).await?;
        prepared.guard.unload().await?;
        if let Some(own) = &self.own
            && let Some(link) = prepared.links.find(&own.bridge).await?
        {
            prepared.links.delete(link.index).await?;
        }
        prepared.claims.iter().try_for_each(Claim::remove)
    }
}

fn passed(point: failpoint::Point) -> Result<()> {
    point.pass().map_err(NetworkError::other("attaching or detaching"))
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
