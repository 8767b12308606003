//! What is stored: listed, found under every spelling, completed, removed.

use skep_runtime::RuntimeError;
use skep_testkit::images::{Compression, ImageBuilder, ImageFormat, Layer, busybox_image};
use skep_testkit::registry::Registry;

use crate::setting::{SNAPSHOTTER, Setting, named, plain_hosts};

#[tokio::test(flavor = "multi_thread")]
async fn images_are_listed_with_their_size_and_removed_with_their_content() {
    let registry = Registry::start();
    let setting = Setting::on(&registry).await;
    let image = busybox_image();
    let one = image.push(&registry, "b/one", "latest").await;
    let two = image.push(&registry, "a/two", "latest").await;
    let first = setting.pull(&one).await.unwrap();
    let second = setting.pull(&two).await.unwrap();
    let whole = image.layer_bytes() + image.config.bytes.len() as u64 + image.manifest.bytes.len() as u64;
    assert_eq!((first.size_bytes, first.in_use), (whole, false));
    assert_eq!(setting.store.images().await.unwrap(), [second, first]);

    setting.store.remove(&named(&one)).await.unwrap();
    setting.store.remove(&named(&one)).await.unwrap();
    assert_eq!(setting.store.image(&named(&one)).await.unwrap(), None);
    setting.assert_complete(&two);
    let pruned = setting.store.prune(&[]).await.unwrap();
    assert_eq!(pruned.len(), 1);
    setting.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_is_neither_removed_nor_pruned() {
    let registry = Registry::start();
    let setting = Setting::on(&registry).await;
    let reference = busybox_image().push(&registry, "test/used", "latest").await;
    setting.pull(&reference).await.unwrap();
    setting.ctr(&["containers", "create", &reference, "user-of-it"]);
    let refused = setting.store.remove(&named(&reference)).await.unwrap_err();
    assert!(
        matches!(&refused, RuntimeError::Rejected { reason } if reason.contains("user-of-it")),
        "{refused:?}"
    );
    assert!(setting.store.images().await.unwrap()[0].in_use);
    assert!(setting.store.image(&named(&reference)).await.unwrap().unwrap().in_use);
    assert_eq!(setting.store.prune(&[]).await.unwrap(), []);
    setting.ctr(&["containers", "rm", "user-of-it"]);
    setting.store.remove(&named(&reference)).await.unwrap();
    setting.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_under_a_short_name_is_found_and_removed_under_its_full_one() {
    let registry = Registry::start();
    let setting = Setting::on(&registry).await;
    let reference = busybox_image().push(&registry, "test/short", "latest").await;
    setting.pull(&reference).await.unwrap();
    setting.ctr(&["images", "tag", &reference, "short:1"]);
    let full = named("docker.io/library/short:1");
    let found = setting.store.unpacked(&full, SNAPSHOTTER).await.unwrap().unwrap();
    assert_eq!(found.stored_name, "short:1");
    assert!(
        found
            .config
            .environment()
            .iter()
            .any(|variable| variable.starts_with("PATH="))
    );
    let names: Vec<String> = setting
        .store
        .images()
        .await
        .unwrap()
        .iter()
        .map(|image| image.name.to_string())
        .collect();
    assert_eq!(names, [reference, full.to_string()]);
    setting.store.remove(&full).await.unwrap();
    assert_eq!(setting.store.image(&full).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_lacks_is_completed() {
    let registry = Registry::start();
    let setting = Setting::on(&registry).await;
    let image = ImageBuilder::new(ImageFormat::Oci)
        .layer(Layer::new().file("a", 0o644, b"a"), Compression::Gzip)
        .layer(Layer::new().file("b", 0o644, b"b"), Compression::Gzip)
        .build();
    let reference = image.push(&registry, "test/lacking", "latest").await;
    let name = named(&reference);
    let record = setting.pull(&reference).await.unwrap();

    // A layer's blob has vanished: only the registry can help.
    setting.ctr(&["content", "rm", &image.layers[0].digest]);
    assert_eq!(setting.store.image(&name).await.unwrap(), None);
    assert_eq!(setting.store.complete(&name).await.unwrap(), None);
    // A workspace could still be made from what is unpacked.
    assert!(setting.store.unpack(&name, SNAPSHOTTER).await.unwrap().is_some());
    assert_eq!(setting.pull(&reference).await.unwrap(), record);
    setting.assert_complete(&reference);

    // Unpacked layers have vanished: no registry is needed.
    let chain = setting
        .store
        .unpacked(&name, SNAPSHOTTER)
        .await
        .unwrap()
        .unwrap()
        .chain_id;
    setting.ctr(&["snapshots", "rm", &chain]);
    assert_eq!(setting.store.image(&name).await.unwrap(), None);
    let offline = crate::setting::store_on(&setting.containerd, plain_hosts(&[])).await;
    assert!(offline.unpack(&name, SNAPSHOTTER).await.unwrap().is_some());
    setting.assert_complete(&reference);
    // And into another snapshotter as well.
    assert!(offline.unpack(&name, "native").await.unwrap().is_some());
    assert!(offline.unpacked(&name, "native").await.unwrap().is_some());
}
