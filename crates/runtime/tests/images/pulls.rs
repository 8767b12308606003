//! Pulls that go well: every kind of image, anonymous and signed in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_runtime::PullCredentials;
use skep_testkit::images::{
    Compression, Image, ImageBuilder, ImageFormat, ImageIndex, Layer, busybox_image, random_image,
};
use skep_testkit::registry::{PASSWORD, Registry, USERNAME};

use crate::cutting_proxy::CuttingProxy;
use crate::setting::{Setting, Watcher, named, plain, plain_hosts};

/// Three layers with all that layers can say of those below: whiteouts and opaque directories too.
fn speaking_image(format: ImageFormat, compression: Compression) -> Image {
    // A name in each layer makes them its own, so that none is there already from another image.
    let own = |layer: Layer, number| {
        let name = format!("own/{format:?}-{compression:?}-{number}");
        layer.file(&name, 0o644, b"")
    };
    ImageBuilder::new(format)
        .layer(
            own(Layer::new(), 1)
                .directory("kept", 0o755)
                .file("kept/below", 0o644, b"below")
                .directory("emptied", 0o755)
                .file("emptied/old", 0o644, b"old")
                .file("removed", 0o644, b"removed")
                .directory("gone", 0o755)
                .file("gone/inside", 0o644, b"inside"),
            compression,
        )
        .layer(
            own(Layer::new(), 2)
                .whiteout("removed")
                .whiteout("gone")
                .directory("emptied", 0o755)
                .opaque("emptied")
                .file("emptied/new", 0o644, b"new"),
            compression,
        )
        .layer(
            own(Layer::new(), 3)
                .file("kept/above", 0o644, b"above")
                .hard_link("kept/twin", "kept/above")
                .symlink("kept/link", "below"),
            compression,
        )
        .build()
}

fn speaking_tree() -> Vec<(String, String)> {
    [
        ("emptied", "directory"),
        ("emptied/new", "new"),
        ("kept", "directory"),
        ("kept/above", "above"),
        ("kept/below", "below"),
        ("kept/link", "-> below"),
        ("kept/twin", "above"),
    ]
    .map(|(path, what)| (path.to_owned(), what.to_owned()))
    .to_vec()
}

async fn tree(setting: &Setting, reference: &str) -> Vec<(String, String)> {
    let tree = setting.tree(reference).await.into_iter();
    tree.filter(|(path, _)| !path.starts_with("own")).collect()
}

