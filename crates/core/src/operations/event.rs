//! What an operation tells on its way. The journal keeps exactly this form; the wire's form is the server's.

use serde::{Deserialize, Serialize};
use skep_runtime::{ImageRecord, LayerPhase, LayerProgress};
use skep_store::VersionRow;

/// One event; ids count from 1 within an operation, a gap is where a passing `pull_progress` was not kept,
/// or where another server carried the operation on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationEvent {
    /// For `id:` lines and `Last-Event-ID`.
    pub id: u64,
    /// What is told.
    pub body: EventBody,
}

/// The events of a create, in this order: `Pulling`, `PullProgress`*, `Creating`, `Restoring`?, then `Complete`
/// or, at any point, `Error`. Others tell `Step` and `Progress`, then `Complete` or `Error`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventBody {
    /// The image is looked for, and fetched when it is not here.
    Pulling { image: String },
    /// Every layer of the image, in the manifest's order, from the first such event to the last.
    PullProgress { layers: Vec<Layer> },
    /// The container is made.
    Creating,
    /// Preserved data is put back.
    Restoring,
    /// The end, when all is well.
    Complete { outcome: Outcome },
    /// The end, when it is not.
    Error {
        /// As [`crate::Code::as_str`].
        code: String,
        /// `<stage>: <cause>`.
        message: String,
        /// Id of the request that asked for the operation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
    },
    /// A step begins.
    Step { step: String },
    /// So much of so much; the unit is the kind's own.
    Progress { done: u64, total: u64 },
}

impl EventBody {
    /// Nothing follows it.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Complete { .. } | Self::Error { .. })
    }
}

/// One layer of a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its digest.
    #[serde(rename = "ref")]
    pub digest: String,
    /// Bytes that are here; never goes backwards.
    pub offset: u64,
    /// Bytes in all.
    pub total: u64,
    /// `waiting`, `downloading`, `verifying`, `extracting` or `done`.
    pub phase: String,
}

impl From<&LayerProgress> for Layer {
    fn from(progress: &LayerProgress) -> Self {
        let phase = match progress.phase {
            LayerPhase::Waiting => "waiting",
            LayerPhase::Downloading => "downloading",
            LayerPhase::Verifying => "verifying",
            LayerPhase::Extracting => "extracting",
            LayerPhase::Done => "done",
        };
        Self {
            digest: progress.digest.clone(),
            offset: progress.offset,
            total: progress.total,
            phase: phase.to_owned(),
        }
    }
}

/// What an operation that succeeded has to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// That it is done.
    Done,
    /// The workspace of a create.
    Workspace(CompletedWorkspace),
    /// The image of a pull.
    Image {
        name: String,
        digest: String,
        size_bytes: u64,
    },
    /// Limits as they are now.
    Limits(LimitsReport),
    /// The version that was kept.
    Snapshot(TakenSnapshot),
    /// The version that was gone back to, and the one that holds what was there before.
    RolledBack { version: u64, saved_version: u64 },
    /// What of an archive is in `/data` now.
    Imported(Imported),
}

impl From<&ImageRecord> for Outcome {
    fn from(image: &ImageRecord) -> Self {
        Self::Image {
            name: image.name.to_string(),
            digest: image.digest.clone(),
            size_bytes: image.size_bytes,
        }
    }
}

/// The `container` object of `complete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedWorkspace {
    pub container_id: String,
    pub image: String,
    pub snapshotter: String,
    pub cdi_devices: Vec<String>,
    /// The bridge answered.
    pub started: bool,
    pub data_restored: bool,
    pub has_preserved_data: bool,
    pub warnings: Vec<String>,
}

/// What was put into `/data`, and what became of the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Files, directories and links.
    pub entries: u64,
    /// Sizes of the files together, holes included.
    pub bytes: u64,
    /// Devices, pipes and sockets, left out.
    pub skipped: u64,
    /// Entries of owners that a workspace does not have.
    pub remapped: u64,
    /// Entries that lost setuid or setgid.
    pub cleared: u64,
}

/// A version that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenSnapshot {
    pub container_id: String,
    pub runtime_snapshot_name: String,
    /// Empty: none.
    pub display_name: String,
    pub snapshotter: String,
    pub version: u64,
    pub source: String,
}

impl From<VersionRow> for TakenSnapshot {
    fn from(row: VersionRow) -> Self {
        Self {
            container_id: row.container_id,
            runtime_snapshot_name: row.runtime_snapshot_name,
            display_name: row.display_name,
            snapshotter: row.snapshotter,
            version: row.version,
            source: row.source,
        }
    }
}

/// Limits that were asked for and those of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsReport {
    /// Zeros replaced by the defaults.
    pub wanted: skep_store::LimitsColumn,
    /// What the task has, or had when it last ran; 0 is no limit. `None` for one that never ran here.
    pub applied: Option<skep_store::LimitsColumn>,
}
