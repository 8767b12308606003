//! What every test here stands on: a containerd of its own, a store on it, and eyes to look into both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use containerd_client::services::v1::snapshots::ViewSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use skep_names::ImageReference;
use skep_runtime::images::{ImageStore, ImageStoreConfig, RegistryHost, RegistrySettings};
use skep_runtime::{ImageRecord, LayerPhase, LayerProgress, PullCredentials, PullProgress, Result};
use skep_testkit::ContainerdServer;
use skep_testkit::registry::Registry;

pub(crate) const NAMESPACE: &str = "skep-test";
/// Whose pulls those of a test are.
pub(crate) const DATA_ROOT_ID: &str = "tests";
pub(crate) const SNAPSHOTTER: &str = "overlayfs";

pub(crate) struct Setting {
    pub(crate) containerd: ContainerdServer,
    pub(crate) store: ImageStore,
}

impl Setting {
    pub(crate) async fn with(registries: RegistrySettings) -> Self {
        let containerd = ContainerdServer::start().await.expect("start containerd");
        let store = store_on(&containerd, registries).await;
        Self { containerd, store }
    }

    pub(crate) async fn on(registry: &Registry) -> Self {
        Self::with(plain(&[registry])).await
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<ImageRecord> {
        self.store.pull(&named(reference), Arc::new(Watcher::default())).await
    }

    /// Runs `ctr` and returns what it prints.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> String {
        let output = self
            .containerd
            .ctr()
            .args(["--namespace", NAMESPACE])
            .args(arguments)
            .output()
            .expect("run ctr");
        assert!(
            output.status.success(),
            "ctr {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text from ctr")
    }

    /// Fails unless containerd's own tool finds the image complete and unpacked.
    pub(crate) fn assert_complete(&self, reference: &str) {
        let checked = self.ctr(&["images", "check", &format!("name=={reference}")]);
        let line = checked.lines().find(|line| line.starts_with(reference));
        let line = line.unwrap_or_else(|| panic!("{reference} is not in: {checked}"));
        assert!(line.contains("complete") && !line.contains("incomplete"), "{line}");
        assert!(line.trim_end().ends_with("true"), "not unpacked: {line}");
    }

    pub(crate) fn count(&self, arguments: &[&str]) -> usize {
        self.ctr(arguments)
            .lines()
            .filter(|line| !line.trim().is_empty())
            .count()
    }

    /// Fails unless nothing at all is left: content, half-written content, layers, leases, images.
    pub(crate) async fn assert_nothing_left(&self) {
        let questions: [&[&str]; 5] = [
            &["content", "ls", "-q"],
            &["content", "active"],
            &["snapshots", "ls"],
            &["leases", "ls", "-q"],
            &["images", "ls", "-q"],
        ];
        let mut left = Vec::new();
        // Garbage collection follows what it is told within a second.
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            left = questions
                .iter()
                .map(|question| self.ctr(question))
                .filter(|answer| answer.contains("sha256") || answer.contains("skep"))
                .collect();
            if left.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("something is left: {left:?}");
    }

    /// Everything in the unpacked image: path, what it is, and its content or target.
    pub(crate) async fn tree(&self, reference: &str) -> BTreeMap<String, String> {
        let unpacked = self.store.unpacked(&named(reference), SNAPSHOTTER).await.unwrap();
        let chain_id = unpacked.expect("the image is unpacked").chain_id;
        let mounted = Mounted::new(self, &chain_id).await;
        let mut tree = BTreeMap::new();
        read_tree(&mounted.directory, &mounted.directory, &mut tree);
        tree
    }
}

/// A view of an unpacked image, mounted.
struct Mounted<'a> {
    setting: &'a Setting,
    key: String,
    directory: PathBuf,
}

