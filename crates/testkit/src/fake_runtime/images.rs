//! Stored images and the pretended registry they are pulled from. All of them have the same root file system.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use skep_names::ImageReference;
use skep_runtime::{ImageRecord, LayerPhase, LayerProgress, PullProgress, Result, RuntimeError};

/// One layer of an image that can be pulled.
#[derive(Debug, Clone)]
pub struct FakeLayer {
    /// Its bytes, as the manifest would have them.
    pub size_bytes: u64,
    /// How long its download takes, spread over four steps.
    pub takes: Duration,
}

#[derive(Default)]
struct State {
    stored: BTreeMap<ImageReference, ImageRecord>,
    offered: BTreeMap<ImageReference, Vec<FakeLayer>>,
}

#[derive(Default)]
pub(super) struct Images {
    state: Mutex<State>,
}

impl Images {
    pub(super) fn with_stored(name: &str) -> Self {
        let images = Self::default();
        if let Ok(reference) = name.parse() {
            images.store(&reference, 1 << 20);
        }
        images
    }

    pub(super) fn offer(&self, reference: &ImageReference, layers: Vec<FakeLayer>) {
        self.lock().offered.insert(reference.clone(), layers);
    }

    pub(super) fn all(&self) -> Vec<ImageRecord> {
        self.lock().stored.values().cloned().collect()
    }

    pub(super) fn stored(&self, reference: &ImageReference) -> Option<ImageRecord> {
        self.lock().stored.get(reference).cloned()
    }

    pub(super) fn remove(&self, reference: &ImageReference) {
        self.lock().stored.remove(reference);
    }

    /// Tells the layers, then each one's way from waiting to done, and stores the image.
    pub(super) async fn pull(&self, reference: &ImageReference, progress: &dyn PullProgress) -> Result<ImageRecord> {
        if let Some(record) = self.stored(reference) {
            return Ok(record);
        }
        let offered = self.lock().offered.get(reference).cloned();
        let layers = offered.ok_or_else(|| RuntimeError::ImageNotFound {
            reference: reference.as_str().to_owned(),
        })?;
        let mut shown: Vec<LayerProgress> = layers.iter().enumerate().map(waiting).collect();
        progress.layers(&shown);
        for (layer, shown) in layers.iter().zip(&mut shown) {
            for step in 1..=4_u64 {
                tokio::time::sleep(layer.takes / 4).await;
                shown.offset = layer.size_bytes * step / 4;
                shown.phase = LayerPhase::Downloading;
                progress.layer(shown);
            }
            for phase in [LayerPhase::Verifying, LayerPhase::Extracting, LayerPhase::Done] {
                shown.phase = phase;
                progress.layer(shown);
            }
        }
        Ok(self.store(reference, layers.iter().map(|layer| layer.size_bytes).sum()))
    }

    /// Stores an image under the name given or the names in the archive. Its layers are not unpacked:
    /// here every image has the same root file system.
    pub(super) fn import(&self, archive: &[u8], name: Option<&ImageReference>) -> Result<Vec<ImageRecord>> {
        let refused = |reason: &str| RuntimeError::Rejected {
            reason: reason.to_owned(),
        };
        let found = names_in(archive).map_err(|_| refused("the archive is not a tar stream"))?;
        let found = found.ok_or_else(|| refused("the archive has neither an index.json nor a manifest.json"))?;
        let names = match name {
            Some(name) => vec![name.clone()],
            None => found,
        };
        if names.is_empty() {
            return Err(refused("the archive names no image, and no name was given"));
        }
        let size_bytes = archive.len() as u64;
        Ok(names.iter().map(|name| self.store(name, size_bytes)).collect())
    }

    fn store(&self, reference: &ImageReference, size_bytes: u64) -> ImageRecord {
        let record = ImageRecord {
            name: reference.clone(),
            digest: digest_of(reference.as_str()),
            size_bytes,
            created_at: Utc::now(),
            in_use: false,
        };
        self.lock().stored.insert(reference.clone(), record.clone());
        record
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn waiting((index, layer): (usize, &FakeLayer)) -> LayerProgress {
    LayerProgress {
        digest: digest_of(&format!("layer {index} of {} bytes", layer.size_bytes)),
        offset: 0,
        total: layer.size_bytes,
        phase: LayerPhase::Waiting,
    }
}

/// A made-up digest: the same for the same text, and of the right form.
fn digest_of(text: &str) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(text.as_bytes())))
}

/// The names an archive gives its images; `None` when it is no image archive.
fn names_in(archive: &[u8]) -> io::Result<Option<Vec<ImageReference>>> {
    let mut names = None;
    for entry in tar::Archive::new(archive).entries()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        let path = path.strip_prefix(".").unwrap_or(&path);
        if path != std::path::Path::new("index.json") && path != std::path::Path::new("manifest.json") {
            continue;
        }
        let document: serde_json::Value = serde_json::from_reader(entry)?;
        let found: &mut Vec<ImageReference> = names.get_or_insert_default();
        let annotations = document["manifests"].as_array().into_iter().flatten();
        let tags = document.as_array().into_iter().flatten();
        let texts = annotations
            .filter_map(|manifest| manifest["annotations"]["io.containerd.image.name"].as_str())
            .chain(tags.filter_map(|image| image["RepoTags"][0].as_str()));
        for reference in texts.filter_map(|text| text.parse().ok()) {
            if !found.contains(&reference) {
                found.push(reference);
            }
        }
    }
    Ok(names)
}
