//! What containerd holds, asked for without a process of `ctr`, which takes a tenth of a second of a processor each time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    Info, Kind, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CreateRequest, DeleteRequest, ListContainersRequest, ListContentRequest, ListImagesRequest, ListRequest,
    ListTasksRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::Process;
use containerd_client::with_namespace;
use futures::TryStreamExt;
use skep_names::{BotId, LABEL_DATA_ROOT, container_id_for};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Of the server, where nothing else is configured.
pub const NAMESPACE: &str = "default";
const SNAPSHOTTER: &str = "overlayfs";
/// More than eight for each layer that a workspace of a test has.
const LAYERS_OF_OTHERS: usize = 100;
/// One that was killed is back by then.
const BACK_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A view of one containerd. It stays good when that is started anew.
pub struct ContainerdView(Channel);

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its key.
    pub name: String,
    /// What it stands on; empty: nothing.
    pub parent: String,
    /// `Active`, `Committed` or `View`.
    pub kind: &'static str,
}

impl ContainerdView {
    /// Connects when it is first used.
    pub fn new(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        // The address is not used; the connector knows where to go.
        Self(Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector))
    }

    /// Containers: id, image, runtime.
    ///
    /// # Panics
    /// As all of these, when containerd does not answer for long, or not well.
    pub async fn containers(&self) -> Vec<(String, String, String)> {
        let answer = answered(|| async {
            let request = with_namespace!(ListContainersRequest::default(), NAMESPACE);
            ContainersClient::new(self.0.clone()).list(request).await
        });
        let listed = answer.await.into_inner().containers.into_iter();
        let runtime = |runtime: Option<containerd_client::services::v1::container::Runtime>| {
            runtime.map_or_else(String::new, |runtime| runtime.name)
        };
        listed.map(|one| (one.id, one.image, runtime(one.runtime))).collect()
    }

    /// Tasks.
    pub async fn tasks(&self) -> Vec<Process> {
        let answer = answered(|| async {
            let request = with_namespace!(ListTasksRequest::default(), NAMESPACE);
            TasksClient::new(self.0.clone()).list(request).await
        });
        answer.await.into_inner().tasks
    }

    /// Layers of the snapshotter `overlayfs`.
    pub async fn layers(&self) -> Vec<Layer> {
        let parts = answered(|| async {
            let request = ListSnapshotsRequest {
                snapshotter: SNAPSHOTTER.to_owned(),
                ..Default::default()
            };
            let request = with_namespace!(request, NAMESPACE);
            let stream = SnapshotsClient::new(self.0.clone()).list(request).await?;
            stream.into_inner().try_collect::<Vec<_>>().await
        });
        parts.await.into_iter().flat_map(|part| part.info).map(layer).collect()
    }

    /// Makes layers as workspaces of another data root have them, so many that what is of one bot is asked about by itself.
    pub async fn make_layers_of_others(&self, namespace: &str) {
        for _ in 0..LAYERS_OF_OTHERS {
            let key = container_id_for(&BotId::random());
            let made = answered(|| async {
                let request = PrepareSnapshotRequest {
                    snapshotter: SNAPSHOTTER.to_owned(),
                    key: key.clone(),
                    parent: String::new(),
                    labels: HashMap::from([
                        ("containerd.io/gc.root".to_owned(), "test".to_owned()),
                        (LABEL_DATA_ROOT.to_owned(), "another".to_owned()),
                    ]),
                };
                let request = with_namespace!(request, namespace);
                SnapshotsClient::new(self.0.clone()).prepare(request).await
            });
            made.await;
        }
    }

    /// Directories on the host of a layer and of all it stands on, the uppermost first; `None` when it is not there.
    pub async fn directories(&self, layer: &Layer) -> Option<Vec<PathBuf>> {
        let mounts = match layer.kind {
            "Committed" => self.mounts_of_committed(&layer.name).await?,
            _ => self.mounts(&layer.name).await?,
        };
        let [mount] = &mounts[..] else {
            panic!("one mount is expected: {mounts:?}");
        };
        Some(directories_of(mount))
    }

    async fn mounts(&self, key: &str) -> Option<Vec<Mount>> {
        let answer = found(|| async {
            let request = MountsRequest {
                snapshotter: SNAPSHOTTER.to_owned(),
                key: key.to_owned(),
            };
            let request = with_namespace!(request, NAMESPACE);
            SnapshotsClient::new(self.0.clone()).mounts(request).await
        });
        Some(answer.await?.into_inner().mounts)
    }

    /// Of one that nobody mounts: by a view on it, which is gone before this returns.
    async fn mounts_of_committed(&self, name: &str) -> Option<Vec<Mount>> {
        let key = format!("look-at-{name}");
        let view = found(|| async {
            let request = ViewSnapshotRequest {
                snapshotter: SNAPSHOTTER.to_owned(),
                key: key.clone(),
                parent: name.to_owned(),
                labels: HashMap::from([("containerd.io/gc.root".to_owned(), "test".to_owned())]),
            };
            let request = with_namespace!(request, NAMESPACE);
            SnapshotsClient::new(self.0.clone()).view(request).await
        });
        let mounts = view.await?.into_inner().mounts;
        let removed = answered(|| async {
            let request = RemoveSnapshotRequest {
                snapshotter: SNAPSHOTTER.to_owned(),
                key: key.clone(),
            };
            let request = with_namespace!(request, NAMESPACE);
            SnapshotsClient::new(self.0.clone()).remove(request).await
        });
        removed.await;
        Some(mounts)
    }

    /// Ids of leases.
    pub async fn leases(&self) -> Vec<String> {
        let answer = answered(|| async {
            let request = with_namespace!(ListRequest::default(), NAMESPACE);
            LeasesClient::new(self.0.clone()).list(request).await
        });
        answer.await.into_inner().leases.into_iter().map(|one| one.id).collect()
    }

    /// Names of images.
    pub async fn images(&self) -> Vec<String> {
        let answer = answered(|| async {
            let request = with_namespace!(ListImagesRequest::default(), NAMESPACE);
            ImagesClient::new(self.0.clone()).list(request).await
        });
        answer
            .await
            .into_inner()
            .images
            .into_iter()
            .map(|one| one.name)
            .collect()
    }

    /// Digests of blobs.
    pub async fn content(&self) -> Vec<String> {
        let parts = answered(|| async {
            let request = with_namespace!(ListContentRequest::default(), NAMESPACE);
            let stream = ContentClient::new(self.0.clone()).list(request).await?;
            stream.into_inner().try_collect::<Vec<_>>().await
        });
        let infos = parts.await.into_iter().flat_map(|part| part.info);
        infos.map(|info| info.digest).collect()
    }

    /// Has containerd collect what nothing refers to now, and not when it thinks fit.
    pub async fn collect_garbage(&self) {
        answered(|| self.try_to_collect_garbage()).await;
    }

    /// The same of one that may be away.
    ///
    /// # Errors
    /// When it is; then a lease `collect` may be left, which the next call takes away.
    pub async fn try_to_collect_garbage(&self) -> Result<(), Status> {
        let mut leases = LeasesClient::new(self.0.clone());
        let id = "collect".to_owned();
        let create = CreateRequest {
            id: id.clone(),
            ..Default::default()
        };
        match leases.create(with_namespace!(create, NAMESPACE)).await {
            Err(status) if status.code() != Code::AlreadyExists => return Err(status),
            _ => {}
        }
        let delete = DeleteRequest { id, sync: true };
        leases.delete(with_namespace!(delete, NAMESPACE)).await.map(drop)
    }
}

