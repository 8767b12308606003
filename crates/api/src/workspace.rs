//! Workspaces: what a create asks for and answers, and what is known of one.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// GPU devices of a create.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GpuRequest {
    /// CDI names, `vendor.com/class=name`; present and empty means none.
    pub devices: Vec<String>,
}

/// Limits as a request gives them: absent stays, 0 is the configured default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"cpu_millicores": 1000, "memory_bytes": 1073741824_i64}))]
pub struct LimitsRequest {
    /// Thousandths of a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millicores: Option<u64>,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Bytes of storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
}

/// Limits as they are; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_millicores: u64,
    /// Bytes of memory; swap is 0.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes of storage.
    pub storage_bytes: u64,
}

/// Limits as wanted and as applied; also the answer to `PUT /limits`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"wanted": {"cpu_millicores": 2000, "memory_bytes": 1073741824, "pids": 1024,
    "storage_bytes": 0}, "applied": {"cpu_millicores": 2000, "memory_bytes": 1073741824, "pids": 1024,
    "storage_bytes": 0}}))]
pub struct LimitsResponse {
    /// Kept in the store.
    pub wanted: Limits,
    /// What the workspace has, or had when it last ran. Absent for one that this server never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Limits>,
}

/// Body of `POST /bots/{id}/container`.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"image": "debian:bookworm-slim"}))]
pub struct CreateWorkspaceRequest {
    /// Where layers are kept; default the server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshotter: Option<String>,
    /// Put preserved data back; absent counts as true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_data: Option<bool>,
    /// An image reference; default the bot's, else the server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// GPU devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRequest>,
    /// What it may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsRequest>,
    /// Environment of every process of the workspace; values are never logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
}

/// What a create made or found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"container_id": "workspace-0191f3c2-8f0e-7d3a-9c56-0123456789ab", "image": "docker.io/library/debian:bookworm-slim", "snapshotter": "overlayfs", "started": true, "data_restored": false, "has_preserved_data": false}))]
pub struct Container {
    /// `workspace-<bot_id>`.
    pub container_id: String,
    /// Full reference.
    pub image: String,
    /// Where its layers are.
    pub snapshotter: String,
    /// Its GPU devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cdi_devices: Vec<String>,
    /// The bridge answered.
    pub started: bool,
    /// Preserved data was put back.
    pub data_restored: bool,
    /// A backup is kept.
    pub has_preserved_data: bool,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What separates a workspace from the host and from others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Isolation {
    /// It has a user namespace of its own.
    pub user_namespace: bool,
    /// A seccomp filter is in force.
    pub seccomp: bool,
    /// AppArmor's profile is in force.
    #[serde(default)]
    pub apparmor: bool,
    /// `no_new_privs` is set.
    pub no_new_privileges: bool,
    /// Capabilities of its root, as `CAP_…`.
    pub capabilities: Vec<String>,
    /// `bridge`, `none`, …
    pub network: String,
    /// `hard` or `soft`.
    pub storage_quota: String,
}

/// The state of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceStatus {
    /// Made, never started.
    Created,
    /// It runs.
    Running,
    /// It is stopped.
    Stopped,
    /// It could not be kept running.
    Error,
    /// A container without a row.
    Unknown,
    /// A row whose container is gone.
    Missing,
}

/// What was asked for last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// It shall run.
    Running,
    /// It shall be stopped, also after a restart of the server.
    Stopped,
}

/// Answer to `GET /bots/{id}/container`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"container_id": "workspace-0191f3c2-8f0e-7d3a-9c56-0123456789ab",
    "image": "docker.io/library/debian:bookworm-slim", "status": "running", "namespace": "default",
    "container_path": "/data", "task_running": true, "has_preserved_data": false, "legacy": false,
    "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z", "snapshotter": "overlayfs",
    "limits": {"wanted": {"cpu_millicores": 2000, "memory_bytes": 1073741824, "pids": 1024, "storage_bytes": 0},
    "applied": {"cpu_millicores": 2000, "memory_bytes": 1073741824, "pids": 1024, "storage_bytes": 0}},
    "storage_over_limit": false, "ip": "10.88.0.7", "desired": "running"}))]
pub struct ContainerInfo {
    /// `workspace-<bot_id>`, or `mcp-<bot_id>` for a legacy one.
    pub container_id: String,
    /// Full reference.
    pub image: String,
    /// From the store.
    pub status: WorkspaceStatus,
    /// The runtime's namespace.
    pub namespace: String,
    /// Always `/data`.
    pub container_path: String,
    /// Its GPU devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cdi_devices: Vec<String>,
    /// Asked of the runtime now.
    pub task_running: bool,
    /// A backup is kept.
    pub has_preserved_data: bool,
    /// Made before the bridge existed.
    pub legacy: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// With status `missing`: its layer is there and a start brings it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recoverable: Option<bool>,
    /// Digest of its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Where its layers are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshotter: Option<String>,
    /// As wanted and as applied.
    pub limits: LimitsResponse,
    /// It holds more than its limit of storage, as it was counted last: what would add to it answers 507.
    #[serde(default)]
    pub storage_over_limit: bool,
    /// What is in force, or while nothing runs, what the next start puts in force; absent when that cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Its address, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// How long process 1 runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_seconds: Option<u64>,
    /// What was asked for last.
    pub desired: Desired,
    /// Why the status is what it is, when that is not plain; `disk_full`: it was stopped to keep the host from filling up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Answer to a start.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"started": true}))]
pub struct StartedResponse {
    /// Always true.
    pub started: bool,
}

/// Answer to a stop.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"stopped": true}))]
pub struct StoppedResponse {
    /// Always true.
    pub stopped: bool,
}

/// Answer to a restart.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"restarted": true}))]
pub struct RestartedResponse {
    /// Always true.
    pub restarted: bool,
}

/// One event of `GET /bots/{id}/container/events`; the present state comes first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "state", "status": "running", "task_running": true, "desired": "running",
    "storage_over_limit": false, "at": "2026-01-02T03:04:05Z"}))]
pub struct StateEvent {
    /// Always `state`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The state.
    pub status: WorkspaceStatus,
    /// Process 1 runs.
    pub task_running: bool,
    /// What was asked for last.
    pub desired: Desired,
    /// Why, when it is not plain; `disk_full`: it was stopped to keep the host from filling up. `oom_killed` (the kernel
    /// killed a process of it for want of memory) and `pids_exhausted` (a process was not started, as many run as may)
    /// tell what happened, at most once a second each; the state is as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It holds more than its limit of storage.
    #[serde(default)]
    pub storage_over_limit: bool,
    /// When.
    pub at: DateTime<Utc>,
}