impl<'a> Mounted<'a> {
    async fn new(setting: &'a Setting, chain_id: &str) -> Self {
        let key = format!("view-{}", &chain_id[7..19]);
        let directory = setting.containerd.directory().join(&key);
        std::fs::create_dir_all(&directory).unwrap();
        let channel = containerd_client::connect(setting.containerd.socket()).await.unwrap();
        // Unlabelled, it would be collected before it is mounted: ctr cannot make it.
        let root = ("containerd.io/gc.root".to_owned(), "2024-01-01T00:00:00Z".to_owned());
        let mut request = tonic::Request::new(ViewSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.clone(),
            parent: chain_id.to_owned(),
            labels: [root].into(),
        });
        request
            .metadata_mut()
            .insert("containerd-namespace", NAMESPACE.parse().unwrap());
        let viewed = SnapshotsClient::new(channel).view(request).await.unwrap();
        let [mount] = &viewed.into_inner().mounts[..] else {
            panic!("a view has one mount");
        };
        let status = Command::new("mount")
            .args(["-t", &mount.r#type, "-o", &mount.options.join(","), &mount.source])
            .arg(&directory)
            .status()
            .expect("run mount");
        assert!(status.success(), "{mount:?}");
        Self {
            setting,
            key,
            directory,
        }
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        skep_testkit::unmount_below(&self.directory).expect("unmount the view");
        self.setting.ctr(&["snapshots", "rm", &self.key]);
    }
}

fn read_tree(root: &Path, directory: &Path, tree: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let kind = path.symlink_metadata().unwrap().file_type();
        let described = if kind.is_symlink() {
            format!("-> {}", std::fs::read_link(&path).unwrap().display())
        } else if kind.is_dir() {
            read_tree(root, &path, tree);
            "directory".to_owned()
        } else if kind.is_file() {
            String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
        } else {
            "special".to_owned()
        };
        tree.insert(name, described);
    }
}

pub(crate) async fn store_on(containerd: &ContainerdServer, registries: RegistrySettings) -> ImageStore {
    let channel = containerd_client::connect(containerd.socket())
        .await
        .expect("reach containerd");
    let config = ImageStoreConfig {
        namespace: NAMESPACE.to_owned(),
        snapshotter: SNAPSHOTTER.to_owned(),
        data_root_id: DATA_ROOT_ID.to_owned(),
        registries,
    };
    ImageStore::new(channel, config).expect("make a store")
}

/// Settings in which these registries are named as plain HTTP, with their passwords.
pub(crate) fn plain(registries: &[&Registry]) -> RegistrySettings {
    let hosts = registries.iter().map(|registry| {
        let host = RegistryHost {
            plain_http: true,
            credentials: registry.credentials().map(|(username, password)| PullCredentials {
                username: username.to_owned(),
                password: password.to_owned(),
            }),
            ..RegistryHost::default()
        };
        (registry.host(), host)
    });
    RegistrySettings {
        hosts: hosts.collect(),
        docker_config: None,
    }
}

/// Settings in which addresses are named as plain HTTP.
pub(crate) fn plain_hosts(hosts: &[&str]) -> RegistrySettings {
    let plain = RegistryHost {
        plain_http: true,
        ..RegistryHost::default()
    };
    RegistrySettings {
        hosts: hosts.iter().map(|host| ((*host).to_owned(), plain.clone())).collect(),
        docker_config: None,
    }
}

pub(crate) fn named(reference: &str) -> ImageReference {
    reference.parse().expect("a reference")
}

/// Remembers all it is told and fails on what must never be.
#[derive(Default)]
pub(crate) struct Watcher {
    pub(crate) layers: Mutex<Vec<LayerProgress>>,
    pub(crate) phases: Mutex<BTreeSet<(String, String)>>,
    pub(crate) wrong: Mutex<Vec<String>>,
}

impl Watcher {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The end state: each layer once, in order, whole, done, and nothing ever went backwards.
    pub(crate) fn assert_ended_at(&self, expected: &[(String, u64)]) {
        assert_eq!(*self.wrong.lock().unwrap(), Vec::<String>::new());
        let layers = self.layers.lock().unwrap();
        let seen: Vec<(String, u64)> = layers.iter().map(|layer| (layer.digest.clone(), layer.total)).collect();
        assert_eq!(seen, expected);
        for layer in layers.iter() {
            assert_eq!(
                (layer.offset, layer.phase),
                (layer.total, LayerPhase::Done),
                "{layer:?}"
            );
        }
    }
}

impl PullProgress for Watcher {
    fn layers(&self, layers: &[LayerProgress]) {
        let mut known = self.layers.lock().unwrap();
        if !known.is_empty() {
            self.wrong.lock().unwrap().push("layers were named twice".to_owned());
        }
        known.extend_from_slice(layers);
    }

    fn layer(&self, layer: &LayerProgress) {
        let mut known = self.layers.lock().unwrap();
        let Some(before) = known.iter_mut().find(|known| known.digest == layer.digest) else {
            self.wrong.lock().unwrap().push(format!("{layer:?} was not named"));
            return;
        };
        if layer.offset < before.offset || layer.total != before.total || layer.offset > layer.total {
            self.wrong.lock().unwrap().push(format!("{before:?} became {layer:?}"));
        }
        let phase = (layer.digest.clone(), format!("{:?}", layer.phase));
        self.phases.lock().unwrap().insert(phase);
        *before = layer.clone();
    }
}
