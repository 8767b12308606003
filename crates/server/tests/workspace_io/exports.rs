//! `/data` as an archive, over real HTTP: whole, or seen as broken.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use skep_testkit::server::TestServer;

use crate::{BETWEEN_LOOKS, LIMIT, Workspace};

const EXPORT: &str = "/data/export";

/// What lies below a directory, one line each, with all that an archive keeps. Numbers only: busybox and coreutils print
/// times and kinds in their own ways. How large a directory is depends on the file system.
const TREE: &str = "find . -type d -exec stat -c '%n %f %u:%g %Y' {} + | sort; \
                    find . ! -type d ! -type p ! -type s -exec stat -c '%n %f %u:%g %s %Y %h' {} + | sort; \
                    find . -type l | sort | xargs -n 1 readlink; find . -type f -exec sha256sum {} + | sort";

fn unpacked(archive: &[u8], compression: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("archive"), archive).expect("written");
    let tar = Command::new("tar")
        .args([
            "--extract",
            "--preserve-permissions",
            "--numeric-owner",
            "--file",
            "../archive",
            compression,
        ])
        .current_dir({
            let place = directory.path().join("data");
            std::fs::create_dir(&place).expect("a directory");
            place
        })
        .output()
        .expect("tar is installed");
    assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    directory
}

