//! What registries and networks do wrong, on purpose and by accident.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skep_runtime::RuntimeError;
use skep_testkit::images::{Compression, Image, ImageBuilder, ImageFormat, Layer, random_image};
use skep_testkit::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::cutting_proxy::CuttingProxy;
use crate::setting::{DATA_ROOT_ID, Setting, Watcher, named, plain_hosts};

type Handler = dyn Fn(&Asked) -> Answer + Send + Sync;

/// A request as a scripted registry sees it.
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
}

pub(crate) struct Answer {
    pub(crate) status: &'static str,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn new(status: &'static str) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// A registry that answers what its script says, over plain HTTP.
pub(crate) struct ScriptedRegistry {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl ScriptedRegistry {
    pub(crate) async fn start(handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (handler, seen): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(serve(client, Arc::clone(&handler), Arc::clone(&seen)));
            }
        });
        Self { address, asked, task }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for ScriptedRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, handler: Arc<Handler>, seen: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match client.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let path = text.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let headers = text.lines().filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let asked = Asked {
        path: path.clone(),
        headers: headers.collect(),
    };
    seen.lock().unwrap().push(path);
    let answer = handler(&asked);
    let mut bytes = format!("HTTP/1.1 {}\r\nConnection: close\r\n", answer.status);
    bytes += &format!("Content-Length: {}\r\n", answer.body.len());
    for (name, value) in &answer.headers {
        bytes += &format!("{name}: {value}\r\n");
    }
    bytes += "\r\n";
    // The client may go away in the middle; that is its right.
    drop(client.write_all(bytes.as_bytes()).await);
    drop(client.write_all(&answer.body).await);
    drop(client.shutdown().await);
}

/// Serves an image, each of its parts by `spoil` if that has something to say.
fn serving(
    image: &Image,
    spoil: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static,
) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
    let image = image.clone();
    move |asked| {
        if let Some(answer) = spoil(asked) {
            return answer;
        }
        let blobs = image.layers.iter().chain([&image.config]);
        if asked.path.contains("/manifests/") {
            return Answer::new("200 OK")
                .header("Content-Type", &image.manifest.media_type)
                .body(image.manifest.bytes.clone());
        }
        let found = blobs.into_iter().find(|blob| asked.path.ends_with(&blob.digest));
        match found {
            Some(blob) => Answer::new("200 OK").body(blob.bytes.clone()),
            None => Answer::new("404 Not Found"),
        }
    }
}

fn small_image() -> Image {
    ImageBuilder::new(ImageFormat::Oci)
        .layer(Layer::new().file("a", 0o644, b"a"), Compression::Gzip)
        .layer(Layer::new().file("b", 0o644, b"b"), Compression::Gzip)
        .build()
}

