//! Writes one blob into containerd's content store: streamed, resumable, its digest checked there.

use std::collections::BTreeMap;
use std::time::Duration;

use containerd_client::services::v1::{AbortRequest, WriteAction, WriteContentRequest, WriteContentResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::daemon::{Daemon, Lease, failed, under, within};
use super::manifest::Digest;
use crate::{Result, RuntimeError};

/// Bytes of one message: large enough to be cheap, far below containerd's limit of 16 MiB.
pub(super) const CHUNK: usize = 1 << 20;
/// Messages under way; bounds the memory of one blob to a few MiB.
const QUEUE: usize = 4;
/// containerd writes a message to a file, which a busy disk may hold up.
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// A writer that went away holds its blob until containerd has seen it go.
const LOCK_LIMIT: Duration = Duration::from_secs(20);

/// A blob being written.
pub(super) struct Ingest {
    reference: String,
    total: u64,
    expected: Option<Digest>,
    offset: u64,
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
}

/// What opening a blob for writing finds.
pub(super) enum Opened {
    /// It is there in full.
    There,
    /// It can be written from [`Ingest::offset`] on.
    Writing(Box<Ingest>),
}

/// How the end of a blob went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Committed {
    /// It is stored under this digest.
    Stored(Digest),
    /// Its content has another digest or size than expected. Nothing is stored.
    Different,
}

/// What is known of a blob before it is written.
pub(super) struct Expected {
    /// Writers of the same name continue each other's work.
    pub(super) reference: String,
    /// Its size, when it is known.
    pub(super) total: Option<u64>,
    /// Its digest, when it is known.
    pub(super) digest: Option<Digest>,
}

impl Ingest {
    /// Opens a blob for writing; waits while another writer has it.
    pub(super) async fn open(daemon: &Daemon, lease: &Lease, expected: Expected) -> Result<Opened> {
        let operation = format!("open content {}", expected.reference);
        let deadline = tokio::time::Instant::now() + LOCK_LIMIT;
        loop {
            match Self::try_open(daemon, lease, &expected).await {
                Ok(opened) => return Ok(opened),
                Err(status) if status.code() == Code::AlreadyExists => return Ok(Opened::There),
                Err(status) if is_locked(&status) && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(status) => return Err(failed(&operation, status)),
            }
        }
    }

