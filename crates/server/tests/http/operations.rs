//! Operations over HTTP: the queue, who will not wait, who is overtaken, cancels, events, repeated requests, the trail.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skep_store::{IdempotencyKey, Store};
use skep_testkit::fake_runtime::{Hold, Verb};
use skep_testkit::server::{Answer, Call, TestServer, text_of};

use crate::{LIMIT, until_in_trail};

fn container(server: &TestServer, bot: &str, verb: &str) -> Call {
    server.call("POST", &format!("/bots/{bot}/container{verb}"))
}

async fn operation(server: &TestServer, id: &str) -> Value {
    let path = format!("/operations/{id}");
    server.call("GET", &path).send().await.expect_status(200).json()
}

async fn listed(server: &TestServer, bot: &str) -> Vec<Value> {
    let answer = server.call("GET", &format!("/bots/{bot}/operations")).send().await;
    answer.expect_status(200).json()["items"]
        .as_array()
        .expect("a list")
        .clone()
}

/// The newest operations, as soon as there are so many that this holds of.
async fn until(server: &TestServer, bot: &str, count: usize, holds: impl Fn(&Value) -> bool) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let all = listed(server, bot).await;
        if all.iter().filter(|one| holds(one)).count() >= count {
            return all;
        }
        assert!(begun.elapsed() < LIMIT, "still {all:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A bot with a restart that is held in its stop, and the restart's id.
async fn held(server: &TestServer) -> (String, String, Hold, tokio::task::JoinHandle<Answer>) {
    let bot = server.bot_with_workspace().await;
    let hold = server.runtime().faults().hold(Verb::Stop);
    let restart = tokio::spawn(container(server, &bot, "/restart").send());
    let is_held = |one: &Value| one["kind"] == "restart" && one["state"] == "running" && one["step"] == "stop";
    let all = until(server, &bot, 1, is_held).await;
    let id = text_of(&all[0], "id");
    (bot, id, hold, restart)
}

#[tokio::test]
async fn who_will_not_wait_is_told_what_runs() {
    let server = TestServer::start().await;
    let (bot, running, hold, restart) = held(&server).await;
    for verb in ["/stop", "/start", "/restart"] {
        let refused = container(&server, &bot, verb).header("prefer", "wait=0").send().await;
        let message = refused.expect_error(409, "operation_in_progress");
        assert!(message.contains(&running), "{message}");
        assert_eq!(refused.header("x-operation-id"), running);
    }
    drop(hold);
    restart.await.unwrap().expect_status(200);
}

#[tokio::test]
async fn thirty_two_wait_and_the_next_is_told_to_come_again() {
    let server = TestServer::start().await;
    let (bot, _, hold, restart) = held(&server).await;
    let waiting: Vec<_> = (0..32)
        .map(|_| tokio::spawn(container(&server, &bot, "/restart").send()))
        .collect();
    until(&server, &bot, 32, |one| one["state"] == "queued").await;
    let full = container(&server, &bot, "/restart").send().await;
    full.expect_error(429, "queue_full");
    assert!(full.header("retry-after").parse::<u64>().is_ok(), "{:?}", full.headers);
    // A delete is not kept out by a full queue; those who wait hear of it while the first one is still held.
    let removal = server.runtime().faults().hold(Verb::Remove);
    let delete = server.call("DELETE", &format!("/bots/{bot}/container"));
    let delete = tokio::spawn(delete.send());
    for one in waiting {
        let overtaken = one.await.unwrap();
        overtaken.expect_error(409, "operation_cancelled");
        assert!(!overtaken.header("x-operation-id").is_empty());
    }
    drop((hold, removal));
    restart.await.unwrap().expect_error(409, "operation_cancelled");
    delete.await.unwrap().expect_status(204);
}

#[tokio::test]
async fn a_cancel_is_answered_at_once_and_ends_the_stream_with_an_error() {
    let server = TestServer::start().await;
    let (bot, running, hold, restart) = held(&server).await;
    let waiting = tokio::spawn(container(&server, &bot, "/stop").send());
    let all = until(&server, &bot, 1, |one| one["kind"] == "stop").await;
    let id = text_of(&all[0], "id");
    let events = server.call("GET", &format!("/operations/{id}/events"));
    let events = tokio::spawn(events.send());
    let cancel = server.call("POST", &format!("/operations/{id}/cancel")).send().await;
    let cancelled = cancel.expect_status(200).json();
    assert_eq!(
        (&cancelled["state"], &cancelled["kind"]),
        (&json!("cancelled"), &json!("stop"))
    );
    assert_eq!(cancelled["error"]["code"], "operation_cancelled");
    assert!(cancelled["finished_at"].is_string(), "{cancelled}");
    waiting.await.unwrap().expect_error(409, "operation_cancelled");
    let told = events.await.unwrap().events();
    let last = told.last().expect("an event");
    assert_eq!(
        (&last["type"], &last["code"]),
        (&json!("error"), &json!("operation_cancelled"))
    );
    assert_eq!(operation(&server, &running).await["state"], "running");
    drop(hold);
    restart.await.unwrap().expect_status(200);
    // What deletes cannot be called off.
    let removal = server.runtime().faults().hold(Verb::Remove);
    let delete = server.call("DELETE", &format!("/bots/{bot}/container"));
    let delete = tokio::spawn(delete.send());
    let all = until(&server, &bot, 1, |one| one["kind"] == "delete").await;
    let cancel = server.call("POST", &format!("/operations/{}/cancel", text_of(&all[0], "id")));
    cancel.send().await.expect_error(409, "conflict");
    drop(removal);
    delete.await.unwrap().expect_status(204);
}

#[tokio::test]
async fn others_than_a_create_tell_their_steps_and_are_heard_from_the_last_event_on() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let stop = container(&server, &bot, "/stop").send().await;
    let id = stop.expect_status(200).header("x-operation-id").to_owned();
    let shown = operation(&server, &id).await;
    assert_eq!(
        (&shown["id"], &shown["bot_id"], &shown["kind"], &shown["state"]),
        (&json!(id), &json!(bot), &json!("stop"), &json!("succeeded"))
    );
    assert!(
        shown["started_at"].is_string() && shown["finished_at"].is_string(),
        "{shown}"
    );
    let events = server.call("GET", &format!("/operations/{id}/events")).send().await;
    let told = events.events();
    let types: Vec<_> = told.iter().map(|event| text_of(event, "type")).collect();
    let (last, steps) = types.split_last().expect("events");
    assert!(
        last == "complete" && !steps.is_empty() && steps.iter().all(|one| one == "step"),
        "{types:?}"
    );
    let path = format!("/operations/{id}/events");
    for after in 0..=told.len() {
        let rest = server
            .call("GET", &path)
            .header("last-event-id", &after.to_string())
            .send()
            .await;
        assert_eq!(rest.expect_status(200).events(), told[after..], "after {after}");
    }
    let newest = &listed(&server, &bot).await[0];
    assert_eq!(newest["id"], json!(id), "newest first");
}

