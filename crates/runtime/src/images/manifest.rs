//! Manifests, indexes and configurations as registries and archives hold them, and what follows from
//! them: the platform's manifest, chain ids, the labels that keep content from garbage collection.
//!
//! Pure: no I/O here. Everything read is a stranger's word and checked before it is used.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use sha2::Sha256;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// More layers than overlayfs can stack are of no use.
const LAYER_LIMIT: usize = 500;

/// What is wrong with a document, as a sentence about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct BadImage(pub(super) String);

/// A sha256 digest in the form `sha256:<64 lower-case hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Digest(String);

impl Digest {
    /// The digest of some bytes.
    pub(super) fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(format!("sha256:{}", hex::encode(Sha256::digest(bytes))))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Digest {
    type Error = BadImage;

    fn try_from(text: String) -> Result<Self, BadImage> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|byte| b"0123456789abcdef".contains(&byte)) {
            Ok(Self(text))
        } else {
            let shown: String = text.chars().take(100).collect();
            Err(BadImage(format!("{shown:?} is not a sha256 digest")))
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl AsRef<String> for Digest {
    fn as_ref(&self) -> &String {
        &self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Points to content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(super) fn new(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: None,
        }
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether bytes are the ones it points to.
    pub(super) fn verify(&self, bytes: &[u8]) -> Result<(), BadImage> {
        if bytes.len() as u64 != self.size {
            let (digest, size, got) = (&self.digest, self.size, bytes.len());
            return Err(BadImage(format!("{digest} has {got} bytes where {size} were promised")));
        }
        if Digest::of(bytes) != self.digest {
            return Err(BadImage(format!("what was sent as {} has another digest", self.digest)));
        }
        Ok(())
    }
}

/// What an image of an index is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
}

/// An image's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    pub(super) media_type: String,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// Either kind of document that a name can point to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Image(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnyDocument {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// Reads a document and says its media type: the one it names, else the one it was sent with, else the
/// one its fields speak for.
pub(super) fn parse_document(bytes: &[u8], sent_as: Option<&str>) -> Result<(Document, String), BadImage> {
    let any: AnyDocument =
        serde_json::from_slice(bytes).map_err(|error| BadImage(format!("the manifest cannot be read: {error}")))?;
    if any.schema_version != 2 {
        return Err(BadImage(format!(
            "manifests of schema version {} are not supported, only version 2 and OCI",
            any.schema_version
        )));
    }
    let sent_as = sent_as.map(|text| text.split(';').next().unwrap_or("").trim().to_owned());
    let named = any.media_type.or(sent_as).filter(|name| is_document(name));
    match (any.manifests, any.config, any.layers) {
        (Some(manifests), None, None) => {
            let media_type = named.unwrap_or_else(|| OCI_INDEX.to_owned());
            expect_kind(is_index(&media_type), &media_type)?;
            Ok((Document::Index(manifests), media_type))
        }
        (None, Some(config), Some(layers)) => {
            let media_type = named.unwrap_or_else(|| OCI_MANIFEST.to_owned());
            expect_kind(!is_index(&media_type), &media_type)?;
            let manifest = Manifest {
                schema_version: 2,
                media_type: media_type.clone(),
                config,
                layers,
            };
            check_manifest(&manifest)?;
            Ok((Document::Image(manifest), media_type))
        }
        // A document that can be read as both kinds could mean one thing to us and another to a checker.
        _ => Err(BadImage("the manifest is neither an index nor an image".to_owned())),
    }
}

fn expect_kind(fits: bool, media_type: &str) -> Result<(), BadImage> {
    if fits {
        return Ok(());
    }
    Err(BadImage(format!(
        "the manifest's fields contradict its type {media_type}"
    )))
}

fn check_manifest(manifest: &Manifest) -> Result<(), BadImage> {
    if manifest.layers.len() > LAYER_LIMIT {
        let count = manifest.layers.len();
        return Err(BadImage(format!(
            "the image has {count} layers, more than {LAYER_LIMIT}"
        )));
    }
    let mut sizes: HashMap<&Digest, u64> = HashMap::new();
    for layer in &manifest.layers {
        if *sizes.entry(&layer.digest).or_insert(layer.size) != layer.size {
            return Err(BadImage(format!("layer {} has two sizes", layer.digest)));
        }
        if layer.size > i64::MAX as u64 / 1024 {
            return Err(BadImage(format!("layer {} has an impossible size", layer.digest)));
        }
    }
    Ok(())
}

fn is_document(media_type: &str) -> bool {
    is_index(media_type) || [OCI_MANIFEST, DOCKER_MANIFEST].contains(&media_type)
}

pub(super) fn is_index(media_type: &str) -> bool {
    [OCI_INDEX, DOCKER_INDEX].contains(&media_type)
}

fn is_config(media_type: &str) -> bool {
    [OCI_CONFIG, DOCKER_CONFIG].contains(&media_type)
}

/// The manifest for this host: Linux, its architecture, the nearest variant.
pub(super) fn for_this_host(manifests: &[Descriptor]) -> Result<&Descriptor, BadImage> {
    let architecture = host_architecture();
    let fitting: Vec<&Descriptor> = manifests
        .iter()
        .filter(|manifest| {
            let platform = manifest.platform.as_ref();
            platform.is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture)
        })
        .collect();
    let variant = |manifest: &Descriptor| manifest.platform.as_ref().and_then(|platform| platform.variant.clone());
    // x86-64 levels above the first may use instructions this host lacks.
    let preferred = fitting.iter().find(|manifest| match variant(manifest).as_deref() {
        None | Some("") => true,
        Some("v8") => architecture == "arm64",
        Some("v1") => architecture == "amd64",
        Some("v7") => architecture == "arm",
        Some(_) => false,
    });
    if let Some(found) = preferred {
        return Ok(found);
    }
    // Single images are sometimes listed without a platform.
    match manifests {
        [only] if only.platform.is_none() => Ok(only),
        _ => Err(BadImage(format!("there is no image for linux/{architecture} in it"))),
    }
}

/// This host's architecture in the words of images.
pub(super) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// What of an image's configuration is of use here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct ImageConfig {
    /// `amd64`, …
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub(super) rootfs: RootFileSystem,
    #[serde(default)]
    config: Option<ProcessDefaults>,
}

