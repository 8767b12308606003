//! The calls to containerd that images need, each with a limit on its wait, and what its refusals mean.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use containerd_client::services::v1 as services;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::types;
use skep_names::{ImageReference, LABEL_DATA_ROOT};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::LABEL_IMAGE;
use super::manifest::{Descriptor, Digest};
use crate::{Result, RuntimeError};

/// A container's record with its specification is some 15 KiB; without this 300 of them were too many.
const CONTAINERS_LIMIT: usize = 64 << 20;

/// containerd answers these from memory or its database.
const SMALL_CALL_LIMIT: Duration = Duration::from_secs(60);
/// A layer of many gigabytes on a slow disk.
pub(super) const UNPACK_LIMIT: Duration = Duration::from_secs(60 * 60);

/// One containerd and the namespace of ours in it.
#[derive(Clone)]
pub(super) struct Daemon {
    channel: Channel,
    namespace: AsciiMetadataValue,
}

/// A lease's name: what is made in its name is not garbage as long as it is there.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) id: String,
}

/// What the content store knows of a blob.
#[derive(Debug, Clone)]
pub(super) struct BlobInfo {
    pub(super) labels: HashMap<String, String>,
}

impl Daemon {
    pub(super) fn new(channel: Channel, namespace: &str) -> Result<Self> {
        let namespace = namespace.parse().map_err(|_| RuntimeError::Rejected {
            reason: format!("{namespace:?} cannot be a containerd namespace"),
        })?;
        Ok(Self { channel, namespace })
    }

