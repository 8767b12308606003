//! A workspace's `/data` as an archive.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What of an archive is in `/data` now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"imported": true, "entries": 42, "bytes": 1048576, "skipped": 1, "remapped": 0, "cleared": 2}))]
pub struct ImportedResponse {
    pub imported: bool,
    /// Files, directories and links.
    pub entries: u64,
    /// Sizes of the files together, holes included.
    pub bytes: u64,
    /// Devices, pipes and sockets, which were left out.
    pub skipped: u64,
    /// Entries whose owner a workspace does not have; they belong to 65534.
    pub remapped: u64,
    /// Files and directories that lost setuid or setgid.
    pub cleared: u64,
}