/// Digests of the layers' bare tars.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(super) struct RootFileSystem {
    #[serde(default)]
    pub(super) diff_ids: Vec<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
struct ProcessDefaults {
    #[serde(rename = "Env", default)]
    environment: Option<Vec<String>>,
}

impl ImageConfig {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BadImage> {
        serde_json::from_slice(bytes).map_err(|error| BadImage(format!("the configuration cannot be read: {error}")))
    }

    /// `NAME=value` as the image sets them, unchecked.
    pub fn environment(&self) -> &[String] {
        let environment = self.config.as_ref().and_then(|config| config.environment.as_deref());
        environment.unwrap_or_default()
    }

    /// Each layer must have its diff id, else what is unpacked is not what was named.
    pub(super) fn check_against(&self, manifest: &Manifest) -> Result<(), BadImage> {
        let (ids, layers) = (self.rootfs.diff_ids.len(), manifest.layers.len());
        if ids != layers {
            return Err(BadImage(format!(
                "the configuration names {ids} layers, the manifest {layers}"
            )));
        }
        if !self.os.is_empty() && self.os != "linux" {
            return Err(BadImage(format!("it is an image for {}, not for Linux", self.os)));
        }
        if !self.architecture.is_empty() && self.architecture != host_architecture() {
            let (theirs, ours) = (&self.architecture, host_architecture());
            return Err(BadImage(format!(
                "it is an image for {theirs}, and this host is {ours}"
            )));
        }
        Ok(())
    }

    /// The name of the unpacked stack up to each layer, lowest first.
    pub(super) fn chain_ids(&self) -> Vec<String> {
        let mut chain: Vec<String> = Vec::with_capacity(self.rootfs.diff_ids.len());
        for id in &self.rootfs.diff_ids {
            let next = match chain.last() {
                None => id.to_string(),
                Some(below) => Digest::of(format!("{below} {id}").as_bytes()).to_string(),
            };
            chain.push(next);
        }
        chain
    }
}

