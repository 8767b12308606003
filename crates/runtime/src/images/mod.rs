//! Images: pulled by our own distribution client, imported, listed and removed, and unpacked into
//! containerd so that its own tools see normal images.
//!
//! A pull goes registry → content store (streamed, resumable, digests checked there) → snapshotter, each
//! layer as soon as it and all below it are there. All of it happens under a lease, so that no garbage
//! collection takes what has no name yet, and a pull that fails leaves nothing.
//!
//! Not here: which registry a user may name and when a registry is asked at all. That is policy.

mod address_guard;
mod archive;
mod challenge;
mod credentials;
mod daemon;
mod distribution;
mod fetch;
mod import;
mod ingest;
mod interrupted;
mod joined;
mod keyed_lock;
mod leases;
mod manifest;
mod names;
mod owners;
mod progress;
mod pull;
mod settings;
mod store;
mod stored;
mod transport;
mod unpack;

/// On what was made for an image: its full name.
pub(crate) const LABEL_IMAGE: &str = "skep.image";

pub use manifest::ImageConfig;
pub use settings::{RegistryHost, RegistrySettings};
pub use store::{ImageStore, ImageStoreConfig, UnpackedImage};
