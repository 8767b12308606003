//! Containers that the reference system made before the bridge had a socket: `mcp-<bot>`, reached over TCP.
//!
//! Their process, its environment and their bind mounts are their own and are kept. All else is ours at each start:
//! namespaces, network, limits, capabilities and filters. What lies in their bind mounts belongs to the host's ids,
//! so they have no user namespace, and info says so; a configuration that requires one refuses to start them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_client::services::v1::{Container, UpdateContainerRequest};
use prost_types::FieldMask;
use serde_json::Value;
use skep_names::{BotId, is_legacy};

use super::client::failed;
use super::container::{as_any, stored_environment};
use super::host::network_failed;
use super::records::Running;
use super::turns::Turn;
use super::{ContainerdRuntime, UserNamespaceMode};
use crate::isolation;
use crate::{Limits, Result, RuntimeError, Started, TaskState};

impl ContainerdRuntime {
    /// Starts it, or finds it running.
    pub(super) async fn start_legacy(
        &self,
        turn: &Arc<Turn>,
        bot: &BotId,
        container: &Container,
        limits: &Limits,
    ) -> Result<Started> {
        match self.task_state(&container.id).await? {
            TaskState::Running => return self.legacy_runs_already(turn, bot, container).await,
            TaskState::Dead => self.clear_task(&container.id).await?,
            TaskState::None => {}
        }
        if self.config.isolation.user_namespace == UserNamespaceMode::Required {
            return Err(RuntimeError::Rejected {
                reason: format!(
                    "isolation.user_namespace is required, and the legacy container {} cannot have one",
                    container.id
                ),
            });
        }
        self.release_host(turn, bot).await?;
        self.prepare_parent_cgroup().await?;
        self.choose_oci_runtime().await?;
        match self.start_legacy_steps(turn, bot, container, limits).await {
            Ok(started) => Ok(started),
            Err(error) => {
                self.undo_start(turn, bot, &container.id).await;
                Err(error)
            }
        }
    }

    async fn start_legacy_steps(
        &self,
        turn: &Arc<Turn>,
        bot: &BotId,
        container: &Container,
        limits: &Limits,
    ) -> Result<Started> {
        let running = self.prepare_legacy_host(turn, bot, container).await?;
        let attached = self.network.attach(bot, &self.paths.network_namespace(bot)).await;
        let attached = attached.map_err(network_failed)?;
        self.store_legacy_specification(bot, container, (limits, &running))
            .await?;
        let mut rootfs = self
            .layer_mounts(&container.snapshotter, &container.snapshot_key)
            .await?;
        for mount in &mut rootfs {
            mount.options.extend(["nosuid".to_owned(), "nodev".to_owned()]);
        }
        self.create_task(&container.id, rootfs).await?;
        self.start_task(&container.id).await?;
        Ok(Started {
            address: attached.address,
            isolation: running.isolation(),
            already_running: false,
        })
    }

    async fn prepare_legacy_host(&self, turn: &Arc<Turn>, bot: &BotId, container: &Container) -> Result<Running> {
        self.same_mounts_as_daemon()?;
        let guards = self.guards_without_ids().await?;
        let running = Running {
            container_id: container.id.clone(),
            ids: None,
            seccomp: guards.seccomp,
            apparmor: guards.apparmor,
            network: self.network.mode().as_str().to_owned(),
            cgroup: self.cgroup_of(&container.id),
            started_at: chrono::Utc::now(),
            address: None,
        };
        let (bot, kept) = (bot.clone(), running.clone());
        self.on_host(turn, move |paths, records| {
            records.put(&bot, kept)?;
            isolation::make_namespaces(paths, &bot, None)
        })
        .await?;
        Ok(running)
    }

    /// What is its own is read from what is stored, which this replaces: a repeat reads the same again.
    async fn store_legacy_specification(
        &self,
        bot: &BotId,
        container: &Container,
        (limits, running): (&Limits, &Running),
    ) -> Result<()> {
        let operation = format!("reading the specification of {}", container.id);
        let stored = container
            .spec
            .as_ref()
            .map(|spec| serde_json::from_slice::<Value>(&spec.value));
        let stored = match stored {
            Some(Ok(stored)) => stored,
            Some(Err(error)) => return Err(RuntimeError::other(operation, error)),
            None => return Err(RuntimeError::other(operation, "it has none")),
        };
        let environment = stored_environment(container);
        let mut ours = self.specification_value(bot, &environment, limits, Some(running))?;
        keep_what_is_its_own(&mut ours, &stored);
        ours["linux"]["cgroupsPath"] = Value::String(self.cgroup_of(&container.id));
        let request = self.client.request(UpdateContainerRequest {
            container: Some(Container {
                id: container.id.clone(),
                spec: Some(as_any(&ours)),
                ..Default::default()
            }),
            update_mask: Some(FieldMask {
                paths: vec!["spec".to_owned()],
            }),
        });
        let updated = self.client.containers().update(request).await;
        updated
            .map(drop)
            .map_err(|status| failed(format!("writing the specification of {}", container.id), status))
    }