/// The labels by which containerd's garbage collector reaches a document's children.
pub(super) fn child_labels(document: &Document) -> BTreeMap<String, String> {
    let children: Vec<&Descriptor> = match document {
        Document::Index(manifests) => manifests.iter().collect(),
        Document::Image(manifest) => [&manifest.config].into_iter().chain(&manifest.layers).collect(),
    };
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut labels = BTreeMap::new();
    for (position, child) in children.into_iter().enumerate() {
        let image = matches!(document, Document::Image(_));
        let kind = match (image, position) {
            (true, 0) if is_config(&child.media_type) => "config",
            (true, 0) => "",
            (true, _) => "l.",
            (false, _) if is_index(&child.media_type) => "",
            (false, _) => "m.",
        };
        let key = if kind == "config" {
            "containerd.io/gc.ref.content.config".to_owned()
        } else {
            let count = counts.entry(kind).or_insert(0);
            let key = format!("containerd.io/gc.ref.content.{kind}{count}");
            *count += 1;
            key
        };
        labels.insert(key, child.digest.to_string());
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::of(&[byte])
    }

    fn descriptor(byte: u8, platform: Option<(&str, Option<&str>)>) -> Descriptor {
        Descriptor {
            platform: platform.map(|(architecture, variant)| Platform {
                architecture: architecture.to_owned(),
                os: "linux".to_owned(),
                variant: variant.map(str::to_owned),
            }),
            ..Descriptor::new(OCI_MANIFEST, &[byte])
        }
    }

    #[test]
    fn digests_are_lower_case_sha256_only() {
        let good = format!("sha256:{}", "a".repeat(64));
        assert!(Digest::try_from(good.clone()).is_ok());
        for bad in [
            good.to_uppercase(),
            "sha256:aa".to_owned(),
            good.replace("sha256", "sha512"),
            "sha256:../../../etc".to_owned(),
            String::new(),
        ] {
            assert!(Digest::try_from(bad.clone()).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn the_manifest_of_this_host_is_chosen() {
        let ours = host_architecture();
        let list = [descriptor(1, Some(("s390x", None))), descriptor(2, Some((ours, None)))];
        assert_eq!(for_this_host(&list).unwrap().digest, digest(2));
        assert!(for_this_host(&list[..1]).is_err());
        assert_eq!(for_this_host(&[descriptor(3, None)]).unwrap().digest, digest(3));
    }

    #[test]
    fn a_document_that_is_both_kinds_is_refused() {
        let id = digest(1);
        let both = format!(r#"{{"schemaVersion":2,"manifests":[],"config":{{"digest":"{id}","size":1}},"layers":[]}}"#);
        assert!(parse_document(both.as_bytes(), None).is_err());
        let lie = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#);
        assert!(parse_document(lie.as_bytes(), None).is_err());
        let old = r#"{"schemaVersion":1,"fsLayers":[]}"#;
        let told = parse_document(old.as_bytes(), None).unwrap_err().to_string();
        assert!(told.contains("schema version 1"), "{told}");
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let config = ImageConfig {
            rootfs: RootFileSystem {
                diff_ids: vec![digest(1), digest(2)],
            },
            ..ImageConfig::default()
        };
        let chain = config.chain_ids();
        assert_eq!(chain[0], digest(1).to_string());
        let joined = format!("{} {}", digest(1), digest(2));
        assert_eq!(chain[1], Digest::of(joined.as_bytes()).to_string());
    }

    #[test]
    fn every_child_has_its_own_label() {
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: Descriptor::new(OCI_CONFIG, b"c"),
            layers: vec![Descriptor::new(OCI_LAYER, b"1"), Descriptor::new(OCI_LAYER, b"2")],
        };
        let labels = child_labels(&Document::Image(manifest));
        let keys: Vec<&str> = labels.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "containerd.io/gc.ref.content.config",
                "containerd.io/gc.ref.content.l.0",
                "containerd.io/gc.ref.content.l.1"
            ]
        );
    }
}