/// Of an overlay, or of a single directory that is bound.
fn directories_of(mount: &Mount) -> Vec<PathBuf> {
    if mount.r#type != "overlay" {
        return vec![PathBuf::from(&mount.source)];
    }
    let of = |name: &'static str| mount.options.iter().filter_map(move |option| option.strip_prefix(name));
    let lower = of("lowerdir=").flat_map(|directories| directories.split(':'));
    of("upperdir=").chain(lower).map(PathBuf::from).collect()
}

fn layer(info: Info) -> Layer {
    Layer {
        kind: match info.kind() {
            Kind::Active => "Active",
            Kind::Committed => "Committed",
            Kind::View | Kind::Unknown => "View",
        },
        name: info.name,
        parent: info.parent,
    }
}

/// `None`: what is asked about is not there.
async fn found<T, F: Future<Output = Result<T, Status>>>(ask: impl Fn() -> F) -> Option<T> {
    let ask = || {
        let asked = ask();
        async {
            match asked.await {
                Err(status) if status.code() == Code::NotFound => Ok(None),
                asked => asked.map(Some),
            }
        }
    };
    answered(ask).await
}

/// Asks again while nobody is there: a connection to one that was killed fails once before it is made anew.
async fn answered<T, F: Future<Output = Result<T, Status>>>(ask: impl Fn() -> F) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(status) => {
                let away = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal);
                assert!(away && begun.elapsed() < BACK_LIMIT, "containerd: {status}");
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
