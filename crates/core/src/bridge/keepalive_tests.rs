//! A bridge that answered and then falls silent, with its connection open: what a frozen workspace is.

use std::time::{Duration, Instant};

use futures::StreamExt;
use skep_bridge_protocol::workspace::{InfoRequest, ListRequest};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::Bridge;
use super::hostile_tests::{Hostile, Lies, endpoint};
use super::pool::{KEEPALIVE, Keepalive};
use crate::settings::LONGEST_FREEZE;

/// Serves one connection, and passes nothing on for as long as it is frozen.
async fn answer_unless(listener: UnixListener, mut frozen: watch::Receiver<bool>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut near, far) = tokio::io::duplex(64 << 10);
    let served = tonic::transport::Server::builder().serve_with_incoming(
        Hostile::new(|_| Lies::Silence),
        // One that ended would end the serving.
        futures::stream::iter([Ok::<_, std::io::Error>(far)]).chain(futures::stream::pending()),
    );
    let passed = async {
        loop {
            tokio::select! {
                passed = tokio::io::copy_bidirectional(&mut stream, &mut near) => return passed.map(drop),
                told = frozen.wait_for(|frozen| *frozen) => drop(told.unwrap()),
            }
            drop(frozen.wait_for(|frozen| !frozen).await.unwrap());
        }
    };
    tokio::select! {
        passed = passed => tracing::debug!(?passed, "its one connection ended"),
        served = served => panic!("it ended early: {served:?}"),
    }
}

/// A bridge, whether it is frozen, and its directory.
async fn bridge(keepalive: Keepalive) -> (Bridge, watch::Sender<bool>, TempDir) {
    let place = TempDir::new().unwrap();
    let listener = UnixListener::bind(place.path().join("bridge.sock")).unwrap();
    let (freeze, frozen) = watch::channel(false);
    tokio::spawn(answer_unless(listener, frozen));
    let bridge = Bridge::kept_alive(&endpoint(place.path()), keepalive).await.unwrap();
    (bridge, freeze, place)
}

#[tokio::test]
async fn a_bridge_that_answers_no_ping_is_given_up() {
    let keepalive = Keepalive {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(2),
    };
    let (bridge, freeze, _place) = bridge(keepalive).await;
    freeze.send(true).unwrap();
    let begun = Instant::now();
    let call = async { bridge.workspace().list(ListRequest::default()).await };
    let ended = tokio::time::timeout(Duration::from_secs(30), call).await;
    let lost = ended.expect("the call ends").expect_err("it has no answer");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{lost}");
    assert!(bridge.is_dead(), "the next call would use it again");
}

#[tokio::test]
async fn a_bridge_that_takes_no_more_calls_is_given_up_while_an_old_one_goes_on() {
    let place = TempDir::new().unwrap();
    let listener = UnixListener::bind(place.path().join("bridge.sock")).unwrap();
    let (goodbye, told) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let server = tonic::transport::Server::builder();
        let connections = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let until = async { drop(told.await) };
        server
            .serve_with_incoming_shutdown(Hostile::new(|_| Lies::Silence), connections, until)
            .await
    });
    let bridge = Bridge::at(&endpoint(place.path())).await.unwrap();
    let mut client = bridge.workspace();
    let old = tokio::spawn(async move { client.list(ListRequest::default()).await.map(drop) });
    // It is on its way before what follows it has its answer.
    bridge.workspace().info(InfoRequest {}).await.expect("an answer");
    goodbye.send(()).unwrap();
    let begun = Instant::now();
    while !bridge.is_dead() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "the pool would use it for ever"
        );
        let mut client = bridge.workspace();
        let asked = client.info(InfoRequest {});
        drop(tokio::time::timeout(Duration::from_millis(100), asked).await);
    }
    assert!(!old.is_finished(), "the old call still waits");
    serving.abort();
}

#[tokio::test]
async fn a_call_goes_on_after_a_freeze_that_is_longer_than_a_ping_takes() {
    const FROZEN: Duration = Duration::from_secs(45);
    assert!(FROZEN < LONGEST_FREEZE && LONGEST_FREEZE < KEEPALIVE.timeout);
    let (bridge, freeze, _place) = bridge(KEEPALIVE).await;
    let mut client = bridge.workspace();
    let call = async { client.list(ListRequest::default()).await };
    let freezing = async {
        freeze.send(true).unwrap();
        tokio::time::sleep(FROZEN).await;
        freeze.send(false).unwrap();
        bridge.workspace().info(InfoRequest {}).await
    };
    tokio::select! {
        ended = call => panic!("it ended with the freeze: {ended:?}"),
        answer = freezing => drop(answer.expect("an answer after the thaw")),
    }
    assert!(!bridge.is_dead());
}
