//! `/data` of a workspace as one archive, out of it and into it.

mod compress;
mod export;

pub use compress::{Archive, ArchiveFormat, Digest, Piece};
pub use export::{Changing, Export};
