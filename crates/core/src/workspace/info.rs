//! What is shown of a workspace.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use serde::Serialize;
use skep_runtime::Isolation;
use skep_store::Desired;

use crate::operations::LimitsReport;

/// What a workspace is, as far as anybody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceStatus {
    /// Made, never started.
    Created,
    /// Its bridge answered.
    Running,
    /// Stopped.
    Stopped,
    /// It should run and does not.
    Error,
    /// Its row is there, its container is not.
    Missing,
    /// Its container is there, its row is not.
    Unknown,
}

impl WorkspaceStatus {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Error => "error",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

impl From<skep_store::ContainerStatus> for WorkspaceStatus {
    fn from(status: skep_store::ContainerStatus) -> Self {
        match status {
            skep_store::ContainerStatus::Created => Self::Created,
            skep_store::ContainerStatus::Running => Self::Running,
            skep_store::ContainerStatus::Stopped => Self::Stopped,
            skep_store::ContainerStatus::Error => Self::Error,
        }
    }
}

/// All that `GET …/container` shows; the task is asked of the runtime now.
#[derive(Debug, Clone)]
pub struct WorkspaceInfo {
    pub container_id: String,
    pub image: String,
    pub image_digest: Option<String>,
    pub status: WorkspaceStatus,
    /// Why the status is `error`, or why it was stopped when nobody asked (`disk_full`).
    pub reason: Option<String>,
    pub namespace: String,
    pub snapshotter: String,
    pub container_path: String,
    pub cdi_devices: Vec<String>,
    pub task_running: bool,
    pub has_preserved_data: bool,
    pub legacy: bool,
    pub desired: Desired,
    /// Of a missing one: its layer is there, a start puts a container back on it.
    pub recoverable: Option<bool>,
    pub limits: LimitsReport,
    /// It holds more than its limit of storage, as it was counted last: nothing is added to it from outside.
    pub storage_over_limit: bool,
    /// In force, or what the next start puts in force; `None` when that cannot be told.
    pub isolation: Option<Isolation>,
    pub ip: Option<IpAddr>,
    pub uptime_seconds: Option<u64>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// One `state` event of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceState {
    /// `None`: the bot has no workspace.
    pub status: Option<WorkspaceStatus>,
    pub task_running: bool,
    pub desired: Option<Desired>,
    pub reason: Option<String>,
    /// As in [`WorkspaceInfo`].
    pub storage_over_limit: bool,
    pub at: DateTime<Utc>,
}