    /// A request in our namespace, with the limit of a small call.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.unlimited_request(message);
        request.set_timeout(SMALL_CALL_LIMIT);
        request
    }

    /// A request in our namespace without a limit of its own: its stream's steps have theirs.
    pub(super) fn unlimited_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A request whose work belongs to a lease.
    pub(super) fn leased_request<T>(&self, message: T, lease: &Lease) -> Request<T> {
        under(self.request(message), lease)
    }

    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
    }

    pub(super) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub(super) fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel.clone())
    }

    fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
    }

    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    /// Makes a lease of a data root that ends by itself after a day, should no server of it live to delete it.
    pub(super) async fn create_lease(
        &self,
        id: String,
        data_root_id: &str,
        pulled: Option<&ImageReference>,
    ) -> Result<Lease> {
        let end = chrono::Utc::now() + chrono::TimeDelta::days(1);
        let label = (
            "containerd.io/gc.expire".to_owned(),
            end.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        );
        let mut labels = HashMap::from([label, (LABEL_DATA_ROOT.to_owned(), data_root_id.to_owned())]);
        labels.extend(pulled.map(|image| (LABEL_IMAGE.to_owned(), image.to_string())));
        let message = services::CreateRequest { id: id.clone(), labels };
        let made = self.leases().create(self.request(message)).await;
        made.map_err(|status| failed("create a lease in containerd", status))?;
        Ok(Lease { id })
    }

    /// Leases of a data root.
    pub(super) async fn leases_of_data_root(&self, id: &str) -> Result<Vec<FoundLease>> {
        let leases = self.list_leases().await?.into_iter();
        let ours = leases.filter(|lease| lease.labels.get(LABEL_DATA_ROOT).is_some_and(|of| of == id));
        Ok(ours.map(FoundLease::from).collect())
    }

    /// Leases whose names begin so.
    pub(super) async fn leases_of(&self, prefix: &str) -> Result<Vec<FoundLease>> {
        let leases = self.list_leases().await?.into_iter();
        Ok(leases
            .filter(|lease| lease.id.starts_with(prefix))
            .map(FoundLease::from)
            .collect())
    }

    async fn list_leases(&self) -> Result<Vec<services::Lease>> {
        let message = services::ListRequest { filters: Vec::new() };
        let listed = self.leases().list(self.request(message)).await;
        let listed = listed.map_err(|status| failed("list leases in containerd", status))?;
        Ok(listed.into_inner().leases)
    }

    /// Deletes a lease. `sync`: returns when what it alone held is collected.
    pub(super) async fn delete_lease(&self, lease: &Lease, sync: bool) -> Result<()> {
        let id = lease.id.clone();
        let deleted = self
            .leases()
            .delete(self.request(services::DeleteRequest { id, sync }))
            .await;
        match deleted {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(failed("delete a lease in containerd", status)),
        }
    }

    /// Takes a blob that is there under a lease.
    pub(super) async fn hold_blob(&self, lease: &Lease, digest: &Digest) -> Result<()> {
        self.hold(lease, "content".to_owned(), digest.to_string()).await
    }

    /// Takes a layer stack that is there under a lease.
    pub(super) async fn hold_snapshot(&self, lease: &Lease, snapshotter: &str, name: &str) -> Result<()> {
        self.hold(lease, format!("snapshots/{snapshotter}"), name.to_owned())
            .await
    }

    async fn hold(&self, lease: &Lease, kind: String, id: String) -> Result<()> {
        let operation = format!("hold {kind} {id}");
        let resource = Some(services::Resource { id, r#type: kind });
        let message = services::AddResourceRequest {
            id: lease.id.clone(),
            resource,
        };
        match self.leases().add_resource(self.request(message)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(failed(&operation, status)),
        }
    }

    /// The record of an image under exactly this name.
    pub(super) async fn get_image(&self, name: &str) -> Result<Option<services::Image>> {
        let message = services::GetImageRequest { name: name.to_owned() };
        match self.images().get(self.request(message)).await {
            Ok(answer) => Ok(answer.into_inner().image),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(&format!("look up image {name}"), status)),
        }
    }

    pub(super) async fn list_images(&self) -> Result<Vec<services::Image>> {
        let message = services::ListImagesRequest { filters: Vec::new() };
        let listed = self.images().list(self.request(message)).await;
        let listed = listed.map_err(|status| failed("list images", status))?;
        Ok(listed.into_inner().images)
    }

    /// Lets a name point to content, whether it is new or pointed elsewhere before.
    pub(super) async fn put_image(&self, name: &str, target: &Descriptor) -> Result<services::Image> {
        let image = services::Image {
            name: name.to_owned(),
            target: Some(wire_descriptor(target)),
            ..Default::default()
        };
        let message = services::CreateImageRequest {
            image: Some(image.clone()),
            ..Default::default()
        };
        let operation = format!("store the name of image {name}");
        match self.images().create(self.request(message)).await {
            Ok(answer) => return answer.into_inner().image.ok_or_else(|| empty_answer(&operation)),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(failed(&operation, status)),
        }
        let message = services::UpdateImageRequest {
            image: Some(image),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["target".to_owned()],
            }),
            ..Default::default()
        };
        let updated = self.images().update(self.request(message)).await;
        let updated = updated.map_err(|status| failed(&operation, status))?;
        updated.into_inner().image.ok_or_else(|| empty_answer(&operation))
    }

    /// Removes a name and waits until what it alone held is collected. A missing one is a success.
    pub(super) async fn delete_image(&self, name: &str) -> Result<()> {
        let message = services::DeleteImageRequest {
            name: name.to_owned(),
            sync: true,
            ..Default::default()
        };
        match self.images().delete(self.request(message)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(failed(&format!("remove image {name}"), status)),
        }
    }

    /// Containers made from images of these names, each with its image's name; of all names when none is given.
    pub(super) async fn containers_of(&self, images: &[String]) -> Result<Vec<(String, String)>> {
        let filters = images.iter().map(|name| format!("image=={name:?}")).collect();
        let message = services::ListContainersRequest { filters };
        let listed = ContainersClient::new(self.channel.clone())
            .max_decoding_message_size(CONTAINERS_LIMIT)
            .list(self.request(message))
            .await;
        let listed = listed.map_err(|status| failed("list containers", status))?;
        let containers = listed.into_inner().containers.into_iter();
        Ok(containers.map(|container| (container.id, container.image)).collect())
    }

    /// What the content store knows of a blob; `None` when it is not there.
    pub(super) async fn blob_info(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        let message = services::InfoRequest {
            digest: digest.to_string(),
        };
        match self.content().info(self.request(message)).await {
            Ok(answer) => {
                let labels = answer.into_inner().info.unwrap_or_default().labels;
                Ok(Some(BlobInfo { labels }))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(&format!("look up content {digest}"), status)),
        }
    }

    /// Sets labels of a blob and leaves its others.
    pub(super) async fn label_blob(&self, digest: &Digest, labels: &BTreeMap<String, String>) -> Result<()> {
        let info = services::Info {
            digest: digest.to_string(),
            labels: labels.clone().into_iter().collect(),
            ..Default::default()
        };
        let message = services::UpdateRequest {
            info: Some(info),
            update_mask: Some(prost_types::FieldMask {
                paths: labels.keys().map(|key| format!("labels.{key}")).collect(),
            }),
        };
        let updated = self.content().update(self.request(message)).await;
        updated
            .map(drop)
            .map_err(|status| failed(&format!("label content {digest}"), status))
    }

    /// Reads a small blob; `None` when it is not there. One beyond `limit` bytes is an error.
    pub(super) async fn read_blob(&self, digest: &Digest, limit: usize) -> Result<Option<Vec<u8>>> {
        let operation = format!("read content {digest}");
        let message = services::ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        };
        let mut stream = match self.content().read(self.request(message)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(failed(&operation, status)),
        };
        let mut bytes = Vec::new();
        loop {
            let part = within(&operation, SMALL_CALL_LIMIT, stream.message()).await?;
            match part {
                Ok(Some(part)) => bytes.extend_from_slice(&part.data),
                Ok(None) => return Ok(Some(bytes)),
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(failed(&operation, status)),
            }
            if bytes.len() > limit {
                let reason = format!("{digest} is larger than {limit} bytes, too large for what it stands for");
                return Err(RuntimeError::Rejected { reason });
            }
        }
    }

    /// Whether a finished layer stack is there.
    pub(super) async fn has_snapshot(&self, snapshotter: &str, name: &str) -> Result<bool> {
        let message = services::snapshots::StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: name.to_owned(),
        };
        match self.snapshots().stat(self.request(message)).await {
            Ok(answer) => {
                let kind = answer.into_inner().info.unwrap_or_default().kind;
                Ok(kind == services::snapshots::Kind::Committed as i32)
            }
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(failed(&format!("look up layer stack {name}"), status)),
        }
    }
}

