//! The wire between the server and the bridge inside a workspace.
//!
//! [`bridgepb`] is the reference's service and never changes; [`workspace`] is ours and only grows.

mod counted;
mod describe;
pub mod reason;

pub use counted::CountedCodec;
pub use describe::{etag, mode_of_text, mode_text};

/// The reference's service, wire compatible both ways.
#[allow(unreachable_pub, missing_docs, clippy::all)]
pub mod bridgepb {
    tonic::include_proto!("bridgepb");
}

/// Skep's own service.
#[allow(unreachable_pub, missing_docs, clippy::all)]
pub mod workspace {
    tonic::include_proto!("skep.bridge.v1");
}

/// The largest message either side accepts, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// The number of [`workspace`]'s surface, told by `Info`; raised whenever it grows.
pub const GENERATION: u32 = 8;
/// The pieces in which files and archives are streamed, in bytes.
pub const STREAM_CHUNK_BYTES: usize = 256 * 1024;
