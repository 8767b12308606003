//! Connections: taken, served by HTTP/1.1, ended in order.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// How long a client may take for the head of a request, from its connection or the last answer on: a connection costs
/// the server a descriptor, and nobody has shown a credential yet.
pub(crate) const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Until the next try where none can be taken, as without descriptors.
const BREATH: Duration = Duration::from_secs(1);

/// Serves until `stopped`, and then until the last answer has been given.
pub(crate) async fn serve(listener: TcpListener, routes: Router, head_limit: Duration, stopped: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(answer(stream, peer, routes.clone(), head_limit, stopped.clone()));
            }
            Err(error) if is_of_the_client(error.kind()) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be taken");
                tokio::select! {
                    () = tokio::time::sleep(BREATH) => {}
                    () = stopped.cancelled() => break,
                }
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn is_of_the_client(error: ErrorKind) -> bool {
    matches!(
        error,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

async fn answer(stream: TcpStream, peer: SocketAddr, routes: Router, head_limit: Duration, stopped: CancellationToken) {
    // Else a small piece of a stream or a terminal would wait for the one before to be acknowledged: 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection sends its small pieces late");
    }
    let service = routes.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_limit)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
            .with_upgrades()
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%peer, %error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    use super::*;

    /// Long for what happens after a moment.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn all_of(mut client: TcpStream) -> String {
        let mut text = String::new();
        // A reset ends it as well.
        drop(client.read_to_string(&mut text).await);
        text
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_let_go_and_one_that_waits_for_its_answer_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answered = Arc::new(Notify::new());
        let ready = answered.clone();
        let slow = move |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move {
            ready.notified().await;
            peer.to_string()
        };
        let (stopped, limit) = (CancellationToken::new(), Duration::from_millis(300));
        let routes = Router::new().route("/", get(slow));
        let serving = tokio::spawn(serve(listener, routes, limit, stopped.clone()));
        let mut waits = TcpStream::connect(address).await.unwrap();
        let own = waits.local_addr().unwrap();
        waits.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let silent = TcpStream::connect(address).await.unwrap();
        let mut halting = TcpStream::connect(address).await.unwrap();
        halting.write_all(b"GET / HTTP/1.1\r\nHos").await.unwrap();
        let closed = async {
            assert_eq!(all_of(silent).await, "");
            all_of(halting).await;
        };
        tokio::time::timeout(PATIENCE, closed).await.expect("they are closed");
        answered.notify_one();
        // Ended in order: the answer first, then the connection, then the server.
        stopped.cancel();
        let text = tokio::time::timeout(PATIENCE, all_of(waits)).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(text.contains(&own.to_string()), "{text}");
        tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
    }
}