    async fn try_open(daemon: &Daemon, lease: &Lease, expected: &Expected) -> std::result::Result<Opened, Status> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let total = expected.total.unwrap_or(0);
        let first = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: expected.reference.clone(),
            total: total as i64,
            expected: expected.digest.as_ref().map(Digest::to_string).unwrap_or_default(),
            ..Default::default()
        };
        requests
            .try_send(first)
            .map_err(|_| Status::internal("the queue of a new stream is full"))?;
        let stream = ReceiverStream::new(receiver);
        let request = under(daemon.unlimited_request(stream), lease);
        let opening = async {
            let mut responses = daemon.content().write(request).await?.into_inner();
            let status = responses.message().await?;
            status
                .map(|status| (status.offset, responses))
                .ok_or_else(|| Status::internal("the answer ended early"))
        };
        let (offset, responses) = tokio::time::timeout(STEP_LIMIT, opening)
            .await
            .map_err(|_| Status::deadline_exceeded("containerd does not answer"))??;
        Ok(Opened::Writing(Box::new(Self {
            reference: expected.reference.clone(),
            total,
            expected: expected.digest.clone(),
            offset: offset.max(0) as u64,
            requests,
            responses,
        })))
    }

    /// Bytes that are written.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends at most [`CHUNK`] bytes. Does not wait for the disk unless the queue is full.
    pub(super) async fn write(&mut self, data: Vec<u8>) -> Result<()> {
        let length = data.len() as u64;
        if length == 0 {
            return Ok(());
        }
        let request = WriteContentRequest {
            offset: self.offset as i64,
            ..self.message(WriteAction::Write, data)
        };
        let operation = format!("write content {}", self.reference);
        within(&operation, STEP_LIMIT, self.send(request))
            .await?
            .map_err(|status| failed(&operation, status))?;
        self.offset += length;
        Ok(())
    }

    /// Says what digest must come out, when that is known only now.
    pub(super) fn expecting(mut self: Box<Self>, digest: Digest) -> Box<Self> {
        self.expected = Some(digest);
        self
    }

    /// Throws away what is written, to begin anew.
    pub(super) async fn restart(daemon: &Daemon, lease: &Lease, expected: Expected) -> Result<Opened> {
        abort(daemon, &expected.reference).await?;
        Self::open(daemon, lease, expected).await
    }

    /// Ends the blob: containerd checks its size and digest and stores it with these labels.
    pub(super) async fn commit(mut self: Box<Self>, labels: &BTreeMap<String, String>) -> Result<Committed> {
        let operation = format!("store content {}", self.reference);
        let request = WriteContentRequest {
            offset: self.offset as i64,
            labels: labels.clone().into_iter().collect(),
            ..self.message(WriteAction::Commit, Vec::new())
        };
        let finished = async {
            self.send(request).await?;
            loop {
                match self.responses.message().await? {
                    Some(answer) if answer.action == WriteAction::Commit as i32 => return Ok(answer.digest),
                    Some(_) => {}
                    None => return Err(Status::internal("the answer ended early")),
                }
            }
        };
        match within(&operation, STEP_LIMIT, finished).await? {
            Ok(digest) => {
                let digest = Digest::try_from(digest).map_err(|error| RuntimeError::other(&operation, error))?;
                Ok(Committed::Stored(digest))
            }
            Err(status) => match (status.code(), self.expected) {
                (Code::AlreadyExists, Some(digest)) => Ok(Committed::Stored(digest)),
                (Code::FailedPrecondition, _) => Ok(Committed::Different),
                _ => Err(failed(&operation, status)),
            },
        }
    }

    fn message(&self, action: WriteAction, data: Vec<u8>) -> WriteContentRequest {
        WriteContentRequest {
            action: action as i32,
            r#ref: self.reference.clone(),
            total: self.total as i64,
            expected: self.expected.as_ref().map(Digest::to_string).unwrap_or_default(),
            data,
            ..Default::default()
        }
    }

    /// Sends while reading answers: unread, they would fill the stream's window and hold up both sides.
    async fn send(&mut self, request: WriteContentRequest) -> std::result::Result<(), Status> {
        loop {
            tokio::select! {
                biased;
                answer = self.responses.message() => {
                    if answer?.is_none() {
                        return Err(Status::internal("the answer ended early"));
                    }
                }
                place = self.requests.reserve() => {
                    let place = place.map_err(|_| Status::internal("the stream has ended"))?;
                    place.send(request);
                    return Ok(());
                }
            }
        }
    }
}

/// Throws a half-written blob away. A missing one is a success.
pub(super) async fn abort(daemon: &Daemon, reference: &str) -> Result<()> {
    let message = AbortRequest {
        r#ref: reference.to_owned(),
    };
    let deadline = tokio::time::Instant::now() + LOCK_LIMIT;
    loop {
        match daemon.content().abort(daemon.request(message.clone())).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            Err(status) if is_locked(&status) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(status) => return Err(failed(&format!("throw away content {reference}"), status)),
        }
    }
}

/// Stores a small blob with labels; on one that is there, sets the labels.
pub(super) async fn store_small(
    daemon: &Daemon,
    lease: &Lease,
    bytes: &[u8],
    labels: &BTreeMap<String, String>,
) -> Result<()> {
    let digest = Digest::of(bytes);
    let expected = Expected {
        reference: ingest_name(&digest),
        total: Some(bytes.len() as u64),
        digest: Some(digest.clone()),
    };
    let Opened::Writing(mut ingest) = Ingest::open(daemon, lease, expected).await? else {
        return daemon.label_blob(&digest, labels).await;
    };
    let rest = bytes.get(ingest.offset() as usize..).unwrap_or_default().to_vec();
    for part in rest.chunks(CHUNK) {
        ingest.write(part.to_vec()).await?;
    }
    match ingest.commit(labels).await? {
        Committed::Stored(_) => Ok(()),
        Committed::Different => {
            abort(daemon, &ingest_name(&digest)).await?;
            Err(RuntimeError::other(
                format!("store content {digest}"),
                "a half-written copy of it was damaged; it is thrown away",
            ))
        }
    }
}

/// The name under which we write a blob: the same for everyone, so that a later pull continues it.
pub(super) fn ingest_name(digest: &Digest) -> String {
    format!("skep-{digest}")
}

fn is_locked(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().contains("locked")
}
