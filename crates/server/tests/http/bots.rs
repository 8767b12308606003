//! Bots: how they come, change and go.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_testkit::server::{TestServer, text_of};

use crate::LIMIT;

/// The first answer for which `enough` holds.
async fn until(server: &TestServer, path: &str, enough: impl Fn(u16, &Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let answer = server.call("GET", path).send().await;
        let body = answer.json();
        if enough(answer.status, &body) {
            return body;
        }
        assert!(begun.elapsed() < LIMIT, "{path} is still {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_bot_is_set_up_in_the_background() {
    let server = TestServer::start().await;
    let made = server
        .call("POST", "/bots")
        .json(&json!({"display_name": "demo"}))
        .send()
        .await;
    let bot = made.expect_status(201).json();
    assert_eq!(
        (&bot["status"], &bot["display_name"]),
        (&json!("creating"), &json!("demo"))
    );
    assert!(!made.header("x-operation-id").is_empty());
    let path = format!("/bots/{}", text_of(&bot, "id"));
    until(&server, &path, |_, bot| bot["status"] == "ready").await;
    let info = server
        .call("GET", &format!("{path}/container"))
        .send()
        .await
        .expect_status(200)
        .json();
    assert_eq!(
        (&info["status"], &info["task_running"]),
        (&json!("running"), &json!(true))
    );
    let checks = server
        .call("GET", &format!("{path}/checks"))
        .send()
        .await
        .expect_status(200)
        .json();
    let of = |kind: &str| {
        checks["items"]
            .as_array()
            .unwrap()
            .iter()
            .find(|item| item["type"] == kind)
            .cloned()
    };
    assert_eq!(of("container.data_path").unwrap()["status"], "ok", "{checks}");
}

/// Type and status of every check.
async fn checks(server: &TestServer, bot: &str) -> Vec<(String, String)> {
    let answer = server.call("GET", &format!("/bots/{bot}/checks")).send().await;
    let items = answer.expect_status(200).json()["items"].clone();
    let items = items.as_array().expect("a list").iter();
    items
        .map(|item| {
            for field in ["id", "title_key", "summary"] {
                assert!(!text_of(item, field).is_empty(), "{item}");
            }
            (text_of(item, "type"), text_of(item, "status"))
        })
        .collect()
}

async fn check_state(server: &TestServer, bot: &str) -> (Value, Value) {
    let bot = server
        .call("GET", &format!("/bots/{bot}"))
        .send()
        .await
        .expect_status(200)
        .json();
    (bot["check_state"].clone(), bot["check_issue_count"].clone())
}

fn expected(statuses: [&str; 5]) -> Vec<(String, String)> {
    let types = [
        "container.init",
        "container.record",
        "container.task",
        "container.data_path",
        "bot.delete",
    ];
    let pairs = types.into_iter().zip(statuses);
    pairs.map(|(one, other)| (one.to_owned(), other.to_owned())).collect()
}

#[tokio::test]
async fn every_bot_has_every_check_and_they_are_real_probes() {
    let server = TestServer::start().await;
    let bare = server.bare_bot(server.admin_key()).await;
    let none = expected(["unknown", "unknown", "unknown", "unknown", "ok"]);
    assert_eq!(checks(&server, &bare).await, none);
    assert_eq!(check_state(&server, &bare).await, (json!("ok"), json!(0)));

    let bot = server.bot_with_workspace().await;
    assert_eq!(checks(&server, &bot).await, expected(["ok"; 5]));
    let call = |method: &'static str, rest: &str| server.call(method, &format!("/bots/{bot}/container{rest}"));
    let listed = call("GET", "/fs/list?path=/data")
        .send()
        .await
        .expect_status(200)
        .json();
    assert!(
        !listed.to_string().contains("skep-check"),
        "a probe left its file: {listed}"
    );

    // Nobody can write there: the probe of the path says so, and no other check does.
    let broken = call("POST", "/exec")
        .json(&json!({"command": "mv /data /gone && echo x > /data"}))
        .send();
    broken.await.expect_status(200);
    assert_eq!(checks(&server, &bot).await, expected(["ok", "ok", "ok", "error", "ok"]));
    assert_eq!(check_state(&server, &bot).await, (json!("issue"), json!(1)));
    let mended = call("POST", "/exec")
        .json(&json!({"command": "rm /data && mv /gone /data", "cwd": "/"}))
        .send();
    mended.await.expect_status(200);
    assert_eq!(checks(&server, &bot).await, expected(["ok"; 5]));
    assert_eq!(check_state(&server, &bot).await, (json!("ok"), json!(0)));

    server.runtime().go_away();
    assert_eq!(
        checks(&server, &bot).await,
        expected(["ok", "ok", "unknown", "ok", "ok"])
    );
    assert_eq!(checks(&server, &bare).await, none);
    server.runtime().come_back();

    call("POST", "/stop").send().await.expect_status(200);
    assert_eq!(
        checks(&server, &bot).await,
        expected(["ok", "ok", "ok", "unknown", "ok"])
    );
}

#[tokio::test]
async fn a_workspace_that_cannot_be_kept_running_is_an_issue_of_its_bot() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let id = bot.parse().expect("an id");
    server.runtime().replace_process_one(&id, &["/bin/sh", "-c", "exit 7"]);
    assert!(server.runtime().kill_process_one(&id).expect("killed"));
    let path = format!("/bots/{bot}");
    let told = until(&server, &path, |_, bot| bot["check_state"] == "issue").await;
    assert_eq!(told["check_issue_count"], 1);
    let failed = expected(["ok", "ok", "error", "unknown", "ok"]);
    // It is tried again meanwhile, and for a moment each try is a task.
    let shown = async {
        while checks(&server, &bot).await != failed {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, shown)
        .await
        .expect("the check of the task says so");
}

#[tokio::test]
async fn a_deleted_bot_is_gone_and_its_operation_is_not() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let answer = server.call("DELETE", &format!("/bots/{bot}")).send().await;
    assert_eq!(
        answer.expect_status(202).json(),
        json!({"id": bot, "status": "deleting"})
    );
    let operation = answer.header("x-operation-id").to_owned();
    until(&server, &format!("/bots/{bot}"), |status, _| status == 404).await;
    let kept = until(&server, &format!("/operations/{operation}"), |_, body| {
        body["state"] == "succeeded"
    })
    .await;
    assert_eq!(kept["kind"], "delete_bot");
}

#[tokio::test]
async fn put_replaces_metadata_and_patch_merges_it() {
    let server = TestServer::start().await;
    let path = format!("/bots/{}", server.bare_bot(server.admin_key()).await);
    let send = async |method: &str, metadata: Value| {
        let answer = server
            .call(method, &path)
            .json(&json!({"metadata": metadata}))
            .send()
            .await;
        answer.expect_status(200).json()["metadata"].clone()
    };
    assert_eq!(
        send("PUT", json!({"a": 1, "b": {"c": 2}})).await,
        json!({"a": 1, "b": {"c": 2}})
    );
    assert_eq!(
        send("PATCH", json!({"a": null, "b": {"d": 3}})).await,
        json!({"b": {"c": 2, "d": 3}})
    );
    assert_eq!(send("PUT", json!({"x": true})).await, json!({"x": true}));
}

#[tokio::test]
async fn patches_do_not_make_metadata_larger_than_it_may_be_and_change_all_or_nothing() {
    let server = TestServer::start().await;
    let path = format!("/bots/{}", server.bare_bot(server.admin_key()).await);
    let large = "x".repeat(200 * 1024);
    let patch = |body: Value| server.call("PATCH", &path).json(&body).send();
    let first = patch(json!({"metadata": {"a": large}})).await;
    first.expect_status(200);
    let second = patch(json!({"display_name": "renamed", "metadata": {"b": large}})).await;
    let message = second.expect_error(400, "invalid_argument");
    assert_eq!(message, "the metadata of a bot may have 262144 bytes");
    let kept = server.call("GET", &path).send().await.json();
    assert_eq!(kept, first.json(), "a part of what was refused is there");
    let third = patch(json!({"display_name": "renamed", "metadata": {"a": null, "b": large}})).await;
    let third = third.expect_status(200).json();
    assert_eq!(
        (&third["display_name"], &third["metadata"]),
        (&json!("renamed"), &json!({"b": large}))
    );
}

#[tokio::test]
async fn bots_are_paged_newest_first() {
    let server = TestServer::start().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.insert(0, server.bare_bot(server.admin_key()).await);
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server
            .call("GET", &format!("/bots?limit=2{cursor}"))
            .send()
            .await
            .expect_status(200)
            .json();
        seen.extend(page["items"].as_array().unwrap().iter().map(|bot| text_of(bot, "id")));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, made);
}

