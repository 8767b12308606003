//! What a workspace uses.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer to `GET /bots/{id}/container/metrics`, and each event of its stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"supported": true, "backend": "containerd", "status": {"exists": true, "task_running": true}, "metrics": {"cpu": {"usage_percent": 12.5, "usage_nanoseconds": 1250000000, "user_nanoseconds": 1000000000, "kernel_nanoseconds": 250000000}, "memory": {"usage_bytes": 104857600, "limit_bytes": 2147483648_u64, "usage_percent": 4.9}, "storage": {"path": "/", "used_bytes": 52428800, "sampled_at": "2026-01-01T00:00:00Z"}, "pids": 7, "network": {"rx_bytes": 1000, "tx_bytes": 2000}, "io": {"read_bytes": 4096, "write_bytes": 8192}}, "sampled_at": "2026-01-01T00:00:05Z"}))]
pub struct MetricsResponse {
    /// This backend can tell.
    pub supported: bool,
    /// `containerd`, …
    pub backend: String,
    /// Why it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsupported_reason: Option<String>,
    /// What there is to be told of.
    pub status: MetricsStatus,
    /// Empty without a workspace.
    pub metrics: Metrics,
    /// When the counters of a running workspace were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled_at: Option<DateTime<Utc>>,
}

/// Whether there is a workspace, and whether it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetricsStatus {
    /// The bot has one.
    pub exists: bool,
    /// Process 1 runs.
    pub task_running: bool,
}

/// What the host counts. While nothing runs, storage alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuMetrics>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryMetrics>,
    /// Storage, counted in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageMetrics>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Network, since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMetrics>,
    /// Disks, since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoMetrics>,
}

/// Processors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CpuMetrics {
    /// Since the sample before this one (the first: since the start); 100 is one full core.
    pub usage_percent: f64,
    /// Since the start.
    pub usage_nanoseconds: u64,
    /// Of those, in user mode.
    pub user_nanoseconds: u64,
    /// Of those, in the kernel.
    pub kernel_nanoseconds: u64,
}

/// Memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryMetrics {
    /// In use, without page cache that the kernel gives up at once.
    pub usage_bytes: u64,
    /// The limit; 0 is none.
    pub limit_bytes: u64,
    /// Of the limit, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_percent: Option<f64>,
}

/// Storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageMetrics {
    /// Always `/`.
    pub path: String,
    /// Of the active layer and the workspace's own snapshots, the image excepted.
    pub used_bytes: u64,
    /// When that was counted.
    pub sampled_at: DateTime<Utc>,
}

/// Network, as the workspace sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkMetrics {
    /// Received.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_bytes: u64,
}

/// Disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IoMetrics {
    /// Read.
    pub read_bytes: u64,
    /// Written.
    pub write_bytes: u64,
}
