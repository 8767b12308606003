//! Start, stop and remove: steps, each undone when a later one fails.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::{Container, UpdateContainerRequest};
use prost_types::FieldMask;
use rustix::process::Signal;
use skep_names::{BotId, is_legacy};

use super::ContainerdRuntime;
use super::client::failed;
use super::container::{Starting, stored_environment};
use super::host::on_host_failed;
use super::records::Running;
use super::task::Waited;
use super::turns::Turn;
use crate::host::Resolver;
use crate::{Limits, Result, RuntimeError, Started, TaskState, cgroup, failpoint};

impl ContainerdRuntime {
    pub(super) async fn start_workspace(&self, bot: &BotId, limits: &Limits) -> Result<Started> {
        let turn = self.turns.take(bot).await;
        let container = self.required_container(bot).await?;
        let legacy = is_legacy(&container.id);
        let state = self.task_state(&container.id).await?;
        match (state, legacy) {
            (TaskState::Running, false) => return self.already_running(bot).await,
            (TaskState::Running, true) => return self.legacy_runs_already(&turn, bot, &container).await,
            (TaskState::Dead | TaskState::None, true) => self.legacy_may_start(&container)?,
            (TaskState::Dead | TaskState::None, false) => {}
        }
        // What an earlier start or its task left: a start begins on a clean host.
        if state == TaskState::Dead || self.has_traces(bot) {
            self.clear_dead(&container.id, state).await?;
            self.release_host(&turn, bot).await?;
        }
        self.prepare_parent_cgroup().await?;
        match self.start_steps(&turn, bot, &container, limits).await {
            Ok(started) => Ok(started),
            Err(error) => {
                self.undo_start(&turn, bot, &container.id).await;
                Err(error)
            }
        }
    }

    async fn start_steps(
        &self,
        turn: &Arc<Turn>,
        bot: &BotId,
        container: &Container,
        limits: &Limits,
    ) -> Result<Started> {
        let resolver = self.follow_resolver().await?;
        let (running, chosen) = tokio::join!(
            self.prepare_host(turn, bot, (&container.id, &resolver)),
            self.choose_oci_runtime()
        );
        let running = running?;
        chosen?;
        let namespace = self.paths.network_namespace(bot);
        // The namespace exists, so it is attached while the container is created; the first process of the
        // workspace starts after both. Both are waited for: undoing one under way would leave its half.
        let (attached, created) = tokio::join!(
            self.network.attach(bot, &namespace),
            self.create_started_task(turn, bot, container, (limits, &running, &resolver)),
        );
        created?;
        let attached = attached?;
        self.start_task(&container.id).await?;
        failpoint::TASK_STARTED.passed()?;
        Ok(Started {
            address: attached.address,
            isolation: running.isolation(),
            already_running: false,
        })
    }

    async fn create_started_task(
        &self,
        turn: &Arc<Turn>,
        bot: &BotId,
        container: &Container,
        (limits, running, resolver): (&Limits, &Running, &Resolver),
    ) -> Result<()> {
        let rooted = async {
            let mounts = self.present_mounts(bot, container).await?;
            self.prepare_root(turn, bot, running, mounts).await
        };
        let specified = async {
            let devices = self.give_devices(turn, container, (bot, running)).await?;
            let starting = Starting {
                running,
                resolver,
                devices: devices.as_ref(),
            };
            self.store_specification(bot, container, (limits, &starting)).await?;
            Ok::<_, RuntimeError>(devices.is_some())
        };
        // Both are waited for here too: what still runs on the host when it is undone is left.
        let (rootfs, has_devices) = tokio::join!(rooted, specified);
        let (rootfs, has_devices) = (rootfs?, has_devices?);
        let created = self.create_task(running, rootfs).await;
        failpoint::TASK_CREATED.passed()?;
        if running.ids.is_some() || has_devices {
            self.release_bound(turn, bot).await?;
        }
        created
    }

