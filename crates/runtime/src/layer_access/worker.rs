//! One running `skep-layer`: its stream, its report and its end.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use skep_layer_protocol::{Applied, FailureKind, Packed, Report};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

use super::ArchiveStream;
use crate::{Result, RuntimeError};

/// How much is read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// The longest report.
const REPORT_BYTES: u64 = 64 * 1024;

type Kept = Option<Box<dyn std::any::Any + Send + Sync>>;

/// Whatever is to be kept until a worker has ended.
pub struct Held {
    _kept: Kept,
    /// What stands still, only for as long as somebody reads.
    frozen: Kept,
}

impl Held {
    pub fn new(held: impl std::any::Any + Send + Sync) -> Self {
        Self {
            _kept: Some(Box::new(held)),
            frozen: None,
        }
    }

    pub fn nothing() -> Self {
        Self {
            _kept: None,
            frozen: None,
        }
    }

    /// With what stands still until the worker has ended, or is ended.
    #[must_use]
    pub fn frozen(self, frozen: impl std::any::Any + Send + Sync) -> Self {
        Self {
            frozen: Some(Box::new(frozen)),
            ..self
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Held")
    }
}

/// A running worker. Dropped, it is ended.
pub struct Worker {
    /// `None`: it has ended.
    child: Option<Child>,
    report: Option<ChildStderr>,
    /// The worker ends when this is closed, also by our own death.
    lifeline: Option<OwnedFd>,
    held: Held,
}

impl Worker {
    pub(super) fn new(mut child: Child, lifeline: OwnedFd, held: Held) -> Self {
        Self {
            report: child.stderr.take(),
            child: Some(child),
            lifeline: Some(lifeline),
            held,
        }
    }

    /// Its archive as it is written.
    pub fn into_reader(mut self) -> DataReader {
        let output = self.child.as_mut().and_then(|child| child.stdout.take());
        DataReader {
            output,
            worker: self,
            packed: None,
        }
    }

    /// What it says of how long an archive will be.
    ///
    /// # Errors
    /// What it reports.
    pub async fn estimate(mut self) -> Result<u64> {
        match self.ended().await? {
            Report::Estimated { bytes } => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    /// Feeds it an archive to its end, and returns what it says then.
    ///
    /// # Errors
    /// What it reports; an error of the archive's source, which wins.
    pub async fn feed(mut self, archive: ArchiveStream) -> Result<Applied> {
        if let Some(input) = self.child.as_mut().and_then(|child| child.stdin.take()) {
            pour(archive, input).await?;
        }
        match self.ended().await? {
            Report::Applied(applied) => Ok(applied),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits for its end; everything it was told or has told is read or closed by then.
    async fn ended(&mut self) -> Result<Report> {
        let failed = |error: io::Error| RuntimeError::other("reading and writing a layer", error);
        let mut text = Vec::new();
        if let Some(report) = self.report.take() {
            report.take(REPORT_BYTES).read_to_end(&mut text).await.map_err(failed)?;
        }
        if let Some(child) = &mut self.child {
            child.wait().await.map_err(failed)?;
            self.child = None;
        }
        self.lifeline = None;
        // What the worker's own runtime said before it died comes first.
        let last = text.rsplit(|byte| *byte == b'\n').find(|line| !line.is_empty());
        let report = last.map(serde_json::from_slice::<Report>);
        match report {
            Some(Ok(Report::Failed { failure, message })) => Err(failed_as(failure, message)),
            Some(Ok(report)) => Ok(report),
            Some(Err(_)) | None => {
                let said = String::from_utf8_lossy(&text).into_owned();
                Err(failed(io::Error::other(format!("it ended without a report: {said}"))))
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Nobody reads on: a worker that waits for the disk may take long to end.
        self.held.frozen = None;
        self.lifeline = None;
        let Some(mut child) = self.child.take() else {
            return;
        };
        let held = std::mem::replace(&mut self.held, Held::nothing());
        // Without a runtime the server ends, and the worker with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            if let Err(error) = child.kill().await {
                tracing::warn!(%error, "a worker on a layer could not be ended");
            }
            drop(held);
        });
    }
}

/// An archive of `/data` while it is made. Dropped, it ends the worker.
pub struct DataReader {
    output: Option<ChildStdout>,
    worker: Worker,
    packed: Option<Packed>,
}

impl DataReader {
    /// The next piece; `None` after the last one of an archive that is whole.
    ///
    /// # Errors
    /// What the worker reports: what was read before is not an archive then.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let Some(output) = &mut self.output else {
            return Ok(None);
        };
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let read = output.read_buf(&mut chunk).await;
        let read = read.map_err(|error| RuntimeError::other("reading a layer", error))?;
        if read > 0 {
            return Ok(Some(chunk.freeze()));
        }
        self.output = None;
        match self.worker.ended().await? {
            Report::Packed(packed) => self.packed = Some(packed),
            other => return Err(unexpected(&other)),
        }
        Ok(None)
    }

    /// What is in the archive, once it was read to its end.
    pub fn packed(&self) -> Option<&Packed> {
        self.packed.as_ref()
    }

    /// The same as a stream, whose last item is an error when the archive is not whole.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self, |mut reader| async move {
            match reader.next_chunk().await {
                Ok(Some(chunk)) => Ok(Some((chunk, reader))),
                Ok(None) => Ok(None),
                Err(error) => Err(io::Error::other(error)),
            }
        })
    }
}

/// A worker that has seen enough closes its input; its report says whether that was a failure.
async fn pour(mut archive: ArchiveStream, mut input: ChildStdin) -> Result<()> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull => RuntimeError::NoSpace {
            operation: error.to_string(),
        },
        _ => RuntimeError::other("reading an archive", error),
    };
    while let Some(chunk) = archive.next().await {
        match input.write_all(&chunk.map_err(failed)?).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
    }
    input.shutdown().await.map_err(failed)
}

fn failed_as(kind: FailureKind, message: String) -> RuntimeError {
    match kind {
        FailureKind::NotADirectory => RuntimeError::Rejected { reason: message },
        FailureKind::Refused => RuntimeError::ArchiveRefused { reason: message },
        FailureKind::NoSpace => RuntimeError::NoSpace { operation: message },
        FailureKind::Limit | FailureKind::Other => RuntimeError::other("reading or writing a layer", message),
    }
}

fn unexpected(report: &Report) -> RuntimeError {
    RuntimeError::other("reading or writing a layer", format!("it reported {report:?}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn what_stood_still_runs_on_before_the_worker_has_ended() {
        let child = tokio::process::Command::new("sleep")
            .arg("600")
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let (_end, lifeline) = rustix::pipe::pipe().expect("a pipe");
        let (turn, frozen) = (Arc::new(()), Arc::new(()));
        let held = Held::new(Arc::clone(&turn)).frozen(Arc::clone(&frozen));
        drop(Worker::new(child, lifeline, held).into_reader());
        // On this one thread, nothing else has run yet.
        assert_eq!(Arc::strong_count(&frozen), 1, "it stands still for nobody");
        assert_eq!(
            Arc::strong_count(&turn),
            2,
            "the layer is the worker's until it has ended"
        );
        let ended = async {
            while Arc::strong_count(&turn) > 1 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let ended = tokio::time::timeout(std::time::Duration::from_secs(60), ended).await;
        ended.expect("the worker ends");
    }
}