#[tokio::test]
async fn a_running_workspace_is_exported_in_every_format_and_runs_on() {
    let workspace = Workspace::start().await;
    let process = workspace
        .post("/exec", json!({"command": "sleep 600", "detach": true}))
        .await;
    let exec = process.expect_status(202).json()["exec_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    workspace
        .output_of(
            "mkdir -p d/e empty; echo hello > d/e/f; chmod 4751 d/e/f; chown 1000:65534 d; ln d/e/f hard; ln -s /etc/shadow out; \
             ln -s nowhere dangling; : > nothing; truncate -s 5M holes; mkfifo pipe; chmod 0 empty; touch -d '2001-02-03 04:05:06' d/e/f",
        )
        .await;
    let expected = workspace.output_of(TREE).await;
    let mut sizes = Vec::new();
    for (format, media_type, compression) in [
        ("tar.gz", "application/gzip", "--gzip"),
        ("tar.zst", "application/zstd", "--zstd"),
        ("tar", "application/x-tar", "--no-auto-compress"),
    ] {
        let answer = workspace.post(&format!("{EXPORT}?format={format}"), json!({})).await;
        answer.expect_status(200);
        assert_eq!(answer.header("content-type"), media_type);
        let name = format!("attachment; filename=\"{}-data.{format}\"", workspace.bot);
        assert_eq!(answer.header("content-disposition"), name);
        let estimate: u64 = answer.header("x-export-bytes-estimate").parse().expect("a number");
        assert!((1024..1 << 20).contains(&estimate), "{estimate}");
        let there = unpacked(&answer.body, compression);
        let found = Command::new("sh")
            .args(["-c", TREE])
            .current_dir(there.path().join("data"))
            .output()
            .expect("a shell");
        assert_eq!(String::from_utf8_lossy(&found.stdout), expected, "{format}");
        sizes.push(answer.body.len());
    }
    assert!(sizes[2] < 100_000, "holes take no room: {sizes:?}");
    let running = workspace.get(&format!("/exec/{exec}")).await;
    assert_eq!(running.json()["state"], "running");
}

#[tokio::test]
async fn an_empty_and_a_missing_data_directory_are_archives_without_entries() {
    let workspace = Workspace::start().await;
    for prepare in ["find /data -mindepth 1 -exec rm -rf {} +", "cd /; rmdir /data"] {
        workspace.output_of(prepare).await;
        let answer = workspace.get(&format!("{EXPORT}?format=tar")).await;
        assert_eq!(&answer.expect_status(200).body[..], [0; 1024], "{prepare}");
    }
}

#[tokio::test]
async fn data_that_is_no_directory_is_refused() {
    let workspace = Workspace::start().await;
    for replacement in ["ln -s / /data", "ln -s /etc /data", "echo file > /data"] {
        workspace.output_of(&format!("cd /; rm -rf /data; {replacement}")).await;
        let answer = workspace.get(EXPORT).await;
        answer.expect_error(400, "invalid_path");
    }
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused() {
    let workspace = Workspace::start().await;
    workspace
        .get(&format!("{EXPORT}?format=zip"))
        .await
        .expect_error(400, "invalid_argument");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trailers_tell_the_digest_to_whoever_asks() {
    let workspace = Workspace::start().await;
    workspace.output_of("echo hello > file; mkfifo pipe").await;
    let answer = curl(&workspace, "", &["--header", "TE: trailers", "--dump-header", "-"]);
    let text = String::from_utf8_lossy(&answer.stdout).to_ascii_lowercase();
    let directory = tempfile::tempdir().expect("a directory");
    assert!(answer.status.success(), "{text}");
    assert!(
        text.contains("trailer: x-export-sha256, x-export-changed, x-export-skipped"),
        "{text}"
    );
    assert!(text.contains("x-export-changed: 0"), "{text}");
    assert!(text.contains("x-export-skipped: 1"), "{text}");
    let file = directory.path().join("archive");
    let saved = curl(
        &workspace,
        "",
        &[
            "--header",
            "TE: trailers",
            "--dump-header",
            "-",
            "--output",
            file.to_str().expect("text"),
        ],
    );
    let headers = String::from_utf8_lossy(&saved.stdout).to_ascii_lowercase();
    let sum = Command::new("sha256sum").arg(&file).output().expect("a sum").stdout;
    let sum = String::from_utf8_lossy(&sum[..64]).into_owned();
    assert!(headers.contains(&format!("x-export-sha256: {sum}")), "{headers}\n{sum}");
}

fn curl(workspace: &Workspace, query: &str, arguments: &[&str]) -> std::process::Output {
    let mut curl = asking(workspace, query);
    curl.args(arguments).output().expect("curl is installed")
}

/// curl, about to ask for an export.
fn asking(workspace: &Workspace, query: &str) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "300", "--oauth2-bearer"])
        .arg(workspace.server.admin_key())
        .arg(format!("{}{}{query}", workspace.server.url(), workspace.path(EXPORT)));
    curl
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_fails_midway_is_seen_as_a_failure() {
    let workspace = Workspace::start().await;
    // More than what is under way between here and there, so that the kill comes in its middle.
    workspace.output_of("head -c 60000000 /dev/urandom > large").await;
    let mut answer = workspace
        .server
        .call("GET", &workspace.path(&format!("{EXPORT}?format=tar")))
        .open()
        .await;
    assert_eq!(answer.status(), 200);
    let first = answer.chunk().await.expect("a piece").expect("some");
    assert!(!first.is_empty());
    workspace
        .server
        .call("POST", &workspace.path("/stop"))
        .json(&json!({}))
        .send()
        .await
        .expect_status(200);
    let rest = async {
        while answer.chunk().await?.is_some() {}
        Ok::<_, reqwest::Error>(())
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), rest)
        .await
        .expect("an end");
    ended.expect_err("a broken transfer");
}

/// Size of a file that is appended to, but for what is appended: more than what is under way between here and there.
const GROWING_BYTES: u64 = 40_000_000;
/// Of an export of it, what is taken before its reading waits.
const TAKEN_FIRST: u64 = 5_000_000;
/// How often a file that changes is read.
const READINGS: u32 = 3;

