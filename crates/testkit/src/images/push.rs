//! Puts images into a registry by HTTP.

use reqwest::{Certificate, Client, ClientBuilder, RequestBuilder};

use super::builder::{Blob, Image, ImageIndex};
use crate::registry::Registry;

/// An HTTP client for tests: no proxy, no redirect.
pub fn http_client() -> Client {
    client_builder().build().expect("make an HTTP client")
}

fn client_builder() -> ClientBuilder {
    // A second installation is refused and harmless: the provider is the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none())
}

/// One that trusts the registry's own authority, where it has one.
fn client_for(registry: &Registry) -> Client {
    let Some(file) = registry.ca_file() else {
        return http_client();
    };
    let pem = std::fs::read(file).expect("read the registry's authority");
    let authorities = Certificate::from_pem_bundle(&pem).expect("a certificate");
    let builder = client_builder().tls_certs_merge(authorities);
    builder.build().expect("make an HTTP client")
}

impl Image {
    /// Pushes it and returns its full reference.
    ///
    /// # Panics
    /// When the registry refuses any part.
    pub async fn push(&self, registry: &Registry, repository: &str, tag: &str) -> String {
        let push = Push::new(registry, repository);
        push.blobs_and_manifest(self, tag).await;
        registry.reference(repository, tag)
    }
}

impl ImageIndex {
    /// Pushes all its images and then itself; returns its full reference.
    ///
    /// # Panics
    /// When the registry refuses any part.
    pub async fn push(&self, registry: &Registry, repository: &str, tag: &str) -> String {
        let push = Push::new(registry, repository);
        for image in &self.images {
            push.blobs_and_manifest(image, &image.manifest.digest).await;
        }
        push.manifest(&self.index, tag).await;
        registry.reference(repository, tag)
    }
}

struct Push<'a> {
    client: Client,
    registry: &'a Registry,
    repository: &'a str,
}

impl<'a> Push<'a> {
    fn new(registry: &'a Registry, repository: &'a str) -> Self {
        Self {
            client: client_for(registry),
            registry,
            repository,
        }
    }

    async fn blobs_and_manifest(&self, image: &Image, name: &str) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.blob(blob).await;
        }
        self.manifest(&image.manifest, name).await;
    }

    async fn blob(&self, blob: &Blob) {
        let url = format!("{}/v2/{}/blobs/uploads/", self.registry.url(), self.repository);
        let begun = self.send(self.client.post(url)).await;
        let location = begun.headers()["location"].to_str().expect("a location").to_owned();
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={}", blob.digest);
        let request = self.client.put(url).header("content-type", "application/octet-stream");
        self.send(request.body(blob.bytes.clone())).await;
    }

    async fn manifest(&self, manifest: &Blob, name: &str) {
        let url = format!("{}/v2/{}/manifests/{name}", self.registry.url(), self.repository);
        let request = self.client.put(url).header("content-type", &manifest.media_type);
        self.send(request.body(manifest.bytes.clone())).await;
    }

    async fn send(&self, request: RequestBuilder) -> reqwest::Response {
        let request = match self.registry.credentials() {
            Some((username, password)) => request.basic_auth(username, Some(password)),
            None => request,
        };
        let answer = request.send().await.expect("reach the registry");
        if answer.status().is_success() {
            return answer;
        }
        panic!(
            "the registry refused a push: {} {:?}",
            answer.status(),
            answer.text().await
        );
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use crate::images::{Compression, Image, ImageBuilder, ImageFormat, ImageIndex, Layer, random_image};
    use crate::registry::Registry;

    /// Another program's opinion of what was pushed: its digest.
    fn copied_by_skopeo(reference: &str) {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--src-tls-verify=false"])
            .arg(format!("docker://{reference}"))
            .arg(format!("dir:{}", directory.path().join("copy").display()))
            .output()
            .expect("skopeo is needed (Debian: skopeo)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn two_layers(format: ImageFormat, compression: Compression) -> Image {
        ImageBuilder::new(format)
            .layer(Layer::new().directory("a", 0o755).file("a/b", 0o644, b"b"), compression)
            .layer(Layer::new().whiteout("a/b").symlink("a/c", "b"), compression)
            .build()
    }

    #[tokio::test]
    async fn pushed_images_are_understood_by_skopeo() {
        let registry = Registry::start();
        for (tag, format, compression) in [
            ("plain", ImageFormat::Oci, Compression::Plain),
            ("gzip", ImageFormat::Oci, Compression::Gzip),
            ("zstd", ImageFormat::Oci, Compression::Zstd),
            ("docker", ImageFormat::DockerSchema2, Compression::Gzip),
        ] {
            let image = two_layers(format, compression);
            copied_by_skopeo(&image.push(&registry, "test/two", tag).await);
        }
        let foreign = ImageBuilder::new(ImageFormat::Oci).architecture("s390x").build();
        let index = ImageIndex::new(ImageFormat::Oci, vec![foreign, random_image(1, 1 << 16)]);
        copied_by_skopeo(&index.push(&registry, "test/index", "latest").await);
    }
}
