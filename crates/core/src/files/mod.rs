//! Files of a workspace, over its bridge: with the tenant's own rights, inside the workspace.
//!
//! Everything of any size is streamed in pieces of at most 256 KiB with back-pressure; nothing here holds a file.

mod archive;
mod entry;
mod gzip;
mod list;
mod path;
mod read;
mod roomy;
mod search;
mod watch;
mod write;

use skep_bridge_protocol::workspace::{
    ChangeModeRequest, CopyRequest, MakeDirectoryRequest, RemoveRequest, RenameRequest, StatRequest,
};

use crate::bridge::{Bridge, BridgeError, BridgeResult, LARGE_WITHIN, SMALL_WITHIN};

pub use archive::{ArchiveReport, extract, read_archive, write_archive};
pub use entry::FileEntry;
pub use gzip::gzip;
pub use list::{EntryStream, ListOptions, MOST_ENTRIES, list};
pub use path::WorkspacePath;
pub use read::{FileReader, read, read_below};
pub use roomy::RoomyBridge;
#[cfg(test)]
pub(crate) use search::search_within;
pub use search::{FoundLine, MOST_RESULTS, Search, SearchOptions, search};
pub use watch::{ChangedFile, FileChange, FileChanges, WatchScope, watch};
pub use write::{FileWriter, NewFile, copy_content};

/// Permissions of a new directory.
const NEW_DIRECTORY_MODE: u32 = 0o750;

/// Whether a link stands for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// What the link leads to; a dangling one shows itself.
    Followed,
    /// The link itself.
    Shown,
}

/// What a delete of a directory with entries does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// It is refused.
    EmptyOnly,
    /// All of it goes.
    Recursive,
}

/// What is under a path.
///
/// # Errors
/// `NotFound`, `PermissionDenied`, `InvalidPath` (through a file), `Unreachable`.
pub async fn stat(bridge: &Bridge, path: &WorkspacePath, links: Links) -> BridgeResult<FileEntry> {
    let mut client = bridge.workspace();
    let request = StatRequest {
        path: path.to_bytes(),
        follow: links == Links::Followed,
    };
    let info = Bridge::answer(SMALL_WITHIN, client.stat(request)).await?;
    FileEntry::of_path(&info, path)
}

/// Makes a directory with its parents; one that is there is a success.
///
/// # Errors
/// `InvalidPath` when something else is in the way, and as [`stat`].
pub async fn make_directory(bridge: &RoomyBridge, path: &WorkspacePath) -> BridgeResult<()> {
    let mut client = bridge.workspace();
    let request = MakeDirectoryRequest {
        path: path.to_bytes(),
        mode: NEW_DIRECTORY_MODE,
    };
    Bridge::answer(SMALL_WITHIN, client.make_directory(request))
        .await
        .map(|_| ())
}

/// Removes a file or a directory; what is not there is a success.
///
/// # Errors
/// `Conflict` for a directory with entries unless `Recursive`; `PermissionDenied` for the root.
pub async fn remove(bridge: &Bridge, path: &WorkspacePath, depth: Depth) -> BridgeResult<()> {
    if path.is_root() {
        return Err(BridgeError::PermissionDenied("cannot delete root directory".to_owned()));
    }
    let mut client = bridge.workspace();
    let request = RemoveRequest {
        path: path.to_bytes(),
        recursive: depth == Depth::Recursive,
    };
    Bridge::answer(LARGE_WITHIN, client.remove(request)).await.map(|_| ())
}

/// Whether a directory that the kernel does not rename may be copied under its new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameByCopy {
    /// It may.
    Allowed,
    /// The workspace is over its limit of storage.
    Refused,
}

/// Gives something another name, in the place of what had it, as `rename(2)`.
///
/// # Errors
/// `NotFound`, `Conflict` (a directory with entries is in the way), `NoSpace` for what would have to be copied, and as
/// [`stat`].
pub async fn rename(
    bridge: &Bridge,
    (from, to): (&WorkspacePath, &WorkspacePath),
    by_copy: RenameByCopy,
) -> BridgeResult<()> {
    let mut client = bridge.workspace();
    let request = RenameRequest {
        from: from.to_bytes(),
        to: to.to_bytes(),
        only_in_place: by_copy == RenameByCopy::Refused,
    };
    Bridge::answer(LARGE_WITHIN, client.rename(request)).await.map(|_| ())
}

/// Copies a file or a directory with all in it.
///
/// # Errors
/// As [`rename`], and `NoSpace`.
pub async fn copy(bridge: &RoomyBridge, from: &WorkspacePath, to: &WorkspacePath) -> BridgeResult<()> {
    let mut client = bridge.workspace();
    let request = CopyRequest {
        from: from.to_bytes(),
        to: to.to_bytes(),
    };
    Bridge::answer(LARGE_WITHIN, client.copy(request)).await.map(|_| ())
}

/// What [`change_mode`] sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeChange {
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Owner, as seen inside.
    pub uid: Option<u32>,
    /// Group, as seen inside.
    pub gid: Option<u32>,
}

/// Sets permissions and, when given, owner and group.
///
/// # Errors
/// As [`stat`].
pub async fn change_mode(bridge: &Bridge, path: &WorkspacePath, change: ModeChange) -> BridgeResult<()> {
    let mut client = bridge.workspace();
    let request = ChangeModeRequest {
        path: path.to_bytes(),
        mode: change.mode & 0o7777,
        uid: change.uid,
        gid: change.gid,
    };
    Bridge::answer(SMALL_WITHIN, client.change_mode(request))
        .await
        .map(|_| ())
}