fn registry_reason(error: RuntimeError) -> String {
    match error {
        RuntimeError::Registry { reason } => reason,
        other => panic!("not a registry's failure: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_taken_up_where_it_stopped() {
    let registry = Registry::start();
    let image = random_image(1, 9 << 20);
    let reference = image.push(&registry, "test/cut", "latest").await;
    let proxy = CuttingProxy::start(registry.address(), 2_500_000).await;
    let setting = Setting::with(plain_hosts(&[&proxy.host()])).await;
    let reference = reference.replace(&registry.host(), &proxy.host());
    let watcher = Watcher::new();
    setting.store.pull(&named(&reference), watcher.clone()).await.unwrap();
    let expected: Vec<(String, u64)> = image
        .layers
        .iter()
        .map(|layer| (layer.digest.clone(), layer.bytes.len() as u64))
        .collect();
    watcher.assert_ended_at(&expected);
    setting.assert_complete(&reference);
    let resumed: Vec<String> = proxy
        .requests()
        .into_iter()
        .filter(|line| line.contains(&image.layers[1].digest) && line.to_ascii_lowercase().contains("bytes="))
        .collect();
    assert!((3..=6).contains(&resumed.len()), "{resumed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_is_read_again_and_skipped() {
    let image = random_image(1, 3 << 20);
    let big = image.layers[1].clone();
    let tries = Arc::new(Mutex::new(0));
    let handler = serving(&image, move |asked| {
        if !asked.path.ends_with(&big.digest) {
            return None;
        }
        let mut tries = tries.lock().unwrap();
        *tries += 1;
        // Half of it, and then the end, where all was promised.
        (*tries == 1).then(|| Answer::new("200 OK").body(&big.bytes[..big.bytes.len() / 2]))
    });
    let registry = ScriptedRegistry::start(handler).await;
    let setting = Setting::with(plain_hosts(&[&registry.host()])).await;
    let reference = format!("{}/test/whole:latest", registry.host());
    setting.pull(&reference).await.unwrap();
    setting.assert_complete(&reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_another_digest_is_refused_and_nothing_is_left() {
    let registry = Registry::start();
    let image = random_image(2, 2 << 20);
    let reference = image.push(&registry, "test/spoilt", "latest").await;
    let file = registry.blob_file(&image.layers[2].digest);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let setting = Setting::on(&registry).await;
    let reason = registry_reason(setting.pull(&reference).await.unwrap_err());
    assert!(
        reason.contains(&image.layers[2].digest) && reason.contains("digest"),
        "{reason}"
    );
    setting.assert_nothing_left().await;

    std::fs::write(&file, &image.layers[2].bytes).unwrap();
    setting.pull(&reference).await.unwrap();
    setting.assert_complete(&reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn lying_manifests_and_configurations_are_refused() {
    let image = small_image();
    let other = random_image(0, 0);
    let config = image.config.digest.clone();
    let layer = image.layers[0].clone();
    let registries = [
        // Another manifest than the digest header says.
        ScriptedRegistry::start(serving(&image, |asked| {
            asked.path.contains("/manifests/").then(|| {
                Answer::new("200 OK")
                    .header("Docker-Content-Digest", &format!("sha256:{}", "0".repeat(64)))
                    .body(r#"{"schemaVersion":2,"manifests":[]}"#)
            })
        }))
        .await,
        ScriptedRegistry::start(serving(&image, move |asked| {
            asked
                .path
                .ends_with(&config)
                .then(|| Answer::new("200 OK").body(other.config.bytes.clone()))
        }))
        .await,
        ScriptedRegistry::start(serving(&image, |asked| {
            asked
                .path
                .contains("/manifests/")
                .then(|| Answer::new("200 OK").body(vec![b' '; 5 << 20]))
        }))
        .await,
        // More bytes than the manifest promised.
        ScriptedRegistry::start(serving(&image, move |asked| {
            let longer = [&layer.bytes[..], b"more"].concat();
            asked
                .path
                .ends_with(&layer.digest)
                .then(|| Answer::new("200 OK").body(longer))
        }))
        .await,
    ];
    let hosts: Vec<String> = registries.iter().map(ScriptedRegistry::host).collect();
    let setting = Setting::with(plain_hosts(&hosts.iter().map(String::as_str).collect::<Vec<_>>())).await;
    for host in hosts {
        registry_reason(setting.pull(&format!("{host}/test/lie:latest")).await.unwrap_err());
    }
    setting.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpacked_layer_that_is_not_what_the_configuration_says_is_refused() {
    let image = small_image();
    let wrong = ImageBuilder::new(ImageFormat::Oci)
        .layer(Layer::new().file("x", 0o644, b"x"), Compression::Gzip)
        .layer(Layer::new().file("y", 0o644, b"y"), Compression::Gzip)
        .build();
    // The layers of one image under the configuration of another, all digests in order.
    let manifest = String::from_utf8(image.manifest.bytes.clone()).unwrap();
    let manifest = manifest.replace(&image.config.digest, &wrong.config.digest).replace(
        &format!("\"size\":{}", image.config.bytes.len()),
        &format!("\"size\":{}", wrong.config.bytes.len()),
    );
    let config = wrong.config.clone();
    let registry = ScriptedRegistry::start(serving(&image, move |asked| {
        if asked.path.contains("/manifests/") {
            return Some(Answer::new("200 OK").body(manifest.clone()));
        }
        asked
            .path
            .ends_with(&config.digest)
            .then(|| Answer::new("200 OK").body(config.bytes.clone()))
    }))
    .await;
    let setting = Setting::with(plain_hosts(&[&registry.host()])).await;
    let told = setting.pull(&format!("{}/test/swapped:latest", registry.host())).await;
    let reason = registry_reason(told.unwrap_err());
    assert!(reason.contains("unpacks to"), "{reason}");
    setting.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_images_and_registries_are_told_apart() {
    let registry = Registry::start();
    // It has a port that nobody else gets, and does not listen.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let dead = closed.local_addr().unwrap().to_string();
    let setting = Setting::with(plain_hosts(&[&registry.host(), &dead])).await;
    let missing = setting
        .pull(&registry.reference("not/there", "latest"))
        .await
        .unwrap_err();
    assert!(matches!(missing, RuntimeError::ImageNotFound { .. }), "{missing:?}");
    let reason = registry_reason(setting.pull(&format!("{dead}/a/b:1")).await.unwrap_err());
    assert!(reason.contains(&dead) && reason.contains("not reachable"), "{reason}");

    // A registry of plain HTTP that the configuration does not name gets no plain HTTP.
    let unnamed = Setting::with(plain_hosts(&[])).await;
    let reason = registry_reason(unnamed.pull(&registry.reference("a", "b")).await.unwrap_err());
    assert!(reason.contains("plain_http"), "{reason}");
    setting.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_where_the_registry_says_and_used_there_only() {
    let image = small_image();
    let realm = Arc::new(Mutex::new(String::new()));
    let tokens = ScriptedRegistry::start(|asked| {
        let wanted = ["service=the-service", "scope=repository%3Atest%2Ftoken%3Apull"];
        assert!(wanted.iter().all(|part| asked.path.contains(part)), "{}", asked.path);
        assert!(!asked.headers.contains_key("authorization"), "nobody has signed in");
        Answer::new("200 OK").body(r#"{"token":"the-token"}"#)
    })
    .await;
    *realm.lock().unwrap() = format!("http://{}/token", tokens.host());
    let storage = ScriptedRegistry::start(serving(&image, |asked| {
        let told = asked.headers.contains_key("authorization");
        told.then(|| Answer::new("500 A token was sent to a stranger"))
    }))
    .await;
    let to = storage.host();
    let registry = ScriptedRegistry::start(serving(&image, move |asked| {
        if asked.headers.get("authorization").map(String::as_str) != Some("Bearer the-token") {
            let challenge = format!(
                r#"Bearer realm="{}",service="the-service",scope="repository:test/token:pull""#,
                realm.lock().unwrap()
            );
            return Some(Answer::new("401 Unauthorized").header("WWW-Authenticate", &challenge));
        }
        let moved = format!("http://{to}{}", asked.path);
        asked
            .path
            .contains("/blobs/")
            .then(|| Answer::new("307 Temporary Redirect").header("Location", &moved))
    }))
    .await;
    let setting = Setting::with(plain_hosts(&[&registry.host(), &tokens.host(), &storage.host()])).await;
    let reference = format!("{}/test/token:latest", registry.host());
    setting.pull(&reference).await.unwrap();
    setting.assert_complete(&reference);
    assert_eq!(tokens.asked().len(), 1, "one token for all: {:?}", tokens.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_cannot_send_us_to_this_host_or_its_metadata() {
    let victim = ScriptedRegistry::start(|_| Answer::new("200 OK").body("secret")).await;
    let port = victim.host().rsplit(':').next().unwrap().to_owned();
    let mut targets = vec![format!("http://{}/", victim.host())];
    for host in [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "2130706433",
    ] {
        targets.push(format!("https://{host}:{port}/"));
    }
    for host in ["169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "100.100.100.200"] {
        targets.push(format!("https://{host}/latest/meta-data"));
    }
    for target in targets {
        let to = target.clone();
        let redirecting = ScriptedRegistry::start(move |_| Answer::new("302 Found").header("Location", &to)).await;
        let challenge = format!(r#"Bearer realm="{target}",service="s""#);
        let challenging =
            ScriptedRegistry::start(move |_| Answer::new("401 No").header("WWW-Authenticate", &challenge)).await;
        let setting = store_only(&[&redirecting.host(), &challenging.host()]).await;
        for registry in [&redirecting, &challenging] {
            let reference = named(&format!("{}/a/b:1", registry.host()));
            let pull = setting.store.pull(&reference, Watcher::new());
            let ended = tokio::time::timeout(Duration::from_secs(10), pull)
                .await
                .expect("refused at once");
            let reason = registry_reason(ended.unwrap_err());
            assert!(
                reason.contains("must not lead") || reason.contains("plain HTTP"),
                "{target}: {reason}"
            );
            assert_eq!(registry.asked().len(), 1, "{target} was tried again");
        }
    }
    assert_eq!(victim.asked(), Vec::<String>::new());
}

/// One containerd serves all cases of a test: nothing gets as far as it.
async fn store_only(hosts: &[&str]) -> Unpulled {
    let channel = tonic::transport::Endpoint::from_static("http://[::]:1").connect_lazy();
    let config = skep_runtime::images::ImageStoreConfig {
        namespace: "never".to_owned(),
        snapshotter: "never".to_owned(),
        data_root_id: DATA_ROOT_ID.to_owned(),
        registries: plain_hosts(hosts),
    };
    Unpulled {
        store: skep_runtime::images::ImageStore::new(channel, config).unwrap(),
    }
}

struct Unpulled {
    store: skep_runtime::images::ImageStore,
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_tried_in_order_and_the_registry_last() {
    let registry = Registry::start();
    let mirror = Registry::start();
    let image = small_image();
    let reference = image.push(&registry, "test/mirrored", "latest").await;
    let only_here = image.push(&registry, "test/unmirrored", "latest").await;
    image.push(&mirror, "test/mirrored", "latest").await;
    let broken = ScriptedRegistry::start(|_| Answer::new("404 Not Found")).await;
    let before = CuttingProxy::start(mirror.address(), u64::MAX).await;
    let mut settings = plain_hosts(&[&registry.host(), &broken.host(), &before.host()]);
    settings.hosts.get_mut(&registry.host()).unwrap().mirrors = vec![broken.host(), before.host()];
    let setting = Setting::with(settings).await;
    setting.pull(&reference).await.unwrap();
    setting.assert_complete(&reference);
    assert!(!broken.asked().is_empty() && before.requests().len() >= 3);
    setting.pull(&only_here).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_collection_in_the_middle_takes_nothing_of_a_pull() {
    let registry = Registry::start();
    let setting = Arc::new(Setting::on(&registry).await);
    let image = random_image(4, 6 << 20);
    let reference = image.push(&registry, "test/collected", "latest").await;
    let victim = small_image();
    let other = victim.push(&registry, "test/victim", "latest").await;
    setting.pull(&other).await.unwrap();
    let running = Arc::clone(&setting);
    let pulled = reference.clone();
    let pull = tokio::spawn(async move { running.pull(&pulled).await });
    let mut collections = 0;
    while !pull.is_finished() {
        // A synchronous removal of an image collects before it returns.
        setting.ctr(&["images", "tag", "--force", &other, "collect.me/now:1"]);
        setting.ctr(&["images", "rm", "--sync", "collect.me/now:1"]);
        collections += 1;
    }
    pull.await.unwrap().unwrap();
    assert!(collections > 0);
    setting.ctr(&["images", "tag", &other, "collect.me/now:1"]);
    setting.ctr(&["images", "rm", "--sync", "collect.me/now:1"]);
    setting.assert_complete(&reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_after_containerd_was_killed_in_the_middle() {
    let registry = Registry::start();
    let image = random_image(2, 20 << 20);
    let reference = image.push(&registry, "test/killed", "latest").await;
    let mut setting = Setting::on(&registry).await;
    let (store, name, watcher) = (setting.store.clone(), named(&reference), Watcher::new());
    let seen = Arc::clone(&watcher);
    let pull = tokio::spawn(async move { store.pull(&name, watcher).await });
    let limit = tokio::time::Instant::now() + Duration::from_secs(30);
    while seen.layers.lock().unwrap().iter().all(|layer| layer.offset < 4 << 20) {
        assert!(tokio::time::Instant::now() < limit, "nothing is fetched");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    setting.containerd.kill().unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), pull)
        .await
        .expect("it ends");
    let error = ended.unwrap().unwrap_err();
    assert!(matches!(error, RuntimeError::Unavailable { .. }), "{error:?}");
    setting.containerd.start_again().await.unwrap();
    setting.pull(&reference).await.unwrap();
    setting.assert_complete(&reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_nobody_waits_for_ends_and_leaves_nothing() {
    let registry = Registry::start();
    let image = random_image(1, 20 << 20);
    let reference = image.push(&registry, "test/dropped", "latest").await;
    let proxy = CuttingProxy::start(registry.address(), 5 << 20).await;
    let setting = Setting::with(plain_hosts(&[&proxy.host()])).await;
    let reference = named(&reference.replace(&registry.host(), &proxy.host()));
    let watcher = Watcher::new();
    {
        let pull = setting.store.pull(&reference, watcher.clone());
        let begun = async {
            while watcher.layers.lock().unwrap().iter().all(|layer| layer.offset == 0) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            ended = pull => panic!("it ended before it could be dropped: {ended:?}"),
            () = begun => {}
        }
    }
    setting.assert_nothing_left().await;
    setting.pull(reference.as_str()).await.unwrap();
}
