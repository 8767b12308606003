//! Connections: taken, served by HTTP/1.1, ended in order.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::response::Response;
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::http::room::HoldsRoom;
use crate::taken::{Patience, TAKEN_WITHIN, Taken};

/// How long a client may take: a connection costs the server a descriptor, and nobody has shown a credential yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeLimits {
    /// For the head of a request, from its connection or the last answer on.
    head: Duration,
    /// For the least that is taken of an answer which [`is_hurried`].
    taken: Duration,
}

/// In force.
pub(crate) const LIMITS: TimeLimits = TimeLimits {
    head: Duration::from_secs(30),
    taken: TAKEN_WITHIN,
};
/// Until the next try where none can be taken, as without descriptors.
const BREATH: Duration = Duration::from_secs(1);

/// Serves until `stopped`, and then until the last answer has been given.
pub(crate) async fn serve(listener: TcpListener, routes: Router, limits: TimeLimits, stopped: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(answer(stream, peer, routes.clone(), limits, stopped.clone()));
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

async fn answer(stream: TcpStream, peer: SocketAddr, routes: Router, limits: TimeLimits, stopped: CancellationToken) {
    // Else a small piece of a stream or a terminal would wait for the one before to be acknowledged: 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection sends its small pieces late");
    }
    let patience = Patience::default();
    let stream = Taken::new(stream, limits.taken, patience.clone());
    let service = routes
        .map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            request
        })
        // An answer is written when all of the one before has been.
        .map_response(move |response: Response| {
            patience.set(!is_hurried(&response));
            response
        });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
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

/// Whether it has to be taken in time: one that lies in memory, as all do that need no credential. What is followed
/// (a command, a log, a terminal) waits for its reader.
fn is_hurried(response: &Response) -> bool {
    let is_whole =
        response.status() != StatusCode::SWITCHING_PROTOCOLS && response.body().size_hint().exact().is_some();
    is_whole || response.extensions().get::<HoldsRoom>().is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::response::IntoResponse;
    use axum::routing::get;
    use bytes::Bytes;
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
        let limits = TimeLimits {
            head: Duration::from_millis(300),
            ..LIMITS
        };
        let stopped = CancellationToken::new();
        let routes = Router::new().route("/", get(slow));
        let serving = tokio::spawn(serve(listener, routes, limits, stopped.clone()));
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

    /// More than all buffers of a connection hold.
    const LARGE_BYTES: usize = 64 << 20;
    const PIECE_BYTES: usize = 64 << 10;

    /// A large answer; the connection gives it up or sends it when this is told.
    struct Sent(Vec<u8>, Arc<Notify>);

    impl AsRef<[u8]> for Sent {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Sent {
        fn drop(&mut self) {
            self.1.notify_one();
        }
    }

    fn pieces(of: Bytes) -> axum::body::Body {
        let pieces = (0..LARGE_BYTES / PIECE_BYTES).map(move |at| of.slice(at * PIECE_BYTES..(at + 1) * PIECE_BYTES));
        axum::body::Body::from_stream(futures::stream::iter(pieces.map(std::io::Result::Ok)))
    }

    async fn upgraded(mut request: axum::extract::Request, of: Bytes) -> Response {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            drop(stream.write_all(&of).await);
        });
        let headers = [("connection", "upgrade"), ("upgrade", "test")];
        (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
    }

    #[tokio::test]
    async fn who_leaves_an_answer_unread_is_let_go_and_who_follows_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (whole, held, followed, terminal) = <(Arc<Notify>, Arc<Notify>, Arc<Notify>, Arc<Notify>)>::default();
        let large = |sent: &Arc<Notify>| {
            let sent = sent.clone();
            move || Bytes::from_owner(Sent(vec![0; LARGE_BYTES], sent.clone()))
        };
        let (of_whole, of_held) = (large(&whole), large(&held));
        let (of_followed, of_terminal) = (large(&followed), large(&terminal));
        let routes = Router::new()
            .route("/whole", get(async move || of_whole()))
            .route(
                "/held",
                get(async move || (axum::Extension(HoldsRoom), pieces(of_held()))),
            )
            .route("/followed", get(async move || pieces(of_followed())))
            .route(
                "/terminal",
                get(async move |request| upgraded(request, of_terminal()).await),
            );
        let limits = TimeLimits {
            taken: Duration::from_millis(300),
            ..LIMITS
        };
        let stopped = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, routes, limits, stopped.clone()));
        let ask = async |path: &str| {
            let mut client = TcpStream::connect(address).await.unwrap();
            let head = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            // It has begun.
            client.read_u8().await.unwrap();
            client
        };
        let (follower, window) = (ask("/followed").await, ask("/terminal").await);
        // One after the other: these wait for longer than the limit.
        for (path, sent) in [("/whole", &whole), ("/held", &held)] {
            let unread = ask(path).await;
            let given_up = tokio::time::timeout(PATIENCE, sent.notified()).await;
            given_up.unwrap_or_else(|_| panic!("{path} is kept for whoever does not read it"));
            drop(unread);
        }
        for mut client in [follower, window] {
            let mut bytes = vec![0; LARGE_BYTES];
            let read = tokio::time::timeout(PATIENCE, client.read_exact(&mut bytes)).await;
            read.unwrap().unwrap();
        }
        stopped.cancel();
        tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
    }
}
