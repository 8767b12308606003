//! Stores the images of an archive: an OCI layout or what `docker save` writes.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use skep_names::ImageReference;
use tokio_util::sync::CancellationToken;

use super::archive::{Archive, Entry, Kind, rejected};
use super::daemon::Lease;
use super::distribution::{CONFIG_LIMIT, MANIFEST_LIMIT};
use super::ingest::{CHUNK, Committed, Expected, Ingest, Opened, abort, ingest_name, store_small};
use super::leases::{end_lease, new_lease};
use super::manifest::{
    BadImage, Descriptor, Digest, Document, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, child_labels, for_this_host,
    parse_document,
};
use super::pull::unpack_under;
use super::store::Inner;
use super::stored::{missing_layers, read_documents};
use crate::{ImageArchive, Result, RuntimeError};

/// Small files of an archive that are kept in memory, all together.
const SMALL_FILES_LIMIT: u64 = 64 << 20;
const LINKS_LIMIT: usize = 10_000;
const IMAGES_LIMIT: usize = 100;

/// What an archive turned out to hold.
#[derive(Default)]
struct Contents {
    /// By path: JSON documents.
    small: HashMap<String, Vec<u8>>,
    small_bytes: u64,
    /// By path: what is in the content store now.
    blobs: HashMap<String, Blob>,
    /// By path: the path of another entry.
    links: HashMap<String, String>,
}

#[derive(Debug, Clone)]
struct Blob {
    digest: Digest,
    size: u64,
    /// What a layer of this content is called.
    layer_type: String,
}

/// An image to be named.
struct Named {
    names: Vec<ImageReference>,
    target: Descriptor,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Stores all images of an archive and returns their names. On failure nothing stays.
pub(super) async fn import(
    inner: &Arc<Inner>,
    archive: ImageArchive,
    name: Option<&ImageReference>,
) -> Result<Vec<ImageReference>> {
    let cancel = CancellationToken::new();
    // In a task of its own, so that its lease is given back also when the caller goes away.
    let _with_the_caller = cancel.clone().drop_guard();
    let (inner, name, tasks) = (Arc::clone(inner), name.cloned(), inner.tasks.clone());
    let task = tasks.spawn(async move {
        let lease = new_lease(&inner, None).await?;
        let done = tokio::select! {
            done = import_under(&inner, &lease, archive, name.as_ref()) => done,
            () = cancel.cancelled() => Err(RuntimeError::other("import images", "the caller went away")),
        };
        end_lease(&inner, &lease, done.is_ok()).await;
        done
    });
    task.await
        .map_err(|error| RuntimeError::other("import images", error))?
}

async fn import_under(
    inner: &Inner,
    lease: &Lease,
    archive: ImageArchive,
    name: Option<&ImageReference>,
) -> Result<Vec<ImageReference>> {
    let mut import = Import {
        inner,
        lease,
        contents: Contents::default(),
    };
    import.take_in(archive).await?;
    let images = import.images(name).await?;
    let mut names = Vec::new();
    for image in &images {
        import.unpack(&image.target).await?;
    }
    // Names last: either all of an archive is there or nothing.
    for image in images {
        for name in image.names {
            inner.daemon.put_image(name.as_str(), &image.target).await?;
            names.push(name);
        }
    }
    Ok(names)
}

struct Import<'a> {
    inner: &'a Inner,
    lease: &'a Lease,
    contents: Contents,
}

