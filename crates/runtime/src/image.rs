//! Images as every backend shows them, and the progress of a pull.

use chrono::{DateTime, Utc};
use skep_names::ImageReference;

/// A stored image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// Full name.
    pub name: ImageReference,
    /// Digest of what the name points to (an index or a manifest).
    pub digest: String,
    /// Bytes of all its content, as stored.
    pub size_bytes: u64,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
    /// A container uses it.
    pub in_use: bool,
}

/// What happens to one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerPhase {
    /// Not begun.
    Waiting,
    /// Bytes arrive.
    Downloading,
    /// Its digest is checked.
    Verifying,
    /// It is unpacked.
    Extracting,
    /// It is stored and unpacked.
    Done,
}

/// One layer of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// The blob's digest.
    pub digest: String,
    /// Bytes that are here; never goes backwards.
    pub offset: u64,
    /// Bytes in all, from the manifest.
    pub total: u64,
    /// What happens to it now.
    pub phase: LayerPhase,
}

/// Told of a pull as it goes. Implementations must not block; pacing is the caller's.
pub trait PullProgress: Send + Sync {
    /// The layers that make up the image, one entry per distinct one, in the manifest's order.
    /// Called once, only when bytes have to be fetched, before any other call.
    fn layers(&self, layers: &[LayerProgress]);
    /// The state of one layer, which `layers` named.
    fn layer(&self, layer: &LayerProgress);
}

/// How to sign in to a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct PullCredentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for PullCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullCredentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}
