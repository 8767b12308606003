//! Joins layers to images and images to manifest lists.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::layer::{Compression, Layer, compress};

/// The digest of some bytes, `sha256:…`.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Which family of media types an image uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// OCI image specification.
    Oci,
    /// Docker image manifest, version 2, schema 2.
    DockerSchema2,
}

/// A blob as a registry stores it.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:…`.
    pub digest: String,
    /// What it is.
    pub media_type: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Blob {
    pub(super) fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self {
            digest: digest_of(&bytes),
            media_type: media_type.to_owned(),
            bytes,
        }
    }

    /// The descriptor that points to it.
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// A finished image of one platform.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest.
    pub manifest: Blob,
    /// The configuration.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
    /// Their bare tars.
    pub(super) tars: Vec<Vec<u8>>,
    architecture: String,
}

impl Image {
    /// Bytes of all layers as stored.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes.len() as u64).sum()
    }
}

/// Collects layers and settings of an image.
pub struct ImageBuilder {
    format: ImageFormat,
    architecture: String,
    environment: Vec<String>,
    settings: Map<String, Value>,
    layers: Vec<(Vec<u8>, Compression)>,
}

impl ImageBuilder {
    /// An image without layers for this host's platform.
    pub fn new(format: ImageFormat) -> Self {
        Self {
            format,
            architecture: host_architecture().to_owned(),
            environment: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
            settings: Map::new(),
            layers: Vec::new(),
        }
    }

    /// Says that it is for another architecture (`arm64`, …).
    pub fn architecture(mut self, architecture: &str) -> Self {
        architecture.clone_into(&mut self.architecture);
        self
    }

    /// Adds `NAME=value` to its environment.
    pub fn environment(mut self, assignment: &str) -> Self {
        self.environment.push(assignment.to_owned());
        self
    }

    /// Sets a field of its configuration (`User`, `WorkingDir`, …), whatever is there before and whatever its form.
    pub fn setting(mut self, name: &str, value: Value) -> Self {
        self.settings.insert(name.to_owned(), value);
        self
    }

    /// Adds a layer on top.
    pub fn layer(self, layer: Layer, compression: Compression) -> Self {
        self.layer_tar(layer.into_tar(), compression)
    }

    /// Adds a layer on top, given as a bare tar.
    pub fn layer_tar(mut self, tar: Vec<u8>, compression: Compression) -> Self {
        self.layers.push((tar, compression));
        self
    }

    /// Makes manifest and configuration.
    pub fn build(self) -> Image {
        let diff_ids: Vec<String> = self.layers.iter().map(|(tar, _)| digest_of(tar)).collect();
        let mut process = json!({"Env": self.environment, "Cmd": ["/bin/sh"], "WorkingDir": "/"});
        if let Value::Object(fields) = &mut process {
            fields.extend(self.settings);
        }
        let config = json!({
            "created": "2024-01-01T00:00:00Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": diff_ids.iter().map(|_| json!({"created_by": "skep test"})).collect::<Vec<_>>(),
        });
        let config = Blob::new(self.format.config_type(), to_bytes(&config));
        let layers: Vec<Blob> = self
            .layers
            .iter()
            .map(|(tar, compression)| Blob::new(self.format.layer_type(*compression), compress(tar, *compression)))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.format.manifest_type(),
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        Image {
            manifest: Blob::new(self.format.manifest_type(), to_bytes(&manifest)),
            config,
            layers,
            tars: self.layers.into_iter().map(|(tar, _)| tar).collect(),
            architecture: self.architecture,
        }
    }
}

/// Several images of different platforms under one name.
#[derive(Debug, Clone)]
pub struct ImageIndex {
    /// The index (OCI) or manifest list (docker).
    pub index: Blob,
    /// The images, in order.
    pub images: Vec<Image>,
}

impl ImageIndex {
    /// Joins images; each is listed under its own architecture.
    pub fn new(format: ImageFormat, images: Vec<Image>) -> Self {
        let manifests: Vec<Value> = images
            .iter()
            .map(|image| {
                let mut descriptor = image.manifest.descriptor();
                descriptor["platform"] = json!({"os": "linux", "architecture": image.architecture});
                descriptor
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": format.index_type(), "manifests": manifests});
        Self {
            index: Blob::new(format.index_type(), to_bytes(&index)),
            images,
        }
    }
}

impl ImageFormat {
    fn manifest_type(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::DockerSchema2 => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn config_type(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::DockerSchema2 => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn index_type(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::DockerSchema2 => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn layer_type(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::DockerSchema2, Compression::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::DockerSchema2, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::DockerSchema2, Compression::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

/// This host's architecture in the words of images.
pub(super) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(super) fn to_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON of a value")
}
