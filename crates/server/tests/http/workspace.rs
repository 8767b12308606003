//! The workspace's routes on the fake runtime: their forms, their streams, their headers.

use serde_json::{Value, json};
use skep_testkit::fake_runtime::FAKE_IMAGE;
use skep_testkit::server::{TestServer, text_of};

fn types(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| text_of(event, "type")).collect()
}

#[tokio::test]
async fn a_create_is_a_stream_that_ends_with_complete() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let answer = server
        .call("POST", &format!("/bots/{bot}/container"))
        .json(&json!({}))
        .send()
        .await;
    answer.expect_status(200);
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.header("cache-control"), "no-cache");
    let events = answer.events();
    assert_eq!(types(&events), ["pulling", "creating", "complete"]);
    let container = &events[2]["container"];
    assert_eq!(container["container_id"], Value::from(format!("workspace-{bot}")));
    assert_eq!(
        (&container["started"], &container["data_restored"]),
        (&json!(true), &json!(false))
    );
    assert!(
        answer
            .text()
            .lines()
            .all(|line| line.is_empty() || line.starts_with("data: ") || line.starts_with(':'))
    );
    let operation = answer.header("x-operation-id").to_owned();
    let replayed = server
        .call("GET", &format!("/operations/{operation}/events"))
        .send()
        .await;
    assert_eq!(types(&replayed.events()), ["pulling", "creating", "complete"]);
    assert!(
        replayed
            .text()
            .lines()
            .any(|line| line.starts_with("id: ") || line.starts_with("id:"))
    );
}

#[tokio::test]
async fn a_stream_is_resumed_after_the_last_event_id() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let made = server.call("POST", &format!("/bots/{bot}/container")).send().await;
    let path = format!("/operations/{}/events", made.header("x-operation-id"));
    let all = server.call("GET", &path).send().await;
    let ids: Vec<String> = all
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("id:"))
        .map(|id| id.trim().to_owned())
        .collect();
    let rest = server.call("GET", &path).header("last-event-id", &ids[0]).send().await;
    assert_eq!(rest.events(), all.events()[1..]);
    server
        .call("GET", &path)
        .header("last-event-id", "x")
        .send()
        .await
        .expect_error(400, "invalid_argument");
}

#[tokio::test]
async fn a_client_of_json_alone_gets_the_bare_container_or_the_error() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let create = |body: Value| {
        let call = server
            .call("POST", &format!("/bots/{bot}/container"))
            .header("accept", "application/json");
        call.json(&body).send()
    };
    create(json!({"image": "not an image"}))
        .await
        .expect_error(400, "invalid_argument");
    let made = create(json!({"image": FAKE_IMAGE})).await;
    assert_eq!(made.expect_status(200).json()["started"], true);
    create(json!({"image": "other.example/image:1"}))
        .await
        .expect_error(409, "workspace_exists");
}

#[tokio::test]
async fn a_second_create_keeps_the_workspace() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let path = format!("/bots/{bot}/container");
    let before = server.call("GET", &path).send().await.json();
    let again = server.call("POST", &path).send().await;
    assert_eq!(types(&again.events()).last().map(String::as_str), Some("complete"));
    let after = server.call("GET", &path).send().await.json();
    assert_eq!(
        (&before["container_id"], &before["created_at"]),
        (&after["container_id"], &after["created_at"])
    );
}

#[tokio::test]
async fn start_stop_and_restart_may_be_repeated_and_name_their_operations() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    for (verb, answer) in [
        ("stop", json!({"stopped": true})),
        ("stop", json!({"stopped": true})),
        ("start", json!({"started": true})),
        ("start", json!({"started": true})),
        ("restart?timeout=1", json!({"restarted": true})),
    ] {
        let done = server
            .call("POST", &format!("/bots/{bot}/container/{verb}"))
            .send()
            .await;
        assert_eq!(done.expect_status(200).json(), answer, "{verb}");
        assert!(!done.header("x-operation-id").is_empty(), "{verb}");
    }
    let listed = server
        .call("GET", &format!("/bots/{bot}/operations"))
        .send()
        .await
        .json();
    assert!(
        listed["items"].as_array().is_some_and(|items| items.len() >= 5),
        "{listed}"
    );
    let wrong = server
        .call("POST", &format!("/bots/{bot}/container/stop?timeout=301"))
        .send()
        .await;
    wrong.expect_error(400, "invalid_argument");
}

#[tokio::test]
async fn a_bot_without_a_workspace_is_told_so() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    for (method, route) in [("GET", ""), ("POST", "/start"), ("POST", "/stop"), ("POST", "/restart")] {
        let answer = server
            .call(method, &format!("/bots/{bot}/container{route}"))
            .send()
            .await;
        assert_eq!(
            answer.expect_error(404, "container_not_found"),
            "container not found for bot"
        );
    }
    server
        .call("DELETE", &format!("/bots/{bot}/container"))
        .send()
        .await
        .expect_status(204);
}

