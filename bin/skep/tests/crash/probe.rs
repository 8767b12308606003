//! What a server does at its start beside operations.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::installation::{Installation, OciRuntime};

const LIMIT: Duration = Duration::from_secs(120);
/// The bot that a sweep looks at last.
const LAST: &str = "ffffffff-ffff-4fff-bfff-ffffffffffff";

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_leaves_alone_what_a_try_of_a_user_namespace_has_claimed() {
    let failpoints = tempfile::tempdir().expect("a directory can be made");
    let file = |name: &str| failpoints.path().join(name);
    let write = |file: &Path, text: &str| std::fs::write(file, text).expect("it can be written");
    write(&file("armed"), "");
    let directory = failpoints.path().to_str().expect("UTF-8").to_owned();
    let mut installation = Installation::start_with(
        OciRuntime::Found,
        &[
            ("SKEP_FAILPOINTS", directory),
            ("SKEP_WORKSPACE__RECONCILE_INTERVAL", "1s".to_owned()),
        ],
    )
    .await;
    installation.kill_server();
    write(&file("fired"), "");
    write(&file("held"), "");
    write(&file("armed"), "host.claim_drafted 1 hold\n");
    installation.spawn_server_again();
    installation.wait_until_it_listens().await;
    let client = installation.client.clone();
    let asked = tokio::spawn(async move { client.is_ready().await });
    let fired = || std::fs::read_to_string(file("fired")).is_ok_and(|text| !text.is_empty());
    until("the try waits behind its draft", fired).await;
    let run_directory = installation.run_directory();
    let data_root = run_directory.file_name().expect("a name").to_string_lossy();
    let ids = run_directory.with_file_name("ids");
    let last = ids.join(format!(".{data_root}-{LAST}"));
    write(&last, "");
    until("a sweep has looked at all that was drafted", || !last.exists()).await;
    std::fs::remove_file(file("held")).expect("the server is held");
    asked.await.expect("an answer");
    installation.wait_until_ready().await;
    let bot = installation.client.workspace("box", None).await;
    let path = format!("/bots/{bot}/container");
    let shown = installation.client.good(Method::GET, &path, None).await;
    assert_eq!(shown["isolation"]["user_namespace"], json!(true));
    let log = installation.log_tail();
    assert!(!log.contains("a user namespace could not be made"), "{log}");
    installation.client.delete_bot(&bot).await;
}
