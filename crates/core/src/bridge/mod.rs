//! The host's side of the bridge: connections to process 1 of each workspace, and the distrust of its answers.
//!
//! A tenant can replace its bridge and its socket. So a connection is made without following links, only to a
//! socket whose listener has the bot's own uid ([`connect`]); every answer has a size, count and time limit; names,
//! sizes, modes and times are checked where they are taken over ([`crate::files`], [`crate::exec`]); and nothing
//! that the host does to itself depends on what a bridge says.

mod connect;
#[cfg(test)]
mod endless_tests;
mod error;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod keepalive_tests;
mod pool;
mod reference;

pub(crate) use error::sentence;
pub use error::{BridgeError, BridgeResult};
pub use pool::{Bridge, BridgePool};

use std::time::Duration;

use crate::settings::LONGEST_FREEZE;

/// How long a bridge may take for something small: to accept, to tell a file's state, to rename.
pub(crate) const SMALL_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take for what grows with the tenant's data: a recursive delete, a copy, the end of a long write.
pub(crate) const LARGE_WITHIN: Duration = Duration::from_secs(15 * 60);
/// How long a stream of files may stand still because of the bridge, longer than its workspace may be frozen.
pub(crate) const NEXT_PIECE_WITHIN: Duration = Duration::from_secs(LONGEST_FREEZE.as_secs() + 10);
