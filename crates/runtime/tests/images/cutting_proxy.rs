//! A line to a registry that breaks, or hangs.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Stands before a registry and cuts every connection after so many bytes of answers.
pub(crate) struct CuttingProxy {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    bytes: Arc<AtomicU64>,
    held: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl CuttingProxy {
    pub(crate) async fn start(registry: SocketAddr, bytes: u64) -> Self {
        Self::start_with(registry, bytes, false).await
    }

    async fn start_with(registry: SocketAddr, bytes: u64, holds: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let limit = Arc::new(AtomicU64::new(bytes));
        let bytes = Arc::clone(&limit);
        let (held, holding) = watch::channel(holds);
        let line = move |bytes| Line {
            registry,
            bytes,
            held: holds.then(|| holding.clone()),
        };
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let bytes = limit.load(Ordering::Relaxed);
                connections.spawn(pass_on(client, line(bytes), Arc::clone(&seen)));
            }
        });
        Self {
            address,
            requests,
            bytes,
            held,
            task,
        }
    }

    /// One that holds every connection after so many bytes of answers, until it is mended.
    pub(crate) async fn start_holding(registry: SocketAddr, bytes: u64) -> Self {
        Self::start_with(registry, bytes, true).await
    }

    /// Lets connections made from now on live, and those that it holds go on.
    pub(crate) fn mend(&self) {
        self.bytes.store(u64::MAX, Ordering::Relaxed);
        self.held.send_replace(false);
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// First line of every request, with its `Range` when it has one.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for CuttingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What becomes of one connection.
struct Line {
    registry: SocketAddr,
    bytes: u64,
    /// `None`: it is cut after those bytes. Else it goes on when this is false.
    held: Option<watch::Receiver<bool>>,
}

async fn pass_on(client: TcpStream, line: Line, seen: Arc<Mutex<Vec<String>>>) {
    let server = TcpStream::connect(line.registry).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let asking = async move {
        let mut head = Vec::new();
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            head.extend_from_slice(&buffer[..count]);
            while let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&head[..end]).into_owned();
                let range = text
                    .lines()
                    .find(|line| line.to_ascii_lowercase().starts_with("range:"));
                let line = text.lines().next().unwrap_or_default();
                seen.lock()
                    .unwrap()
                    .push(format!("{line} {}", range.unwrap_or_default()));
                head.drain(..end + 4);
            }
            if to_server.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    let answering = async move {
        let mut limited = from_server.take(line.bytes);
        // Either end may go first; the test sees what came of it.
        drop(tokio::io::copy(&mut limited, &mut to_client).await);
        if let Some(mut held) = line.held {
            drop(held.wait_for(|held| !held).await);
            drop(tokio::io::copy(&mut limited.into_inner(), &mut to_client).await);
        }
        drop(to_client.shutdown().await);
    };
    tokio::select! {
        () = asking => {}
        () = answering => {}
    }
}
