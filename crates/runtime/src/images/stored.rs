//! What of an image is in the store: its documents, whether they are complete, its size.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_client::services::v1::Image;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::daemon::Daemon;
use super::distribution::{CONFIG_LIMIT, MANIFEST_LIMIT};
use super::manifest::{BadImage, Descriptor, Digest, Document, ImageConfig, Manifest, for_this_host, parse_document};
use crate::{Result, RuntimeError};

/// Indexes point to indexes, but nobody needs more than this.
pub(super) const INDEX_DEPTH: usize = 3;
/// Images whose documents are kept in memory, some 10 KiB each; beyond that all are read anew.
const KNOWN_DOCUMENTS: usize = 256;
/// Questions to containerd under way at once.
const QUESTIONS: usize = 16;

/// The documents of a stored image for this host's platform.
#[derive(Debug, Clone)]
pub(super) struct Documents {
    /// From what the name points to down to the platform's manifest.
    pub(super) path: Vec<Descriptor>,
    pub(super) manifest: Manifest,
    pub(super) config: ImageConfig,
}

impl Documents {
    /// Bytes of all content, each blob once.
    pub(super) fn size(&self) -> u64 {
        let mut seen: HashSet<&Digest> = HashSet::new();
        let parts = self
            .path
            .iter()
            .chain([&self.manifest.config])
            .chain(&self.manifest.layers);
        parts
            .filter(|part| seen.insert(&part.digest))
            .map(|part| part.size)
            .sum()
    }

    /// The name of the unpacked image; `None` for an image without layers.
    pub(super) fn top(&self) -> Option<String> {
        self.config.chain_ids().pop()
    }
}

/// Documents that were read, by the digest of what a name points to: the same digest is the same for ever. Whether
/// they are still in the content store is asked where it counts.
#[derive(Default)]
pub(super) struct ReadDocuments {
    known: Mutex<HashMap<Digest, Arc<Documents>>>,
}

impl ReadDocuments {
    /// From memory, else from the content store; `None` when one is not there.
    pub(super) async fn of(&self, daemon: &Daemon, target: &Descriptor) -> Result<Option<Arc<Documents>>> {
        if let Some(known) = self.lock().get(&target.digest) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(documents) = read_documents(daemon, target).await?.map(Arc::new) else {
            return Ok(None);
        };
        let mut known = self.lock();
        if known.len() >= KNOWN_DOCUMENTS {
            known.clear();
        }
        known.insert(target.digest.clone(), Arc::clone(&documents));
        Ok(Some(documents))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Documents>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads an image's documents from the content store; `None` when one is not there.
pub(super) async fn read_documents(daemon: &Daemon, target: &Descriptor) -> Result<Option<Documents>> {
    let mut path = vec![target.clone()];
    loop {
        let Some(current) = path.last().cloned() else {
            return Ok(None);
        };
        let Some(bytes) = daemon.read_blob(&current.digest, MANIFEST_LIMIT).await? else {
            return Ok(None);
        };
        let (document, _) = parse_document(&bytes, Some(&current.media_type)).map_err(rejected)?;
        match document {
            Document::Index(manifests) if path.len() <= INDEX_DEPTH => {
                path.push(for_this_host(&manifests).map_err(rejected)?.clone());
            }
            Document::Index(_) => return Err(rejected(BadImage("its indexes are nested too deeply".to_owned()))),
            Document::Image(manifest) => {
                let Some(bytes) = daemon.read_blob(&manifest.config.digest, CONFIG_LIMIT).await? else {
                    return Ok(None);
                };
                let config = ImageConfig::parse(&bytes).map_err(rejected)?;
                config.check_against(&manifest).map_err(rejected)?;
                return Ok(Some(Documents { path, manifest, config }));
            }
        }
    }
}

/// The distinct layers that are not in the content store.
pub(super) async fn missing_layers(daemon: &Daemon, manifest: &Manifest) -> Result<HashSet<Digest>> {
    missing(daemon, manifest.layers.iter().map(|layer| &layer.digest)).await
}

/// Whether documents or layers are not in the content store.
pub(super) async fn lacks_content(daemon: &Daemon, documents: &Documents) -> Result<bool> {
    let parts = documents.path.iter().chain([&documents.manifest.config]);
    let parts = parts.chain(&documents.manifest.layers).map(|part| &part.digest);
    Ok(!missing(daemon, parts).await?.is_empty())
}

async fn missing(daemon: &Daemon, digests: impl Iterator<Item = &Digest>) -> Result<HashSet<Digest>> {
    let distinct: HashSet<Digest> = digests.cloned().collect();
    stream::iter(distinct)
        .map(|digest| async move { Ok((daemon.blob_info(&digest).await?.is_none(), digest)) })
        .buffer_unordered(QUESTIONS)
        .try_filter_map(|(missing, digest)| async move { Ok(missing.then_some(digest)) })
        .try_collect()
        .await
}

/// Whether the layers are unpacked as far as a workspace needs them.
pub(super) async fn is_unpacked(daemon: &Daemon, snapshotter: &str, documents: &Documents) -> Result<bool> {
    match documents.top() {
        Some(top) => daemon.has_snapshot(snapshotter, &top).await,
        None => Ok(true),
    }
}

/// What a record of containerd points to.
pub(super) fn target_of(image: &Image) -> Result<Descriptor> {
    let target = image.target.clone().unwrap_or_default();
    let digest = Digest::try_from(target.digest).map_err(rejected)?;
    Ok(Descriptor {
        media_type: target.media_type,
        digest,
        size: u64::try_from(target.size).unwrap_or_default(),
        platform: None,
        annotations: None,
    })
}

pub(super) fn rejected(error: BadImage) -> RuntimeError {
    RuntimeError::Rejected {
        reason: error.to_string(),
    }
}
