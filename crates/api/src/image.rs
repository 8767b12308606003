//! Images and GPU devices.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A stored image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Full reference.
    pub name: String,
    /// Digest of what the name points to.
    pub digest: String,
    /// Bytes as stored.
    pub size_bytes: u64,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
    /// A workspace uses it.
    pub in_use: bool,
}

/// All stored images.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"name": "docker.io/library/debian:bookworm-slim",
    "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "size_bytes": 28231124,
    "created_at": "2026-01-02T03:04:05Z", "in_use": true}]}))]
pub struct ImageList {
    /// By name.
    pub items: Vec<Image>,
}

/// Body of `POST /images/pull`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"image": "debian:bookworm-slim"}))]
pub struct PullRequest {
    /// An image reference.
    pub image: String,
}

/// Answer to `POST /images/import`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"name": "docker.io/library/debian:bookworm-slim",
    "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "size_bytes": 28231124,
    "created_at": "2026-01-02T03:04:05Z", "in_use": false}]}))]
pub struct ImportedImages {
    /// What the archive held.
    pub items: Vec<Image>,
}

/// Answer to `POST /images/prune`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"name": "docker.io/library/debian:bookworm-slim",
    "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "size_bytes": 28231124,
    "created_at": "2026-01-02T03:04:05Z", "in_use": false}], "freed_bytes": 28231124}))]
pub struct PruneResponse {
    /// What was removed.
    pub items: Vec<Image>,
    /// Bytes of it, as stored; layers shared with images that stay are counted too.
    pub freed_bytes: u64,
}

/// A GPU device of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuDevice {
    /// `vendor.com/class=name`.
    pub name: String,
    /// `vendor.com`.
    pub vendor: String,
    /// `class`.
    pub class: String,
    /// The caller may use it.
    pub allowed: bool,
}

/// The GPU devices of this host.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"name": "nvidia.com/gpu=0", "vendor": "nvidia.com", "class": "gpu",
    "allowed": true}]}))]
pub struct GpuList {
    /// By name.
    pub items: Vec<GpuDevice>,
}