    /// Writes the specification for this start, unless the stored one is the same to the byte.
    async fn store_specification(
        &self,
        bot: &BotId,
        container: &Container,
        (limits, starting): (&Limits, &Starting<'_>),
    ) -> Result<()> {
        let spec = match is_legacy(&container.id) {
            true => self.legacy_specification(bot, container, (limits, starting))?,
            false => self.specification(bot, &stored_environment(container), limits, Some(starting))?,
        };
        if container.spec.as_ref() == Some(&spec) {
            return Ok(());
        }
        let request = self.client.request(UpdateContainerRequest {
            container: Some(Container {
                id: container.id.clone(),
                spec: Some(spec),
                ..Default::default()
            }),
            update_mask: Some(FieldMask {
                paths: vec!["spec".to_owned()],
            }),
        });
        let updated = self.client.containers().update(request).await;
        updated.map_err(|status| failed(format!("writing the specification of {}", container.id), status))?;
        failpoint::SPECIFICATION_STORED.passed()
    }

    async fn already_running(&self, bot: &BotId) -> Result<Started> {
        let namespace = self.paths.network_namespace(bot);
        self.network.check(bot, &namespace).await?;
        let running = self.records.get(bot);
        Ok(Started {
            address: self.network.address(bot)?,
            isolation: running.map_or_else(Default::default, |running| running.isolation()),
            already_running: true,
        })
    }

    /// What cannot be undone now is left to the next start and to the sweep; the cause of the failure counts.
    async fn undo_start(&self, turn: &Arc<Turn>, bot: &BotId, id: &str) {
        let undone = async {
            if self.task_state(id).await? != TaskState::None {
                self.clear_task(id).await?;
            }
            self.nothing_left_of(id).await?;
            self.release_host(turn, bot).await
        };
        if let Err(error) = undone.await {
            tracing::warn!(%bot, error = &error as &dyn std::error::Error, "undoing a failed start failed");
        }
    }

    pub(super) async fn stop_workspace(&self, bot: &BotId, grace: Duration) -> Result<()> {
        let turn = self.turns.take(bot).await;
        let id = match self.find_container(bot).await? {
            Some(container) => container.id,
            None => self.record_id(bot),
        };
        self.end_task(&id, grace).await?;
        self.release_host(&turn, bot).await
    }

    /// SIGTERM to process 1, the wait, SIGKILL to all; returns when no process is left.
    async fn end_task(&self, id: &str, grace: Duration) -> Result<()> {
        match self.task_state(id).await? {
            state @ (TaskState::None | TaskState::Dead) => {
                self.clear_dead(id, state).await?;
                return self.nothing_left_of(id).await;
            }
            TaskState::Running if grace.is_zero() => {}
            TaskState::Running => {
                self.kill_task(id, Signal::TERM).await?;
                failpoint::TASK_ASKED_TO_END.passed()?;
                if self.wait_for_task(id, grace).await? == Waited::Ended {
                    failpoint::TASK_ENDED.passed()?;
                    self.delete_task(id).await?;
                    return self.nothing_left_of(id).await;
                }
            }
        }
        self.clear_task(id).await?;
        self.nothing_left_of(id).await
    }

    /// A shim that died can leave processes that containerd knows nothing of, and an OCI runtime that failed a cgroup
    /// without any: crun gives up on one whose last process is not quite gone.
    pub(super) async fn nothing_left_of(&self, id: &str) -> Result<()> {
        let group = self.cgroup_of(id);
        let ended = tokio::task::spawn_blocking(move || {
            let mut refused = None;
            for _ in 0..100 {
                if cgroup::is_populated(&group) {
                    cgroup::kill(&group).map_err(on_host_failed)?;
                } else {
                    match cgroup::remove(&group) {
                        Ok(()) => return Ok(()),
                        Err(error) => refused = Some(error),
                    }
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(refused.map_or_else(
                || {
                    RuntimeError::other(
                        format!("ending the processes of {group}"),
                        "some are left 5 s after SIGKILL",
                    )
                },
                on_host_failed,
            ))
        });
        match ended.await {
            Ok(ended) => ended,
            Err(panicked) => Err(RuntimeError::other(format!("ending the processes of {id}"), panicked)),
        }
    }

    pub(super) async fn remove_workspace(&self, bot: &BotId) -> Result<()> {
        let turn = self.turns.take(bot).await;
        let container = self.find_container(bot).await?;
        let id = container
            .as_ref()
            .map_or_else(|| self.record_id(bot), |found| found.id.clone());
        self.end_task(&id, Duration::ZERO).await?;
        self.release_host(&turn, bot).await?;
        self.forget_log(&turn, bot).await?;
        if let Some(container) = &container {
            self.delete_container(&container.id).await?;
            failpoint::CONTAINER_GONE.passed()?;
        }
        let key = container.as_ref().map(|container| container.snapshot_key.as_str());
        let own = container.as_ref().map(|container| container.snapshotter.as_str());
        self.remove_layers(bot, &self.config.snapshotter, key.filter(|key| !key.is_empty()))
            .await?;
        if let Some(other) = own.filter(|own| *own != self.config.snapshotter && !own.is_empty()) {
            self.remove_layers(bot, other, key).await?;
        }
        failpoint::LAYERS_GONE.passed()
    }

    pub(super) async fn required_container(&self, bot: &BotId) -> Result<Container> {
        let found = self.find_container(bot).await?;
        found.ok_or_else(|| RuntimeError::NotFound {
            what: format!("the container of bot {bot}"),
        })
    }

    pub(super) async fn prepare_parent_cgroup(&self) -> Result<()> {
        let prepared = self.parent_cgroup.get_or_try_init(|| async {
            let parent = self.config.cgroup_parent.clone();
            let made = tokio::task::spawn_blocking(move || cgroup::prepare_parent(&parent)).await;
            made.map_err(|panicked| RuntimeError::other("making the cgroup of all workspaces", panicked))?
                .map_err(on_host_failed)
        });
        prepared.await.map(drop)
    }

    pub(super) async fn choose_oci_runtime(&self) -> Result<()> {
        let chosen = self.oci_runtime.get_or_try_init(|| async {
            let user_namespaces = self.uses_user_namespaces().await?;
            let chosen = super::oci_runtime::choose(&self.config, user_namespaces).await?;
            Ok::<_, RuntimeError>(chosen.unwrap_or_default())
        });
        chosen.await.map(drop)
    }
}
