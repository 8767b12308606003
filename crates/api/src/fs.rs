//! Files of a workspace. Names are camelCase here, as clients of the reference system know them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ErrorCode;

/// What is under a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"name": "a.txt", "path": "/data/a.txt", "size": 5, "mode": "-rw-r--r--",
    "modTime": "2026-01-02T03:04:05.123456789Z", "isDir": false, "isSymlink": false, "uid": 0, "gid": 0}))]
pub struct FileInfo {
    /// Its own name; that of the root is `/`.
    pub name: String,
    /// Absolute.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// In letters, as `-rw-r--r--`, `drwxr-x---`, `Lrwxrwxrwx`.
    pub mode: String,
    /// Last change of its content.
    pub mod_time: DateTime<Utc>,
    /// A directory (not a link to one).
    pub is_dir: bool,
    /// A symbolic link.
    pub is_symlink: bool,
    /// Where the link leads, as written in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The link leads to a directory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub target_is_dir: bool,
    /// Owner, as seen inside; absent where an old bridge does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group, as seen inside; absent where an old bridge does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Of a directory that a listing does not expand: how much is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// The entries of a directory, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/data", "entries": [{"name": "a.txt", "path": "/data/a.txt", "size": 5,
    "mode": "-rw-r--r--", "modTime": "2026-01-02T03:04:05.123456789Z", "isDir": false, "isSymlink": false, "uid": 0,
    "gid": 0}]}))]
pub struct FileList {
    /// The directory.
    pub path: String,
    /// What is in it.
    pub entries: Vec<FileInfo>,
    /// Where the next listing begins, when there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A line that a search found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SearchMatch {
    /// Of the file.
    pub path: String,
    /// From 1.
    pub line: u64,
    /// Where its first match begins: from 1, in characters.
    pub column: u64,
    /// The line's first 4 KiB, without its end.
    pub text: String,
}

/// What a search found, in the order of a recursive listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"matches": [{"path": "/data/a.txt", "line": 3, "column": 5, "text": "see TODO"}],
    "truncated": false}))]
pub struct SearchResults {
    /// The lines that match.
    pub matches: Vec<SearchMatch>,
    /// There are more, or 30 s were not enough to look at all.
    pub truncated: bool,
}

/// A change of a watched file or directory, as a server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(example = json!({"type": "created", "path": "/data/a.txt", "isDir": false}))]
pub enum FileEvent {
    /// It is new here.
    Created(ChangedFile),
    /// Its content, permissions, owner or times are others.
    Modified(ChangedFile),
    /// It is not here any more. Nothing follows that of the watched directory itself.
    Removed(ChangedFile),
    /// It has another name now; a directory is told alone, without what is in it.
    Renamed {
        /// As it is called now.
        #[serde(flatten)]
        file: ChangedFile,
        /// As it was called.
        from: String,
    },
    /// There were more changes than could be told: look anew.
    Lost,
    /// The stream broke. Nothing follows.
    Error {
        /// The sentence a person reads.
        message: String,
        /// What a program acts on.
        code: ErrorCode,
        /// The request's id.
        request_id: String,
    },
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangedFile {
    /// The watched path, or one below it.
    pub path: String,
    /// It is, or was, a directory.
    pub is_dir: bool,
}

/// How bytes are written as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Encoding {
    /// As they are.
    #[serde(rename = "utf-8")]
    Utf8,
    /// Base64, standard alphabet, padded.
    #[serde(rename = "base64")]
    Base64,
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/data/a.txt", "content": "hello", "size": 5, "etag": "\"2f1-5-695735a5.75bcd15\""}))]
pub struct FileContent {
    /// The file.
    pub path: String,
    /// Its content, or the lines that were asked for.
    pub content: String,
    /// Bytes of the whole file.
    pub size: u64,
    /// What is not UTF-8 was replaced by U+FFFD.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lossy: bool,
    /// With `?encoding=`: how `content` is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// What a write's `if_match` compares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// A file to be written whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/data/a.txt", "content": "hello", "mode": "0644"}))]
pub struct WriteFileRequest {
    /// Where; parents are made.
    #[serde(default)]
    pub path: String,
    /// What; at most 16 MiB.
    #[serde(default)]
    pub content: String,
    /// How `content` is written; `utf-8` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Permissions in octal, as `0644`; absent: those of the existing file, or `0600`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The tag the present file must have, or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_match: Option<String>,
}

/// It is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"ok": true}))]
pub struct FileDone {
    /// Always `true`.
    pub ok: bool,
}

/// One uploaded file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/data/a.txt", "size": 5}))]
pub struct UploadedFile {
    /// Where it is.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// Several uploaded files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadedFiles {
    /// In the order they were sent.
    pub files: Vec<UploadedFile>,
}

/// A path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/data/reports"}))]
pub struct PathRequest {
    /// The path.
    #[serde(default)]
    pub path: String,
}

/// What is to go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/data/reports", "recursive": true}))]
pub struct DeleteFileRequest {
    /// The path.
    #[serde(default)]
    pub path: String,
    /// A directory with all in it.
    #[serde(default)]
    pub recursive: bool,
}

/// Another name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"oldPath": "/data/a.txt", "newPath": "/data/b.txt"}))]
pub struct RenameFileRequest {
    /// What is there now.
    #[serde(default)]
    pub old_path: String,
    /// Where it is to be.
    #[serde(default)]
    pub new_path: String,
}

/// A copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"from": "/data/a.txt", "to": "/data/b.txt"}))]
pub struct CopyFileRequest {
    /// What is there now.
    #[serde(default)]
    pub from: String,
    /// Where the copy is to be.
    #[serde(default)]
    pub to: String,
}

/// Other permissions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/data/a.txt", "mode": "0755"}))]
pub struct ChangeModeRequest {
    /// The path.
    #[serde(default)]
    pub path: String,
    /// In octal, as `0755`.
    #[serde(default)]
    pub mode: String,
    /// Owner, as seen inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group, as seen inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// Several files and directories to pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"paths": ["/data/reports", "/data/notes.txt"]}))]
pub struct PackRequest {
    /// Each comes below its own last name.
    #[serde(default)]
    pub paths: Vec<String>,
}

/// An archive in the workspace, to be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/data/site.zip", "to": "/data/site"}))]
pub struct ExtractRequest {
    /// `.zip`, `.tar`, `.tar.gz` or `.tar.zst`, told by its content.
    #[serde(default)]
    pub path: String,
    /// The directory to unpack into, made when it is missing; where the archive lies when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// What an unpacked archive held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"entries": 42, "bytes": 1048576}))]
pub struct ArchiveResult {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}
