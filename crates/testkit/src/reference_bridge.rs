//! A bridge of which only the reference's service is seen, on TCP: what an old bridge in an old workspace is to a
//! server of today. A real bridge answers behind it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Context, Poll, Service, StdError};
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tower::ServiceExt;

/// Serves until it is dropped.
pub struct ReferenceBridge {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl ReferenceBridge {
    /// Listens on `listener`, in the place of the bridge on this socket.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn serve(listener: TcpListener, socket: PathBuf) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://bridge").connect_with_connector_lazy(connector);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener).inspect(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            let served = Server::builder()
                .serve_with_incoming(OnlyReference(channel), incoming)
                .await;
            if let Err(error) = served {
                eprintln!("the reference's bridge of a test ended: {error}");
            }
        });
        Ok(Self {
            address,
            connections,
            serving,
        })
    }

    /// Listens on this port of every address of a network namespace, such as a legacy container's.
    ///
    /// # Errors
    /// There is no such namespace yet, or the port is taken.
    pub fn serve_inside(namespace: &Path, port: u16, socket: PathBuf) -> io::Result<Self> {
        let namespace = std::fs::File::open(namespace)?;
        // A thread of its own: entering a namespace spoils it. What it opened stays in there.
        let opened = std::thread::spawn(move || {
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))?;
            std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        });
        let listener = opened.join().map_err(|_| io::Error::other("the thread panicked"))??;
        listener.set_nonblocking(true)?;
        Self::serve(TcpListener::from_std(listener)?, socket)
    }

    /// How many connections it has taken.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for ReferenceBridge {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Clone)]
struct OnlyReference(Channel);

impl Service<Request<Body>> for OnlyReference {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let channel = self.0.clone();
        Box::pin(async move {
            if request.uri().path().starts_with("/bridgepb.ContainerService/") {
                return Ok(channel.oneshot(request).await?);
            }
            Ok(Status::unimplemented("unknown service").into_http())
        })
    }
}
