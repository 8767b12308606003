//! `skep port-forward`: ports here that lead to ports of a workspace's loopback.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::Message;

use crate::arguments::{PortForwardArguments, PortPair};
use crate::client::{Client, Socket, find_bot, open_socket};
use crate::failure::{Failure, Result};
use crate::output::print_text;

/// Connections at a time; more wait to be accepted.
const MOST_CONNECTIONS: usize = 256;
/// Bytes in one frame.
const FRAME_BYTES: usize = 32 << 10;
/// How long the server has to say why it takes no more.
const REASON_WITHIN: Duration = Duration::from_secs(5);
/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on every port before anything is said to be there, and goes on until Ctrl-C.
pub(crate) async fn run(client: &Client, forward: &PortForwardArguments) -> Result<()> {
    let id = find_bot(client, &forward.named.name).await?.id;
    let mut listeners = Vec::new();
    for pair in &forward.ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, pair.local)).await;
        let failed = |error| Failure::local("cannot listen on that port", error);
        let listener = listener.map_err(failed)?;
        let here = listener.local_addr().map_err(failed)?;
        listeners.push((listener, *pair, here));
    }
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut listening = JoinSet::new();
    for (listener, pair, here) in listeners {
        print_text(&format!("{here} -> {}:{}\n", forward.named.name, pair.remote))?;
        let path = format!("/bots/{id}/container/port-forward?port={}", pair.remote);
        listening.spawn(listen((listener, pair), client.clone(), path, places.clone()));
    }
    tokio::signal::ctrl_c()
        .await
        .map_err(|error| Failure::local("cannot wait for Ctrl-C", error))
}

/// Carries each connection in a task of its own, which ends with this one.
async fn listen((listener, pair): (TcpListener, PortPair), client: Client, path: String, places: Arc<Semaphore>) {
    let mut carried = JoinSet::new();
    loop {
        while carried.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((connection, from)) => {
                let (client, path) = (client.clone(), path.clone());
                carried.spawn(async move {
                    if let Err(failure) = carry(&client, &path, connection).await {
                        eprintln!("skep: {from} to port {}: {failure}", pair.remote);
                    }
                    drop(place);
                });
            }
            Err(error) => {
                eprintln!("skep: a connection could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, both ways to its end. An error is a reset for whoever connected here, who would take a part for the
/// whole otherwise.
async fn carry(client: &Client, path: &str, mut connection: TcpStream) -> Result<()> {
    let carried = carry_both_ways(client, path, &mut connection).await;
    if carried.is_err() {
        match rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO)) {
            // One that is gone already cannot be reset, and need not be.
            Ok(()) | Err(_) => {}
        }
    }
    carried
}

async fn carry_both_ways(client: &Client, path: &str, connection: &mut TcpStream) -> Result<()> {
    connection.set_nodelay(true).map_err(broken)?;
    let (mut sink, frames) = open_socket(client, path, "forwarding a port").await?.split();
    let (from, into) = connection.split();
    let mut inward = std::pin::pin!(inward(frames, into));
    tokio::select! {
        sent = outward(from, &mut sink) => match sent {
            Ok(()) => inward.await,
            Err(Ended::Here(error)) => Err(broken(error)),
            // Why the server takes no more is in the other direction.
            Err(Ended::There) => timeout(REASON_WITHIN, inward).await.unwrap_or_else(|_| Err(lost("it takes no more"))),
        },
        ended = &mut inward => ended,
    }
}

/// Which side took no more.
enum Ended {
    Here(std::io::Error),
    There,
}

/// From here to the workspace. An empty frame says that there is nothing more.
async fn outward(mut from: ReadHalf<'_>, sink: &mut SplitSink<Socket, Message>) -> std::result::Result<(), Ended> {
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let count = from.read(&mut buffer).await.map_err(Ended::Here)?;
        let frame = Message::Binary(buffer[..count].to_vec().into());
        sink.send(frame).await.map_err(|_| Ended::There)?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// From the workspace to here, until the server says that both sides have ended.
async fn inward(mut frames: SplitStream<Socket>, mut into: WriteHalf<'_>) -> Result<()> {
    loop {
        match frames.next().await {
            Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => into.shutdown().await.map_err(broken)?,
            Some(Ok(Message::Binary(bytes))) => into.write_all(&bytes).await.map_err(broken)?,
            Some(Ok(Message::Close(Some(frame)))) => {
                return match u16::from(frame.code) {
                    1000 => Ok(()),
                    _ => Err(Failure::Failed(frame.reason.to_string())),
                };
            }
            Some(Ok(Message::Close(None))) | None => return Err(lost("it ended without a reason")),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(lost(&error.to_string())),
        }
    }
}

fn broken(error: std::io::Error) -> Failure {
    Failure::local("the connection here broke off", error)
}

fn lost(what: &str) -> Failure {
    Failure::Failed(format!("the connection to the server was lost: {what}"))
}
