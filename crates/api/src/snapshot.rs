//! Snapshots and versions of a workspace.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /snapshots` and of `PATCH /snapshots/{version}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"snapshot_name": "before the upgrade"}))]
pub struct SnapshotRequest {
    /// What it is called; absent or empty: `Version <n>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_name: Option<String>,
    /// Who made it: `manual` when absent. Anything else is kept as given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// A version that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"container_id": "workspace-0191f3c2-8f0e-7d3a-9c56-0123456789ab",
    "snapshot_name": "before the upgrade",
    "runtime_snapshot_name": "workspace-0191f3c2-8f0e-7d3a-9c56-0123456789ab-0191f3c2-8f0e-7d3a-9c56-0123456789ac-snapshot",
    "display_name": "before the upgrade", "snapshotter": "overlayfs", "version": 1, "source": "manual"}))]
pub struct Snapshot {
    /// The container it is of.
    pub container_id: String,
    /// Its display name, else `Version <n>`.
    pub snapshot_name: String,
    /// The runtime's name of its layer.
    pub runtime_snapshot_name: String,
    /// Empty when it has none.
    pub display_name: String,
    /// Where its layer is kept.
    pub snapshotter: String,
    /// Its number.
    pub version: u64,
    /// `manual`, `pre_exec`, `rollback`, or as it was given.
    pub source: String,
}

/// What a layer is to its runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum SnapshotKind {
    /// It can be written.
    Active,
    /// It never changes.
    Committed,
}

/// One layer of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotItem {
    /// Where it is kept.
    pub snapshotter: String,
    /// Display name, else `Version <n>`, else the runtime's name.
    pub name: String,
    /// What it was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// The runtime's name.
    pub runtime_snapshot_name: String,
    /// The runtime's name of the layer below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Whether it can be written.
    pub kind: SnapshotKind,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// The runtime's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// As its version says, else `image_layer`.
    pub source: String,
    /// It is a version.
    pub managed: bool,
    /// Its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// The layers of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"snapshotter": "overlayfs", "snapshots": [{"snapshotter": "overlayfs",
    "name": "before the upgrade", "display_name": "before the upgrade",
    "runtime_snapshot_name": "workspace-0191f3c2-8f0e-7d3a-9c56-0123456789ab-0191f3c2-8f0e-7d3a-9c56-0123456789ac-snapshot",
    "kind": "Committed", "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z", "source": "manual",
    "managed": true, "version": 1}]}))]
pub struct SnapshotList {
    /// Where they are kept.
    pub snapshotter: String,
    /// Oldest first.
    pub snapshots: Vec<SnapshotItem>,
}

/// Body of `POST /snapshots/rollback`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"version": 1}))]
pub struct RollbackRequest {
    /// A positive whole number.
    #[schema(value_type = u64, minimum = 1, required = true)]
    pub version: f64,
}

/// Answer to a rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"rolled_back_to": 1, "saved_version": 2}))]
pub struct RollbackResponse {
    /// The version that the workspace is on now.
    pub rolled_back_to: u64,
    /// The version that holds what was there before.
    pub saved_version: u64,
}
