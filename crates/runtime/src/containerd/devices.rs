//! Devices that a workspace is given beyond the usual, by their CDI names: told, checked, and made for a start.

use std::path::PathBuf;
use std::sync::Arc;

use containerd_client::services::v1::Container;
use prost_types::Any;
use skep_names::{BotId, LABEL_CDI_DEVICES};

use super::ContainerdRuntime;
use super::records::Running;
use super::turns::Turn;
use crate::cdi::{CdiError, Device, Edits, Registry};
use crate::isolation;
use crate::spec::GivenDevices;
use crate::{Result, RuntimeError};

/// Name and value of a label have together at most 4096 bytes in containerd.
const MOST_LABEL_BYTES: usize = 4096;
/// Extension of a container with devices: its environment without theirs, a JSON list.
const EXTENSION_ENVIRONMENT: &str = "skep.environment";

impl ContainerdRuntime {
    /// Whether containers are made by a runtime that takes nodes bound into them: gVisor and Kata Containers do not.
    pub(super) fn gives_devices(&self) -> bool {
        self.obeys_specification()
    }

    pub(super) async fn list_devices(&self) -> Result<Vec<Device>> {
        match self.gives_devices() {
            true => self.with_registry(|registry| registry.devices()).await,
            false => Ok(Vec::new()),
        }
    }

    /// As for a workspace that is made now.
    pub(super) async fn devices_can_be_given(&self, names: &[String]) -> Result<()> {
        let label = names.join(",");
        if LABEL_CDI_DEVICES.len() + label.len() > MOST_LABEL_BYTES {
            return Err(RuntimeError::Rejected {
                reason: format!(
                    "the names of {} devices are more than a workspace can keep",
                    names.len()
                ),
            });
        }
        let has_own_ids = self.uses_user_namespaces().await?;
        self.edits_for(names, has_own_ids).await.map(drop)
    }

    /// Makes the nodes of a container's devices; `None` when it has no devices. What the files say now counts, since
    /// a driver that was replaced has other libraries.
    pub(super) async fn give_devices(
        &self,
        turn: &Arc<Turn>,
        container: &Container,
        (bot, running): (&BotId, &Running),
    ) -> Result<Option<GivenDevices>> {
        let names = device_names(container);
        if names.is_empty() {
            return Ok(None);
        }
        let edits = self.edits_for(&names, running.ids.is_some()).await?;
        let (bot, root, nodes) = (bot.clone(), running.root_uid(), edits.nodes.clone());
        let nodes_on_host: Vec<PathBuf> = self
            .on_host(turn, move |paths, _| {
                isolation::make_device_nodes(paths, &bot, root, &nodes)?;
                let place = |number| isolation::place_of_device_node(paths, &bot, number);
                Ok((0..nodes.len()).map(place).collect())
            })
            .await?;
        Ok(Some(GivenDevices { edits, nodes_on_host }))
    }

    async fn edits_for(&self, names: &[String], has_own_ids: bool) -> Result<Edits> {
        if names.is_empty() {
            return Ok(Edits::default());
        }
        if !self.gives_devices() {
            return Err(RuntimeError::Unsupported {
                backend: "containerd",
                what: format!("giving devices with the runtime {}", self.config.runtime),
            });
        }
        let asked = names.to_vec();
        let edits = self.with_registry(move |registry| registry.edits(&asked)).await?;
        let checked = edits.and_then(|edits| match edits.check_mapped_ids() {
            Err(reason) if has_own_ids => Err(CdiError::Unusable {
                device: names.join(", "),
                reason,
            }),
            _ => Ok(edits),
        });
        checked.map_err(|error| RuntimeError::Rejected {
            reason: error.to_string(),
        })
    }

    async fn with_registry<T: Send + 'static>(&self, ask: impl FnOnce(&Registry) -> T + Send + 'static) -> Result<T> {
        let directories = self.config.cdi_spec_dirs.clone();
        let asked = tokio::task::spawn_blocking(move || ask(&Registry::read(&directories))).await;
        asked.map_err(|panicked| RuntimeError::other("reading what devices there are", panicked))
    }
}

/// Frozen at its creation.
pub(super) fn device_names(container: &Container) -> Vec<String> {
    let label = container.labels.get(LABEL_CDI_DEVICES);
    let names = label.map(String::as_str).unwrap_or_default().split(',');
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// What a start must not take for the workspace's own environment is kept beside what a start makes of it.
pub(super) fn environment_extension(environment: &[String]) -> (String, Any) {
    let value = Any {
        type_url: EXTENSION_ENVIRONMENT.to_owned(),
        value: serde_json::json!(environment).to_string().into_bytes(),
    };
    (EXTENSION_ENVIRONMENT.to_owned(), value)
}

/// `None` for a container that was made without devices.
pub(super) fn extension_environment(container: &Container) -> Option<Vec<String>> {
    let kept = container.extensions.get(EXTENSION_ENVIRONMENT)?;
    serde_json::from_slice(&kept.value).ok()
}
