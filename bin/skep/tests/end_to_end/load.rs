//! Many execs and large files: every code and byte true, the server's memory flat.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::Method;

use crate::installation::{Installation, OciRuntime, resident_bytes};

const AT_ONCE: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_execs_none_is_wrong_and_no_zombie_stays() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("busy", None).await;
    // Orphans for process 1 to reap all the while.
    let orphans =
        "(setsid sh -c 'while :; do (sleep 0.05 &); sleep 0.05; done' >/dev/null 2>&1 & echo $! > /data/orphans)";
    skep.client.output(&bot, orphans).await;
    run_all(&skep, &bot, 10_000, |n| {
        (format!("echo {n}; echo e{n} >&2; exit {}", n % 256), n)
    })
    .await;
    run_all(&skep, &bot, 1_000, |n| {
        (format!("sleep 0.3; echo {n}; echo e{n} >&2; exit {}", n % 256), n)
    })
    .await;
    skep.client.output(&bot, "pkill -f 'while :' || true").await;
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        // One that has just ended is a zombie until it is reaped, in a moment.
        let zombies = skep.client.output(&bot, "ps -o stat= | grep -c '^Z' || true").await;
        if zombies.trim() == "0" {
            break;
        }
        assert!(Instant::now() < until, "{zombies} zombies stay");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn run_all(skep: &Installation, bot: &str, count: usize, command: impl Fn(usize) -> (String, usize)) {
    stream::iter((0..count).map(command))
        .for_each_concurrent(AT_ONCE, |(command, n)| async move {
            let ended = skep.client.exec(bot, &command).await;
            let expected = ((n % 256) as i64, format!("{n}\n"), format!("e{n}\n"));
            assert_eq!((ended.exit_code, ended.stdout, ended.stderr), expected, "{command:?}");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gibibytes_up_and_down_leave_the_servers_memory_flat() {
    const SIZE: u64 = 2 << 30;
    const PIECE: usize = 1 << 20;
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("large", None).await;
    skep.client.output(&bot, "true").await;
    let idle = resident_bytes(skep.server_pid());
    let highest = Arc::new(AtomicU64::new(0));
    let watcher = tokio::spawn(watch_memory(skep.server_pid(), highest.clone()));

    let pieces =
        stream::iter((0..SIZE / PIECE as u64).map(|n| Ok::<_, std::io::Error>(Bytes::from(vec![n as u8; PIECE]))));
    let path = format!("/bots/{bot}/container/fs/upload?path=/data/large");
    let answer = skep
        .client
        .request(Method::PUT, &path)
        .body(reqwest::Body::wrap_stream(pieces))
        .send()
        .await;
    let answer = answer.expect("the upload is answered");
    assert!(answer.status().is_success(), "{:?}", answer.text().await);

    let path = format!("/bots/{bot}/container/fs/download?path=/data/large");
    let answer = skep
        .client
        .request(Method::GET, &path)
        .send()
        .await
        .expect("the download is answered");
    assert_eq!(answer.content_length(), Some(SIZE));
    let mut at: u64 = 0;
    let mut body = answer.bytes_stream();
    while let Some(piece) = body.try_next().await.expect("the download is whole") {
        for chunk in piece.chunks(4096) {
            assert_eq!(chunk[0], (at / PIECE as u64) as u8, "a wrong byte at {at}");
            at += chunk.len() as u64;
        }
    }
    assert_eq!(at, SIZE);
    watcher.abort();
    let grown = highest.load(Ordering::Relaxed).saturating_sub(idle);
    assert!(
        grown <= 32 << 20,
        "the server grew by {} KiB over {} KiB",
        grown >> 10,
        idle >> 10
    );
}

async fn watch_memory(pid: u32, highest: Arc<AtomicU64>) {
    loop {
        highest.fetch_max(resident_bytes(pid), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
