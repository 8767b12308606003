//! What the server and the program `skep-layer` say to each other about one piece of work on a layer.
//!
//! The program is started once for each piece of work: the [`Job`] is its only argument, as JSON; an archive goes
//! through its standard input or output; one [`Report`], as JSON, is all it writes to standard error.
//! Not here: who may ask for what, and where a layer is mounted from; that is the runtime's.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The descriptor whose other end the server holds: when it is closed, the server is gone and so is the work.
pub const LIFELINE: i32 = 3;

/// One piece of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// An existing, empty directory of the host: a private file system is mounted on it, seen by nobody else.
    pub scratch: PathBuf,
    /// An existing directory on a disk, for what does not fit into memory.
    pub spool: PathBuf,
    /// What is mounted.
    pub mount: Mount,
    /// Where `/data` is in what is mounted.
    pub data: DataPlace,
    pub task: Task,
    /// What the work may take.
    pub limits: Limits,
}

/// A layer as its snapshotter tells, or a plain directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Mount {
    /// A directory.
    Bind { path: PathBuf },
    /// Layers above each other, all of them below one directory; the other paths are relative to it.
    Overlay {
        directory: PathBuf,
        /// The uppermost first.
        lower: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
        /// The snapshotter's other options.
        options: Vec<String>,
    },
}

/// Where `/data` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataPlace {
    /// It is the directory `data` in the root of what is mounted.
    Below,
    /// It is what is mounted.
    Root,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Task {
    /// `/data` is written to standard output as an archive. The layer is mounted read-only.
    Pack(Pack),
    /// How long an archive of `/data` will be, about. The layer is mounted read-only.
    Estimate,
    /// The archive at standard input is put into `/data`, and is on the disk before the report says so.
    Apply(Apply),
}

/// The most that the work may take; past it, it ends with a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Address space.
    pub memory_bytes: u64,
    pub open_files: u64,
    pub seconds: u64,
}

/// How `/data` is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    pub format: ArchiveFormat,
    pub trust: Trust,
}

/// How an archive is put into `/data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apply {
    pub mode: ApplyMode,
    pub trust: Trust,
}

/// The form of an archive that is written; one that is read tells itself what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveFormat {
    Tar,
    TarGz,
    TarZst,
}

/// What becomes of what is in `/data` and not in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApplyMode {
    /// It stays.
    Merge,
    /// It goes: `/data` is exactly the archive then.
    Replace,
}

/// Whose archive it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// One that this server packed: everything is put back exactly as it was.
    Ours,
    /// A client's: what the contract refuses, clears and skips.
    Strangers,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Report {
    Packed(Packed),
    Estimated {
        bytes: u64,
    },
    Applied(Applied),
    Failed {
        /// What a caller does about it.
        failure: FailureKind,
        /// A sentence without paths of the host.
        message: String,
    },
}

/// What was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Packed {
    /// Files, directories and links; `/data` itself is not counted.
    pub entries: u64,
    /// Sizes of the files together, holes included.
    pub bytes: u64,
    /// Left out: devices, and of a stranger's archive sockets and FIFOs.
    pub skipped: u64,
    /// Files that changed each time they were read.
    pub changed: u64,
}

/// What was put into `/data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Applied {
    /// Files, directories and links; `/data` itself is not counted.
    pub entries: u64,
    /// Sizes of the files together, holes included.
    pub bytes: u64,
    /// Left out: devices, and of a stranger's archive sockets and FIFOs.
    pub skipped: u64,
    /// Entries whose owner is not one of a workspace's.
    pub remapped: u64,
}

/// Failures that differ for a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// What is at the place of `/data` is a link or a file.
    NotADirectory,
    /// The archive is at fault.
    Refused,
    /// The disk is full.
    NoSpace,
    /// The work took more than it may.
    Limit,
    Other,
}
