//! Servers and clients in namespaces: what is open, and what is not.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::stage::{inside, output};

/// Long for a packet in memory, short for a test that waits for nothing.
const PATIENCE: Duration = Duration::from_millis(700);

/// How long one that must be answered is tried, on a machine that has other work.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// How long a server may take to see that it should stop.
const BREATH: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reached {
    /// It was answered; the server saw this client.
    Open(IpAddr),
    /// It came to a host where nothing listens: the way is open.
    NobodyListens,
    /// Nothing came back, or a "not allowed".
    Closed,
}

/// A server on TCP and UDP that answers with the client's address, until it is dropped.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// `netns`: `None` for the test's host.
    pub(crate) fn start(netns: Option<&Path>, port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let bind = move || {
            let tcp = listener(port);
            tcp.set_nonblocking(true).unwrap();
            // One for each address, so that an answer comes from where the question went.
            let addresses = output("ip -o -4 addr show");
            let addresses = addresses
                .split_ascii_whitespace()
                .filter_map(|word| word.split_once('/'));
            let addresses: BTreeSet<&str> = addresses.map(|(address, _)| address).collect();
            let bound = addresses
                .into_iter()
                .map(|address| UdpSocket::bind((address, port)).unwrap());
            let udp: Vec<UdpSocket> = bound.collect();
            (tcp, udp)
        };
        let (tcp, udp) = in_namespace(netns, bind).join().unwrap();
        let stopped = flag.clone();
        let threads = vec![
            std::thread::spawn(move || serve_tcp(&tcp, &stopped)),
            std::thread::spawn(move || serve_udp(&udp, &flag)),
        ];
        Self { stop, threads }
    }
}

/// The one before it on that port may be open a moment longer: in a program that another test is about to start.
fn listener(port: u16) -> TcpListener {
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpListener::bind(("::", port)) {
            Ok(listener) => return listener,
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < limit => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("port {port}: {error}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn serve_tcp(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&BREATH)).unwrap();
        if let Ok((mut client, peer)) = listener.accept() {
            // A client that has gone away is its own affair.
            drop(client.write_all(peer.ip().to_canonical().to_string().as_bytes()));
        }
    }
}

fn serve_udp(sockets: &[UdpSocket], stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        let mut ready: Vec<_> = sockets
            .iter()
            .map(|socket| PollFd::new(socket, PollFlags::IN))
            .collect();
        poll(&mut ready, Some(&BREATH)).unwrap();
        let ready: Vec<bool> = ready.iter().map(|socket| !socket.revents().is_empty()).collect();
        for (socket, _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                drop(socket.send_to(peer.ip().to_string().as_bytes(), peer));
            }
        }
    }
}

fn in_namespace<T: Send + 'static>(netns: Option<&Path>, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match netns {
        Some(netns) => inside(netns, work),
        None => std::thread::spawn(work),
    }
}

/// As [`tcp`], where it must be answered: tried again while it is not.
pub(crate) async fn open_tcp(from: Option<&Path>, to: SocketAddr) -> Reached {
    until_open(async || tcp(from, to).await).await
}

/// As [`udp`], where it must be answered: tried again while it is not.
pub(crate) async fn open_udp(from: Option<&Path>, to: SocketAddr) -> Reached {
    until_open(async || udp(from, to).await).await
}

async fn until_open(mut ask: impl AsyncFnMut() -> Reached) -> Reached {
    let limit = Instant::now() + OPEN_LIMIT;
    loop {
        let reached = ask().await;
        if matches!(reached, Reached::Open(_)) || Instant::now() >= limit {
            return reached;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Connects by TCP from a namespace (`None`: the test's host).
pub(crate) async fn tcp(from: Option<&Path>, to: SocketAddr) -> Reached {
    from_namespace(from, move || {
        let mut text = String::new();
        let answer = TcpStream::connect_timeout(&to, PATIENCE).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read_to_string(&mut text)
        });
        reached(answer.map(|_| text))
    })
    .await
}

/// Asks by UDP.
pub(crate) async fn udp(from: Option<&Path>, to: SocketAddr) -> Reached {
    from_namespace(from, move || {
        let own: SocketAddr = if to.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let mut buffer = [0; 64];
        let answer = UdpSocket::bind(own).and_then(|socket| {
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        });
        reached(answer)
    })
    .await
}

async fn from_namespace(from: Option<&Path>, work: impl FnOnce() -> Reached + Send + 'static) -> Reached {
    let from: Option<PathBuf> = from.map(Path::to_path_buf);
    let done = tokio::task::spawn_blocking(move || in_namespace(from.as_deref(), work).join().unwrap());
    done.await.unwrap()
}

fn reached(answer: std::io::Result<String>) -> Reached {
    match answer {
        Ok(text) => Reached::Open(text.parse().unwrap_or_else(|_| panic!("{text:?} is no address"))),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Reached::NobodyListens,
        Err(_) => Reached::Closed,
    }
}

/// An address and a port.
pub(crate) fn at(address: impl ToString, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_string().parse().unwrap(), port)
}
