//! A bridge that answered and then falls silent, with its connection open: what a frozen workspace is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use skep_bridge_protocol::workspace::ListRequest;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use super::Bridge;
use super::hostile_tests::{Hostile, Lies, endpoint};

/// Serves one connection, and passes nothing on any more once it is told to fall silent.
async fn answer_until(listener: UnixListener, silence: oneshot::Receiver<()>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut near, far) = tokio::io::duplex(64 << 10);
    let served = tonic::transport::Server::builder().serve_with_incoming(
        Hostile(Arc::new(|_| Lies::Silence)),
        // One that ended would end the serving.
        futures::stream::iter([Ok::<_, std::io::Error>(far)]).chain(futures::stream::pending()),
    );
    tokio::select! {
        passed = tokio::io::copy_bidirectional(&mut stream, &mut near) => panic!("it ended early: {passed:?}"),
        served = served => panic!("it ended early: {served:?}"),
        told = silence => told.unwrap(),
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_bridge_that_answers_no_ping_is_given_up_after_thirty_and_ten_seconds() {
    let place = TempDir::new().unwrap();
    let listener = UnixListener::bind(place.path().join("bridge.sock")).unwrap();
    let (fall_silent, silence) = oneshot::channel();
    let answering = tokio::spawn(answer_until(listener, silence));
    let bridge = Bridge::at(&endpoint(place.path())).await.unwrap();
    fall_silent.send(()).unwrap();
    let begun = Instant::now();
    let call = async { bridge.workspace().list(ListRequest::default()).await };
    let ended = tokio::time::timeout(Duration::from_secs(70), call).await;
    let lost = ended.expect("the call ends").expect_err("it has no answer");
    let took = begun.elapsed();
    assert!((38.0..60.0).contains(&took.as_secs_f64()), "{lost} after {took:?}");
    assert!(bridge.is_dead(), "the next call would use it again");
    answering.abort();
}
