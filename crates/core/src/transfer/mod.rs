//! `/data` of a workspace as one archive, out of it and into it.

mod chunks;
mod compress;
mod export;
mod import;
mod taker;
mod turns;

pub(crate) use chunks::chunks_of;
pub use compress::{Archive, ArchiveFormat, Digest, Piece};
pub use export::{Changing, Counts, Export, Moment};
pub use import::ReceivedArchive;
pub(crate) use turns::Turns;
