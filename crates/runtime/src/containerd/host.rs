//! A workspace's things on the host: made before its task, released after it, swept after a crash.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use containerd_client::types::Mount;
use skep_names::{BotId, container_id_for, is_legacy};

use super::ContainerdRuntime;
use super::pace::Pace;
use super::records::{Records, Running};
use super::turns::Turn;
use crate::failpoint;
use crate::host::Resolver;
use crate::isolation::{self, HostError, HostPaths, IdBlock, Layers, Tried, WHOLE_LAYERS};
use crate::network::{NetworkError, RulesCheck};
use crate::{Instance, Result, RuntimeError, Swept, TaskState, cgroup, freezer};

impl ContainerdRuntime {
    /// Runs work on the host that blocks. It holds the bot's turn to its end, also when its caller is cancelled.
    pub(super) async fn on_host<T, F>(&self, turn: &Arc<Turn>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&HostPaths, &Records) -> isolation::Result<T> + Send + 'static,
    {
        let (turn, paths, records) = (Arc::clone(turn), Arc::clone(&self.paths), Arc::clone(&self.records));
        let work = tokio::task::spawn_blocking(move || {
            let done = work(&paths, &records);
            drop(turn);
            done
        });
        match work.await {
            Ok(done) => done.map_err(on_host_failed),
            Err(panicked) => Err(RuntimeError::other("work on the host", panicked)),
        }
    }

    /// Ids, namespaces and socket directory of a workspace that is about to start. A legacy one has no ids of its own
    /// and no socket.
    pub(super) async fn prepare_host(
        &self,
        turn: &Arc<Turn>,
        bot: &BotId,
        (container_id, resolver): (&str, &Resolver),
    ) -> Result<Running> {
        self.same_mounts_as_daemon()?;
        let legacy = is_legacy(container_id);
        let guards = match legacy {
            true => self.guards_without_ids().await?,
            false => self.guards().await?,
        };
        let network = self.network.mode().as_str().to_owned();
        let resolvers = resolver.servers.clone();
        let (id, data_root_id) = (container_id.to_owned(), self.config.data_root_id.clone());
        let (cgroup, bot) = (self.cgroup_of(&id), bot.clone());
        let daemon = self.daemon_process()?;
        self.on_host(turn, move |paths, records| {
            let ids = match guards.user_namespace {
                true => Some(IdBlock::claim(paths, &data_root_id, &bot)?),
                false => None,
            };
            let running = Running {
                container_id: id,
                ids,
                seccomp: guards.seccomp,
                apparmor: guards.apparmor,
                network,
                cgroup,
                started_at: chrono::Utc::now(),
                address: None,
                found: None,
                resolvers,
            };
            // The record first: undoing what fails from here on finds the claim by it.
            let recorded = failpoint::IDS_CLAIMED.pass().tried(starting);
            let recorded = recorded.and_then(|()| records.put(&bot, running.clone()));
            if let (Err(_), Some(ids)) = (&recorded, ids) {
                ids.release(paths, &data_root_id, &bot)?;
            }
            recorded?;
            failpoint::START_RECORDED.pass().tried(starting)?;
            isolation::make_namespaces(paths, &bot, ids, daemon)?;
            if legacy {
                return Ok(running);
            }
            isolation::mount_socket_directory(paths, &bot, running.root_uid())?;
            failpoint::SOCKET_DIRECTORY_MOUNTED.pass().tried(starting)?;
            Ok(running)
        })
        .await
    }

    /// The root file system as a task is given it: with ids of its own a mount of ours, else containerd's.
    pub(super) async fn prepare_root(
        &self,
        turn: &Arc<Turn>,
        bot: &BotId,
        running: &Running,
        mut mounts: Vec<Mount>,
    ) -> Result<Vec<Mount>> {
        let Some(ids) = running.ids else {
            for mount in &mut mounts {
                mount.options.extend(["nosuid".to_owned(), "nodev".to_owned()]);
                if mount.r#type == "overlay" {
                    mount.options.extend(WHOLE_LAYERS.map(str::to_owned));
                }
            }
            return Ok(mounts);
        };
        let [mount] = mounts.as_slice() else {
            return Err(RuntimeError::other(
                format!("mounting the root of workspace {bot}"),
                format!("its layer has {} mounts", mounts.len()),
            ));
        };
        let layers = Layers::parse(&mount.r#type, &mount.source, &mount.options)
            .map_err(|error| RuntimeError::other(format!("mounting the root of workspace {bot}"), error))?;
        let bot = bot.clone();
        let place = self
            .on_host(turn, move |paths, _| isolation::mount_root(paths, &bot, &layers, ids))
            .await?;
        failpoint::ROOT_MOUNTED.passed()?;
        Ok(vec![Mount {
            r#type: "bind".to_owned(),
            source: place.to_string_lossy().into_owned(),
            target: String::new(),
            options: vec!["rbind".to_owned(), "rw".to_owned()],
        }])
    }

