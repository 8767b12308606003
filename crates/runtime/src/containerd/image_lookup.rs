//! What a workspace needs to know of its stored image: the layer stack it starts from, and its environment.

use std::collections::BTreeMap;

use containerd_client::services::v1::{GetImageRequest, ReadContentRequest};
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};
use sha2::{Digest, Sha256};
use skep_names::ImageReference;

use super::ContainerdRuntime;
use super::client::{collect, failed, optional};
use crate::spec::image_environment;
use crate::{Result, RuntimeError};

/// Manifests and configurations are small; a larger blob is not one.
const DOCUMENT_LIMIT: usize = 8 << 20;
/// An index may name an index; deeper ones are made to mislead.
const INDEX_DEPTH: usize = 4;

/// A stored image, as far as a workspace is made from it.
#[derive(Debug, Clone)]
pub(super) struct StoredImage {
    /// Full name.
    pub(super) name: String,
    /// Digest its name points to.
    pub(super) digest: String,
    /// The committed snapshot with all its layers; empty for an image without layers.
    pub(super) chain_id: String,
    /// Its own environment, checked.
    pub(super) environment: BTreeMap<String, String>,
}

impl ContainerdRuntime {
    /// Finds an image under its full or its short name.
    pub(super) async fn stored_image(&self, reference: &ImageReference) -> Result<Option<StoredImage>> {
        for name in names_of(reference) {
            let request = self.client.request(GetImageRequest { name: name.clone() });
            let answer = self.client.images().get(request).await;
            let answer = optional(answer, || format!("image {name}"))?;
            let Some(target) = answer.and_then(|answer| answer.image).and_then(|image| image.target) else {
                continue;
            };
            let configuration = self.image_configuration(&target.digest).await?;
            return Ok(Some(StoredImage {
                name: reference.to_string(),
                chain_id: chain_id(configuration.rootfs().diff_ids()),
                environment: image_environment(
                    configuration
                        .config()
                        .as_ref()
                        .and_then(|config| config.env().as_deref())
                        .unwrap_or_default(),
                ),
                digest: target.digest,
            }));
        }
        Ok(None)
    }

    async fn image_configuration(&self, target: &str) -> Result<ImageConfiguration> {
        let mut digest = target.to_owned();
        for _ in 0..INDEX_DEPTH {
            let document = self.read_document(&digest).await?;
            if let Ok(index) = serde_json::from_slice::<ImageIndex>(&document) {
                digest = for_this_host(index.manifests())
                    .ok_or_else(|| wrong(&digest, "names no image for this platform"))?
                    .digest()
                    .to_string();
                continue;
            }
            let manifest: ImageManifest =
                serde_json::from_slice(&document).map_err(|_| wrong(&digest, "is no image manifest"))?;
            let config = manifest.config().digest().to_string();
            let document = self.read_document(&config).await?;
            return serde_json::from_slice(&document).map_err(|_| wrong(&config, "is no image configuration"));
        }
        Err(wrong(target, "is an index of indexes of indexes"))
    }

    async fn read_document(&self, digest: &str) -> Result<Vec<u8>> {
        let operation = format!("reading the image document {digest}");
        let request = self.client.request(ReadContentRequest {
            digest: digest.to_owned(),
            offset: 0,
            size: 0,
        });
        let stream = self.client.content().read(request).await;
        let stream = stream.map_err(|status| failed(&operation, status))?.into_inner();
        let parts = collect(stream, &operation).await?;
        let bytes: Vec<u8> = parts.into_iter().flat_map(|part| part.data).collect();
        if bytes.len() > DOCUMENT_LIMIT {
            return Err(wrong(digest, "is too large for an image document"));
        }
        Ok(bytes)
    }
}

/// Its full name, and the short ones under which other clients may have stored it.
fn names_of(reference: &ImageReference) -> Vec<String> {
    let full = reference.as_str();
    let short = ["docker.io/library/", "docker.io/"];
    let short = short.iter().filter_map(|prefix| full.strip_prefix(prefix));
    std::iter::once(full).chain(short).map(str::to_owned).collect()
}

fn wrong(digest: &str, what: &str) -> RuntimeError {
    RuntimeError::Rejected {
        reason: format!("image document {digest} {what}"),
    }
}

fn for_this_host(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let fits = |descriptor: &&Descriptor| {
        descriptor
            .platform()
            .as_ref()
            .is_none_or(|platform| *platform.os() == Os::Linux && *platform.architecture() == Arch::default())
    };
    manifests.iter().find(fits)
}

/// The name containerd gives to a stack of layers.
fn chain_id(diff_ids: &[String]) -> String {
    let stacked = |below: String, layer: &String| {
        if below.is_empty() {
            layer.clone()
        } else {
            format!("sha256:{}", hex::encode(Sha256::digest(format!("{below} {layer}"))))
        }
    };
    diff_ids.iter().fold(String::new(), stacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_layer_is_its_own_chain_and_two_are_hashed() {
        let layers = ["sha256:a".to_owned(), "sha256:b".to_owned()];
        assert_eq!(chain_id(&layers[..1]), "sha256:a");
        let both = format!("sha256:{}", hex::encode(Sha256::digest("sha256:a sha256:b")));
        assert_eq!(chain_id(&layers), both);
    }

    #[test]
    fn a_short_name_is_tried_after_the_full_one() {
        let reference: ImageReference = "debian:12".parse().unwrap();
        let names = names_of(&reference);
        assert_eq!(names[..2], ["docker.io/library/debian:12", "debian:12"]);
    }
}
