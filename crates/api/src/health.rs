//! Liveness, readiness and what this server is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer to `GET /ping`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"status": "ok", "container_backend": "containerd", "snapshot_supported": true, "version": "0.1.0", "commit_hash": "unknown"}))]
pub struct Ping {
    /// Always `ok`.
    pub status: String,
    /// `containerd`, …
    pub container_backend: String,
    /// Versions can be taken.
    pub snapshot_supported: bool,
    /// Of this server.
    pub version: String,
    /// Of its source.
    pub commit_hash: String,
}

/// Answer to `GET /health`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"status": "ok"}))]
pub struct Health {
    /// Always `ok`.
    pub status: String,
}

/// How a probe went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeStatus {
    Ok,
    Warn,
    Error,
}

/// One probe of readiness.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Probe {
    /// `store`, `runtime`, `network`, …
    pub name: String,
    /// How it went.
    pub status: ProbeStatus,
    /// One sentence.
    pub detail: String,
}

/// Answer to `GET /ready`, with 200 or 503.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// No probe fails.
    pub ready: bool,
    /// What was tried.
    pub checks: Vec<Probe>,
}
