//! Changes of a workspace's files as they happen: its bridge watches, with the tenant's own rights.

use skep_bridge_protocol::workspace::watch_event::Kind;
use skep_bridge_protocol::workspace::{WatchEvent, WatchEvents, WatchRequest};
use tokio::time::timeout;
use tonic::Streaming;

use super::entry::path_within;
use super::path::WorkspacePath;
use crate::bridge::{Bridge, BridgeError, BridgeResult, SMALL_WITHIN};

/// How much of a directory is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchScope {
    /// Its entries.
    Entries,
    /// All below it, up to 8,192 directories. Links and other file systems are not entered.
    Tree,
}

/// A change of a file, a directory or a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChange {
    /// It is new here.
    Created(ChangedFile),
    /// Its content, permissions, owner or times are others.
    Modified(ChangedFile),
    /// It is not here any more.
    Removed(ChangedFile),
    /// It has another name now. A directory is told alone, without what is in it.
    Renamed {
        /// As it is called now.
        to: ChangedFile,
        /// As it was called.
        from: String,
    },
    /// There were more changes than could be told: whoever wants to know looks anew.
    Lost,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedFile {
    /// The watched path, or one below it. Bytes that are not UTF-8 are replaced.
    pub path: String,
    /// It is, or was, a directory.
    pub is_directory: bool,
}

/// The changes since a watch began.
#[derive(Debug)]
pub struct FileChanges {
    messages: Streaming<WatchEvents>,
    root: WorkspacePath,
}

/// Watches a directory or a file; a file in its place is watched on. It has begun when this returns.
///
/// # Errors
/// `InvalidArgument` for more directories than can be watched, and as [`stat`](super::stat).
pub async fn watch(bridge: &Bridge, root: &WorkspacePath, scope: WatchScope) -> BridgeResult<FileChanges> {
    let mut client = bridge.workspace();
    let request = WatchRequest {
        path: root.to_bytes(),
        recursive: scope == WatchScope::Tree,
    };
    let mut messages = Bridge::answer(SMALL_WITHIN, client.watch(request)).await?;
    match timeout(SMALL_WITHIN, messages.message()).await {
        Ok(Ok(Some(first))) if first.events.is_empty() => Ok(FileChanges {
            messages,
            root: root.clone(),
        }),
        Ok(Ok(_)) => Err(BridgeError::Untrustworthy("a watch without a beginning".to_owned())),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(BridgeError::late("the watch")),
    }
}

impl FileChanges {
    /// The next ones, however long it takes. `None`: the watched directory is gone, which was told as `Removed`.
    ///
    /// # Errors
    /// The bridge's end; `InvalidArgument` for more directories than can be watched by now.
    pub async fn next(&mut self) -> BridgeResult<Option<Vec<FileChange>>> {
        match self.messages.message().await? {
            None => Ok(None),
            Some(message) if message.events.is_empty() => {
                Err(BridgeError::Untrustworthy("changes without any".to_owned()))
            }
            Some(message) => {
                let changes = message.events.iter().map(|event| change_of(event, &self.root));
                changes.collect::<BridgeResult<_>>().map(Some)
            }
        }
    }
}

fn change_of(event: &WatchEvent, root: &WorkspacePath) -> BridgeResult<FileChange> {
    let file = || changed_file(event, root);
    Ok(match event.kind() {
        Kind::Created => FileChange::Created(file()?),
        Kind::Modified => FileChange::Modified(file()?),
        Kind::Removed => FileChange::Removed(file()?),
        Kind::Renamed => FileChange::Renamed {
            to: file()?,
            from: path_within(&event.from, root)?,
        },
        Kind::Lost => FileChange::Lost,
        Kind::Unknown => return Err(BridgeError::Untrustworthy("a change of no kind".to_owned())),
    })
}

fn changed_file(event: &WatchEvent, root: &WorkspacePath) -> BridgeResult<ChangedFile> {
    Ok(ChangedFile {
        path: path_within(&event.path, root)?,
        is_directory: event.is_directory,
    })
}
