//! The store of images in one containerd namespace: what callers see.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use containerd_client::services::v1::Image;
use futures::stream::{self, StreamExt, TryStreamExt};
use skep_names::ImageReference;
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use super::daemon::Daemon;
use super::interrupted::Interrupted;
use super::joined::Pulls;
use super::keyed_lock::KeyedLock;
use super::manifest::{Descriptor, ImageConfig};
use super::settings::RegistrySettings;
use super::stored::{Documents, ReadDocuments, is_unpacked, lacks_content, target_of};
use super::transport::Transport;
use super::{import, leases, names, pull};
use crate::{ImageArchive, ImageRecord, PullProgress, Result, RuntimeError};

/// Images read at once for a listing.
const READS: usize = 8;

/// Where images are kept and how registries are reached.
#[derive(Debug, Clone)]
pub struct ImageStoreConfig {
    /// containerd's namespace.
    pub namespace: String,
    /// Where images are unpacked unless a caller says otherwise.
    pub snapshotter: String,
    /// Whose pulls these are: two servers may share the namespace.
    pub data_root_id: String,
    /// Registries.
    pub registries: RegistrySettings,
}

/// Images in one namespace of one containerd. Cheap to clone.
///
/// Every verb may be repeated. Dropping a call of [`ImageStore::pull`] or [`ImageStore::import`] ends the
/// work unless somebody else waits for it, and what it made is collected. After a crash of this process, and after a
/// pull that a registry or the network let down, a repeat goes on where it stopped; what is never repeated is
/// collected by [`ImageStore::sweep`], or within a day.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) daemon: Daemon,
    pub(super) snapshotter: String,
    pub(super) data_root_id: String,
    /// Names of the leases that work of this process is done under.
    leases: Mutex<HashSet<String>>,
    pub(super) registries: RegistrySettings,
    pub(super) transport: Transport,
    pub(super) locks: KeyedLock,
    pub(super) tasks: TaskTracker,
    /// What was left by pulls of before the last boot is gone.
    pub(super) swept: OnceCell<()>,
    /// What pulls have fetched of images that they could not finish.
    pub(super) interrupted: Interrupted,
    documents: ReadDocuments,
    pulls: Pulls,
}