#[tokio::test]
async fn an_idempotency_key_makes_one_bot_and_refuses_another_body() {
    let server = TestServer::start().await;
    let make = |key: &'static str, name: &'static str| {
        let call = server
            .call("POST", "/bots?workspace=false")
            .header("idempotency-key", key);
        call.json(&json!({"display_name": name})).send()
    };
    let first = make("k1", "a").await.expect_status(201).json();
    let again = make("k1", "a").await.expect_status(201).json();
    assert_eq!(first, again);
    make("k1", "b").await.expect_error(422, "idempotency_key_reused");
    assert_ne!(make("k2", "a").await.expect_status(201).json()["id"], first["id"]);
}

#[tokio::test]
async fn who_may_make_a_bot_is_asked_before_the_key_of_the_request_is_read() {
    let server = TestServer::start().await;
    let body = json!({"name": "k", "scope": "read"});
    let made = server.call("POST", "/auth/keys").json(&body).send().await;
    let read = text_of(&made.expect_status(201).json(), "key");
    let make = |credential: &str| {
        let call = server.call_as(credential, "POST", "/bots?workspace=false");
        call.header("idempotency-key", "").json(&json!({})).send()
    };
    make("").await.expect_error(401, "unauthorized");
    make(&read).await.expect_error(403, "forbidden");
    make(server.admin_key()).await.expect_error(400, "invalid_argument");
}

