//! A socket in front of a gRPC daemon's that counts which calls pass.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

type Counts = Arc<Mutex<BTreeMap<String, usize>>>;

/// It passes everything on until it is dropped.
pub struct CallCounter {
    directory: TempDir,
    counts: Counts,
    serving: JoinHandle<()>,
}

impl CallCounter {
    /// In front of this socket.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(target: &Path) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("skep-counter-").tempdir()?;
        let listener = UnixListener::bind(directory.path().join("s"))?;
        let counts = Counts::default();
        let serving = tokio::spawn(serve(listener, target.to_owned(), Arc::clone(&counts)));
        Ok(Self {
            directory,
            counts,
            serving,
        })
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// How often a call passed up to now; its path is `/package.Service/Method`.
    pub fn count(&self, path: &str) -> usize {
        locked(&self.counts).get(path).copied().unwrap_or(0)
    }
}

impl Drop for CallCounter {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn locked(counts: &Counts) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: UnixListener, target: PathBuf, counts: Counts) {
    while let Ok((near, _)) = listener.accept().await {
        let (target, counts) = (target.clone(), Arc::clone(&counts));
        tokio::spawn(async move {
            if let Err(error) = pass_on(near, &target, counts).await {
                tracing::debug!(%error, "a counted connection ended");
            }
        });
    }
}

async fn pass_on(
    near: UnixStream,
    target: &Path,
    counts: Counts,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let far = TokioIo::new(UnixStream::connect(target).await?);
    let (daemon, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), far).await?;
    let counted = service_fn(move |request: Request<Incoming>| {
        let mut daemon = daemon.clone();
        *locked(&counts).entry(request.uri().path().to_owned()).or_default() += 1;
        async move { daemon.send_request(request).await as hyper::Result<Response<Incoming>> }
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let served = server.serve_connection(TokioIo::new(near), counted);
    tokio::try_join!(served, connection)?;
    Ok(())
}