    /// The task has bound them: our own mounts of its root and its devices are not needed any more.
    pub(super) async fn release_bound(&self, turn: &Arc<Turn>, bot: &BotId) -> Result<()> {
        let bot = bot.clone();
        self.on_host(turn, move |paths, _| unmount_bound(paths, &bot)).await?;
        failpoint::ROOT_RELEASED.passed()
    }

    /// Lets go of everything a start made on the host. No process of the workspace may be left. Repeatable.
    pub(super) async fn release_host(&self, turn: &Arc<Turn>, bot: &BotId) -> Result<()> {
        if !self.has_traces(bot) {
            return Ok(());
        }
        let namespace = self.paths.network_namespace(bot);
        self.network.detach(bot, &namespace).await?;
        failpoint::ATTACHMENT_FORGOTTEN.passed()?;
        let (bot, data_root_id) = (bot.clone(), self.config.data_root_id.clone());
        self.on_host(turn, move |paths, records| {
            isolation::release_device_nodes(paths, &bot)?;
            isolation::unmount_root(paths, &bot)?;
            isolation::unmount_socket_directory(paths, &bot)?;
            failpoint::SOCKET_DIRECTORY_GONE.pass().tried(releasing)?;
            isolation::remove_namespaces(paths, &bot)?;
            failpoint::NAMESPACES_GONE.pass().tried(releasing)?;
            // The claim goes after what its ids own, the record last: a repeat finds what is left by it.
            if let Some(ids) = records.get(&bot).and_then(|running| running.ids) {
                ids.release(paths, &data_root_id, &bot)?;
            }
            failpoint::IDS_RELEASED.pass().tried(releasing)?;
            records.remove(&bot)?;
            failpoint::RECORD_GONE.pass().tried(releasing)
        })
        .await
    }

    /// The kept log goes with its workspace.
    pub(super) async fn forget_log(&self, turn: &Arc<Turn>, bot: &BotId) -> Result<()> {
        let bot = bot.clone();
        self.on_host(turn, move |paths, _| {
            let places = paths.log(&bot);
            crate::log::forget(&places).tried(|| format!("removing {}", places.kept_file.display()))
        })
        .await
    }

    pub(super) fn has_traces(&self, bot: &BotId) -> bool {
        let paths = &self.paths;
        self.records.get(bot).is_some()
            || [
                paths.network_namespace(bot),
                paths.user_namespace(bot),
                paths.root(bot),
                paths.device_nodes(bot),
                paths.socket_directory(bot),
            ]
            .iter()
            .any(|path| path.symlink_metadata().is_ok())
    }

    /// Releases what bots without a live task hold; those a verb works on just now are left to it.
    pub(super) async fn sweep_host(&self) -> Result<Swept> {
        // What keeps workspaces apart is not kept waiting by anything that fails.
        let apart = self.keep_apart().await;
        let bots = self.bots_with_traces().await?;
        let listed = match self.list_instances().await {
            Err(away @ RuntimeError::Unavailable { .. }) => return Err(away),
            listed => listed,
        };
        let running_ones = listed
            .iter()
            .flatten()
            .filter(|instance| instance.task == TaskState::Running);
        let running_ids: HashSet<&str> = running_ones.map(|instance| instance.container_id.as_str()).collect();
        let mut pace = self.pace_of_sweep();
        for bot in bots {
            pace.rest().await;
            // One that cannot be cleared away must not keep the others waiting.
            match self.sweep_one(&bot, &running_ids).await {
                Ok(()) => {}
                Err(away @ RuntimeError::Unavailable { .. }) => return Err(away),
                Err(error) => {
                    tracing::warn!(%bot, error = &error as &dyn std::error::Error, "what a workspace left on the host stays for now");
                }
            }
        }
        let mut running = listed?;
        running.retain(|instance| instance.task == TaskState::Running);
        self.know_running_legacy_ones(&running).await?;
        let swept = self.sweep_network(&running, pace).await?;
        self.images.sweep().await?;
        self.sweep_leases().await?;
        apart?;
        self.was_swept.store(true, Ordering::Relaxed);
        Ok(swept)
    }

