//! Writes images as archives: a tar of an OCI layout, and what `docker save` makes.

use serde_json::{Value, json};

use super::builder::{Blob, Image, to_bytes};
use super::layer::Layer;

impl Image {
    /// A tar of an OCI layout. `name` becomes the annotation `org.opencontainers.image.ref.name`.
    pub fn oci_archive(&self, name: Option<&str>) -> Vec<u8> {
        let mut descriptor = self.manifest.descriptor();
        if let Some(name) = name {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        self.oci_archive_of(&[descriptor])
    }

    /// A tar of an OCI layout whose index holds the given descriptors.
    pub fn oci_archive_of(&self, descriptors: &[Value]) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "manifests": descriptors});
        let layer = Layer::new()
            .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", 0o644, &to_bytes(&index));
        self.layers
            .iter()
            .chain([&self.config, &self.manifest])
            .fold(layer, |layer, blob| layer.file(&blob_path(blob), 0o644, &blob.bytes))
            .into_tar()
    }

    /// What `docker save` made before it wrote OCI layouts: bare layer tars and `manifest.json`, here
    /// at the end, so that no reader can rely on seeing it first.
    pub fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let config_name = format!("{}.json", hex_of(&self.config.digest));
        let mut archive = Layer::new().file(&config_name, 0o644, &self.config.bytes);
        let mut names = Vec::new();
        for (number, tar) in self.tars.iter().enumerate() {
            let name = format!("{number:064x}/layer.tar");
            archive = archive.file(&name, 0o644, tar);
            names.push(name);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
        archive.file("manifest.json", 0o644, &to_bytes(&manifest)).into_tar()
    }
}

fn blob_path(blob: &Blob) -> String {
    format!("blobs/sha256/{}", hex_of(&blob.digest))
}

fn hex_of(digest: &str) -> &str {
    digest.strip_prefix("sha256:").expect("a sha256 digest")
}
