//! The connection to containerd: every call has a limit, every refusal a meaning.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::{Result, RuntimeError};

/// A daemon that is silent for so long is not there.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// A listening daemon accepts at once; a stopped one's queue may be full.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A container's record with its specification is some 15 KiB.
const MESSAGE_LIMIT: usize = 64 << 20;

/// One containerd and our namespace in it. Connects when first used, and again when the connection was lost.
#[derive(Clone)]
pub(super) struct Client {
    channel: Channel,
    namespace: AsciiMetadataValue,
}

impl Client {
    pub(super) fn new(socket: &Path, namespace: &str) -> Result<Self> {
        let parsed = namespace.parse().ok().filter(|_| !namespace.is_empty());
        let namespace = parsed.ok_or_else(|| RuntimeError::Rejected {
            reason: format!("{namespace:?} cannot be a containerd namespace"),
        })?;
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        // The address is not used; the connector knows where to go.
        let endpoint = Endpoint::from_static("http://containerd").connect_timeout(CONNECT_LIMIT);
        Ok(Self {
            channel: endpoint.connect_with_connector_lazy(connector),
            namespace,
        })
    }

    /// The connection, for what else speaks to the same daemon.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request in our namespace that fails after [`SILENCE_LIMIT`].
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        self.request_within(message, SILENCE_LIMIT)
    }

    pub(super) fn request_within<T>(&self, message: T, limit: Duration) -> Request<T> {
        let mut request = self.endless_request(message);
        request.set_timeout(limit);
        request
    }

    /// For streams that last; their reader waits with limits of its own.
    pub(super) fn endless_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    pub(super) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(super) fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
    }

    pub(super) fn introspection(&self) -> IntrospectionClient<Channel> {
        IntrospectionClient::new(self.channel.clone())
    }

    pub(super) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(super) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(super) fn version(&self) -> VersionClient<Channel> {
        VersionClient::new(self.channel.clone())
    }
}

/// What a refusal means to our callers.
pub(super) fn failed(operation: impl Into<String>, status: Status) -> RuntimeError {
    let operation = operation.into();
    let text = status.message();
    if text.contains("no space left on device") || text.contains("disk quota exceeded") {
        return RuntimeError::NoSpace { operation };
    }
    match status.code() {
        Code::NotFound => RuntimeError::NotFound { what: operation },
        // containerd itself says "unavailable" of a runtime or a snapshotter: that is an answer.
        Code::Unavailable if text.ends_with(": unavailable") => RuntimeError::other(operation, status),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => unavailable(status),
        // The connection broke in the middle of a call.
        Code::Unknown | Code::Internal if std::error::Error::source(&status).is_some() => unavailable(status),
        _ => RuntimeError::other(operation, status),
    }
}

pub(super) fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RuntimeError {
    RuntimeError::Unavailable {
        runtime: "containerd",
        source: Some(source.into()),
    }
}

/// Whether a call ended because its own limit passed.
pub(super) fn ran_out_of_time(status: &Status) -> bool {
    match status.code() {
        Code::DeadlineExceeded => true,
        Code::Cancelled => true,
        _ => status.message().contains("context deadline exceeded"),
    }
}

/// `None` where the thing is not there.
pub(super) fn optional<T>(
    answer: std::result::Result<tonic::Response<T>, Status>,
    operation: impl FnOnce() -> String,
) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(failed(operation(), status)),
    }
}

/// Reads a stream to its end, with a limit on each silence.
pub(super) async fn collect<T>(mut stream: tonic::Streaming<T>, operation: &str) -> Result<Vec<T>> {
    let mut items = Vec::new();
    loop {
        let next = tokio::time::timeout(SILENCE_LIMIT, stream.message()).await;
        match next.map_err(unavailable)? {
            Ok(Some(item)) => items.push(item),
            Ok(None) => return Ok(items),
            Err(status) => return Err(failed(operation, status)),
        }
    }
}