impl Import<'_> {
    async fn take_in(&mut self, archive: ImageArchive) -> Result<()> {
        let mut archive = Archive::open(archive).await?;
        while let Some(entry) = archive.next().await? {
            match &entry.kind {
                Kind::File => self.take_file(&mut archive, entry).await?,
                Kind::Symlink(target) => {
                    let target = beside(&entry.path, target);
                    self.take_link(entry.path, target)?;
                }
                Kind::HardLink(target) => {
                    let target = target.clone();
                    self.take_link(entry.path, target)?;
                }
                Kind::Other => {}
            }
        }
        Ok(())
    }

    fn take_link(&mut self, path: String, target: String) -> Result<()> {
        if self.contents.links.len() >= LINKS_LIMIT {
            return Err(rejected("it has too many links"));
        }
        self.contents.links.insert(path, target);
        Ok(())
    }

    async fn take_file(&mut self, archive: &mut Archive, entry: Entry) -> Result<()> {
        if let Some(hex) = entry.path.strip_prefix("blobs/sha256/") {
            let digest = Digest::try_from(format!("sha256:{hex}"));
            let digest = digest.map_err(|error| rejected(&error.to_string()))?;
            let blob = self.store(archive, entry.size, Some(digest)).await?;
            self.contents.blobs.insert(entry.path, blob);
        } else if entry.path.ends_with(".tar") {
            let blob = self.store(archive, entry.size, None).await?;
            self.contents.blobs.insert(entry.path, blob);
        } else if entry.path.ends_with(".json") {
            self.contents.small_bytes += entry.size;
            if self.contents.small_bytes > SMALL_FILES_LIMIT {
                return Err(rejected("its JSON files are too large"));
            }
            let bytes = archive.read_small(CONFIG_LIMIT as u64).await?;
            self.contents.small.insert(entry.path, bytes);
        }
        Ok(())
    }

    /// Streams a file into the content store. One whose digest is not known before is hashed on the way.
    async fn store(&self, archive: &mut Archive, size: u64, digest: Option<Digest>) -> Result<Blob> {
        let reference = match &digest {
            Some(digest) => ingest_name(digest),
            None => format!("skep-import-{}", uuid::Uuid::new_v4().simple()),
        };
        let _only_one = self
            .inner
            .locks
            .lock(digest.as_ref().map_or(&reference, |digest| digest.as_ref()))
            .await;
        let expected = Expected {
            reference: reference.clone(),
            total: Some(size),
            digest: digest.clone(),
        };
        let daemon = &self.inner.daemon;
        let mut ingest = match Ingest::open(daemon, self.lease, expected).await? {
            Opened::Writing(ingest) => Some(ingest),
            Opened::There => None,
        };
        let mut skip = ingest.as_ref().map_or(size, |ingest| ingest.offset());
        let (mut hash, mut start) = (Sha256::new(), Vec::new());
        loop {
            let mut data = archive.read(CHUNK).await?;
            if data.is_empty() {
                break;
            }
            if start.is_empty() {
                start = data[..data.len().min(4)].to_vec();
            }
            if digest.is_none() {
                hash.update(&data);
            }
            let skipped = skip.min(data.len() as u64);
            skip -= skipped;
            if let Some(ingest) = &mut ingest {
                data.drain(..skipped as usize);
                ingest.write(data).await?;
            }
        }
        let known = digest.is_some();
        let digest = match digest {
            Some(digest) => digest,
            None => Digest::try_from(format!("sha256:{}", hex::encode(hash.finalize())))
                .map_err(|error| RuntimeError::other("hash a file of the archive", error))?,
        };
        match ingest {
            Some(ingest) => self.commit(ingest.expecting(digest.clone()), &reference).await?,
            None => daemon.hold_blob(self.lease, &digest).await?,
        }
        if !known {
            // Content that was there already was not taken under the lease by writing it.
            daemon.hold_blob(self.lease, &digest).await?;
        }
        let layer_type = layer_type(&start);
        Ok(Blob {
            digest,
            size,
            layer_type,
        })
    }

    async fn commit(&self, ingest: Box<Ingest>, reference: &str) -> Result<()> {
        match ingest.commit(&Default::default()).await? {
            Committed::Stored(_) => Ok(()),
            Committed::Different => {
                abort(&self.inner.daemon, reference).await?;
                Err(rejected(&format!("{reference} has another digest than its name says")))
            }
        }
    }

    async fn images(&self, name: Option<&ImageReference>) -> Result<Vec<Named>> {
        if let Some(index) = self.contents.small.get("index.json") {
            return self.of_layout(index, name);
        }
        if let Some(manifest) = self.contents.small.get("manifest.json") {
            return self.of_docker(manifest, name).await;
        }
        Err(rejected("it has neither index.json (OCI) nor manifest.json (docker)"))
    }

    fn of_layout(&self, index: &[u8], name: Option<&ImageReference>) -> Result<Vec<Named>> {
        let parsed = parse_document(index, None).map_err(bad)?;
        let (Document::Index(manifests), _) = parsed else {
            return Err(rejected("its index.json is no index"));
        };
        if manifests.is_empty() {
            return Err(rejected("there is no image in it"));
        }
        if manifests.len() > IMAGES_LIMIT {
            return Err(rejected("there are too many images in it"));
        }
        if let Some(name) = name {
            // Several manifests without names of their own are one image for several platforms.
            let target = match &manifests[..] {
                [only] => only,
                several if several.iter().all(|image| layout_name(image).is_none()) => {
                    for_this_host(several).map_err(bad)?
                }
                _ => {
                    return Err(rejected(
                        "there are several images in it, which cannot all have one name",
                    ));
                }
            };
            return Ok(vec![Named {
                names: vec![name.clone()],
                target: target.clone(),
            }]);
        }
        manifests
            .into_iter()
            .map(|target| {
                let name = layout_name(&target).ok_or_else(unnamed)?;
                Ok(Named {
                    names: vec![name],
                    target,
                })
            })
            .collect()
    }

    async fn of_docker(&self, manifest: &[u8], name: Option<&ImageReference>) -> Result<Vec<Named>> {
        let images: Vec<DockerImage> = serde_json::from_slice(manifest)
            .map_err(|error| rejected(&format!("its manifest.json cannot be read: {error}")))?;
        match (images.len(), name) {
            (0, _) => return Err(rejected("there is no image in it")),
            (2.., Some(_)) => {
                return Err(rejected(
                    "there are several images in it, which cannot all have one name",
                ));
            }
            (count, _) if count > IMAGES_LIMIT => return Err(rejected("there are too many images in it")),
            _ => {}
        }
        let mut named = Vec::new();
        for image in images {
            let names = match name {
                Some(name) => vec![name.clone()],
                None => docker_names(&image)?,
            };
            let target = self.manifest_of_docker(&image).await?;
            named.push(Named { names, target });
        }
        Ok(named)
    }

    /// Such archives have no manifest that a registry would know: it is written here.
    async fn manifest_of_docker(&self, image: &DockerImage) -> Result<Descriptor> {
        let config_bytes = self.small_file(&image.config).await?;
        let config = Descriptor::new(OCI_CONFIG, &config_bytes);
        store_small(&self.inner.daemon, self.lease, &config_bytes, &Default::default()).await?;
        let mut layers = Vec::new();
        for path in &image.layers {
            let blob = self.blob(path)?;
            layers.push(Descriptor {
                media_type: blob.layer_type.clone(),
                digest: blob.digest.clone(),
                size: blob.size,
                platform: None,
                annotations: None,
            });
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config,
            layers,
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|error| RuntimeError::other("write a manifest", error))?;
        store_small(&self.inner.daemon, self.lease, &bytes, &Default::default()).await?;
        Ok(Descriptor::new(OCI_MANIFEST, &bytes))
    }

    async fn small_file(&self, path: &str) -> Result<Vec<u8>> {
        if let Some(bytes) = self.contents.small.get(path) {
            return Ok(bytes.clone());
        }
        let blob = self.blob(path)?;
        let read = self.inner.daemon.read_blob(&blob.digest, CONFIG_LIMIT).await?;
        read.ok_or_else(|| rejected(&format!("{path} is not in it")))
    }

    fn blob(&self, path: &str) -> Result<&Blob> {
        let mut path = path.strip_prefix("./").unwrap_or(path);
        // Links to links are followed a little way; a ring of them ends here.
        for _ in 0..8 {
            if let Some(blob) = self.contents.blobs.get(path) {
                return Ok(blob);
            }
            match self.contents.links.get(path) {
                Some(target) => path = target,
                None => break,
            }
        }
        Err(rejected(&format!("{path} is not in it")))
    }

    /// Unpacks one image and ties its content together, so that it lives as long as its name.
    async fn unpack(&self, target: &Descriptor) -> Result<()> {
        let daemon = &self.inner.daemon;
        let lacking = || rejected(&format!("content of image {} is not in it", target.digest));
        let documents = read_documents(daemon, target).await?.ok_or_else(lacking)?;
        if !missing_layers(daemon, &documents.manifest).await?.is_empty() {
            return Err(lacking());
        }
        for descriptor in &documents.path {
            let bytes = daemon
                .read_blob(&descriptor.digest, MANIFEST_LIMIT)
                .await?
                .ok_or_else(lacking)?;
            let (document, _) = parse_document(&bytes, Some(&descriptor.media_type)).map_err(bad)?;
            daemon.label_blob(&descriptor.digest, &child_labels(&document)).await?;
        }
        unpack_under(self.inner, self.lease, &documents, &self.inner.snapshotter).await
    }
}