/// A lease as it was listed.
pub(super) struct FoundLease {
    pub(super) lease: Lease,
    /// In seconds since 1970.
    pub(super) made: i64,
    /// What was pulled under it.
    pub(super) image: Option<String>,
}

impl From<services::Lease> for FoundLease {
    fn from(mut lease: services::Lease) -> Self {
        Self {
            made: lease.created_at.unwrap_or_default().seconds,
            image: lease.labels.remove(LABEL_IMAGE),
            lease: Lease { id: lease.id },
        }
    }
}

/// Adds a lease to a request.
pub(super) fn under<T>(mut request: Request<T>, lease: &Lease) -> Request<T> {
    // Our leases are named by us, in ASCII: the parse cannot fail.
    if let Ok(id) = lease.id.parse::<AsciiMetadataValue>() {
        request.metadata_mut().insert("containerd-lease", id);
    }
    request
}

/// Waits for a step of a stream, with a limit.
pub(super) async fn within<F: Future>(operation: &str, limit: Duration, step: F) -> Result<F::Output> {
    tokio::time::timeout(limit, step).await.map_err(|elapsed| {
        tracing::warn!(operation, seconds = limit.as_secs(), "containerd does not answer");
        RuntimeError::Unavailable {
            runtime: "containerd",
            source: Some(Box::new(elapsed)),
        }
    })
}

/// What a refusal of containerd means to our callers.
pub(super) fn failed(operation: &str, status: Status) -> RuntimeError {
    let text = status.message();
    if text.contains("no space left on device") || text.contains("disk quota exceeded") {
        return RuntimeError::NoSpace {
            operation: operation.to_owned(),
        };
    }
    // What has a cause was made on our side of the connection, whatever its code says.
    let cut = std::error::Error::source(&status).is_some();
    let lost = matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
    );
    if cut || (lost && !text.contains(": unavailable")) {
        return RuntimeError::Unavailable {
            runtime: "containerd",
            source: Some(Box::new(status)),
        };
    }
    RuntimeError::other(operation, status)
}

pub(super) fn empty_answer(operation: &str) -> RuntimeError {
    RuntimeError::other(operation, "containerd's answer was empty")
}

pub(super) fn wire_descriptor(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: descriptor.size as i64,
        annotations: HashMap::new(),
    }
}
