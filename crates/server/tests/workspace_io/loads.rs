//! Much of it: a thousand processes, and a file larger than anybody may hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::json;

use crate::rooms::begun;
use crate::{Workspace, until};

/// Ten thousand are run in a real workspace, end to end.
const EXECS: usize = 1_000;
const AT_A_TIME: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_execs_have_their_own_codes_and_outputs() {
    let workspace = Arc::new(Workspace::start().await);
    let runs = futures::stream::iter(0..EXECS).map(|number| {
        let workspace = Arc::clone(&workspace);
        async move {
            let code = number % 256;
            let argv = [
                "/bin/sh",
                "-c",
                &format!("echo out-{number}; echo err-{number} >&2; exit {code}"),
            ];
            let answer = workspace.post("/exec", json!({"argv": argv})).await;
            let result = answer.expect_status(200).json();
            assert_eq!(result["exit_code"], code, "{result}");
            assert_eq!(result["stdout"], format!("out-{number}\n"), "{result}");
            assert_eq!(result["stderr"], format!("err-{number}\n"), "{result}");
        }
    });
    runs.buffer_unordered(AT_A_TIME).collect::<Vec<()>>().await;
    let zombies = workspace.output_of("ps -o stat | grep -c '^Z' || true").await;
    assert_eq!(zombies, "0\n");
}

/// Ten gibibytes go up and down in a real workspace, in the long form of the end-to-end tests.
const LARGE_BYTES: u64 = 512 << 20;
const PIECE_BYTES: usize = 1 << 20;

/// Resident memory of this process, which is server and client at once, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Says to this very program that it runs for one test alone.
const ALONE: &str = "SKEP_TEST_ALONE";
const IN_LITTLE_MEMORY: &str = "loads::a_large_file_goes_up_and_down_in_little_memory";

/// Runs the test of that name in a process of its own: the memory of this one is that of every test that runs in it.
async fn alone(test: &str) {
    let program = std::env::current_exe().unwrap();
    let mut command = tokio::process::Command::new(program);
    command
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .kill_on_drop(true);
    let output = command.output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_goes_up_and_down_in_little_memory() {
    if std::env::var_os(ALONE).is_none() {
        return alone(IN_LITTLE_MEMORY).await;
    }
    let workspace = Workspace::start().await;
    let client = reqwest::Client::new();
    let key = workspace.server.admin_key().to_owned();
    let url = |route: &str| format!("{}{}", workspace.server.url(), workspace.path(route));
    let piece = bytes::Bytes::from(vec![0x5a_u8; PIECE_BYTES]);
    let up = || {
        let piece = piece.clone();
        let count = LARGE_BYTES / PIECE_BYTES as u64;
        let pieces = futures::stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
        client
            .put(url("/fs/upload?path=/data/large"))
            .bearer_auth(&key)
            .body(reqwest::Body::wrap_stream(pieces))
    };
    workspace.output_of("true").await;
    let (mut peak, idle, begun) = (0, resident_bytes(), Instant::now());
    let watch = async {
        loop {
            peak = peak.max(resident_bytes());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let transfer = async {
        let answer = up().send().await.unwrap();
        assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["size"], LARGE_BYTES);
        let down = client
            .get(url("/fs/download?path=/data/large"))
            .bearer_auth(&key)
            .send()
            .await
            .unwrap();
        assert_eq!(down.content_length(), Some(LARGE_BYTES));
        let mut bytes = down.bytes_stream();
        let mut received = 0;
        while let Some(piece) = bytes.next().await {
            let piece = piece.unwrap();
            assert!(piece.iter().all(|byte| *byte == 0x5a));
            received += piece.len() as u64;
        }
        assert_eq!(received, LARGE_BYTES);
    };
    tokio::select! {
        () = watch => {}
        () = transfer => {}
    }
    let grown = peak.saturating_sub(idle);
    println!(
        "up and down in {:?}, memory grew by {} KiB",
        begun.elapsed(),
        grown / 1024
    );
    assert!(grown < 32 << 20, "memory grew by {grown} bytes");
}

/// What a workspace has under way at once.
const DOWNLOADS: usize = 256;
const BEYOND_ALL_PLACES: &str = "loads::a_download_beyond_all_places_is_refused_until_one_has_ended";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_beyond_all_places_is_refused_until_one_has_ended() {
    // A process may have few more descriptors than this takes.
    if std::env::var_os(ALONE).is_none() {
        return alone(BEYOND_ALL_PLACES).await;
    }
    let workspace = Workspace::start().await;
    workspace
        .output_of("echo little > little; dd if=/dev/zero of=large bs=1 count=1 seek=67108863 2>/dev/null")
        .await;
    let mut held = Vec::new();
    for _ in 0..DOWNLOADS {
        held.push(begun(&workspace, "/fs/download?path=/data/large").await);
    }
    let one_more = async || {
        let path = workspace.path("/fs/download?path=/data/large");
        let call = workspace.server.call("GET", &path);
        call.header("range", "bytes=0-1048575").send().await
    };
    let refused = one_more().await;
    let message = refused.expect_error(429, "rate_limited");
    assert!(message.contains("256 downloads"), "{message}");
    assert!(refused.header("retry-after").parse::<u64>().is_ok());
    // What is sent at once needs no place.
    let little = workspace.get("/fs/download?path=/data/little").await;
    assert_eq!(little.expect_status(200).text(), "little\n");
    drop(held.pop());
    until(async || match one_more().await {
        answer if answer.status == 206 => Ok(()),
        answer => Err(answer.text()),
    })
    .await;
}
