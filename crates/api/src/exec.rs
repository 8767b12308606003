//! Processes in a workspace.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Encoding, ErrorCode};

/// What is to be run: by `command` or by `argv`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"command": "echo hello; exit 3"}))]
pub struct ExecRequest {
    /// Run by `/bin/sh -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Run directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Where; `/data` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Over the workspace's own environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// A text: all that it reads. `true`: its input stays open for `/exec/{id}/stdin`. Absent: nothing, but with
    /// `detach` or `pty` its input stays open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<StdinRequest>,
    /// 30 when absent, no limit with `detach` or `pty`; 0: none; at most 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<f64>,
    /// With a terminal.
    #[serde(default)]
    pub pty: bool,
    /// Columns of the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u32>,
    /// Rows of the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u32>,
    /// Name, uid, `name:group` or `uid:gid`; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Answer at once, 202, with its id.
    #[serde(default)]
    pub detach: bool,
    /// Take a version first.
    #[serde(default)]
    pub snapshot: bool,
}

/// What a process reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum StdinRequest {
    /// Whether its input stays open.
    Open(bool),
    /// All of it.
    Text(String),
}

/// A finished process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"exec_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "exit_code": 3, "timed_out": false,
    "stdout": "hello\n", "stderr": "", "stdout_encoding": "utf-8", "stderr_encoding": "utf-8",
    "stdout_truncated": false, "stderr_truncated": false, "duration_ms": 12}))]
pub struct ExecResult {
    /// Its id.
    pub exec_id: String,
    /// 0–255, or 128 + signal.
    pub exit_code: u8,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Its time was over.
    pub timed_out: bool,
    /// The first MiB, or less of it while the answers to one user take more memory than they may.
    pub stdout: String,
    /// As of `stdout`.
    pub stderr: String,
    /// How `stdout` is written.
    pub stdout_encoding: Encoding,
    /// How `stderr` is written.
    pub stderr_encoding: Encoding,
    /// There is more in the log, or on its way there.
    pub stdout_truncated: bool,
    /// There is more in the log, or on its way there.
    pub stderr_truncated: bool,
    /// From its start to its end.
    pub duration_ms: u64,
    /// The version that was taken first, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_version: Option<u64>,
}

/// What happens to a process, as a server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(example = json!({"type": "stdout", "offset": 0, "data": "hello\n", "encoding": "utf-8"}))]
pub enum ExecStreamEvent {
    /// It was started.
    Start {
        /// Its id.
        exec_id: String,
        /// As seen inside; absent where an old bridge does not tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        /// The version that was taken first, when that was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot_version: Option<u64>,
    },
    /// It wrote to its standard output.
    Stdout(ExecOutput),
    /// It wrote to its standard error.
    Stderr(ExecOutput),
    /// It ended; nothing follows.
    Exit {
        /// Its id.
        exec_id: String,
        /// 0–255, or 128 + signal.
        exit_code: u8,
        /// The signal that ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<String>,
        /// Its time was over.
        timed_out: bool,
        /// From its start to its end.
        duration_ms: u64,
        /// Bytes it wrote in all, in a terminal at least: more than came when the rest, or what its children wrote since, is in the log alone.
        stdout_bytes: u64,
        /// As of `stdout_bytes`.
        stderr_bytes: u64,
    },
    /// The stream broke: the process may go on. Nothing follows.
    Error {
        /// The sentence a person reads.
        message: String,
        /// What a program acts on.
        code: ErrorCode,
        /// The request's id.
        request_id: String,
    },
}

/// Some output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecOutput {
    /// Bytes written before it.
    pub offset: u64,
    /// The bytes.
    pub data: String,
    /// How `data` is written.
    pub encoding: Encoding,
}

/// A process that was started and left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"exec_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac"}))]
pub struct ExecStarted {
    /// Its id.
    pub exec_id: String,
    /// The version that was taken first, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_version: Option<u64>,
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecState {
    /// It runs.
    Running,
    /// It has ended.
    Exited,
}

/// A process, running or recent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"exec_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "state": "exited",
    "command": "echo hello; exit 3", "pid": 42, "pty": false, "started_at": "2026-01-02T03:04:05Z",
    "finished_at": "2026-01-02T03:04:06Z", "exit_code": 3, "timed_out": false, "stdout_bytes": 6, "stderr_bytes": 0,
    "dropped_bytes": 0}))]
pub struct ExecInfo {
    /// Its id.
    pub exec_id: String,
    /// Whether it runs.
    pub state: ExecState,
    /// As it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// As it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// As seen inside; absent where an old bridge does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// It has a terminal.
    pub pty: bool,
    /// When it was started.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<DateTime<Utc>>,
    /// 0–255, or 128 + signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Its time was over.
    pub timed_out: bool,
    /// Bytes it wrote in all.
    pub stdout_bytes: u64,
    /// Bytes it wrote in all.
    pub stderr_bytes: u64,
    /// Bytes of both that are no longer kept.
    pub dropped_bytes: u64,
}

/// Running and recent processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"exec_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "state": "exited",
    "command": "echo hello; exit 3", "pid": 42, "pty": false, "started_at": "2026-01-02T03:04:05Z",
    "finished_at": "2026-01-02T03:04:06Z", "exit_code": 3, "timed_out": false, "stdout_bytes": 6, "stderr_bytes": 0,
    "dropped_bytes": 0}]}))]
pub struct ExecList {
    /// The oldest start first.
    pub items: Vec<ExecInfo>,
}

/// A signal for a process's whole group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"signal": "SIGTERM"}))]
pub struct SignalRequest {
    /// As `SIGTERM`, `TERM` or `15`.
    #[serde(default)]
    pub signal: String,
}

/// Another size of a process's terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"cols": 120, "rows": 40}))]
pub struct ResizeRequest {
    /// Columns, 1–1000.
    #[serde(default)]
    pub cols: u32,
    /// Rows, 1–1000.
    #[serde(default)]
    pub rows: u32,
}

/// It is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"ok": true}))]
pub struct ExecDone {
    /// Always `true`.
    pub ok: bool,
}