    /// What a server finds at its start is waited for.
    fn pace_of_sweep(&self) -> Pace {
        match self.was_swept.load(Ordering::Relaxed) {
            true => Pace::unhurried(),
            false => Pace::at_once(),
        }
    }

    async fn keep_apart(&self) -> Result<()> {
        if self.network.check_rules().await? == RulesCheck::Restored {
            tracing::warn!("the network's rules were not as they should be, and are again");
        }
        if self.network.restore_bridge().await? {
            tracing::warn!(
                "the bridge of workspaces was gone and is there again; those that ran have lost their network"
            );
        }
        Ok(())
    }

    /// Releases what is held without a task, and looks at the network of all that run. `running`: as they were before.
    async fn sweep_network(&self, running: &[Instance], mut pace: Pace) -> Result<Swept> {
        let running: BTreeSet<BotId> = running.iter().map(|instance| instance.bot.clone()).collect();
        // Those that have started since are recorded.
        let live = running.iter().cloned().chain(self.records.bots()).collect();
        self.network.sweep(&live).await?;
        self.sweep_resolvers().await?;
        let mut swept = Swept::default();
        for bot in running {
            pace.rest().await;
            let Some(_turn) = self.turns.try_take(&bot) else {
                continue;
            };
            // What others started has a network of theirs.
            let ours = self.network.mode().as_str();
            if self.records.get(&bot).is_none_or(|running| running.network != ours) {
                continue;
            }
            match self.missing_of_network(&bot).await {
                Ok(missing) => swept.broken_networks.extend(missing.map(|missing| (bot, missing))),
                Err(error) => {
                    tracing::warn!(%bot, error = error.chain(), "the network of a workspace could not be looked at");
                }
            }
        }
        Ok(swept)
    }

    /// Also at a second look: ports are down while lost rules are put back.
    async fn missing_of_network(&self, bot: &BotId) -> std::result::Result<Option<String>, NetworkError> {
        let namespace = self.paths.network_namespace(bot);
        if self.network.look(bot, &namespace).await.is_ok() {
            return Ok(None);
        }
        self.network.check_rules().await?;
        match self.network.look(bot, &namespace).await {
            Ok(()) => Ok(None),
            Err(NetworkError::Broken { reason, .. }) => Ok(Some(reason)),
            Err(error) => Err(error),
        }
    }

    /// `running`: the containers whose tasks ran before.
    async fn sweep_one(&self, bot: &BotId, running: &HashSet<&str>) -> Result<()> {
        let Some(turn) = self.turns.try_take(bot) else {
            return Ok(());
        };
        let id = self.record_id(bot);
        let state = match running.contains(id.as_str()) {
            // Should it have ended since, its end is told by an event, and there is nothing to mend.
            true => TaskState::Running,
            // Asked under its turn: a list made before could miss a start that has just ended.
            false => self.task_state(&id).await?,
        };
        match state {
            TaskState::Running => return self.mend_running(&turn, bot, &id).await,
            state => self.clear_dead(&id, state).await?,
        }
        self.nothing_left_of(&id).await?;
        self.release_swept(&turn, bot).await
    }

    /// What a server that died left of one that runs: frozen, or mounts of its start that its task has bound since. One
    /// that freezes now holds the turn.
    async fn mend_running(&self, turn: &Arc<Turn>, bot: &BotId, id: &str) -> Result<()> {
        let (bot, group) = (bot.clone(), self.cgroup_of(id));
        self.on_host(turn, move |paths, _| {
            if freezer::thaw(&group)? {
                tracing::warn!(%bot, "a workspace that an earlier server left frozen runs on");
            }
            unmount_bound(paths, &bot)
        })
        .await?;
        failpoint::ROOT_RELEASED.passed()
    }

