//! The programs that every workspace needs, carried inside the server's own binary.
//!
//! Not here: which workspace gets which directory, and how it is mounted; that is the runtime's.

mod unpack;

pub use unpack::{unpack, unpack_layer_program};

/// Process 1 of a workspace: a static executable for this host's architecture.
pub static BRIDGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/skep-bridge"));

/// The static wrapper that lets crun run on a host with hybrid cgroups; see [`CRUN_WRAPPER_FILE`].
pub static CRUN_WRAPPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/skep-crun"));

/// What reads and writes `/data` of layers on the host: never seen by a workspace.
pub static LAYER_PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/skep-layer"));

/// The name of [`LAYER_PROGRAM`] in its directory.
pub const LAYER_PROGRAM_FILE: &str = "skep-layer";

/// The name of [`BRIDGE`] in the runtime directory.
pub const BRIDGE_FILE: &str = "bridge";

/// The name of [`CRUN_WRAPPER`] in the runtime directory. A file `crun-path` beside it may name the crun it starts.
pub const CRUN_WRAPPER_FILE: &str = "skep-crun";
