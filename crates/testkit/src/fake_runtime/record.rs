//! What the fake backend remembers of a container.

use chrono::{DateTime, Utc};
use skep_names::BotId;
use skep_runtime::{Instance, InstanceSpec, Isolation, Limits, TaskState};

use super::layers::SNAPSHOTTER;

/// A container's record.
#[derive(Clone)]
pub(super) struct Record {
    pub(super) spec: InstanceSpec,
    /// The layer it is on.
    pub(super) layer: String,
    pub(super) image_digest: Option<String>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) started_at: Option<DateTime<Utc>>,
    pub(super) limits: Limits,
}

impl Record {
    pub(super) fn new(spec: &InstanceSpec, layer: String, image_digest: Option<String>) -> Self {
        let now = Utc::now();
        Self {
            spec: spec.clone(),
            layer,
            image_digest,
            created_at: now,
            updated_at: now,
            started_at: None,
            limits: Limits::default(),
        }
    }

    pub(super) fn instance(&self, bot: &BotId, task: TaskState) -> Instance {
        Instance {
            bot: bot.clone(),
            container_id: skep_names::container_id_for(bot),
            image: self.spec.image.as_str().to_owned(),
            image_digest: self.image_digest.clone(),
            snapshotter: self.spec.snapshotter.clone().unwrap_or_else(|| SNAPSHOTTER.to_owned()),
            namespace: String::new(),
            cdi_devices: self.spec.cdi_devices.clone(),
            task,
            created_at: self.created_at,
            updated_at: self.updated_at,
            started_at: self.started_at.filter(|_| task == TaskState::Running),
            isolation: Some(isolation()),
            legacy_data: None,
        }
    }
}

/// The truth about the fake: it isolates nothing.
pub(super) fn isolation() -> Isolation {
    Isolation {
        network: "host".to_owned(),
        storage_quota: "soft".to_owned(),
        ..Isolation::default()
    }
}