/// Takes an export of nothing but that file, with a wait in each of its readings until it has grown meanwhile. Tells
/// whether the export succeeds, and its headers and trailers.
fn exported_while_it_grows(workspace: &Workspace, query: &str) -> (bool, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let headers = directory.path().join("headers");
    let mut curl = asking(workspace, query)
        .args(["--header", "TE: trailers", "--dump-header"])
        .arg(&headers)
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl is installed");
    let mut archive = curl.stdout.take().expect("a pipe");
    let mut take = |bytes| std::io::copy(&mut archive.by_ref().take(bytes), &mut std::io::sink()).expect("read");
    let file = workspace.data().join("growing");
    let size = || file.metadata().expect("it is there").len();
    for _ in 0..READINGS {
        take(TAKEN_FIRST);
        let (before, begun) = (size(), Instant::now());
        while size() == before {
            assert!(begun.elapsed() < LIMIT, "nothing is appended");
            std::thread::sleep(BETWEEN_LOOKS);
        }
        take(GROWING_BYTES - TAKEN_FIRST);
    }
    take(u64::MAX);
    let ended = curl.wait().expect("it ends");
    let headers = std::fs::read_to_string(headers).expect("headers");
    (ended.success(), headers.to_ascii_lowercase())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_holds_still_is_counted_or_fails_the_export() {
    let workspace = Workspace::start().await;
    let grows = format!(
        "head -c {GROWING_BYTES} /dev/urandom > growing; while true; do echo more >> growing; sleep 0.01; done"
    );
    let exec = workspace.post("/exec", json!({"command": grows, "detach": true})).await;
    exec.expect_status(202);
    let grown = format!("until [ $(stat -c %s growing) -gt {GROWING_BYTES} ]; do sleep 0.01; done");
    workspace.output_of(&grown).await;
    let (is_whole, headers) = exported_while_it_grows(&workspace, "?format=tar");
    assert!(is_whole && headers.contains("x-export-changed: 1"), "{headers}");
    let (is_whole, headers) = exported_while_it_grows(&workspace, "?strict=true&format=tar");
    assert!(!is_whole && headers.contains(" 200"), "{headers}");
}

#[tokio::test]
async fn an_archive_is_read_again_as_it_was_compressed() {
    let workspace = Workspace::start().await;
    workspace.output_of("echo hello > file").await;
    let answer = workspace.get(EXPORT).await;
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&answer.expect_status(200).body[..])
        .read_to_end(&mut tar)
        .expect("gzip");
    assert!(tar.ends_with(&[0; 1024]));
}

/// Two files that a loop writes one after the other are equal at every moment but the shortest.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_one_moment_stands_still_and_the_workspace_runs_on() {
    let workspace = Workspace::start().await;
    // Each file is appended to in turn: of one moment, the second is never longer, and at most one line shorter.
    let loops = "while true; do echo line >> first; for i in 1 2 3 4 5 6 7 8; do head -c 300000 /dev/zero > f$i; done; \
                 echo line >> second; done";
    let exec = workspace.post("/exec", json!({"command": loops, "detach": true})).await;
    exec.expect_status(202);
    for _ in 0..3 {
        let answer = workspace.get(&format!("{EXPORT}?consistent=true&format=tar")).await;
        answer.expect_status(200);
        let estimate: u64 = answer.header("x-export-bytes-estimate").parse().expect("a number");
        assert_eq!(
            estimate,
            answer.body.len() as u64,
            "it is known when all of it is there"
        );
        let there = unpacked(&answer.body, "--no-auto-compress");
        let length = |name: &str| {
            let file = std::fs::metadata(there.path().join("data").join(name));
            file.map_or(0, |file| file.len())
        };
        let (first, second) = (length("first"), length("second"));
        assert!(first == second || first == second + 5, "{first} and {second}");
        let before = workspace.output_of("wc -c < first").await;
        let mut waits = 0;
        while workspace.output_of("wc -c < first").await == before {
            waits += 1;
            assert!(waits < 500, "it stands still after the export");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_is_frozen_for_no_longer_than_may_be() {
    let server = TestServer::with(&[("export.freeze_max", "1ms")]).await;
    let bot = server.bot_with_workspace().await;
    let workspace = Workspace { server, bot };
    workspace.output_of("head -c 50000000 /dev/zero > large").await;
    let answer = workspace.get(&format!("{EXPORT}?consistent=true")).await;
    answer.expect_error(409, "conflict");
    assert_eq!(workspace.output_of("echo it runs").await, "it runs\n");
    // One that is stopped needs no freezing.
    workspace.post("/stop", json!({})).await.expect_status(200);
    workspace
        .get(&format!("{EXPORT}?consistent=true"))
        .await
        .expect_status(200);
}
