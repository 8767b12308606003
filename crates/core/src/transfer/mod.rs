//! `/data` of a workspace as one archive, out of it and into it.

mod compress;
mod export;
mod import;

pub use compress::{Archive, ArchiveFormat, Digest, Piece};
pub use export::{Changing, Counts, Export};
pub use import::ReceivedArchive;
