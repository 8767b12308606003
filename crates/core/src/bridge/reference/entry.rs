//! What the reference's service tells of a file, in the words of ours.

use chrono::DateTime;
use skep_bridge_protocol::bridgepb::FileEntry;
use skep_bridge_protocol::mode_of_text;
use skep_bridge_protocol::workspace::FileInfo;
use tonic::Status;

use super::impossible;

/// The state of the file at `path`. Owner, inode and device are not told there; an inode of 0, which no file has,
/// says so.
pub(super) fn info_of(entry: &FileEntry, path: Vec<u8>) -> Result<FileInfo, Status> {
    let mode = mode_of_text(&entry.mode).ok_or_else(|| impossible("a mode that cannot be"))?;
    if (mode & 0o170_000 == 0o040_000) != entry.is_dir {
        return Err(impossible("a directory that is none"));
    }
    let time = DateTime::parse_from_rfc3339(&entry.mod_time).map_err(|_| impossible("a time that cannot be"))?;
    Ok(FileInfo {
        path,
        size: entry.size.try_into().map_err(|_| impossible("a size that cannot be"))?,
        mode,
        modified_seconds: time.timestamp(),
        // A leap second is told as more than a second.
        modified_nanos: time.timestamp_subsec_nanos().min(999_999_999),
        summary: entry.summary.clone(),
        ..FileInfo::default()
    })
}

/// The path of an entry of a listing: told relative to the directory, or whole.
pub(super) fn path_below(directory: &str, told: &str) -> String {
    match told.starts_with('/') {
        true => told.to_owned(),
        false => format!("{}/{told}", directory.trim_end_matches('/')),
    }
}