impl Inner {
    pub(super) fn live_leases(&self) -> MutexGuard<'_, HashSet<String>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An image that a workspace can be made from.
#[derive(Debug, Clone)]
pub struct UnpackedImage {
    /// The name under which containerd keeps it, which may be a short one.
    pub stored_name: String,
    /// Digest of what the name points to (an index or a manifest).
    pub digest: String,
    /// Digest of this platform's manifest.
    pub manifest_digest: String,
    /// Parent for a writable layer: the top of the unpacked stack. Empty for an image without layers.
    pub chain_id: String,
    /// Its configuration.
    pub config: ImageConfig,
    /// Bytes of all its content, as stored.
    pub size_bytes: u64,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

/// An image's record with its documents.
struct Found {
    name: String,
    target: Descriptor,
    created_at: DateTime<Utc>,
    documents: Arc<Documents>,
}

impl ImageStore {
    /// A store that speaks to containerd over `channel`. Nothing is asked yet.
    ///
    /// # Errors
    /// `Rejected` for a namespace that cannot be one.
    pub fn new(channel: Channel, config: ImageStoreConfig) -> Result<Self> {
        let inner = Inner {
            daemon: Daemon::new(channel, &config.namespace)?,
            snapshotter: config.snapshotter,
            data_root_id: config.data_root_id,
            leases: Mutex::default(),
            registries: config.registries,
            transport: Transport::default(),
            locks: KeyedLock::default(),
            tasks: TaskTracker::new(),
            swept: OnceCell::new(),
            interrupted: Interrupted::default(),
            documents: ReadDocuments::default(),
            pulls: Pulls::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Lets go of what pulls of a server of this data root left that died, once nobody takes it up.
    ///
    /// # Errors
    /// `Unavailable` when containerd does not answer.
    pub async fn sweep(&self) -> Result<()> {
        leases::drop_abandoned_leases(&self.inner).await
    }

    /// All images, by name. One whose documents cannot be read is listed with the size of what it points to.
    ///
    /// # Errors
    /// `Unavailable` when containerd does not answer.
    pub async fn images(&self) -> Result<Vec<ImageRecord>> {
        let used = self.used().await?;
        let images = self.inner.daemon.list_images().await?;
        let named = images
            .into_iter()
            .filter_map(|image| Some((names::normalised(&image.name)?, image)));
        let mut records: Vec<ImageRecord> = stream::iter(named)
            .map(|(name, image)| self.listed(name, image, &used))
            .buffer_unordered(READS)
            .try_collect()
            .await?;
        records.sort_by(|one, other| one.name.cmp(&other.name));
        // The same image may be kept under its full and its short name.
        records.dedup_by(|one, other| one.name == other.name);
        Ok(records)
    }

    async fn listed(&self, name: ImageReference, image: Image, used: &HashSet<ImageReference>) -> Result<ImageRecord> {
        let target = target_of(&image)?;
        let size_bytes = match self.inner.documents.of(&self.inner.daemon, &target).await {
            Ok(Some(documents)) => documents.size(),
            Ok(None) | Err(RuntimeError::Rejected { .. }) => target.size,
            Err(error) => return Err(error),
        };
        Ok(ImageRecord {
            in_use: used.contains(&name),
            name,
            digest: target.digest.to_string(),
            size_bytes,
            created_at: created_at(&image),
        })
    }

    /// The image, when it is there, complete and unpacked; else `None`.
    ///
    /// # Errors
    /// `Unavailable` when containerd does not answer; `Rejected` for an image that can never work here.
    pub async fn image(&self, reference: &ImageReference) -> Result<Option<ImageRecord>> {
        match self.unpacked(reference, &self.inner.snapshotter).await? {
            Some(image) => self.record(reference, image).await.map(Some),
            None => Ok(None),
        }
    }

    /// What a workspace needs of the image; `None` when it is not there, lacks content or is not unpacked
    /// in this snapshotter.
    ///
    /// # Errors
    /// As [`ImageStore::image`].
    pub async fn unpacked(&self, reference: &ImageReference, snapshotter: &str) -> Result<Option<UnpackedImage>> {
        let Some(found) = self.find(reference).await? else {
            return Ok(None);
        };
        let (lacks, unpacked) = tokio::try_join!(
            lacks_content(&self.inner.daemon, &found.documents),
            is_unpacked(&self.inner.daemon, snapshotter, &found.documents),
        )?;
        if lacks || !unpacked {
            return Ok(None);
        }
        Ok(Some(found.into()))
    }

    /// What a workspace is made from: the image, unpacked if that is all it lacks, without asking a registry. One
    /// that is unpacked serves, whatever of its packed content is there. `None` when only a pull can help.
    ///
    /// # Errors
    /// As [`ImageStore::image`]; `Rejected` also when a layer cannot be unpacked, `NoSpace`.
    pub async fn unpack(&self, reference: &ImageReference, snapshotter: &str) -> Result<Option<UnpackedImage>> {
        let Some(found) = self.find(reference).await? else {
            return Ok(None);
        };
        if is_unpacked(&self.inner.daemon, snapshotter, &found.documents).await? {
            return Ok(Some(found.into()));
        }
        if lacks_content(&self.inner.daemon, &found.documents).await? {
            return Ok(None);
        }
        pull::unpack_stored(&self.inner, &found.documents, snapshotter).await?;
        Ok(Some(found.into()))
    }

    /// The image, unpacked if that is all it lacks; `None` when it is not there or lacks content.
    ///
    /// # Errors
    /// As [`ImageStore::unpack`].
    pub async fn complete(&self, reference: &ImageReference) -> Result<Option<ImageRecord>> {
        let Some(found) = self.find(reference).await? else {
            return Ok(None);
        };
        let (lacks, unpacked) = tokio::try_join!(
            lacks_content(&self.inner.daemon, &found.documents),
            is_unpacked(&self.inner.daemon, &self.inner.snapshotter, &found.documents),
        )?;
        if lacks {
            return Ok(None);
        }
        if !unpacked {
            pull::unpack_stored(&self.inner, &found.documents, &self.inner.snapshotter).await?;
        }
        self.record(reference, found.into()).await.map(Some)
    }

    /// Fetches what is missing of an image from its registry and unpacks it. Pulls of the same image at
    /// the same time are one work, and all are told of its progress.
    ///
    /// # Errors
    /// `ImageNotFound`, `Registry`, `Rejected` for an image that cannot work here, `NoSpace`, `Unavailable`.
    pub async fn pull(&self, reference: &ImageReference, progress: Arc<dyn PullProgress>) -> Result<ImageRecord> {
        self.inner.pulls.join(&self.inner, reference, progress).await?;
        // The record is read back: what is told is what is there.
        let found = self.find(reference).await?.ok_or_else(|| gone(reference))?;
        self.record(reference, found.into()).await
    }

    /// Stores and unpacks the images of an OCI archive, a docker-archive or a tar of an OCI layout, which may
    /// be compressed with gzip or zstd. `name` overrides the name of an archive's only image.
    ///
    /// # Errors
    /// `Rejected` for an archive that is none of these, is damaged, or has no name; then nothing is left of it.
    pub async fn import(&self, archive: ImageArchive, name: Option<&ImageReference>) -> Result<Vec<ImageRecord>> {
        let names = import::import(&self.inner, archive, name).await?;
        let mut records = Vec::with_capacity(names.len());
        for name in names {
            let found = self.find(&name).await?.ok_or_else(|| gone(&name))?;
            records.push(self.record(&name, found.into()).await?);
        }
        Ok(records)
    }

    /// Removes an image under all spellings of its name, and what it alone held. A missing one is a success.
    ///
    /// # Errors
    /// `Rejected` while a container uses it.
    pub async fn remove(&self, reference: &ImageReference) -> Result<()> {
        let users = self.users(reference).await?;
        if let Some(user) = users.first() {
            let more = users.len() - 1;
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            return Err(RuntimeError::Rejected {
                reason: format!("image {reference} is in use by {user}{more}"),
            });
        }
        for name in names::spellings(reference) {
            self.inner.daemon.delete_image(&name).await?;
        }
        Ok(())
    }

    /// Removes every image that no container uses, `kept` excepted, and tells which. What was fetched of images whose pull failed
    /// goes too.
    ///
    /// # Errors
    /// `Unavailable` when containerd does not answer; what was removed before stays removed.
    pub async fn prune(&self, kept: &[ImageReference]) -> Result<Vec<ImageRecord>> {
        for lease in self.inner.interrupted.take_all() {
            leases::end_lease(&self.inner, &lease, false).await;
        }
        let mut removed = Vec::new();
        let is_spare = |image: &ImageRecord| !image.in_use && !kept.contains(&image.name);
        for image in self.images().await?.into_iter().filter(is_spare) {
            match self.remove(&image.name).await {
                Ok(()) => removed.push(image),
                // A workspace was made from it since it was listed.
                Err(RuntimeError::Rejected { reason }) => tracing::info!(reason, "not pruned"),
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Waits until what nobody waits for any more has cleaned up after itself; for the end of the process.
    pub async fn finish(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    async fn find(&self, reference: &ImageReference) -> Result<Option<Found>> {
        for name in names::spellings(reference) {
            let Some(image) = self.inner.daemon.get_image(&name).await? else {
                continue;
            };
            let target = target_of(&image)?;
            let documents = self.inner.documents.of(&self.inner.daemon, &target).await?;
            return Ok(documents.map(|documents| Found {
                name,
                created_at: created_at(&image),
                target,
                documents,
            }));
        }
        Ok(None)
    }

    async fn record(&self, reference: &ImageReference, image: UnpackedImage) -> Result<ImageRecord> {
        let in_use = !self.users(reference).await?.is_empty();
        Ok(ImageRecord {
            name: reference.clone(),
            digest: image.digest,
            size_bytes: image.size_bytes,
            created_at: image.created_at,
            in_use,
        })
    }

    /// Containers made from the image, under whatever spelling of its name.
    async fn users(&self, reference: &ImageReference) -> Result<Vec<String>> {
        let containers = self.inner.daemon.containers_of(&names::spellings(reference)).await?;
        Ok(containers.into_iter().map(|(container, _)| container).collect())
    }

    async fn used(&self) -> Result<HashSet<ImageReference>> {
        let containers = self.inner.daemon.containers_of(&[]).await?;
        Ok(containers
            .iter()
            .filter_map(|(_, image)| names::normalised(image))
            .collect())
    }
}

impl From<Found> for UnpackedImage {
    fn from(found: Found) -> Self {
        let manifest = found.documents.path.last().unwrap_or(&found.target);
        Self {
            manifest_digest: manifest.digest.to_string(),
            stored_name: found.name,
            digest: found.target.digest.to_string(),
            chain_id: found.documents.top().unwrap_or_default(),
            size_bytes: found.documents.size(),
            config: found.documents.config.clone(),
            created_at: found.created_at,
        }
    }
}

fn created_at(image: &Image) -> DateTime<Utc> {
    let time = image.created_at.unwrap_or_default();
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).unwrap_or_default()).unwrap_or_default()
}

fn gone(reference: &ImageReference) -> RuntimeError {
    RuntimeError::NotFound {
        what: format!("image {reference}, which was just stored,"),
    }
}
