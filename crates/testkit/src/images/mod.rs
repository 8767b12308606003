//! Images made on the spot: no test needs one from outside.
//!
//! Build layers ([`Layer`]), join them to an [`Image`] ([`ImageBuilder`]), several of those to an
//! [`ImageIndex`]; push them to a [`Registry`](crate::registry::Registry) or write them as archives.

mod archive;
mod base;
mod builder;
mod layer;
mod push;

pub use base::{busybox_image, busybox_layer, debian_image, random_image};
pub use builder::{Blob, Image, ImageBuilder, ImageFormat, ImageIndex, digest_of};
pub use layer::{Compression, Layer};
pub use push::http_client;