#[tokio::test]
async fn the_same_key_is_the_same_operation_and_replays_a_creates_events() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let create = |key: &'static str, body: Value| {
        let call = container(&server, &bot, "").header("idempotency-key", key);
        call.json(&body).send()
    };
    let first = create("k", json!({})).await;
    let again = create("k", json!({})).await;
    assert_eq!(
        first.expect_status(200).header("x-operation-id"),
        again.header("x-operation-id")
    );
    assert_eq!(first.events(), again.events());
    create("k", json!({"env": {"A": "b"}}))
        .await
        .expect_error(422, "idempotency_key_reused");
    let other = create("k2", json!({})).await;
    assert_ne!(first.header("x-operation-id"), other.header("x-operation-id"));
    // The same word on another path, or of another user, is another key.
    let stop = container(&server, &bot, "/stop")
        .header("idempotency-key", "k")
        .send()
        .await;
    stop.expect_status(200);
    let start = container(&server, &bot, "/start").send().await;
    start.expect_status(200);
    let again = container(&server, &bot, "/stop")
        .header("idempotency-key", "k")
        .send()
        .await;
    assert_eq!(
        again.expect_status(200).header("x-operation-id"),
        stop.header("x-operation-id")
    );
    let info = server
        .call("GET", &format!("/bots/{bot}/container"))
        .send()
        .await
        .json();
    assert_eq!(info["task_running"], true, "the stop was not done again: {info}");
    let (id, ada) = server.member("ada").await;
    let member = server
        .call("PUT", &format!("/bots/{bot}/members/{id}"))
        .json(&json!({"role": "operator"}));
    member.send().await.expect_status(200);
    let path = format!("/bots/{bot}/container/stop");
    let hers = server
        .call_as(&ada, "POST", &path)
        .header("idempotency-key", "k")
        .send()
        .await;
    assert_ne!(
        hers.expect_status(200).header("x-operation-id"),
        stop.header("x-operation-id")
    );
}

