//! Whom workspaces ask for names: the host's resolver, which follows it to another network while the server runs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::config::ContainerdConfig;
use super::records::Records;
use super::{ContainerdRuntime, host};
use crate::host::{Resolver, choose_resolver};
use crate::isolation::{HostPaths, Tried};
use crate::{Result, RuntimeError};

/// What was chosen last, and whom the rules let workspaces ask.
pub(super) struct Resolving {
    chosen: Mutex<Resolver>,
    open: tokio::sync::Mutex<BTreeSet<IpAddr>>,
}

impl Resolving {
    /// Chooses for the first time; the servers that `open` names are for the network to begin with.
    pub(super) fn begin(config: &ContainerdConfig, paths: &HostPaths, records: &Records) -> Result<Self> {
        let chosen = choose(config.host_root.clone(), paths)?;
        let open = with_those_of_records(&chosen, records);
        Ok(Self {
            chosen: Mutex::new(chosen),
            open: tokio::sync::Mutex::new(open),
        })
    }

    /// The last choice: a file, and the servers it names.
    pub(super) fn chosen(&self) -> Resolver {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whom the rules let workspaces ask.
    pub(super) fn open_at_first(&mut self) -> Vec<IpAddr> {
        self.open.get_mut().iter().copied().collect()
    }
}

impl ContainerdRuntime {
    /// What a start mounts; the servers that it names can be asked from here on. Closes none.
    pub(super) async fn follow_resolver(&self) -> Result<Resolver> {
        let mut open = self.resolving.open.lock().await;
        let chosen = self.choose_again().await;
        let mut wanted = open.clone();
        wanted.extend(&chosen.servers);
        self.open_to(&mut open, wanted).await?;
        Ok(chosen)
    }

    /// Of reconcile: as before a start, and closes those that no workspace has in its file any more. What was mounted at
    /// a start stays what it was, mostly: a file is put in the place of the one before.
    pub(super) async fn sweep_resolvers(&self) -> Result<()> {
        let mut open = self.resolving.open.lock().await;
        let chosen = self.choose_again().await;
        let wanted = with_those_of_records(&chosen, &self.records);
        self.open_to(&mut open, wanted).await
    }

    /// The last choice stays while another one cannot be made.
    async fn choose_again(&self) -> Resolver {
        let (root, paths) = (self.config.host_root.clone(), self.paths.clone());
        let chosen = match tokio::task::spawn_blocking(move || choose(root, &paths)).await {
            Ok(chosen) => chosen,
            Err(panicked) => Err(RuntimeError::other("choosing the resolver", panicked)),
        };
        let before = self.resolving.chosen();
        match chosen {
            Ok(chosen) if chosen != before => {
                tracing::info!(servers = ?chosen.servers, "the resolver of workspaces is another one from now on");
                let mut place = self.resolving.chosen.lock().unwrap_or_else(PoisonError::into_inner);
                place.clone_from(&chosen);
                chosen
            }
            Ok(_) => before,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the host's resolver is not followed for now"
                );
                before
            }
        }
    }

    async fn open_to(&self, open: &mut BTreeSet<IpAddr>, wanted: BTreeSet<IpAddr>) -> Result<()> {
        if *open == wanted {
            return Ok(());
        }
        self.network.set_resolvers(wanted.iter().copied().collect()).await?;
        *open = wanted;
        Ok(())
    }
}

fn choose(root: PathBuf, paths: &HostPaths) -> Result<Resolver> {
    let chosen = choose_resolver(&root, &paths.data_root, &paths.run_dir);
    chosen
        .tried(|| format!("choosing the resolver below {}", paths.data_root.display()))
        .map_err(host::on_host_failed)
}

fn with_those_of_records(chosen: &Resolver, records: &Records) -> BTreeSet<IpAddr> {
    let mut servers = records.resolvers();
    servers.extend(&chosen.servers);
    servers
}
