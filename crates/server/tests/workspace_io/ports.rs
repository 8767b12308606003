//! Connections to ports of a workspace's loopback. The fake runtime's workspaces share it with the tests.

use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::json;
use skep_testkit::server::text_of;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{timeout, timeout_at};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::terminals::{Socket, open_socket, read_close};
use crate::{LIMIT, SHOWN_WITHIN, Workspace};

/// Less than the half minute after which a ping tells that a client is gone.
const BEFORE_A_PING: Duration = Duration::from_secs(20);

async fn connect(workspace: &Workspace, query: &str) -> Result<Socket, Error> {
    open_socket(workspace, &format!("/port-forward{query}"), None).await
}

/// A socket, and the connection that came of it.
async fn connected(workspace: &Workspace) -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = connect(workspace, &format!("?port={port}")).await.unwrap();
    let (connection, from) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    assert!(from.ip().is_loopback());
    (socket, connection)
}

/// The bytes of binary frames up to the empty one.
async fn read_to_end(socket: &mut Socket) -> Vec<u8> {
    let end = tokio::time::Instant::now() + SHOWN_WITHIN;
    let mut all = Vec::new();
    loop {
        match timeout_at(end, socket.next()).await {
            Ok(Some(Ok(Message::Binary(bytes)))) if bytes.is_empty() => return all,
            Ok(Some(Ok(Message::Binary(bytes)))) => all.extend_from_slice(&bytes),
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            other => panic!("{other:?} after {} bytes", all.len()),
        }
    }
}

#[tokio::test]
async fn bytes_and_half_closes_are_carried_both_ways() {
    let workspace = Workspace::start().await;
    let (mut socket, mut connection) = connected(&workspace).await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let serving = tokio::spawn(async move {
        let mut asked = Vec::new();
        connection.read_to_end(&mut asked).await.unwrap();
        connection.write_all(&asked).await.unwrap();
        connection.shutdown().await.unwrap();
    });
    for piece in sent.chunks(50_000) {
        socket.send(Message::Binary(piece.to_vec().into())).await.unwrap();
    }
    // Nothing is sent any more: the other side answers only now.
    socket.send(Message::Binary(Vec::new().into())).await.unwrap();
    assert_eq!(read_to_end(&mut socket).await, sent);
    assert_eq!(read_close(&mut socket).await, (1000, String::new()));
    serving.await.unwrap();
}

#[tokio::test]
async fn a_side_that_sends_nothing_more_still_receives() {
    let workspace = Workspace::start().await;
    let (mut socket, mut connection) = connected(&workspace).await;
    connection.write_all(b"banner").await.unwrap();
    connection.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut socket).await, b"banner");
    socket.send(Message::Binary(b"late"[..].into())).await.unwrap();
    socket.send(Message::Binary(Vec::new().into())).await.unwrap();
    let mut late = Vec::new();
    timeout(LIMIT, connection.read_to_end(&mut late))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(late, b"late");
    assert_eq!(read_close(&mut socket).await, (1000, String::new()));
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_refused() {
    let workspace = Workspace::start().await;
    // Held, so that nobody else is given it.
    let held = TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = held.local_addr().unwrap().port();
    let mut socket = connect(&workspace, &format!("?port={port}")).await.unwrap();
    assert_eq!(read_close(&mut socket).await, (1011, "connection refused".to_owned()));
    drop(held);
}

#[tokio::test]
async fn a_reset_is_carried_either_way() {
    let workspace = Workspace::start().await;
    let (mut socket, connection) = connected(&workspace).await;
    rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO)).unwrap();
    drop(connection);
    assert_eq!(read_close(&mut socket).await, (1011, "connection reset".to_owned()));

    let (socket, mut connection) = connected(&workspace).await;
    drop(socket);
    let mut buffer = [0; 1];
    let read = timeout(BEFORE_A_PING, connection.read(&mut buffer)).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_is_sent_to_a_side_that_is_gone_is_told_to_be_lost() {
    let workspace = Workspace::start().await;
    let (mut socket, mut connection) = connected(&workspace).await;
    connection.write_all(b"bye").await.unwrap();
    drop(connection);
    assert_eq!(read_to_end(&mut socket).await, b"bye");
    let end = Instant::now() + LIMIT;
    let closed = loop {
        // The first one is what makes the system there answer with a reset.
        assert!(Instant::now() < end, "nothing tells that it is lost");
        socket.send(Message::Binary(b"lost"[..].into())).await.unwrap();
        match timeout(Duration::from_millis(50), socket.next()).await {
            Ok(Some(Ok(Message::Close(Some(frame))))) => break (u16::from(frame.code), frame.reason.to_string()),
            Ok(Some(Ok(Message::Ping(_)))) | Err(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(closed, (1011, "connection reset".to_owned()));
}

#[tokio::test]
async fn a_client_that_goes_after_its_end_is_noticed_at_once() {
    let workspace = Workspace::start().await;
    let (mut socket, mut connection) = connected(&workspace).await;
    socket.send(Message::Binary(Vec::new().into())).await.unwrap();
    let mut all = Vec::new();
    let ended = timeout(LIMIT, connection.read_to_end(&mut all)).await;
    ended.unwrap().unwrap();
    drop(socket);
    // Nothing can be read any more: a reset is seen by who writes.
    let end = Instant::now() + BEFORE_A_PING;
    while connection.write_all(b"more").await.is_ok() {
        assert!(Instant::now() < end, "it goes on without a client");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_is_no_port_is_refused_before_the_upgrade() {
    let workspace = Workspace::start().await;
    for query in ["", "?port=0", "?port=65536", "?port=http"] {
        match connect(&workspace, query).await {
            Err(Error::Http(answer)) => assert_eq!(answer.status(), 400, "{query}"),
            other => panic!("{query}: {other:?}"),
        }
    }
    match open_socket(&workspace, "/port-forward?port=80", Some("https://evil.example.com")).await {
        Err(Error::Http(answer)) => assert_eq!(answer.status(), 403),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_ticket_for_a_port_opens_one_once() {
    let workspace = Workspace::start().await;
    let body = json!({"bot_id": workspace.bot, "use": "port"});
    let made = workspace.server.call("POST", "/auth/tickets").json(&body).send().await;
    let ticket = text_of(&made.expect_status(200).json(), "ticket");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = workspace.server.url().replace("http://", "ws://");
    let path = workspace.path(&format!("/port-forward?port={port}&ticket={ticket}"));
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("{url}{path}")).await.unwrap();
    let (mut connection, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    connection.write_all(b"heard").await.unwrap();
    connection.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut socket).await, b"heard");
    match tokio_tungstenite::connect_async(format!("{url}{path}")).await {
        Err(Error::Http(refused)) => assert_eq!(refused.status().as_u16(), 401),
        other => panic!("{other:?}"),
    }
}