#[tokio::test]
async fn a_failed_operation_is_told_again_to_the_same_key() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let create = || {
        let call = container(&server, &bot, "").header("idempotency-key", "k");
        let call = call.header("accept", "application/json");
        call.json(&json!({"image": "registry.test/none:1"})).send()
    };
    let first = create().await;
    let message = first.expect_error(404, "image_not_found");
    let again = create().await;
    assert_eq!(again.expect_error(404, "image_not_found"), message);
    assert_eq!(first.header("x-operation-id"), again.header("x-operation-id"));
    assert_eq!(listed(&server, &bot).await.len(), 1);
}

#[tokio::test]
async fn a_server_that_ends_tells_no_end_of_what_the_next_one_carries_on() {
    let mut server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let hold = server.runtime().faults().hold(Verb::Start);
    let restart = tokio::spawn(container(&server, &bot, "/restart").send());
    let all = until(&server, &bot, 1, |one| {
        one["kind"] == "restart" && one["step"] == "start"
    })
    .await;
    let id = text_of(&all[0], "id");
    let follow = server.call("GET", &format!("/operations/{id}/events")).open().await;
    let waiting = tokio::spawn(container(&server, &bot, "/stop").send());
    let all = until(&server, &bot, 1, |one| one["kind"] == "stop").await;
    let queued = text_of(&all[0], "id");
    let follow_queued = server.call("GET", &format!("/operations/{queued}/events")).open().await;
    server.stop_within(Duration::from_millis(200)).await;
    for stream in [follow, follow_queued] {
        let told = stream.text().await.expect("the stream ends in order");
        assert!(!told.contains("\"error\"") && !told.contains("\"complete\""), "{told}");
    }
    // Who waits for the answer itself is told that it did not come.
    for asked in [restart, waiting] {
        asked.await.unwrap().expect_error(503, "runtime_unavailable");
    }
    drop(hold);
    server.restart().await;
    for id in [id, queued] {
        let told = server
            .call("GET", &format!("/operations/{id}/events"))
            .send()
            .await
            .events();
        assert_eq!(told.last().expect("an event")["type"], "complete");
    }
}

