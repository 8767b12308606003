//! Backups: data that is kept when its workspace is deleted.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "0191f3c2-8f0e-7d3a-9c56-0123456789ab.tar.gz", "bot_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab", "size_bytes": 1048576, "entries": 42, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "created_at": "2026-01-02T03:04:05Z", "verified": true}))]
pub struct Backup {
    /// `<bot_id>.tar.gz` is the current one, which a create puts back; `<bot_id>.<n>.tar.gz` are older, 1 the newest
    /// of them; what ends in `.corrupt` did not verify.
    pub name: String,
    /// Its bot, which may be gone.
    pub bot_id: String,
    pub size_bytes: u64,
    /// Files, directories and links; absent for one that another system left here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Of the file, in hex; absent for one that another system left here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    pub created_at: DateTime<Utc>,
    /// It was read back whole when it was made, and nothing wrong was found since.
    pub verified: bool,
}

/// Backups of a bot: the current one first, then older ones; or of all bots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"name": "0191f3c2-8f0e-7d3a-9c56-0123456789ab.tar.gz",
    "bot_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab", "size_bytes": 1048576, "entries": 42,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "created_at": "2026-01-02T03:04:05Z",
    "verified": true}]}))]
pub struct BackupList {
    pub items: Vec<Backup>,
}

/// Body of `POST /bots/{id}/container/data/restore`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"mode": "merge"}))]
pub struct RestoreRequest {
    /// A backup by its name, which is kept then; absent: the current one, which is removed when its data is back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its digest, as the list of backups shows it: another one is refused, and one that got another name meanwhile is
    /// found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// What becomes of what is in `/data` and not in the backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<RestoreMode>,
}

/// What becomes of what is in `/data` and not in the archive that is put into it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestoreMode {
    /// It stays.
    #[default]
    Merge,
    /// It goes: `/data` is exactly the archive then.
    Replace,
}

/// The data is back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"restored": true}))]
pub struct RestoredResponse {
    pub restored: bool,
}
