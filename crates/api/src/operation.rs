//! Operations and the events of their streams.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ErrorCode;
use crate::workspace::Container;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    Create,
    Start,
    Stop,
    Restart,
    Delete,
    Snapshot,
    SnapshotDelete,
    Rollback,
    Import,
    Restore,
    Limits,
    Recover,
    DeleteBot,
}

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// It waits for the ones before it.
    Queued,
    /// It is worked on.
    Running,
    /// It is done.
    Succeeded,
    /// It is over and was not done.
    Failed,
    /// It was overtaken or called off.
    Cancelled,
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationError {
    /// What a program acts on.
    pub code: ErrorCode,
    /// What a person reads.
    pub message: String,
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Units that are done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}

/// One change of a workspace, journaled before its first side effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac",
    "bot_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab", "kind": "snapshot", "state": "succeeded", "step": "release",
    "started_at": "2026-01-02T03:04:05Z", "finished_at": "2026-01-02T03:04:06Z"}))]
pub struct Operation {
    /// Its id, as in the header `X-Operation-Id`.
    pub id: String,
    /// The bot.
    pub bot_id: String,
    /// What it does.
    pub kind: OperationKind,
    /// Where it is.
    pub state: OperationState,
    /// The step that is worked on, or was last.
    pub step: String,
    /// When it was asked for.
    pub started_at: DateTime<Utc>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<DateTime<Utc>>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<OperationError>,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// A bot's operations.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac",
    "bot_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab", "kind": "snapshot", "state": "succeeded", "step": "release",
    "started_at": "2026-01-02T03:04:05Z", "finished_at": "2026-01-02T03:04:06Z"}]}))]
pub struct OperationList {
    /// Newest first.
    pub items: Vec<Operation>,
    /// For the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// What happens to one layer of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerPhase {
    Waiting,
    Downloading,
    Verifying,
    Extracting,
    Done,
}

/// One layer of a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayerProgress {
    /// Its digest.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Bytes that are here.
    pub offset: u64,
    /// Bytes in all.
    pub total: u64,
    /// What happens to it now.
    pub phase: LayerPhase,
}

/// One `data:` line of a create stream or of `GET /operations/{id}/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(example = json!({"type": "pull_progress",
    "layers": [{"ref": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "offset": 1048576,
    "total": 28231124, "phase": "downloading"}]}))]
pub enum StreamEvent {
    /// The image is looked at; always sent by a create.
    Pulling {
        /// Full reference.
        image: String,
    },
    /// Only when bytes are fetched.
    PullProgress {
        /// One entry per distinct layer, in the manifest's order.
        layers: Vec<LayerProgress>,
    },
    /// The workspace is made or started; always sent by a create.
    Creating,
    /// Preserved data is put back.
    Restoring,
    /// A step of another kind of operation.
    Step {
        /// Its name.
        step: String,
    },
    /// How far another kind of operation is.
    Progress {
        /// Units that are done.
        done: u64,
        /// Units in all.
        total: u64,
    },
    /// The end of one that worked.
    Complete {
        /// What a create made or found; absent for other kinds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        container: Option<Container>,
    },
    /// The end of one that failed.
    Error {
        /// `<stage>: <cause>`.
        message: String,
        /// What a program acts on.
        code: ErrorCode,
        /// The request that the stream belongs to.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        request_id: String,
    },
}