#[tokio::test]
async fn limits_are_wanted_and_applied() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let set = server
        .call("PUT", &format!("/bots/{bot}/container/limits"))
        .json(&json!({"pids": 77}))
        .send()
        .await;
    let limits = set.expect_status(200).json();
    assert_eq!(
        (&limits["wanted"]["pids"], &limits["applied"]["pids"]),
        (&json!(77), &json!(77))
    );
    assert_eq!(limits["wanted"]["cpu_millicores"], 2000);
}

#[tokio::test]
async fn a_stopped_workspace_is_told_as_whole_as_a_running_one() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let path = format!("/bots/{bot}/container");
    let running = server.call("GET", &path).send().await.expect_status(200).json();
    server
        .call("POST", &format!("{path}/stop"))
        .send()
        .await
        .expect_status(200);
    let stopped = server.call("GET", &path).send().await.expect_status(200).json();
    assert_eq!(
        (&stopped["status"], &stopped["task_running"], &stopped["desired"]),
        (&json!("stopped"), &json!(false), &json!("stopped"))
    );
    for of_a_task in ["ip", "uptime_seconds"] {
        assert_eq!(stopped[of_a_task], Value::Null, "{of_a_task}: {stopped}");
    }
    for field in [
        "container_id",
        "image",
        "namespace",
        "container_path",
        "has_preserved_data",
        "legacy",
        "created_at",
        "image_digest",
        "snapshotter",
        "limits",
        "isolation",
    ] {
        assert!(!running[field].is_null(), "{field}: {running}");
        assert_eq!(running[field], stopped[field], "{field}");
    }
    for field in ["user_namespace", "seccomp", "apparmor", "no_new_privileges"] {
        assert!(stopped["isolation"][field].is_boolean(), "{field}: {stopped}");
    }
    assert_eq!(stopped["isolation"]["storage_quota"], "soft");
    assert!(stopped["isolation"]["capabilities"].is_array() && stopped["isolation"]["network"].is_string());
    // What is wanted from now on has not been applied to anything.
    let changed = server
        .call("PUT", &format!("{path}/limits"))
        .json(&json!({"pids": 77}))
        .send()
        .await;
    let limits = changed.expect_status(200).json();
    assert_eq!(limits["wanted"]["pids"], 77);
    assert_eq!(limits["applied"], running["limits"]["applied"]);
    server
        .call("POST", &format!("{path}/start"))
        .send()
        .await
        .expect_status(200);
    let started = server.call("GET", &path).send().await.json();
    assert_eq!(started["limits"]["applied"]["pids"], 77, "{started}");
}

#[tokio::test]
async fn a_list_says_of_which_workspace_it_does_not_know() {
    let server = TestServer::start().await;
    let bare = server.bare_bot(server.admin_key()).await;
    let bot = server.bot_with_workspace().await;
    let list = async || {
        let answer = server.call("GET", "/bots?include=container").send().await;
        let items = answer.expect_status(200).json()["items"].clone();
        let of = |id: &str| items.as_array().unwrap().iter().find(|one| one["id"] == id).cloned();
        (of(&bot).unwrap(), of(&bare).unwrap())
    };
    let (with, without) = list().await;
    assert_eq!(with["container"]["task_running"], true, "{with}");
    assert_eq!(
        (&without["container"], &without["container_error"]),
        (&Value::Null, &Value::Null)
    );
    server.runtime().go_away();
    for bot in <[Value; 2]>::from(list().await) {
        assert_eq!(bot["container"], Value::Null);
        assert_eq!(bot["container_error"]["code"], "runtime_unavailable", "{bot}");
    }
    server.runtime().come_back();
}

#[tokio::test]
async fn the_present_state_is_the_first_event() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let mut stream = server
        .call("GET", &format!("/bots/{bot}/container/events"))
        .open()
        .await;
    let piece = tokio::time::timeout(crate::LIMIT, stream.chunk()).await;
    let piece = piece
        .expect("an event in time")
        .expect("the stream is whole")
        .expect("an event");
    let text = String::from_utf8_lossy(&piece).into_owned();
    let event: Value = serde_json::from_str(text.trim().trim_start_matches("data:")).expect("one event");
    assert_eq!(
        (&event["type"], &event["status"], &event["task_running"]),
        (&json!("state"), &json!("running"), &json!(true))
    );
}

#[tokio::test]
async fn images_are_listed_and_not_removed_while_in_use() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let images = server.call("GET", "/images").send().await.expect_status(200).json();
    assert_eq!(
        (&images["items"][0]["name"], &images["items"][0]["in_use"]),
        (&json!(FAKE_IMAGE), &json!(true))
    );
    let path = format!("/images/{FAKE_IMAGE}");
    server.call("DELETE", &path).send().await.expect_error(409, "conflict");
    server
        .call("DELETE", "/images/docker.io/library/none:1")
        .send()
        .await
        .expect_error(404, "image_not_found");
    server
        .call("DELETE", &format!("/bots/{bot}/container"))
        .send()
        .await
        .expect_status(204);
}
