//! Keeps the rules in force: one task that alone writes our table, hears who else does, and closes the
//! network while the rules are away.
//!
//! ```text
//!            load                      touched by another, or found different
//!   Absent ───────▶ InForce ─────────────────────────────▶ ports down ─▶ replace ─▶ ports up ─▶ InForce
//!                                                                 │ replace fails
//!                                                                 └▶ Missing: ports stay down, again each second
//! ```
//! Nothing in netfilter closes by itself: absent rules are open rules. So the ports go down before all else.
//!
//! In force, the table is not replaced for another port or resolver: the kernel counts connections in it, and would begin
//! anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rtnetlink::packet_route::route::RouteMessage;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::RulesCheck;
use super::error::NetworkError;
use super::links::Links;
use super::nft::{Listing, Nft};
use super::nft_events::{Change, NftEvents};
use super::rules::Rules;

type Result<T> = std::result::Result<T, NetworkError>;

/// How often a failed restoration is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Another writer may come between our load and our look at it; one that always does is an error.
const LOADS_MAX: usize = 5;
/// A whole queue of changes at 20 ms each, and then some.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// Whether the rules hold.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Status {
    Absent,
    InForce,
    Missing(String),
}

enum Order {
    Load(BTreeSet<String>),
    Protect(Vec<String>),
    Release(Vec<String>),
    Resolvers(BTreeSet<IpAddr>),
    Verify,
    Unload,
}

type Reply = oneshot::Sender<Result<RulesCheck>>;

/// The handle of the task; the task ends with it and leaves the rules as they are.
pub(super) struct Guard {
    orders: mpsc::Sender<(Order, Reply)>,
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Guard {
    /// Subscribes and starts the task; nothing is loaded yet.
    pub(super) fn start(nft: Nft, rules: Rules) -> Result<Self> {
        let (orders, receiver) = mpsc::channel(64);
        let (sender, status) = watch::channel(Status::Absent);
        let keeper = Keeper {
            links: Links::here()?,
            nft,
            rules,
            ports: BTreeSet::new(),
            routes: BTreeMap::new(),
            in_kernel: None,
            status: sender,
        };
        let events = NftEvents::subscribe()?;
        let task = tokio::spawn(keeper.run(receiver, events));
        Ok(Self { orders, status, task })
    }

    /// Loads the table for these ports and those known already.
    pub(super) async fn load(&self, ports: BTreeSet<String>) -> Result<()> {
        self.order(Order::Load(ports)).await.map(drop)
    }

    /// Makes the rules hold for more host-side interfaces.
    pub(super) async fn protect(&self, ports: Vec<String>) -> Result<()> {
        self.order(Order::Protect(ports)).await.map(drop)
    }

    /// Interfaces that are gone: their names may come again as somebody else's.
    pub(super) async fn release(&self, ports: Vec<String>) -> Result<()> {
        self.order(Order::Release(ports)).await.map(drop)
    }

    /// Opens port 53 to these, and to no others.
    pub(super) async fn set_resolvers(&self, resolvers: BTreeSet<IpAddr>) -> Result<()> {
        self.order(Order::Resolvers(resolvers)).await.map(drop)
    }

    /// Compares the kernel's rules with ours; restores them when they differ.
    pub(super) async fn verify(&self) -> Result<RulesCheck> {
        self.order(Order::Verify).await
    }

    /// Takes the ports down and removes the table.
    pub(super) async fn unload(&self) -> Result<()> {
        self.order(Order::Unload).await.map(drop)
    }

    /// # Errors
    /// The rules are not in force now.
    pub(super) fn in_force(&self) -> Result<()> {
        let reason = match &*self.status.borrow() {
            Status::InForce if !self.task.is_finished() => return Ok(()),
            Status::InForce => "their watcher has ended".to_owned(),
            Status::Absent => "they have not been loaded".to_owned(),
            Status::Missing(reason) => reason.clone(),
        };
        Err(NetworkError::RulesMissing { reason })
    }

    async fn order(&self, order: Order) -> Result<RulesCheck> {
        let ended = || NetworkError::RulesMissing {
            reason: "their watcher has ended".into(),
        };
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.orders.send((order, reply)).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        };
        tokio::time::timeout(ANSWER_LIMIT, exchange)
            .await
            .map_err(NetworkError::other("changing the rules"))?
    }
}

