//! What a workspace uses, over HTTP.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use skep_runtime::RuntimeError;
use skep_testkit::fake_runtime::Verb;
use skep_testkit::server::TestServer;

use crate::{LIMIT, Workspace, until};

async fn metrics_of(server: &TestServer, bot: &str) -> Value {
    let path = format!("/bots/{bot}/container/metrics");
    server.call("GET", &path).send().await.expect_status(200).json()
}

/// Waits until it is as wanted.
async fn metrics_with(workspace: &Workspace, wanted: impl Fn(&Value) -> bool) -> Value {
    until(async || {
        let metrics = metrics_of(&workspace.server, &workspace.bot).await;
        match wanted(&metrics) {
            true => Ok(metrics),
            false => Err(metrics.to_string()),
        }
    })
    .await
}

fn storage_of(metrics: &Value) -> Option<u64> {
    metrics["metrics"]["storage"]["used_bytes"].as_u64()
}

#[tokio::test]
async fn a_bot_without_a_workspace_has_no_metrics_and_that_is_no_failure() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    assert_eq!(
        metrics_of(&server, &bot).await,
        json!({"supported": true, "backend": "fake", "status": {"exists": false, "task_running": false}, "metrics": {}})
    );
}

#[tokio::test]
async fn a_workspace_that_runs_tells_what_it_uses_and_a_stopped_one_its_storage() {
    let workspace = Workspace::start().await;
    let metrics = metrics_with(&workspace, |metrics| storage_of(metrics).is_some()).await;
    assert_eq!(metrics["status"], json!({"exists": true, "task_running": true}));
    let (cpu, memory) = (&metrics["metrics"]["cpu"], &metrics["metrics"]["memory"]);
    let of = |name: &str| cpu[name].as_u64().expect("a counter");
    assert_eq!(
        of("usage_nanoseconds"),
        of("user_nanoseconds") + of("kernel_nanoseconds")
    );
    assert!(cpu["usage_percent"].is_number());
    let (used, limit) = (memory["usage_bytes"].as_u64(), memory["limit_bytes"].as_u64());
    assert!(used.is_some_and(|used| used > 0) && limit == Some(2 << 30), "{memory}");
    let percent = memory["usage_percent"].as_f64().expect("there is a limit");
    assert!((percent - used.unwrap() as f64 / (2_u64 << 30) as f64 * 100.0).abs() < 1e-9);
    assert_eq!(metrics["metrics"]["storage"]["path"], "/");
    assert!(metrics["metrics"]["storage"]["sampled_at"].is_string() && metrics["sampled_at"].is_string());

    workspace.post("/stop", json!({})).await.expect_status(200);
    let stopped = metrics_of(&workspace.server, &workspace.bot).await;
    assert_eq!(stopped["status"], json!({"exists": true, "task_running": false}));
    let told: Vec<&String> = stopped["metrics"].as_object().expect("an object").keys().collect();
    assert_eq!(told, ["storage"], "nothing is told of what does not run");
    assert!(stopped.get("sampled_at").is_none());
}

#[tokio::test]
async fn storage_is_counted_again_after_an_operation() {
    let workspace = Workspace::start().await;
    let before = metrics_with(&workspace, |metrics| storage_of(metrics).is_some()).await;
    let before = storage_of(&before).unwrap();
    workspace
        .output_of("head -c 8388608 /dev/urandom > /data/big; sync /data/big")
        .await;
    let now = storage_of(&metrics_of(&workspace.server, &workspace.bot).await);
    assert_eq!(now, Some(before), "a question counts nothing");
    workspace.post("/stop", json!({})).await.expect_status(200);
    let grown = 8 << 20;
    metrics_with(&workspace, |metrics| {
        storage_of(metrics).is_some_and(|used| (before + grown..before + grown * 105 / 100).contains(&used))
    })
    .await;
}

#[tokio::test]
async fn metrics_are_told_without_a_question_to_the_runtimes_daemon() {
    let workspace = Workspace::start().await;
    metrics_with(&workspace, |metrics| storage_of(metrics).is_some()).await;
    let runtime = workspace.server.runtime();
    runtime.go_away();
    let asked = || [Verb::Inspect, Verb::StorageHeld, Verb::Address].map(|verb| runtime.faults().calls(verb));
    let before = asked();
    for _ in 0..5 {
        let metrics = metrics_of(&workspace.server, &workspace.bot).await;
        assert_eq!(metrics["status"]["task_running"], true, "{metrics}");
    }
    assert_eq!(asked(), before);
    runtime.come_back();
}

#[tokio::test]
async fn a_stream_tells_at_its_pace_until_the_bot_is_deleted() {
    let workspace = Workspace::start().await;
    let path = workspace.path("/metrics/stream?interval=1s");
    let began = Instant::now();
    let answer = workspace.server.call("GET", &path).open().await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut pieces = answer.bytes_stream();
    let mut text = String::new();
    let mut deleted = false;
    loop {
        let piece = tokio::time::timeout(LIMIT, pieces.next())
            .await
            .expect("it goes on in time");
        let Some(piece) = piece else { break };
        text.push_str(std::str::from_utf8(&piece.expect("a piece")).expect("UTF-8"));
        if text.matches("data:").count() >= 3 && !deleted {
            assert!(
                began.elapsed() >= Duration::from_millis(1900),
                "three within {:?}",
                began.elapsed()
            );
            let path = format!("/bots/{}", workspace.bot);
            workspace.server.call("DELETE", &path).send().await.expect_status(202);
            deleted = true;
        }
    }
    let first = text
        .lines()
        .find_map(|line| line.strip_prefix("data:"))
        .expect("an event");
    let first: Value = serde_json::from_str(first).expect("JSON");
    assert_eq!(first["status"]["task_running"], true);
}

#[tokio::test]
async fn a_stream_that_cannot_go_on_breaks_off_and_does_not_end() {
    let workspace = Workspace::start().await;
    let path = workspace.path("/metrics/stream?interval=1s");
    let mut pieces = workspace.server.call("GET", &path).open().await.bytes_stream();
    pieces.next().await.expect("a first event").expect("whole");
    let error = RuntimeError::other("reading the counters", "no more files can be opened");
    workspace.server.runtime().faults().fail_next(Verb::Usage, error);
    let last = async {
        loop {
            match pieces.next().await {
                Some(Ok(_)) => {}
                last => break last,
            }
        }
    };
    let last = tokio::time::timeout(LIMIT, last).await.expect("it goes on and on");
    assert!(matches!(last, Some(Err(_))), "{last:?}");
}

#[tokio::test]
async fn an_interval_out_of_bounds_is_refused() {
    let workspace = Workspace::start().await;
    for wrong in ["0s", "61s", "soon"] {
        let answer = workspace.get(&format!("/metrics/stream?interval={wrong}")).await;
        assert_eq!(answer.expect_status(400).json()["code"], "invalid_argument", "{wrong}");
    }
}