    async fn legacy_runs_already(&self, turn: &Arc<Turn>, bot: &BotId, container: &Container) -> Result<Started> {
        self.know_legacy(turn, bot, container).await?;
        let running = self.records.get(bot);
        Ok(Started {
            address: self.known_address(bot)?,
            isolation: running.map_or_else(Default::default, |running| running.isolation()),
            already_running: true,
        })
    }

    /// Remembers one that the reference system started: where it is reached, and which group it is counted in.
    pub(super) async fn know_legacy(&self, turn: &Arc<Turn>, bot: &BotId, container: &Container) -> Result<()> {
        if self.records.get(bot).is_some() {
            return Ok(());
        }
        let Some(pid) = self.task_pid(&container.id).await? else {
            return Ok(());
        };
        // Only looked at: what it has was made by others, and goes with it.
        let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let address = self.network.address_inside(&namespace).await.map_err(network_failed)?;
        let running = Running {
            container_id: container.id.clone(),
            ids: None,
            seccomp: false,
            apparmor: false,
            network: "foreign".to_owned(),
            cgroup: stored_cgroup(container).unwrap_or_else(|| self.cgroup_of(&container.id)),
            started_at: chrono::Utc::now(),
            address,
        };
        let bot = bot.clone();
        self.on_host(turn, move |_, records| records.put(&bot, running)).await
    }

    /// Those that run and that nobody here started.
    pub(super) async fn know_running_legacy_ones(&self) -> Result<()> {
        let instances = self.list_instances().await?;
        let unknown = instances.into_iter().filter(|instance| {
            is_legacy(&instance.container_id)
                && instance.task == TaskState::Running
                && self.records.get(&instance.bot).is_none()
        });
        for instance in unknown {
            if let Some(turn) = self.turns.try_take(&instance.bot)
                && let Some(container) = self.find_container(&instance.bot).await?
            {
                self.know_legacy(&turn, &instance.bot, &container).await?;
            }
        }
        Ok(())
    }

    /// Of any workspace: as it was found when somebody else made its network, else as we attached it.
    pub(super) fn known_address(&self, bot: &BotId) -> Result<Option<IpAddr>> {
        let known = self.records.get(bot).and_then(|running| running.address);
        match known {
            Some(address) => Ok(Some(address)),
            None => self.network.address(bot).map_err(network_failed),
        }
    }
}

/// Its process and its bind mounts, the places that are ours excepted.
fn keep_what_is_its_own(ours: &mut Value, stored: &Value) {
    for field in ["args", "cwd", "user"] {
        if let Some(own) = stored["process"].get(field) {
            ours["process"][field] = own.clone();
        }
    }
    let is_bind = |mount: &&Value| mount["type"] == "bind" && mount["source"].as_str().is_some_and(exists);
    let own: Vec<Value> = stored["mounts"]
        .as_array()
        .map_or_else(Vec::new, |mounts| mounts.iter().filter(is_bind).cloned().collect());
    if let Some(mounts) = ours["mounts"].as_array_mut() {
        // Ours that are binds are the resolver, the bridge and its socket: the first it may lack, the others it does
        // not know.
        let is_own = |destination: &Value| own.iter().any(|mount| mount["destination"] == *destination);
        mounts.retain(|mount| {
            mount["type"] != "bind" || (mount["destination"] == "/etc/resolv.conf" && !is_own(&mount["destination"]))
        });
        mounts.extend(own);
    }
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

/// An absolute path: one of systemd's form is not looked for.
fn stored_cgroup(container: &Container) -> Option<String> {
    let stored: Value = serde_json::from_slice(&container.spec.as_ref()?.value).ok()?;
    let path = stored["linux"]["cgroupsPath"].as_str()?;
    path.starts_with('/').then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn its_process_and_binds_are_kept_and_the_rest_is_ours() {
        let stored = json!({
            "process": {"args": ["/app/server"], "cwd": "/app", "user": {"uid": 7, "gid": 8},
                        "capabilities": {"bounding": ["CAP_SYS_ADMIN"]}},
            "hooks": {"prestart": [{"path": "/bin/sh"}]},
            "mounts": [
                {"destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind", "rw"]},
                {"destination": "/gone", "type": "bind", "source": "/no/such/place"},
                {"destination": "/proc", "type": "proc", "source": "proc"},
            ],
        });
        let mut ours = json!({
            "process": {"args": ["/opt/memoh/bridge"], "cwd": "/", "user": {"uid": 0, "gid": 0},
                        "capabilities": {"bounding": ["CAP_CHOWN"]}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
                {"destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/resolv.conf"},
                {"destination": "/opt/memoh", "type": "bind", "source": "/x"},
                {"destination": "/run/memoh", "type": "bind", "source": "/y"},
            ],
        });
        keep_what_is_its_own(&mut ours, &stored);
        assert_eq!(ours["process"]["args"], json!(["/app/server"]));
        assert_eq!(ours["process"]["user"]["uid"], 7);
        assert_eq!(ours["process"]["capabilities"]["bounding"], json!(["CAP_CHOWN"]));
        assert!(ours.get("hooks").is_none());
        let places: Vec<&str> = ours["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| mount["destination"].as_str().unwrap())
            .collect();
        assert_eq!(places, ["/proc", "/etc/resolv.conf", "/data"]);
    }
}
