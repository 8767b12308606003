//! `/data` of a workspace that does not run, read and written on the host.
//!
//! The work is done by the program `skep-layer`, one process for each call, which cannot reach anything but the one
//! layer; see its own head comment. A backend says only what is mounted, and sees to it that no task has it.

mod program;
mod worker;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use skep_names::BotId;

pub use program::{LayerProgram, MountedData};
pub use skep_layer_protocol::{
    Applied, Apply, ApplyMode, ArchiveFormat, DataPlace as PlaceInMount, Mount, Pack, Packed, Task, Trust,
};
pub use worker::{DataReader, Held, Worker};

use crate::{LayerMount, Result};

/// Whose `/data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataPlace {
    /// That of the bot's workspace: in its active layer, or where a legacy container has it bound from.
    Workspace(BotId),
    /// That of a writable layer of the bot that no task uses, as its backend says that it is mounted.
    Mounted { bot: BotId, mount: LayerMount },
    /// A directory of the host, below the data root, that was a legacy container's `/data`.
    Directory(PathBuf),
}

/// An archive on its way into a layer; an error of it ends the work as a failure.
pub type ArchiveStream = BoxStream<'static, io::Result<Bytes>>;

/// What a backend with layers on this host can do. The workspace must not run; one that is started meanwhile waits.
/// A call that is dropped is ended, and leaves a layer that was written to as far as it came.
#[async_trait]
pub trait LayerAccess: Send + Sync {
    /// Reads `/data` as an archive. Nothing at its place: an archive without entries.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`](crate::RuntimeError::NotFound) without such a layer,
    /// [`RuntimeError::Rejected`](crate::RuntimeError::Rejected) for one that runs, and when `/data` is not a
    /// directory: a link too.
    async fn read_data(&self, place: &DataPlace, pack: Pack) -> Result<DataReader>;

    /// Reads `/data` of a workspace that runs, as it is at one moment: every process of it stands still until the
    /// reader is dropped, or read to its end and dropped. A call that is dropped lets them run on after `limit` at the
    /// latest, which is all the time that the call itself and the reading may take.
    ///
    /// # Errors
    /// [`RuntimeError::Rejected`](crate::RuntimeError::Rejected) for one that does not run, and when `/data` is not a
    /// directory; [`RuntimeError::Unsupported`](crate::RuntimeError::Unsupported) for a legacy container and where the
    /// backend cannot freeze.
    async fn read_frozen(&self, bot: &BotId, pack: Pack, limit: Duration) -> Result<DataReader>;

    /// About how many bytes a plain archive of `/data` will have, for progress bars; found quickly, too little of a
    /// tree that takes long to look through.
    ///
    /// # Errors
    /// As [`read_data`](Self::read_data).
    async fn estimate_data(&self, place: &DataPlace) -> Result<u64>;

    /// Puts an archive into `/data`; it is on the disk when this returns.
    ///
    /// # Errors
    /// As [`read_data`](Self::read_data); [`RuntimeError::ArchiveRefused`](crate::RuntimeError::ArchiveRefused),
    /// [`RuntimeError::NoSpace`](crate::RuntimeError::NoSpace). The layer is then written to in part: the caller
    /// throws it away, or repeats the call.
    async fn write_data(&self, place: &DataPlace, archive: ArchiveStream, apply: Apply) -> Result<Applied>;
}
