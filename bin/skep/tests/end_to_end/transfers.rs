//! `/data` out of one workspace and into another, by `curl` and by the command line, on real containerd: nothing is lost
//! on the way, a part is never taken for the whole, and a server that dies leaves all or nothing.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use skep_testkit::trees;

use crate::client::Client;
use crate::installation::{Installation, OciRuntime, process_one, resident_bytes};
use crate::model::{amount, converge_limit, seed};

/// Everything that can be told of a tree, in an order that does not depend on how it was made.
const DIGEST: &str = "cd /data && tar --create --sort=name --numeric-owner --format=posix --xattrs '--xattrs-include=user.*' \
                      --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --exclude=./pipe \
                      --exclude=./socket . | sha256sum; stat -c %b sparse";
/// What an import clears.
const SET_AGAIN: &str = "cd /data && chmod 4755 setuid && chmod 2755 setgid && chmod 2775 setgid-directory";
const LOOK_AGAIN: Duration = Duration::from_millis(20);

fn curl(client: &Client, bot: &str, rest: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--fail-with-body", "--noproxy", "*"])
        .args(["--header", &format!("Authorization: Bearer {}", client.token)])
        .args(arguments)
        .arg(format!("{}/bots/{bot}/container/data/{rest}", client.url))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn good(mut command: Command) -> Vec<u8> {
    let Output { status, stdout, stderr } = command.output().expect("the program is installed");
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{}{said}", String::from_utf8_lossy(&stdout));
    stdout
}

fn imported(client: &Client, bot: &str, query: &str, file: &Path) -> Value {
    let body = format!("@{}", file.display());
    let form = ["--header", "Content-Type: application/x-tar", "--data-binary", &body];
    let answer = good(curl(client, bot, &format!("import{query}"), &form));
    serde_json::from_slice(&answer).expect("a report")
}

fn in_text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A file of noise, which takes its time.
fn noise(directory: &Path, name: &str, mebibytes: usize) {
    let mut file = std::fs::File::create(directory.join(name)).expect("a file");
    let mut random = StdRng::seed_from_u64(mebibytes as u64);
    let mut block = vec![0_u8; 1 << 20];
    for _ in 0..mebibytes {
        random.fill(block.as_mut_slice());
        file.write_all(&block).expect("written");
    }
}

fn tar_of(directory: &Path, tar: &Path) {
    let mut command = Command::new("tar");
    command
        .args(["--create", "--numeric-owner", "--format=posix", "--sparse"])
        .args(["--xattrs", "--xattrs-include=user.*", "--file", in_text(tar)])
        .args(["--directory", in_text(directory), "."])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    good(command);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_is_hard_to_carry_is_equal_in_another_workspace() {
    let skep = Installation::start(OciRuntime::Found).await;
    let (client, image) = (skep.client.clone(), skep.debian().await);
    let here = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let tree = here.path().join("tree");
    std::fs::create_dir(&tree).expect("a directory");
    trees::make_hard_tree(&tree).expect("a tree");
    let seed = here.path().join("seed.tar");
    tar_of(&tree, &seed);
    let from = client.workspace("from", Some(&image)).await;
    let report = imported(&client, &from, "?mode=replace", &seed);
    assert_eq!(
        (&report["skipped"], &report["cleared"]),
        (&json!(2), &json!(3)),
        "{report}"
    );
    client.output(&from, SET_AGAIN).await;
    let unlike_files = "cd /data && mkfifo pipe && perl -MSocket -e \
                        'socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un(\"socket\")) or die'";
    client.output(&from, unlike_files).await;
    let expected = client.output_within(&from, DIGEST, 120).await;

    // Running, by curl; then stopped, by the command line.
    let file = here.path().join("export.tar.gz");
    let to_file = [
        "--output",
        in_text(&file),
        "--header",
        "TE: trailers",
        "--dump-header",
        "-",
    ];
    let headers = good(curl(&client, &from, "export", &to_file));
    let headers = String::from_utf8_lossy(&headers).to_ascii_lowercase();
    assert!(headers.contains("x-export-skipped: 2"), "{headers}");
    let one = client.workspace("one", Some(&image)).await;
    client.output(&one, "echo not in the archive > /data/other").await;
    let report = imported(&client, &one, "?mode=replace", &file);
    assert_eq!(
        (&report["skipped"], &report["cleared"]),
        (&json!(0), &json!(3)),
        "{report}"
    );

    client.act(&from, "stop").await;
    let file = here.path().join("stopped.tar.zst");
    let said = skep.skep(&["export", "from", in_text(&file)]);
    assert!(said.status.success(), "{said:?}");
    let other = client.workspace("other", Some(&image)).await;
    client.act(&other, "stop").await;
    let said = skep.skep(&["import", "other", in_text(&file), "--replace"]);
    assert!(said.status.success(), "{said:?}");
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(text.contains("3 entries lost setuid or setgid"), "{text}");
    client.act(&other, "start").await;

    for bot in [&one, &other] {
        let cleared = client.output(bot, "stat -c %a /data/setuid /data/setgid").await;
        assert_eq!(cleared, "755\n755\n");
        client.output(bot, SET_AGAIN).await;
        assert_eq!(client.output_within(bot, DIGEST, 120).await, expected, "{bot}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_cut_off_is_a_failure_for_curl() {
    let mut skep = Installation::start(OciRuntime::Found).await;
    let client = skep.client.clone();
    let here = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let bot = client.workspace("cut", None).await;
    client
        .output_within(&bot, "head -c 300000000 /dev/urandom > /data/noise", 300)
        .await;
    for (running, format) in [(true, "tar.gz"), (true, "tar.zst"), (false, "tar"), (false, "tar.gz")] {
        client.act(&bot, if running { "start" } else { "stop" }).await;
        // Of its own: what the one before left in it would be taken for the beginning of this one.
        let file = here.path().join(format!("{running}.{format}"));
        let to_file = ["--output", in_text(&file), "--limit-rate", "20M"];
        let mut under_way = curl(&client, &bot, &format!("export?format={format}"), &to_file)
            .spawn()
            .expect("curl is installed");
        until_it_holds(&file, 1 << 20, &mut under_way);
        skep.kill_server();
        let status = under_way.wait().expect("curl ends");
        assert!(
            !status.success(),
            "{format}, running: {running}: a part was taken for the whole"
        );
        skep.start_server_again().await;
    }
    // A delete in the middle waits for a stopped one's reader, or ends a running one's: never a part as the whole.
    client.act(&bot, "start").await;
    let file = here.path().join("last");
    let to_file = ["--output", in_text(&file), "--limit-rate", "20M"];
    let mut under_way = curl(&client, &bot, "export", &to_file)
        .spawn()
        .expect("curl is installed");
    until_it_holds(&file, 1 << 20, &mut under_way);
    client.delete_bot(&bot).await;
    assert!(!under_way.wait().expect("curl ends").success());
}

fn until_it_holds(file: &Path, bytes: u64, under_way: &mut Child) {
    let deadline = Instant::now() + converge_limit();
    while std::fs::metadata(file).map_or(0, |file| file.len()) < bytes {
        let ended = under_way.try_wait().expect("curl can be asked for");
        assert!(ended.is_none(), "curl ended too early: {ended:?}");
        assert!(Instant::now() < deadline, "nothing comes");
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_the_server_dies_in_is_all_or_nothing() {
    let mut skep = Installation::start(OciRuntime::Found).await;
    let client = skep.client.clone();
    let mut random = StdRng::seed_from_u64(seed());
    let here = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let tree = here.path().join("tree");
    std::fs::create_dir(&tree).expect("a directory");
    for number in 0..8 {
        noise(&tree, &format!("noise-{number}"), 8);
    }
    let bot = client.workspace("killed", None).await;
    client.output(&bot, "echo kept > /data/kept").await;
    let digest = "cd /data && cat generation noise-* 2>/dev/null | sha256sum; cat kept";
    let mut before = client.output(&bot, digest).await;
    let mut last_import = String::new();
    for generation in 0..amount(4, 60) {
        std::fs::write(tree.join("generation"), generation.to_string()).expect("written");
        noise(&tree, &format!("noise-{}", generation % 8), 8);
        let file = here.path().join("import.tar");
        tar_of(&tree, &file);
        let body = format!("@{}", file.display());
        let form = ["--header", "Content-Type: application/x-tar", "--data-binary", &body];
        let mut under_way = curl(&client, &bot, "import", &form).spawn().expect("curl is installed");
        std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
        skep.kill_server();
        let answered = under_way.wait().expect("curl ends").success();
        skep.start_server_again().await;
        let (journaled, succeeded) = until_at_rest(&client, &bot, &mut last_import).await;
        let after = client.output_within(&bot, digest, 60).await;
        assert!(succeeded || !journaled, "it was begun, and not brought to its end");
        assert!(!answered || succeeded, "an answer that was not true");
        match after == before {
            true => assert!(!succeeded, "nothing of it is there"),
            false => assert!(succeeded && after.ends_with("kept\n"), "a part of it is there"),
        }
        before = after;
    }
    let left = skep.data_root().join("imports");
    assert_eq!(std::fs::read_dir(left).expect("the directory").count(), 0);
}

/// Whether the last import, if it is not one of before, is in the journal, and has succeeded.
async fn until_at_rest(client: &Client, bot: &str, before: &mut String) -> (bool, bool) {
    let deadline = Instant::now() + converge_limit();
    loop {
        let listed = client.good(Method::GET, &format!("/bots/{bot}/operations"), None).await;
        let items = listed["items"].as_array().expect("a list");
        let is_over = |item: &Value| !matches!(item["state"].as_str(), Some("queued" | "running"));
        if items.iter().all(is_over) && client.info(bot).await["task_running"] == true {
            let last = items.iter().find(|item| item["kind"] == "import");
            let Some(last) = last.filter(|item| item["id"] != before.as_str()) else {
                return (false, false);
            };
            *before = last["id"].as_str().expect("an id").to_owned();
            return (true, last["state"] == "succeeded");
        }
        assert!(Instant::now() < deadline, "it does not come to rest: {listed}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// As the kernel says it, whichever version of control groups it has.
fn stands_still(bot: &str) -> bool {
    let read = |file: String| std::fs::read_to_string(file).unwrap_or_default();
    let group = format!("skep/workspace-{bot}");
    read(format!("/sys/fs/cgroup/freezer/{group}/freezer.state")).trim() == "FROZEN"
        || read(format!("/sys/fs/cgroup/{group}/cgroup.events")).contains("frozen 1")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_that_was_frozen_when_the_server_died_runs_on() {
    let mut skep = Installation::start(OciRuntime::Found).await;
    let client = skep.client.clone();
    let bot = client.workspace("frozen", None).await;
    client
        .output_within(&bot, "head -c 1000000000 /dev/zero > /data/large", 300)
        .await;
    let process = process_one(&bot);
    assert!(process.is_some(), "it runs");
    let to_nothing = ["--output", "/dev/null"];
    let mut under_way = curl(&client, &bot, "export?consistent=true", &to_nothing)
        .spawn()
        .expect("curl is installed");
    let deadline = Instant::now() + converge_limit();
    while !stands_still(&bot) {
        assert!(Instant::now() < deadline, "it is never frozen");
    }
    skep.kill_server();
    assert!(!under_way.wait().expect("curl ends").success());
    assert!(stands_still(&bot), "it was thawed before the server died");
    let begun = Instant::now();
    skep.start_server_again().await;
    assert_eq!(client.output(&bot, "echo it runs").await, "it runs\n");
    assert!(begun.elapsed() < converge_limit(), "{:?}", begun.elapsed());
    assert_eq!(process_one(&bot), process, "it is the same");
}

/// A stream of a tar archive with so many small files, made as it is sent.
fn many_entries(count: usize) -> reqwest::Body {
    let piece = move |first: usize, last: usize| {
        let mut tar = tar::Builder::new(Vec::new());
        for number in first..last {
            let mut header = tar::Header::new_gnu();
            header.set_size(8);
            header.set_mode(0o644);
            let name = format!("d{}/{number}", number % 1000);
            tar.append_data(&mut header, name, format!("{number:08}").as_bytes())
                .expect("in memory");
        }
        let mut bytes = tar.into_inner().expect("in memory");
        if last < count {
            // Only the last piece has an end.
            bytes.truncate(bytes.len() - 1024);
        }
        bytes
    };
    let pieces = (0..count)
        .step_by(1000)
        .map(move |first| (first, (first + 1000).min(count)));
    let stream = futures::stream::iter(pieces).map(move |(first, last)| Ok::<_, std::io::Error>(piece(first, last)));
    reqwest::Body::wrap_stream(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_very_many_entries_takes_no_more_memory() {
    let count = amount(20_000, 1_000_000);
    let skep = Installation::start(OciRuntime::Found).await;
    let client = skep.client.clone();
    let bot = client.workspace("many", None).await;
    let import = format!("/bots/{bot}/container/data/import");
    let send = async |count: usize| {
        let request = client.request(Method::POST, &import).timeout(Duration::from_secs(1800));
        let answer = request.body(many_entries(count)).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{:?}", answer.text().await);
        answer.json::<Value>().await.expect("a report")["entries"].as_u64()
    };
    assert_eq!(send(1000).await, Some(1000));
    let before = resident_bytes(skep.server_pid());
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let pid = skep.server_pid();
    let watched = tokio::spawn(async move {
        let mut most = 0;
        while stopped.try_recv().is_err() {
            most = most.max(resident_bytes(pid));
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        most
    });
    let begun = Instant::now();
    let entries = send(count).await.expect("a number");
    stop.send(()).expect("it is watched");
    let most = watched.await.expect("watched");
    println!(
        "{count} entries in {:?}: {} MiB more",
        begun.elapsed(),
        most.saturating_sub(before) >> 20
    );
    assert_eq!(entries, count as u64);
    assert!(most < before + (64 << 20), "{before} bytes became {most}");
    let found = client.output_within(&bot, "ls /data/d7 | wc -l", 60).await;
    assert_eq!(found.trim(), (count / 1000).to_string());
}
