//! TCP connections to ports of the workspace's own loopback, carried in both directions with their ends.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use skep_bridge_protocol::workspace::ForwardChunk;
use skep_bridge_protocol::{STREAM_CHUNK_BYTES, reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::input::{self, End};
use super::streams::ResponseStream;
use crate::failure;

/// Chunks on their way to the caller.
const IN_FLIGHT: usize = 4;
/// A loopback answers at once, or not at all.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

type Outlet = mpsc::Sender<Result<ForwardChunk, Status>>;

pub(super) async fn forward(mut chunks: Streaming<ForwardChunk>) -> Result<ResponseStream<ForwardChunk>, Status> {
    let port_is_required = || Status::invalid_argument("the first message has a port from 1 to 65535");
    let first = chunks.message().await?.ok_or_else(port_is_required)?;
    let port = u16::try_from(first.port).ok().filter(|port| *port != 0);
    let connection = connect(port.ok_or_else(port_is_required)?).await?;
    let (outlet, answers) = mpsc::channel(IN_FLIGHT);
    // Not joined: it ends with the connection, or with the caller's stream.
    tokio::spawn(carry(connection, chunks, outlet));
    Ok(Box::pin(ReceiverStream::new(answers)))
}

async fn connect(port: u16) -> Result<TcpStream, Status> {
    let mut refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(SocketAddr::new(address, port))).await {
            Ok(Ok(connection)) => {
                // Whoever listens decides what is worth a packet of its own.
                connection.set_nodelay(true).map_err(broken)?;
                return Ok(connection);
            }
            // A workspace without IPv6 has no such address: what the first one said counts.
            Ok(Err(error)) if address.is_ipv6() && error.kind() != io::ErrorKind::ConnectionRefused => {}
            Ok(Err(error)) => refused = error,
            // Its listener's queue is full.
            Err(_) => refused = io::ErrorKind::ConnectionRefused.into(),
        }
    }
    match refused.kind() {
        io::ErrorKind::ConnectionRefused => Err(failure::refused(
            reason::CONNECTION_REFUSED,
            format!("nothing accepts on port {port}"),
        )),
        _ => Err(broken(refused)),
    }
}

/// Both directions, each to its own end. Cut off, the workspace's side sees a reset and no end.
async fn carry(mut connection: TcpStream, chunks: Streaming<ForwardChunk>, outlet: Outlet) {
    let (from, into) = connection.split();
    let carried = tokio::select! {
        carried = async { tokio::try_join!(outward(from, &outlet), inward(into, chunks)) } => carried.map(drop),
        () = outlet.closed() => Err(cut()),
    };
    if let Err(status) = carried {
        match rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO)) {
            // A connection that is gone already cannot be reset, and need not be.
            Ok(()) | Err(_) => {}
        }
        // Nobody reads it when the caller has gone.
        drop(outlet.send(Err(status)).await);
    }
}

async fn outward(mut from: ReadHalf<'_>, outlet: &Outlet) -> Result<(), Status> {
    let mut buffer = bytes::BytesMut::new();
    loop {
        buffer.reserve(STREAM_CHUNK_BYTES / 4);
        let end = from.read_buf(&mut buffer).await.map_err(broken)? == 0;
        let chunk = ForwardChunk {
            data: buffer.split().freeze(),
            end,
            ..ForwardChunk::default()
        };
        outlet.send(Ok(chunk)).await.map_err(|_| cut())?;
        if end {
            return Ok(());
        }
    }
}

async fn inward(mut into: WriteHalf<'_>, chunks: Streaming<ForwardChunk>) -> Result<(), Status> {
    let (given, mut taken) = input::pipe();
    let receive = async {
        match given.put_all(chunks, |chunk| (chunk.data, chunk.end)).await? {
            End::Told => Ok(()),
            End::Silent => Err(cut()),
        }
    };
    let send = async {
        while let Some(data) = taken.next().await? {
            into.write_all(&data).await.map_err(broken)?;
        }
        Ok::<_, Status>(())
    };
    tokio::try_join!(receive, send)?;
    into.shutdown().await.map_err(broken)
}

fn broken(error: io::Error) -> Status {
    failure::with_reason(Code::Aborted, Some(reason::CONNECTION_RESET), error.to_string())
}

fn cut() -> Status {
    Status::aborted("the caller's stream ended before its end")
}
