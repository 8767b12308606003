//! What a failed pull leaves for the next one, and what it does not.

use skep_runtime::RuntimeError;
use skep_testkit::images::random_image;
use skep_testkit::registry::Registry;

use crate::cutting_proxy::CuttingProxy;
use crate::setting::{DATA_ROOT_ID, Setting, named, plain_hosts};

/// Bytes that a connection lives for: no single try gets far enough to count as worth it.
const CUT_AFTER: u64 = 700_000;

/// A pull that was cut in the middle of a layer of 9 MiB until it gave up.
async fn given_up() -> (Registry, CuttingProxy, Setting, String, String) {
    let registry = Registry::start();
    let image = random_image(1, 9 << 20);
    let reference = image.push(&registry, "test/given-up", "latest").await;
    let proxy = CuttingProxy::start(registry.address(), CUT_AFTER).await;
    let setting = Setting::with(plain_hosts(&[&proxy.host()])).await;
    let reference = reference.replace(&registry.host(), &proxy.host());
    let failed = setting.pull(&reference).await;
    assert!(matches!(failed, Err(RuntimeError::Registry { .. })), "{failed:?}");
    (registry, proxy, setting, reference, image.layers[1].digest.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_a_failure_is_not_fetched_again() {
    let (_registry, proxy, setting, reference, layer) = given_up().await;
    assert_eq!(setting.count(&["images", "ls", "-q"]), 0, "half an image has a name");
    let before = proxy.requests().len();
    proxy.mend();
    setting.pull(&reference).await.unwrap();
    setting.assert_complete(&reference);
    let asked: Vec<String> = proxy.requests().split_off(before);
    let of_layer: Vec<&String> = asked.iter().filter(|line| line.contains(&layer)).collect();
    assert_eq!(of_layer.len(), 1, "{asked:?}");
    let range = of_layer[0].to_ascii_lowercase();
    let from = range.split("bytes=").nth(1).and_then(|range| range.split('-').next());
    let from: u64 = from.expect("it goes on in the middle").parse().unwrap();
    assert!(from >= CUT_AFTER, "only {from} bytes were kept");
    setting.store.remove(&named(&reference)).await.unwrap();
    setting.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_gone_on_with_goes_with_a_prune() {
    let (_registry, _proxy, setting, _reference, _layer) = given_up().await;
    assert!(setting.count(&["content", "active"]) > 1, "nothing was kept");
    setting.store.prune(&[]).await.unwrap();
    setting.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_pull_keeps_does_not_keep_what_a_dead_server_left() {
    let (registry, proxy, setting, reference, _layer) = given_up().await;
    let small = random_image(1, 1 << 10).push(&registry, "test/small", "latest").await;
    let small = small.replace(&registry.host(), &proxy.host());
    setting.pull(&small).await.unwrap();
    let labels = [format!("skep.data_root={DATA_ROOT_ID}"), format!("skep.image={small}")];
    setting.ctr(&[
        "leases",
        "create",
        "--id",
        "skep-image-of-a-dead-server",
        &labels[0],
        &labels[1],
    ]);
    assert_eq!(setting.count(&["leases", "ls", "-q"]), 2);
    setting.store.sweep().await.unwrap();
    let left = setting.ctr(&["leases", "ls", "-q"]);
    assert!(!left.contains("dead-server"), "{left}");
    assert!(setting.count(&["content", "active"]) > 1, "what was kept is gone too");
    proxy.mend();
    setting.pull(&reference).await.unwrap();
    assert_eq!(setting.count(&["leases", "ls", "-q"]), 0);
}
