//! Liveness, readiness and what this server is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ErrorBody;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "runtime", "status": "ok", "detail": "containerd 1.7.28 answers"}))]
pub struct Probe {
    /// `store`, `runtime`, `network`, …
    pub name: String,
    /// How it went.
    pub status: ProbeStatus,
    /// One sentence; an `…` stands for a path of the host.
    pub detail: String,
}

/// What is known of whether the server can do its work; the answer to `GET /ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"ready": true, "checks": [{"name": "store", "status": "ok", "detail": "the store answers"}]}))]
pub struct Readiness {
    /// No probe fails.
    pub ready: bool,
    /// What was tried.
    pub checks: Vec<Probe>,
}

/// Answer to `GET /ready` with 503: an error that has the checks beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"message": "not ready: runtime", "code": "runtime_unavailable", "request_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab",
    "ready": false, "checks": [{"name": "runtime", "status": "error", "detail": "containerd does not answer"}]}))]
pub struct NotReady {
    /// What all errors have.
    #[serde(flatten)]
    pub error: ErrorBody,
    /// What was tried.
    #[serde(flatten)]
    pub readiness: Readiness,
}
