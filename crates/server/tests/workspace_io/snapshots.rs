//! Versions over HTTP: the routes, and what becomes of processes that a snapshot ends.

use serde_json::{Value, json};
use skep_runtime::RuntimeError;
use skep_testkit::fake_runtime::Verb;

use crate::Workspace;

async fn take(workspace: &Workspace, body: Value) -> Value {
    workspace.post("/snapshots", body).await.expect_status(200).json()
}

#[tokio::test]
async fn a_version_is_taken_listed_renamed_gone_back_to_and_deleted() {
    let workspace = Workspace::start().await;
    workspace.output_of("echo one > /data/file").await;
    let taken = take(&workspace, json!({"snapshot_name": "first"})).await;
    assert_eq!(
        (&taken["snapshot_name"], &taken["display_name"]),
        (&json!("first"), &json!("first"))
    );
    assert_eq!((&taken["version"], &taken["source"]), (&json!(1), &json!("manual")));
    assert_eq!(taken["container_id"], format!("workspace-{}", workspace.bot));
    workspace.output_of("echo two > /data/file").await;
    let unnamed = take(&workspace, json!({"source": "nightly"})).await;
    assert_eq!(
        (&unnamed["snapshot_name"], &unnamed["display_name"]),
        (&json!("Version 2"), &json!(""))
    );
    assert_eq!(unnamed["source"], "nightly");
    let renamed = workspace.server.call("PATCH", &workspace.path("/snapshots/1"));
    let renamed = renamed
        .json(&json!({"snapshot_name": "before"}))
        .send()
        .await
        .expect_status(200)
        .json();
    assert_eq!(renamed["snapshot_name"], "before");
    let back = workspace.post("/snapshots/rollback", json!({"version": 1})).await;
    let back = back.expect_status(200).json();
    assert_eq!(
        (&back["rolled_back_to"], &back["saved_version"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(workspace.output_of("cat /data/file").await, "one\n");
    let list = workspace.get("/snapshots").await.expect_status(200).json();
    let items = list["snapshots"].as_array().unwrap();
    let shown: Vec<(&str, &str, bool)> = items
        .iter()
        .map(|item| {
            let text = |field: &str| item[field].as_str().unwrap();
            (text("kind"), text("source"), item["managed"].as_bool().unwrap())
        })
        .collect();
    for expected in [
        ("Committed", "manual", true),
        ("Committed", "nightly", true),
        ("Active", "image_layer", false),
    ] {
        assert!(shown.contains(&expected), "{expected:?} in {shown:?}");
    }
    let snapshotter = list["snapshotter"].as_str().unwrap();
    workspace
        .get(&format!("/snapshots?snapshotter={snapshotter}"))
        .await
        .expect_status(200);
    let other = workspace.get("/snapshots?snapshotter=other").await;
    other.expect_error(400, "invalid_argument");
    let gone = workspace
        .server
        .call("DELETE", &workspace.path("/snapshots/2"))
        .send()
        .await;
    gone.expect_status(204);
}

#[tokio::test]
async fn what_is_no_version_is_told() {
    let workspace = Workspace::start().await;
    for version in [json!(0), json!(-1), json!(1.5)] {
        let answer = workspace
            .post("/snapshots/rollback", json!({ "version": version }))
            .await;
        answer.expect_error(400, "invalid_argument");
    }
    workspace
        .post("/snapshots/rollback", json!({}))
        .await
        .expect_error(400, "invalid_argument");
    workspace
        .post("/snapshots/rollback", json!({"version": "one"}))
        .await
        .expect_error(400, "invalid_body");
    for version in [json!(7), json!(1e300)] {
        let answer = workspace
            .post("/snapshots/rollback", json!({ "version": version }))
            .await;
        answer.expect_error(404, "version_not_found");
    }
    for (version, status, code) in [
        ("x", 400, "invalid_argument"),
        ("0", 400, "invalid_argument"),
        ("7", 404, "version_not_found"),
        ("99999999999999999999999", 404, "version_not_found"),
    ] {
        let call = workspace
            .server
            .call("DELETE", &workspace.path(&format!("/snapshots/{version}")));
        call.send().await.expect_error(status, code);
    }
}

#[tokio::test]
async fn a_command_with_snapshot_takes_a_version_first_and_tells_it() {
    let workspace = Workspace::start().await;
    workspace.output_of("echo before > /data/file").await;
    let body = json!({"command": "echo after > /data/file; cat /data/file", "snapshot": true});
    let answer = workspace.post("/exec", body.clone()).await;
    let mut operations = vec![answer.header("x-operation-id").to_owned()];
    let result = answer.expect_status(200).json();
    assert_eq!(
        (&result["snapshot_version"], &result["stdout"]),
        (&json!(1), &json!("after\n"))
    );
    let call = workspace
        .server
        .call("POST", &workspace.path("/exec"))
        .header("accept", "text/event-stream");
    let answer = call.json(&body).send().await;
    operations.push(answer.header("x-operation-id").to_owned());
    let events = answer.expect_status(200).events();
    assert_eq!(
        (&events[0]["type"], &events[0]["snapshot_version"]),
        (&json!("start"), &json!(2))
    );
    let detached = json!({"command": "true", "snapshot": true, "detach": true});
    let answer = workspace.post("/exec", detached).await;
    operations.push(answer.header("x-operation-id").to_owned());
    let started = answer.expect_status(202).json();
    assert_eq!(started["snapshot_version"], 3);
    for id in operations {
        let operation = workspace.server.call("GET", &format!("/operations/{id}")).send().await;
        let operation = operation.expect_status(200).json();
        assert_eq!(
            (&operation["kind"], &operation["state"]),
            (&json!("snapshot"), &json!("succeeded"))
        );
    }
    workspace
        .post("/snapshots/rollback", json!({"version": 1}))
        .await
        .expect_status(200);
    assert_eq!(workspace.output_of("cat /data/file").await, "before\n");
    let list = workspace.get("/snapshots").await.expect_status(200).json();
    let sources = list["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["source"].as_str().unwrap());
    assert_eq!(sources.filter(|source| *source == "pre_exec").count(), 3);
    // A repeat with the same key takes no other version.
    let again = || {
        let call = workspace
            .server
            .call("POST", &workspace.path("/exec"))
            .header("idempotency-key", "once");
        call.json(&body).send()
    };
    let (first, second) = (again().await, again().await);
    assert!(!first.header("x-operation-id").is_empty());
    assert_eq!(first.header("x-operation-id"), second.header("x-operation-id"));
    let (first, second) = (first.expect_status(200).json(), second.expect_status(200).json());
    assert_eq!(
        (&first["snapshot_version"], &first["exec_id"]),
        (&second["snapshot_version"], &second["exec_id"])
    );
}

#[tokio::test]
async fn a_command_whose_snapshot_fails_names_the_operation_that_failed() {
    let workspace = Workspace::start().await;
    let failure = RuntimeError::other("committing a layer", std::io::Error::other("broken"));
    workspace.server.runtime().faults().fail_next(Verb::Commit, failure);
    let body = json!({"command": "touch /data/ran", "snapshot": true});
    let answer = workspace.post("/exec", body).await;
    answer.expect_error(500, "internal");
    let id = answer.header("x-operation-id").to_owned();
    assert_eq!(answer.json()["operation_id"], json!(id));
    let operation = workspace.server.call("GET", &format!("/operations/{id}")).send().await;
    assert_eq!(operation.expect_status(200).json()["state"], "failed");
    workspace.until_code("test ! -e /data/ran", 0).await;
}

#[tokio::test]
async fn a_process_that_a_snapshot_ends_is_told_as_that() {
    let workspace = Workspace::start().await;
    let call = workspace
        .server
        .call("POST", &workspace.path("/exec"))
        .header("accept", "text/event-stream");
    let mut response = call.json(&json!({"command": "echo begun; sleep 600"})).open().await;
    let mut text = String::new();
    while !text.contains("begun") {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    let waiting = workspace.post("/exec", json!({"command": "touch /tmp/waits; sleep 600"}));
    let snapshot = async {
        workspace.until_code("test -e /tmp/waits", 0).await;
        take(&workspace, json!({})).await
    };
    let (answer, _taken) = tokio::join!(waiting, snapshot);
    answer.expect_error(409, "workspace_restarted");
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    let last = text.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(
        (&last["type"], &last["code"]),
        (&json!("error"), &json!("workspace_restarted"))
    );
}