    async fn release_swept(&self, turn: &Arc<Turn>, bot: &BotId) -> Result<()> {
        tracing::info!(%bot, "releasing what a workspace without a task left on the host");
        self.release_host(turn, bot).await?;
        // A claim can outlive its record: the server may have died between the two.
        let (bot, data_root_id) = (bot.clone(), self.config.data_root_id.clone());
        self.on_host(turn, move |paths, _| {
            IdBlock::remove_draft(paths, &data_root_id, &bot)?;
            let mut claims = IdBlock::claimed_by(paths, &data_root_id)?;
            for ids in claims.remove(&bot).unwrap_or_default() {
                ids.release(paths, &data_root_id, &bot)?;
            }
            Ok(())
        })
        .await
    }

    async fn bots_with_traces(&self) -> Result<BTreeSet<BotId>> {
        let (paths, data_root_id) = (Arc::clone(&self.paths), self.config.data_root_id.clone());
        let listed = tokio::task::spawn_blocking(move || {
            let directories = [
                paths.records(),
                paths.run_dir.join("userns"),
                paths.run_dir.join("root"),
                paths.run_dir.join("devices"),
                paths.data_root.join("run"),
            ];
            let mut bots = BTreeSet::new();
            for directory in directories {
                bots.extend(HostPaths::bots_below(&directory)?);
            }
            bots.extend(IdBlock::claimed_by(&paths, &data_root_id)?.into_keys());
            bots.extend(IdBlock::drafted_by(&paths, &data_root_id)?);
            Ok(bots)
        });
        match listed.await {
            Ok(listed) => listed.map_err(on_host_failed),
            Err(panicked) => Err(RuntimeError::other(
                "listing what workspaces left on the host",
                panicked,
            )),
        }
    }

    /// The container a bot was started as, else its usual id.
    pub(super) fn record_id(&self, bot: &BotId) -> String {
        self.records
            .get(bot)
            .map_or_else(|| container_id_for(bot), |running| running.container_id)
    }

    pub(super) fn cgroup_of(&self, id: &str) -> String {
        format!("/{}/{id}", self.config.cgroup_parent.trim_matches('/'))
    }

    pub(super) async fn kill_cgroup(&self, id: &str) -> Result<()> {
        let group = self.cgroup_of(id);
        tracing::warn!(
            cgroup = group,
            "the container runtime does not end a task; its processes are killed one by one"
        );
        match tokio::task::spawn_blocking(move || cgroup::kill(&group)).await {
            Ok(killed) => killed.map_err(on_host_failed),
            Err(panicked) => Err(RuntimeError::other("killing the processes of a task", panicked)),
        }
    }

    /// Our mounts and pins must be seen by containerd, or a task starts with an empty directory for its root.
    pub(super) fn same_mounts_as_daemon(&self) -> Result<()> {
        let pid = self.daemon_process()?;
        let namespace = |process: &str| std::fs::read_link(PathBuf::from(format!("/proc/{process}/ns/mnt")));
        let read = |process: &str| {
            namespace(process).map_err(|error| RuntimeError::other("comparing mount namespaces", error))
        };
        if read("self")? == read(&pid.to_string())? {
            return Ok(());
        }
        Err(RuntimeError::Rejected {
            reason: format!(
                "containerd (process {pid}) has another mount namespace than this server: a line such as PrivateTmp=, \
                 ProtectSystem=, PrivateMounts= or ReadWritePaths= in one of their unit files causes it; remove it"
            ),
        })
    }
}

fn unmount_bound(paths: &HostPaths, bot: &BotId) -> isolation::Result<()> {
    isolation::release_device_nodes(paths, bot)?;
    isolation::unmount_root(paths, bot)
}

fn starting() -> String {
    "making what a workspace needs on the host".to_owned()
}

fn releasing() -> String {
    "releasing what a workspace had on the host".to_owned()
}

pub(super) fn on_host_failed(error: HostError) -> RuntimeError {
    if error.source.kind() == std::io::ErrorKind::StorageFull {
        return RuntimeError::NoSpace {
            operation: error.operation,
        };
    }
    RuntimeError::other(error.operation, error.source)
}
