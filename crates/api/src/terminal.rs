//! Terminals.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether a terminal can be opened, and what it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"available": true, "shell": "/bin/bash"}))]
pub struct TerminalInfo {
    /// The workspace's bridge answered.
    pub available: bool,
    /// The shell; empty when not available.
    pub shell: String,
}

/// What a client writes as text on the terminal's socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TerminalMessage {
    /// Another size.
    Resize {
        /// Columns.
        cols: u32,
        /// Rows.
        rows: u32,
    },
}
