//! Containers that the reference system made before the bridge had a socket: `mcp-<bot>`, reached over TCP.
//!
//! Their process, its environment and their bind mounts are their own and are kept. All else is ours at each start:
//! namespaces, network, limits, capabilities and filters. What lies in their bind mounts belongs to the host's ids,
//! so they have no user namespace, and info says so; a configuration that requires one refuses to start them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_client::services::v1::Container;
use prost_types::Any;
use serde_json::Value;
use skep_names::{BotId, DATA_DIRECTORY_INSIDE, is_legacy};

use super::container::{Starting, as_any, stored_environment};
use super::records::{FOREIGN_NETWORK, FoundProcess, Running};
use super::turns::Turn;
use super::{ContainerdRuntime, UserNamespaceMode};
use crate::{Instance, Limits, Result, RuntimeError, Started};

impl ContainerdRuntime {
    /// What lies in its bind mounts belongs to the host's ids: where a user namespace is required, it cannot be started.
    pub(super) fn legacy_may_start(&self, container: &Container) -> Result<()> {
        if self.config.isolation.user_namespace == UserNamespaceMode::Required {
            return Err(RuntimeError::Rejected {
                reason: format!(
                    "isolation.user_namespace is required, and the legacy container {} cannot have one",
                    container.id
                ),
            });
        }
        Ok(())
    }

    /// What is its own is read from what is stored, which this replaces: a repeat reads the same again.
    pub(super) fn legacy_specification(
        &self,
        bot: &BotId,
        container: &Container,
        (limits, starting): (&Limits, &Starting<'_>),
    ) -> Result<Any> {
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
        let starting = Starting {
            devices: None,
            ..*starting
        };
        let mut ours = self.specification_value(bot, &environment, limits, Some(&starting))?;
        keep_what_is_its_own(&mut ours, &stored);
        ours["linux"]["cgroupsPath"] = Value::String(self.cgroup_of(&container.id));
        Ok(as_any(&ours))
    }

    pub(super) async fn legacy_runs_already(
        &self,
        turn: &Arc<Turn>,
        bot: &BotId,
        container: &Container,
    ) -> Result<Started> {
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
        if self.records.get(bot).is_some_and(|running| running.is_still_there()) {
            return Ok(());
        }
        let Some(pid) = self.task_pid(&container.id).await? else {
            return Ok(());
        };
        let Some(found) = FoundProcess::look(pid) else {
            return Ok(());
        };
        // Only looked at: what it has was made by others, and goes with it.
        let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let address = self.network.address_inside(&namespace).await?;
        let running = Running {
            container_id: container.id.clone(),
            ids: None,
            seccomp: false,
            apparmor: false,
            network: FOREIGN_NETWORK.to_owned(),
            cgroup: stored_cgroup(container).unwrap_or_else(|| self.cgroup_of(&container.id)),
            started_at: chrono::Utc::now(),
            address,
            found: Some(found),
            resolvers: Vec::new(),
        };
        let bot = bot.clone();
        self.on_host(turn, move |_, records| records.put(&bot, running)).await
    }

    /// Those of the running ones that nobody here started, or that somebody else has started anew.
    pub(super) async fn know_running_legacy_ones(&self, running: &[Instance]) -> Result<()> {
        let unknown = running.iter().filter(|instance| {
            is_legacy(&instance.container_id)
                && self
                    .records
                    .get(&instance.bot)
                    .is_none_or(|running| !running.is_still_there())
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
            None => Ok(self.network.address(bot)?),
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

/// What is bound at `/data`, as its specification says.
pub(super) fn legacy_data(container: &Container) -> Option<PathBuf> {
    if !is_legacy(&container.id) {
        return None;
    }
    let stored: Value = serde_json::from_slice(&container.spec.as_ref()?.value).ok()?;
    let mounts = stored["mounts"].as_array()?.iter();
    // The last one covers the others.
    let at_data = mounts
        .rev()
        .find(|mount| mount["destination"] == DATA_DIRECTORY_INSIDE)?;
    (at_data["type"] == "bind").then(|| at_data["source"].as_str().map(PathBuf::from))?
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
