//! The handle of the rules, and what it holds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_names::BotId;
use skep_runtime::{Capabilities, Check, CheckStatus, Runtime};
use skep_store::Store;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bridge::BridgePool;
use crate::error::Result;
use crate::operations::Hub;
use crate::settings::Settings;
use crate::transfer::Turns;
use crate::workspace::{Interruptions, Lanes, Measurements, Observations};

/// While a server ends: between two looks whether the runtime is still there, and how long it may take to answer.
const LOOK_FOR_RUNTIME: Duration = Duration::from_secs(1);
const RUNTIME_ANSWERS_WITHIN: Duration = Duration::from_secs(4);

/// What the rules are built from.
pub struct Parts {
    pub store: Store,
    pub runtime: Arc<dyn Runtime>,
    pub bridges: Arc<BridgePool>,
    pub settings: Settings,
}

/// The rules of one server. Clones are the same server.
#[derive(Clone)]
pub struct Skep {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    runtime: Arc<dyn Runtime>,
    bridges: Arc<BridgePool>,
    settings: Settings,
    lanes: Lanes,
    hubs: Mutex<HashMap<String, Arc<Hub>>>,
    observations: Observations,
    interruptions: Interruptions,
    measurements: Measurements,
    turns: Turns,
    tasks: TaskTracker,
    /// What is wanted is to be compared with what there is without waiting for the clock.
    look_again: Notify,
    /// Nothing new is begun.
    going_down: CancellationToken,
    /// What still runs is left for the next start.
    letting_go: CancellationToken,
}

/// Whether the server can do its work.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// `store`, `runtime`, `network`, …
    pub checks: Vec<Check>,
}

impl Readiness {
    /// No check failed.
    pub fn is_ready(&self) -> bool {
        self.checks.iter().all(|check| check.status != CheckStatus::Error)
    }
}

impl Skep {
    /// Takes up the work: operations that were not finished are carried on, and from now on what is wanted is
    /// compared with what there is. A runtime that is down is waited for in the background.
    ///
    /// # Errors
    /// [`crate::Error::StoreUnavailable`]; [`crate::Error::Internal`] when the directories of backups and received archives
    /// cannot be read.
    pub async fn start(parts: Parts) -> Result<Self> {
        let skep = Self {
            inner: Arc::new(Inner {
                store: parts.store,
                runtime: parts.runtime,
                bridges: parts.bridges,
                observations: Observations::new(parts.settings.deaths_cleared_after),
                measurements: Measurements::default(),
                turns: Turns::default(),
                settings: parts.settings,
                lanes: Lanes::default(),
                hubs: Mutex::default(),
                interruptions: Interruptions::default(),
                tasks: TaskTracker::new(),
                look_again: Notify::new(),
                going_down: CancellationToken::new(),
                letting_go: CancellationToken::new(),
            }),
        };
        skep.with_backups(|files| files.sweep()).await?;
        skep.settle_given_backups().await?;
        skep.sweep_spool().await?;
        skep.carry_on_unfinished().await?;
        skep.spawn_followers();
        skep.spawn_measuring();
        skep.spawn_disk_watch();
        skep.spawn_refusal_watch();
        Ok(skep)
    }

    /// Begins nothing new, lets what runs come to its end for at most `limit`, then lets go of it: the next start
    /// carries it on. While the runtime does not answer nothing comes to its end, so it is let go at once.
    /// Workspaces stay running.
    pub async fn shut_down(&self, limit: Duration) {
        self.inner.going_down.cancel();
        self.inner.tasks.close();
        let ended = async {
            tokio::select! {
                () = self.inner.tasks.wait() => true,
                () = self.runtime_is_away() => false,
            }
        };
        if !tokio::time::timeout(limit, ended).await.unwrap_or(false) {
            tracing::warn!("operations did not come to an end in time; the next start carries them on");
            self.inner.letting_go.cancel();
            self.inner.tasks.wait().await;
        }
    }

    /// Returns when the runtime does not answer.
    async fn runtime_is_away(&self) {
        loop {
            tokio::time::sleep(LOOK_FOR_RUNTIME).await;
            match tokio::time::timeout(RUNTIME_ANSWERS_WITHIN, self.inner.runtime.list()).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Probes store, runtime and network now. Details are for the log: they may have paths of the host.
    pub async fn readiness(&self) -> Readiness {
        let store = match self.inner.store.check().await {
            Ok(()) => Check {
                name: "store",
                status: CheckStatus::Ok,
                detail: "the store answers".to_owned(),
            },
            Err(error) => Check {
                name: "store",
                status: CheckStatus::Error,
                detail: error.to_string(),
            },
        };
        let mut checks = vec![store];
        checks.extend(self.inner.runtime.checks().await);
        checks.extend(self.check_of_nobodys());
        Readiness { checks }
    }

    /// Told, and left alone: only a person can say what becomes of them.
    fn check_of_nobodys(&self) -> Option<Check> {
        let nobodys = self.inner.observations.nobodys();
        let ids: Vec<&str> = nobodys.iter().map(BotId::as_str).collect();
        (!ids.is_empty()).then(|| Check {
            name: "ownerless",
            status: CheckStatus::Warn,
            detail: format!(
                "containers or layers of this data root whose bot does not exist, left alone: {}",
                ids.join(", ")
            ),
        })
    }

    /// What the runtime can do.
    pub fn capabilities(&self) -> Capabilities {
        self.inner.runtime.capabilities()
    }

    /// The configuration in force.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// The store, for what is no matter of the rules (users, keys, members).
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(crate) fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.inner.runtime
    }

    pub(crate) fn bridges(&self) -> &BridgePool {
        &self.inner.bridges
    }

    pub(crate) fn lanes(&self) -> &Lanes {
        &self.inner.lanes
    }

    pub(crate) fn turns(&self) -> &Turns {
        &self.inner.turns
    }

    pub(crate) fn observations(&self) -> &Observations {
        &self.inner.observations
    }

    pub(crate) fn interruptions(&self) -> &Interruptions {
        &self.inner.interruptions
    }

    pub(crate) fn measurements(&self) -> &Measurements {
        &self.inner.measurements
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    pub(crate) fn look_again(&self) -> &Notify {
        &self.inner.look_again
    }

    pub(crate) fn going_down(&self) -> &CancellationToken {
        &self.inner.going_down
    }

    pub(crate) fn letting_go(&self) -> &CancellationToken {
        &self.inner.letting_go
    }

    pub(crate) fn live_hub(&self, id: &str) -> Option<Arc<Hub>> {
        let hubs = self.inner.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.get(id).cloned()
    }

    pub(crate) fn remember_hub(&self, hub: &Arc<Hub>) {
        let mut hubs = self.inner.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.insert(hub.id().to_owned(), hub.clone());
    }

    pub(crate) fn forget_hub(&self, id: &str) {
        let mut hubs = self.inner.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.remove(id);
    }
}