/// Where a symbolic link leads within the archive.
fn beside(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// The name an OCI layout gives an image: containerd's and docker's annotation, else the common one when it
/// holds a whole reference. A bare tag names nothing.
fn layout_name(image: &Descriptor) -> Option<ImageReference> {
    let whole = image.annotation("io.containerd.image.name");
    let common = image.annotation("org.opencontainers.image.ref.name");
    let name = whole.or(common.filter(|name| name.contains(['/', ':'])))?;
    name.parse().ok()
}

fn docker_names(image: &DockerImage) -> Result<Vec<ImageReference>> {
    let tags = image.repo_tags.as_deref().unwrap_or_default();
    if tags.is_empty() {
        return Err(unnamed());
    }
    let parsed = tags
        .iter()
        .map(|tag| tag.parse().map_err(|error| rejected(&format!("{error}"))));
    parsed.collect()
}

fn unnamed() -> RuntimeError {
    rejected("an image in it has no name: give one")
}

fn bad(error: BadImage) -> RuntimeError {
    rejected(&error.to_string())
}

fn layer_type(start: &[u8]) -> String {
    if start.starts_with(&[0x1f, 0x8b]) {
        format!("{OCI_LAYER}+gzip")
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        format!("{OCI_LAYER}+zstd")
    } else {
        OCI_LAYER.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_within_the_archive() {
        assert_eq!(beside("a/layer.tar", "../b/layer.tar"), "b/layer.tar");
        assert_eq!(beside("a/layer.tar", "../../../../etc/x.tar"), "etc/x.tar");
    }

    #[test]
    fn a_bare_tag_names_no_image() {
        let named = |key: &str, value: &str| Descriptor {
            annotations: Some([(key.to_owned(), value.to_owned())].into()),
            ..Descriptor::new(OCI_MANIFEST, b"")
        };
        let common = "org.opencontainers.image.ref.name";
        assert_eq!(layout_name(&named(common, "latest")), None);
        let full = layout_name(&named(common, "debian:12")).unwrap();
        assert_eq!(full.as_str(), "docker.io/library/debian:12");
        let own = layout_name(&named("io.containerd.image.name", "ghcr.io/a/b:1")).unwrap();
        assert_eq!(own.as_str(), "ghcr.io/a/b:1");
    }
}