struct Keeper {
    links: Links,
    nft: Nft,
    rules: Rules,
    /// Host-side interfaces the rules hold for.
    ports: BTreeSet<String>,
    /// Routes that the kernel forgets when their port goes down.
    routes: BTreeMap<String, Vec<RouteMessage>>,
    /// Our table, but for the ports, as it was listed after we last wrote it.
    in_kernel: Option<Value>,
    status: watch::Sender<Status>,
}

impl Keeper {
    async fn run(mut self, mut orders: mpsc::Receiver<(Order, Reply)>, mut events: NftEvents) {
        let mut retry_at = None;
        loop {
            tokio::select! {
                biased;
                changes = events.next(&self.nft.table) => match changes {
                    Ok(changes) => self.hear(&changes, &mut events).await,
                    Err(error) => {
                        self.close().await;
                        tracing::error!(error = error.chain(), "workspaces are cut off: the rules cannot be watched");
                        self.status.send_replace(Status::Missing(error.chain()));
                        return;
                    }
                },
                () = tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    if let Err(error) = self.restore(&mut events).await {
                        tracing::error!(error = error.chain(), "the rules that isolate workspaces are still missing");
                    }
                }
                order = orders.recv() => {
                    let Some((order, reply)) = order else { return };
                    let answer = self.obey(order, &mut events).await;
                    // A caller that has gone away has its answer in the log of its own cancellation.
                    drop(reply.send(answer));
                }
            }
            let missing = matches!(&*self.status.borrow(), Status::Missing(_));
            retry_at = missing.then(|| Instant::now() + RETRY);
        }
    }

    async fn obey(&mut self, order: Order, events: &mut NftEvents) -> Result<RulesCheck> {
        match order {
            Order::Load(ports) => {
                self.remember_routes(&ports).await?;
                self.ports.extend(ports);
                self.restore(events).await?;
            }
            Order::Protect(ports) => self.protect(ports, events).await?,
            Order::Release(ports) => self.release(&ports, events).await?,
            Order::Resolvers(resolvers) => {
                if resolvers != self.rules.resolvers {
                    let before = std::mem::replace(&mut self.rules.resolvers, resolvers);
                    let changed = self.change(&self.rules.other_resolvers(), events).await;
                    let listed = match changed {
                        Ok(()) => self.nft.listing().await,
                        Err(error) => Err(error),
                    };
                    // What is not in force, or not known to be, is not taken for it when it is asked for again.
                    if listed.is_err() {
                        self.rules.resolvers = before;
                    }
                    self.in_kernel = Some(listed?.rest);
                }
            }
            Order::Verify => return self.verify(events).await,
            Order::Unload => {
                self.close().await;
                self.nft.apply("remove the table", &self.rules.removal()).await?;
                events.drain(&self.nft.table)?;
                self.status.send_replace(Status::Absent);
            }
        }
        Ok(RulesCheck::InForce)
    }

    async fn protect(&mut self, ports: Vec<String>, events: &mut NftEvents) -> Result<()> {
        let ports: BTreeSet<String> = ports.into_iter().filter(|port| !self.ports.contains(port)).collect();
        if ports.is_empty() {
            return Ok(());
        }
        self.remember_routes(&ports).await?;
        self.ports.extend(ports.iter().cloned());
        let changed = self.change(&self.rules.more_ports(&ports), events).await;
        // A second try must not take them for protected.
        if changed.is_err() {
            self.ports.retain(|port| !ports.contains(port));
        }
        changed
    }

    async fn release(&mut self, ports: &[String], events: &mut NftEvents) -> Result<()> {
        let ports: BTreeSet<String> = ports.iter().filter_map(|port| self.ports.take(port)).collect();
        if ports.is_empty() {
            return Ok(());
        }
        self.routes.retain(|port, _| !ports.contains(port));
        self.change(&self.rules.fewer_ports(&ports), events).await
    }

    async fn remember_routes(&mut self, ports: &BTreeSet<String>) -> Result<()> {
        for port in ports {
            if let Some(link) = self.links.find(port).await? {
                let routes = self.links.routes_through(&BTreeSet::from([link.index])).await?;
                self.routes.insert(port.clone(), routes);
            }
        }
        Ok(())
    }

    /// Events of others. Ours are drained by [`Keeper::load`] and do not come here.
    async fn hear(&mut self, changes: &[Change], events: &mut NftEvents) {
        if *self.status.borrow() == Status::Absent {
            return;
        }
        let outcome = if changes
            .iter()
            .any(|change| matches!(change, Change::Touched | Change::Made))
        {
            tracing::warn!(
                table = self.nft.table,
                "another program changed our rules; workspaces are cut off until they are back"
            );
            self.close().await;
            self.restore(events).await
        } else if changes.contains(&Change::Unknown) {
            self.verify(events).await.map(drop)
        } else {
            Ok(())
        };
        if let Err(error) = outcome {
            tracing::error!(
                error = error.chain(),
                "the rules that isolate workspaces could not be put back"
            );
        }
    }

    async fn verify(&mut self, events: &mut NftEvents) -> Result<RulesCheck> {
        if *self.status.borrow() == Status::Absent {
            return Err(NetworkError::RulesMissing {
                reason: "they have not been loaded".into(),
            });
        }
        let listed = self.nft.listing().await;
        let as_left = |listing: &Listing| Some(&listing.rest) == self.in_kernel.as_ref() && listing.ports == self.ports;
        if listed.as_ref().is_ok_and(as_left) && *self.status.borrow() == Status::InForce {
            return Ok(RulesCheck::InForce);
        }
        let reason = listed
            .err()
            .map_or_else(|| "they differ".to_owned(), |error| error.chain());
        tracing::warn!(
            reason,
            "the rules that isolate workspaces are not as they were loaded; workspaces are cut off until they are"
        );
        self.close().await;
        self.restore(events).await?;
        Ok(RulesCheck::Restored)
    }

    /// Changes one part of the table under open ports: the old rules hold until the new ones do, and still when it fails.
    /// A table that another program has changed meanwhile is replaced.
    async fn change(&mut self, text: &str, events: &mut NftEvents) -> Result<()> {
        if *self.status.borrow() != Status::InForce {
            return self.restore(events).await;
        }
        if self.of_our_table(events)?.is_empty() {
            let changed = self.nft.apply("change the table", text).await;
            match (changed, self.of_our_table(events)?.as_slice()) {
                (Ok(()), [Change::Touched]) => return Ok(()),
                (Err(error), []) => return Err(error),
                // Another program's change is among them.
                _ => {}
            }
        }
        self.restore(events).await
    }

    /// What has happened to our table so far. The kernel tells before it answers: right after a change of ours it is among
    /// these, and alone if nobody interfered.
    fn of_our_table(&self, events: &mut NftEvents) -> Result<Vec<Change>> {
        let mut changes = events.drain(&self.nft.table)?;
        changes.retain(|change| *change != Change::Elsewhere);
        Ok(changes)
    }

    /// Replaces the table and opens the ports; when that fails they are closed.
    async fn restore(&mut self, events: &mut NftEvents) -> Result<()> {
        let restored = match self.load(events).await {
            Ok(()) => self.open().await,
            Err(error) => Err(error),
        };
        match restored {
            Ok(()) => {
                self.status.send_replace(Status::InForce);
                Ok(())
            }
            Err(error) => {
                self.close().await;
                self.status.send_replace(Status::Missing(error.chain()));
                Err(error)
            }
        }
    }

    async fn load(&mut self, events: &mut NftEvents) -> Result<()> {
        let text = self.rules.replacement(&self.ports);
        for _ in 0..LOADS_MAX {
            // What others did before our load is undone by it.
            events.drain(&self.nft.table)?;
            self.nft.apply("load the table", &text).await?;
            if self.of_our_table(events)? == [Change::Made] {
                self.in_kernel = Some(self.nft.listing().await?.rest);
                return Ok(());
            }
        }
        Err(NetworkError::RulesMissing {
            reason: format!("another program keeps changing table inet {}", self.nft.table),
        })
    }

    async fn close(&mut self) {
        for port in &self.ports {
            let closed = match self.links.find(port).await {
                Ok(Some(link)) => self.links.set_down(link.index).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = closed {
                tracing::error!(port, error = error.chain(), "an interface could not be taken down");
            }
        }
    }

    async fn open(&self) -> Result<()> {
        for port in &self.ports {
            let Some(link) = self.links.find(port).await? else {
                continue;
            };
            if link.up {
                continue;
            }
            self.links.set_up(link.index).await?;
            for route in self.routes.get(port).into_iter().flatten() {
                self.links.restore_route(route.clone()).await?;
            }
        }
        Ok(())
    }
}