#[tokio::test]
async fn what_is_begun_is_in_the_trail_also_when_its_caller_goes_away() {
    let server = TestServer::start().await;
    let (bot, id, hold, restart) = held(&server).await;
    restart.abort();
    let begun = Instant::now();
    loop {
        let trail = server.call("GET", &format!("/audit?bot_id={bot}")).send().await.json();
        let items = trail["items"].as_array().expect("a list");
        let of_restart = |line: &&Value| line["action"] == "POST /bots/{bot_id}/container/restart";
        if let Some(line) = items.iter().find(of_restart) {
            assert_eq!(line["outcome"], "gone", "{line}");
            assert!(!text_of(line, "user_id").is_empty(), "{line}");
            break;
        }
        assert!(begun.elapsed() < LIMIT, "not in {items:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(hold);
    until(&server, &bot, 1, |one| one["id"] == id && one["state"] == "succeeded").await;
}

#[tokio::test]
async fn every_change_is_in_the_trail_with_who_what_and_how_it_ended() {
    let mut server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let (id, ada) = server.member("ada").await;
    let member = server
        .call("PUT", &format!("/bots/{bot}/members/{id}"))
        .json(&json!({"role": "viewer"}));
    member.send().await.expect_status(200);
    let refused = server.call_as(&ada, "POST", &format!("/bots/{bot}/container/stop"));
    refused.header("x-request-id", "hers-1").send().await.expect_status(403);
    let stopped = container(&server, &bot, "/stop").send().await;
    let operation = stopped.expect_status(200).header("x-operation-id").to_owned();
    let cancel = server.call("POST", &format!("/operations/{operation}/cancel"));
    cancel.send().await.expect_status(200);
    let ticket = json!({"bot_id": bot, "use": "terminal"});
    let ticket = server.call("POST", "/auth/tickets").json(&ticket).send().await;
    ticket.expect_status(200);
    let of_ticket = |line: &Value| line["action"] == "POST /auth/tickets";
    until_in_trail(&server, &format!("?bot_id={bot}"), 1, of_ticket).await;
    server.restart().await;
    let trail = server.call("GET", &format!("/audit?bot_id={bot}")).send().await;
    let items = trail.expect_status(200).json()["items"]
        .as_array()
        .expect("a list")
        .clone();
    let lines: Vec<_> = items
        .iter()
        .map(|line| (text_of(line, "action"), text_of(line, "outcome")))
        .collect();
    for (action, outcome) in [
        ("PUT /bots/{bot_id}/members/{user_id}", "200"),
        ("POST /bots/{bot_id}/container/stop", "403"),
        ("POST /bots/{bot_id}/container/stop", "200"),
        ("POST /bots/{bot_id}/container", "200"),
        ("POST /bots", "201"),
        ("POST /operations/{operation_id}/cancel", "200"),
        ("POST /auth/tickets", "200"),
    ] {
        assert!(
            lines.contains(&(action.to_owned(), outcome.to_owned())),
            "{action} {outcome}: {lines:#?}"
        );
    }
    let hers = items
        .iter()
        .find(|line| line["request_id"] == "hers-1")
        .expect("her try");
    assert_eq!((&hers["user_id"], &hers["from"]), (&json!(id), &json!("127.0.0.1")));
    let of_hers = server.call("GET", &format!("/audit?user_id={id}")).send().await.json();
    assert!(
        of_hers["items"]
            .as_array()
            .is_some_and(|lines| lines.iter().all(|line| line["user_id"] == json!(id)))
    );
}

#[tokio::test]
async fn operations_are_paged_to_the_first_one() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    for verb in ["/stop", "/start", "/stop"] {
        container(&server, &bot, verb).send().await.expect_status(200);
    }
    let (mut kinds, mut with) = (Vec::new(), "limit=3".to_owned());
    loop {
        let page = server
            .call("GET", &format!("/bots/{bot}/operations?{with}"))
            .send()
            .await;
        let page = page.expect_status(200).json();
        let items = page["items"].as_array().expect("a list");
        kinds.extend(items.iter().map(|one| text_of(one, "kind")));
        match page["next_cursor"].as_str() {
            Some(cursor) => with = format!("limit=3&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(kinds, ["stop", "start", "stop", "create"]);
    for bad in ["limit=0", "limit=501", "cursor=x"] {
        let refused = server
            .call("GET", &format!("/bots/{bot}/operations?{bad}"))
            .send()
            .await;
        refused.expect_error(400, "invalid_argument");
    }
}

#[tokio::test]
async fn a_key_that_nobody_works_on_any_more_is_free() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let user = server.call("GET", "/users/me").send().await.json();
    let path = format!("/bots/{bot}/container/stop");
    let claimed = IdempotencyKey {
        user_id: text_of(&user, "id"),
        method: "POST".to_owned(),
        path: path.clone(),
        key: "once".to_owned(),
    };
    // As a request leaves it that comes to nothing while the store cannot be written.
    let store = Store::open(&server.directory().join("data/skep.db")).await.unwrap();
    let of_no_body = hex::encode(Sha256::digest([0]));
    store.begin_idempotent(&claimed, &of_no_body).await.unwrap();
    store.close().await;
    let stop = || server.call("POST", &path).header("idempotency-key", "once").send();
    let first = stop().await;
    first.expect_status(200);
    let again = stop().await;
    again.expect_status(200);
    assert_eq!(again.header("x-operation-id"), first.header("x-operation-id"));
}

#[tokio::test]
async fn what_nobody_asks_leaves_no_line_and_of_logins_those_that_were_tried_do() {
    let mut server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    for credential in ["", "made.up.token", "skep_made-up"] {
        for (method, path) in [
            ("POST", "/bots".to_owned()),
            ("DELETE", format!("/bots/{bot}")),
            ("GET", format!("/bots/{bot}/container/terminal/ws")),
        ] {
            let refused = server.call_as(credential, method, &path).send().await;
            refused.expect_error(401, "unauthorized");
        }
    }
    let broken = server
        .call_as("", "POST", "/auth/login")
        .json(&json!({"username": "", "password": ""}));
    broken.send().await.expect_status(400);
    for number in 0..13 {
        let body = json!({"username": "admin", "password": "wrong"});
        let refused = server.call_as("", "POST", "/auth/login").json(&body).send().await;
        refused.expect_status(if number < 10 { 401 } else { 429 });
    }
    until_in_trail(&server, "", 10, |line| line["user_id"] == "").await;
    server.restart().await;
    let trail = server.call("GET", "/audit").send().await.expect_status(200).json();
    let items = trail["items"].as_array().expect("a list");
    let of_nobody: Vec<_> = items
        .iter()
        .filter(|line| line["user_id"] == "")
        .map(|line| (text_of(line, "action"), text_of(line, "outcome")))
        .collect();
    assert_eq!(of_nobody, vec![("POST /auth/login".to_owned(), "401".to_owned()); 10]);
}

#[tokio::test]
async fn a_get_that_starts_a_workspace_or_opens_a_socket_is_in_the_trail_and_no_other() {
    let mut server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let (_, stranger) = server.member("stranger").await;
    container(&server, &bot, "/stop").send().await.expect_status(200);
    let base = format!("/bots/{bot}/container");
    let get = async |credential: &str, rest: &str| {
        let call = server.call_as(credential, "GET", &format!("{base}{rest}"));
        call.send().await.status
    };
    let admin = server.admin_key().to_owned();
    assert_eq!(get(&admin, "/fs/list").await, 409);
    assert_eq!(get(&admin, "/fs/list?start=true").await, 200);
    assert_eq!(get(&admin, "/fs/list").await, 200);
    for socket in ["/terminal/ws", "/port-forward?port=80"] {
        assert_eq!(get(&stranger, socket).await, 403);
    }
    assert_eq!(get(&stranger, "/terminal").await, 403);
    let is_get = |line: &Value| text_of(line, "action").starts_with("GET");
    until_in_trail(&server, &format!("?bot_id={bot}"), 3, is_get).await;
    server.restart().await;
    let trail = server.call("GET", &format!("/audit?bot_id={bot}")).send().await.json();
    let items = trail["items"].as_array().expect("a list");
    let mut gets: Vec<_> = items
        .iter()
        .map(|line| (text_of(line, "action"), text_of(line, "outcome")))
        .filter(|(action, _)| action.starts_with("GET"))
        .collect();
    gets.sort();
    let expected = [
        ("GET /bots/{bot_id}/container/fs/list", "200"),
        ("GET /bots/{bot_id}/container/port-forward", "403"),
        ("GET /bots/{bot_id}/container/terminal/ws", "403"),
    ];
    assert_eq!(
        gets,
        expected.map(|(action, outcome)| (action.to_owned(), outcome.to_owned()))
    );
}

#[tokio::test]
async fn operations_of_a_bot_that_is_gone_are_told_to_who_asked_for_them_and_to_admins_alone() {
    let server = TestServer::start().await;
    let (_, owner) = server.member("owner").await;
    let (id, operator) = server.member("operator").await;
    let (_, stranger) = server.member("stranger").await;
    let bot = server.bare_bot(&owner).await;
    let joins = server.call_as(&owner, "PUT", &format!("/bots/{bot}/members/{id}"));
    joins.json(&json!({"role": "operator"})).send().await.expect_status(200);
    let get = |credential: &str, path: &str| server.call_as(credential, "GET", path).send();
    let deleted = server.call_as(&owner, "DELETE", &format!("/bots/{bot}")).send().await;
    let operation = format!("/operations/{}", deleted.expect_status(202).header("x-operation-id"));
    let events = format!("{operation}/events");
    let told = get(&owner, &events).await.expect_status(200).events();
    assert_eq!(told.last().expect("an end")["type"], "complete", "{told:?}");
    get(&owner, &format!("/bots/{bot}/operations"))
        .await
        .expect_error(404, "bot_not_found");
    for who in [owner.as_str(), server.admin_key()] {
        let shown = get(who, &operation).await.expect_status(200).json();
        assert_eq!((&shown["kind"], &shown["bot_id"]), (&json!("delete_bot"), &json!(bot)));
        assert_eq!(get(who, &events).await.expect_status(200).events(), told);
    }
    for path in [&operation, &events] {
        for who in [&operator, &stranger] {
            get(who, path).await.expect_error(403, "bot_access_denied");
        }
        get("", path).await.expect_error(401, "unauthorized");
    }
}