#[tokio::test]
async fn an_admin_gives_a_bot_to_another_user() {
    let server = TestServer::start().await;
    let (id, token) = server.member("ada").await;
    let bot = server.bare_bot(server.admin_key()).await;
    let path = format!("/bots/{bot}/owner");
    let body = json!({"owner_user_id": id});
    let given = server.call("PUT", &path).json(&body).send().await;
    assert_eq!(given.expect_status(200).json()["owner_user_id"], Value::from(id));
    server
        .call_as(&token, "GET", &format!("/bots/{bot}"))
        .send()
        .await
        .expect_status(200);
    server
        .call_as(&token, "PUT", &path)
        .json(&body)
        .send()
        .await
        .expect_error(403, "forbidden");
    let nobody = json!({"owner_user_id": "nobody"});
    server
        .call("PUT", &path)
        .json(&nobody)
        .send()
        .await
        .expect_error(404, "not_found");
}

#[tokio::test]
async fn an_admin_makes_and_lists_bots_of_others_and_nobody_else_does() {
    let server = TestServer::start().await;
    let (ada, hers) = server.member("ada").await;
    let (_, bobs) = server.member("bob").await;
    let path = format!("/bots?workspace=false&owner_id={ada}");
    let make = |credential: &str| server.call_as(credential, "POST", &path).json(&json!({})).send();
    let refused = make(&bobs).await.expect_error(403, "forbidden");
    assert_eq!(refused, "admin role required");
    let made = make(server.admin_key()).await.expect_status(201).json();
    assert_eq!(text_of(&made, "owner_user_id"), ada);
    let own = server.bare_bot(server.admin_key()).await;
    let list = |credential: &str, query: &str| server.call_as(credential, "GET", &format!("/bots{query}")).send();
    let of_ada = format!("?owner_id={ada}");
    for query in [of_ada.as_str(), "?all=true"] {
        let refused = list(&bobs, query).await.expect_error(403, "forbidden");
        assert_eq!(refused, "admin role required", "{query}");
    }
    let ids = |page: &Value| {
        let items = page["items"].as_array().expect("a list");
        items.iter().map(|bot| text_of(bot, "id")).collect::<Vec<_>>()
    };
    let id = text_of(&made, "id");
    for (credential, query, expected) in [
        (server.admin_key(), of_ada.as_str(), vec![id.clone()]),
        (server.admin_key(), "?all=true", vec![own.clone(), id.clone()]),
        (server.admin_key(), "", vec![own]),
        (hers.as_str(), of_ada.as_str(), vec![id]),
    ] {
        let page = list(credential, query).await.expect_status(200).json();
        assert_eq!(ids(&page), expected, "{query}");
    }
}

#[tokio::test]
async fn bots_with_much_metadata_are_fewer_on_a_page() {
    let server = TestServer::start().await;
    let much = "m".repeat(200_000);
    for _ in 0..8 {
        let body = json!({"metadata": {"much": much}});
        let made = server.call("POST", "/bots?workspace=false").json(&body).send().await;
        made.expect_status(201);
    }
    let (mut seen, mut pages, mut cursor) = (Vec::new(), 0, String::new());
    loop {
        let answer = server.call("GET", &format!("/bots?limit=500{cursor}")).send().await;
        let page = answer.expect_status(200).json();
        assert!(answer.body.len() < 2 << 20, "a page of {} bytes", answer.body.len());
        pages += 1;
        seen.extend(page["items"].as_array().unwrap().iter().map(|bot| text_of(bot, "id")));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((seen.len(), pages), (8, 2));
    seen.dedup();
    assert_eq!(seen.len(), 8, "none is there twice");
}

#[tokio::test]
async fn a_display_name_holds_no_control_character() {
    let server = TestServer::start().await;
    for bad in ["two\nlines", "\u{1b}[2J", "a\tb", "del\u{7f}", "c1\u{9b}31m"] {
        let body = json!({"display_name": bad});
        let refused = server.call("POST", "/bots?workspace=false").json(&body).send().await;
        refused.expect_error(400, "invalid_argument");
    }
    let good = json!({"display_name": "grüße 蜂巣 עולם"});
    let made = server.call("POST", "/bots?workspace=false").json(&good).send().await;
    made.expect_status(201);
}
