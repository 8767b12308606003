//! The names both sides of every wall agree on: ids, labels, paths and constants.
//!
//! Everything here is literal in the contract: workspaces made by the reference system must be
//! found, listed and reached under the same names. No I/O, no policy.

mod bot;
mod image;
mod terminal;

pub use bot::{BotId, InvalidId, LEGACY_PREFIX, WORKSPACE_PREFIX, container_id_for, derive_bot_id, is_legacy};
pub use image::{ImageReference, InvalidImageReference};
pub use terminal::steers_a_terminal;

/// Label on a container: the id of the bot that owns it.
pub const LABEL_BOT: &str = "memoh.bot_id";
/// Label on a container: its kind, always [`LABEL_WORKSPACE_VALUE`].
pub const LABEL_WORKSPACE: &str = "memoh.workspace";
/// The value of [`LABEL_WORKSPACE`].
pub const LABEL_WORKSPACE_VALUE: &str = "v3";
/// Label on a container: its CDI devices joined by commas; absent when there are none.
pub const LABEL_CDI_DEVICES: &str = "memoh.workspace.cdi_devices";
/// Label on everything we make in the runtime: the id of the data root that owns it.
pub const LABEL_DATA_ROOT: &str = "skep.data_root";

/// Where the socket directory is mounted inside a workspace.
pub const RUN_DIRECTORY_INSIDE: &str = "/run/memoh";
/// The bridge's socket inside a workspace.
pub const SOCKET_PATH_INSIDE: &str = "/run/memoh/bridge.sock";
/// The file name of the bridge's socket in its directory.
pub const SOCKET_FILE_NAME: &str = "bridge.sock";
/// The read-only runtime directory inside a workspace.
pub const RUNTIME_DIRECTORY_INSIDE: &str = "/opt/memoh";
/// The bridge inside a workspace: its process 1.
pub const BRIDGE_PATH_INSIDE: &str = "/opt/memoh/bridge";
/// The data directory inside a workspace.
pub const DATA_DIRECTORY_INSIDE: &str = "/data";
/// Environment variable that tells the bridge where to listen.
pub const ENV_SOCKET_PATH: &str = "BRIDGE_SOCKET_PATH";
/// Environment variable with the colon-joined skill discovery roots.
pub const ENV_SKILL_ROOTS: &str = "MEMOH_SKILL_DISCOVERY_ROOTS";
/// Number of user ids that belong to one bot.
pub const IDS_PER_BOT: u32 = 65_536;