fn layers_of(image: &Image) -> Vec<(String, u64)> {
    image
        .layers
        .iter()
        .map(|layer| (layer.digest.clone(), layer.bytes.len() as u64))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_and_compression_is_pulled_and_unpacked() {
    let registry = Registry::start();
    let setting = Setting::on(&registry).await;
    for (tag, format, compression) in [
        ("oci-plain", ImageFormat::Oci, Compression::Plain),
        ("oci-gzip", ImageFormat::Oci, Compression::Gzip),
        ("oci-zstd", ImageFormat::Oci, Compression::Zstd),
        ("docker-plain", ImageFormat::DockerSchema2, Compression::Plain),
        ("docker-gzip", ImageFormat::DockerSchema2, Compression::Gzip),
        ("docker-zstd", ImageFormat::DockerSchema2, Compression::Zstd),
    ] {
        let image = speaking_image(format, compression);
        let reference = image.push(&registry, "test/speaking", tag).await;
        let watcher = Watcher::new();
        let record = setting.store.pull(&named(&reference), watcher.clone()).await.unwrap();
        assert_eq!(record.digest, image.manifest.digest, "{tag}");
        assert!(record.size_bytes > image.layer_bytes());
        watcher.assert_ended_at(&layers_of(&image));
        setting.assert_complete(&reference);
        assert_eq!(tree(&setting, &reference).await, speaking_tree(), "{tag}");
        assert_eq!(setting.store.image(&named(&reference)).await.unwrap().unwrap(), record);
    }
    assert_eq!(setting.count(&["leases", "ls", "-q"]), 0);
    assert_eq!(setting.count(&["content", "active"]), 1, "only the heading");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_manifest_list_this_hosts_image_is_taken() {
    let registry = Registry::start();
    let setting = Setting::on(&registry).await;
    for (tag, format) in [("oci", ImageFormat::Oci), ("docker", ImageFormat::DockerSchema2)] {
        let foreign = ImageBuilder::new(format)
            .architecture("s390x")
            .layer(Layer::new().file("foreign", 0o644, b""), Compression::Gzip)
            .build();
        let ours = speaking_image(format, Compression::Gzip);
        let index = ImageIndex::new(format, vec![foreign, ours.clone()]);
        let reference = index.push(&registry, "test/list", tag).await;
        let record = setting.pull(&reference).await.unwrap();
        assert_eq!(record.digest, index.index.digest);
        setting.assert_complete(&reference);
        assert_eq!(tree(&setting, &reference).await, speaking_tree());

        let foreign_only = ImageIndex::new(format, vec![index.images[0].clone()]);
        let reference = foreign_only.push(&registry, "test/foreign", tag).await;
        let told = setting.pull(&reference).await.unwrap_err().to_string();
        assert!(told.contains("no image for linux/"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_password_gives_out_its_images() {
    let registry = Registry::start_with_password();
    let image = busybox_image();
    let reference = image.push(&registry, "secret/busybox", "latest").await;

    let setting = Setting::on(&registry).await;
    setting.pull(&reference).await.unwrap();
    setting.assert_complete(&reference);

    let mut wrong = plain(&[&registry]);
    wrong.hosts.get_mut(&registry.host()).unwrap().credentials = Some(PullCredentials {
        username: USERNAME.to_owned(),
        password: "wrong".to_owned(),
    });
    let store = crate::setting::store_on(&setting.containerd, wrong.clone()).await;
    let told = store.pull(&named(&reference), Watcher::new()).await.unwrap_err();
    assert!(matches!(told, skep_runtime::RuntimeError::Registry { .. }), "{told:?}");

    // The same by docker's file, and without any word of ours.
    let file = setting.containerd.directory().join("config.json");
    let auth = base64_of(&format!("{USERNAME}:{PASSWORD}"));
    std::fs::write(
        &file,
        format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host()),
    )
    .unwrap();
    wrong.hosts.get_mut(&registry.host()).unwrap().credentials = None;
    let anonymous = crate::setting::store_on(&setting.containerd, wrong.clone()).await;
    let told = anonymous
        .pull(&named(&reference), Watcher::new())
        .await
        .unwrap_err()
        .to_string();
    assert!(told.contains("sign-in"), "{told}");
    wrong.docker_config = Some(file);
    let by_file = crate::setting::store_on(&setting.containerd, wrong).await;
    by_file.pull(&named(&reference), Watcher::new()).await.unwrap();
}

fn base64_of(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_in_common_are_fetched_once_and_a_second_pull_fetches_nothing() {
    let registry = Registry::start();
    let setting = Setting::on(&registry).await;
    let below = busybox_image();
    let first = below.push(&registry, "test/below", "latest").await;
    setting.pull(&first).await.unwrap();

    let above = ImageBuilder::new(ImageFormat::Oci)
        .layer(skep_testkit::images::busybox_layer(), Compression::Gzip)
        .layer(Layer::new().file("above", 0o644, b"above"), Compression::Gzip)
        .build();
    let second = above.push(&registry, "test/above", "latest").await;
    let watcher = Watcher::new();
    setting.store.pull(&named(&second), watcher.clone()).await.unwrap();
    watcher.assert_ended_at(&layers_of(&above));
    let downloading = (above.layers[0].digest.clone(), "Downloading".to_owned());
    assert!(
        !watcher.phases.lock().unwrap().contains(&downloading),
        "the common layer was fetched again"
    );

    let watcher = Watcher::new();
    setting.store.pull(&named(&second), watcher.clone()).await.unwrap();
    assert!(watcher.layers.lock().unwrap().is_empty(), "a present image was fetched");
    setting.assert_complete(&first);
    setting.assert_complete(&second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_occurs_twice_is_one_entry_and_applied_twice() {
    let registry = Registry::start();
    let setting = Setting::on(&registry).await;
    let twice = || Layer::new().file("twice", 0o644, b"twice");
    let image = ImageBuilder::new(ImageFormat::Oci)
        .layer(twice(), Compression::Gzip)
        .layer(
            Layer::new().whiteout("twice").file("other", 0o644, b""),
            Compression::Gzip,
        )
        .layer(twice(), Compression::Gzip)
        .build();
    let reference = image.push(&registry, "test/twice", "latest").await;
    let watcher = Watcher::new();
    setting.store.pull(&named(&reference), watcher.clone()).await.unwrap();
    watcher.assert_ended_at(&layers_of(&image)[..2]);
    let paths: Vec<String> = setting.tree(&reference).await.into_keys().collect();
    assert_eq!(paths, ["other", "twice"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_at_once_are_one_work() {
    let registry = Registry::start();
    let image = random_image(3, 3 << 20);
    let reference = image.push(&registry, "test/joined", "latest").await;
    let proxy = crate::cutting_proxy::CuttingProxy::start(registry.address(), u64::MAX).await;
    let setting = Setting::with(crate::setting::plain_hosts(&[&proxy.host()])).await;
    let reference = named(&reference.replace(&registry.host(), &proxy.host()));
    let watchers: Vec<Arc<Watcher>> = (0..8).map(|_| Watcher::new()).collect();
    let pulls = watchers
        .iter()
        .map(|watcher| setting.store.pull(&reference, watcher.clone()));
    for pulled in futures::future::join_all(pulls).await {
        pulled.unwrap();
    }
    for watcher in watchers {
        watcher.assert_ended_at(&layers_of(&image));
    }
    let layer_requests = proxy.requests().iter().filter(|line| line.contains("/blobs/")).count();
    assert_eq!(
        layer_requests,
        image.layers.len() + 1,
        "each blob once: {:?}",
        proxy.requests()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_is_followed_and_the_old_content_collected() {
    let registry = Registry::start();
    let setting = Setting::on(&registry).await;
    let image = |content: &[u8]| {
        ImageBuilder::new(ImageFormat::Oci)
            .layer(Layer::new().file("version", 0o644, content), Compression::Gzip)
            .build()
    };
    let (old, new) = (image(b"old"), image(b"new"));
    let reference = old.push(&registry, "test/moved", "latest").await;
    setting.pull(&reference).await.unwrap();
    new.push(&registry, "test/moved", "latest").await;
    let record = setting.pull(&reference).await.unwrap();
    assert_eq!(record.digest, new.manifest.digest);
    setting.assert_complete(&reference);
    assert_eq!(setting.tree(&reference).await["version"], "new");

    let by_digest = format!("{}/test/moved@{}", registry.host(), old.manifest.digest);
    setting.pull(&by_digest).await.unwrap();
    assert_eq!(setting.tree(&by_digest).await["version"], "old");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_little_that_a_slow_registry_has_sent_is_told() {
    const SENT: u64 = 300_000;
    let registry = Registry::start();
    // Less than is written at once.
    let image = random_image(1, 600_000);
    let reference = image.push(&registry, "test/slow", "latest").await;
    let proxy = CuttingProxy::start_holding(registry.address(), SENT).await;
    let setting = Setting::with(plain_hosts(&[&proxy.host()])).await;
    let reference = named(&reference.replace(&registry.host(), &proxy.host()));
    let watcher = Watcher::new();
    let told = async {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let offset = watcher.layers.lock().unwrap().get(1).map(|layer| layer.offset);
            // The line has carried more than this layer.
            if offset.is_some_and(|offset| offset > SENT - 100_000) {
                break offset;
            }
            assert!(Instant::now() < end, "told is {offset:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (pulled, told) = tokio::join!(setting.store.pull(&reference, watcher.clone()), async {
        let told = told.await;
        proxy.mend();
        told
    });
    pulled.unwrap();
    assert!(told <= Some(SENT), "{told:?}");
    watcher.assert_ended_at(&layers_of(&image));
}
