//! Processes: truthful ends, whole outputs.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use skep_testkit::fake_runtime::Verb;
use skep_testkit::server::{TestServer, text_of};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::{COMMAND_SECONDS, LIMIT, Workspace, until};

async fn events(workspace: &Workspace, body: Value) -> Vec<Value> {
    let call = workspace.server.call("POST", &workspace.path("/exec"));
    let answer = call.header("accept", "text/event-stream").json(&body).send().await;
    answer.expect_status(200).events()
}

#[tokio::test]
async fn the_result_of_a_command_is_what_it_did() {
    let workspace = Workspace::start().await;
    let result = workspace.run("echo out; echo err >&2; exit 7").await;
    for (field, value) in [
        ("exit_code", json!(7)),
        ("stdout", json!("out\n")),
        ("stderr", json!("err\n")),
        ("stdout_encoding", json!("utf-8")),
        ("timed_out", json!(false)),
        ("stdout_truncated", json!(false)),
    ] {
        assert_eq!(result[field], value, "{field} in {result}");
    }
    assert!(result.get("signal").is_none());
    let killed = workspace.run("kill -9 $$").await;
    assert_eq!(
        (&killed["exit_code"], &killed["signal"]),
        (&json!(137), &json!("SIGKILL"))
    );
    let slow = workspace
        .post("/exec", json!({"command": "sleep 60", "timeout_seconds": 0.2}))
        .await
        .json();
    assert_eq!((&slow["timed_out"], &slow["exit_code"]), (&json!(true), &json!(143)));
    let bytes = workspace.run("printf 'a\\377'").await;
    assert_eq!(
        (&bytes["stdout"], &bytes["stdout_encoding"]),
        (&json!("Yf8="), &json!("base64"))
    );
    let long = workspace.run("yes | head -c 3000000").await;
    assert_eq!(long["stdout"].as_str().unwrap().len(), 1024 * 1024);
    assert_eq!(long["stdout_truncated"], true);
}

#[tokio::test]
async fn a_request_says_where_as_whom_and_with_what() {
    let workspace = Workspace::start().await;
    let body = json!({"argv": ["/bin/sh", "-c", "pwd; id -u; echo $A; cat"], "cwd": "/tmp", "user": "worker",
        "env": {"A": "x y"}, "stdin": "given"});
    let result = workspace.post("/exec", body).await.expect_status(200).json();
    assert_eq!(result["stdout"], "/tmp\n1000\nx y\ngiven", "{result}");
    let nothing = workspace
        .post("/exec", json!({"argv": ["cat"]}))
        .await
        .expect_status(200)
        .json();
    assert_eq!((&nothing["stdout"], &nothing["exit_code"]), (&json!(""), &json!(0)));
    let terminal = json!({"command": "test -t 0 && test -t 1 && stty size", "pty": true, "cols": 99, "rows": 33});
    let terminal = workspace.post("/exec", terminal).await.expect_status(200).json();
    assert_eq!(terminal["stdout"], "33 99\r\n", "{terminal}");
}

#[tokio::test]
async fn a_stream_begins_with_start_ends_with_exit_and_loses_nothing() {
    let workspace = Workspace::start().await;
    let command = "printf 'a\\342'; sleep 0.1; printf '\\202\\254b'; echo err >&2; exit 3";
    let events = events(&workspace, json!({"command": command})).await;
    assert_eq!(events[0]["type"], "start");
    assert!(events[0]["pid"].as_u64().unwrap() > 1);
    let text: String = events
        .iter()
        .filter(|event| event["type"] == "stdout")
        .map(|event| event["data"].as_str().unwrap())
        .collect();
    assert_eq!(text, "a\u{20ac}b");
    assert!(
        events
            .iter()
            .all(|event| event.get("encoding").is_none_or(|encoding| encoding == "utf-8"))
    );
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["exit_code"], &last["stdout_bytes"]),
        (&json!("exit"), &json!(3), &json!(5))
    );
}

#[tokio::test]
async fn what_cannot_be_started_is_a_status_also_for_a_stream() {
    let workspace = Workspace::start().await;
    let call = workspace
        .server
        .call("POST", &workspace.path("/exec"))
        .header("accept", "text/event-stream");
    call.json(&json!({"argv": ["/none"]}))
        .send()
        .await
        .expect_error(400, "exec_not_started");
}

#[tokio::test]
async fn a_detached_process_is_written_to_read_signalled_and_removed() {
    let workspace = Workspace::start().await;
    let started = workspace
        .post("/exec", json!({"command": "cat; sleep 600", "detach": true}))
        .await;
    let id = started.expect_status(202).json()["exec_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let state = workspace.get(&format!("/exec/{id}")).await.expect_status(200).json();
    assert_eq!(
        (&state["state"], &state["command"]),
        (&json!("running"), &json!("cat; sleep 600"))
    );
    let stdin = |rest: &str, body: &'static str| {
        let call = workspace
            .server
            .call("POST", &workspace.path(&format!("/exec/{id}/stdin{rest}")));
        call.body("application/octet-stream", body).send()
    };
    stdin("", "one\n").await.expect_status(200);
    stdin("?eof=true", "two\n").await.expect_status(200);
    let output = until(async || {
        let output = workspace.get(&format!("/exec/{id}/output?offset=2")).await;
        match output.expect_status(200).body.len() {
            6 => Ok(output),
            _ => Err(format!("{output:?}")),
        }
    })
    .await;
    assert_eq!(
        (output.text().as_str(), output.header("x-next-offset")),
        ("e\ntwo\n", "8")
    );
    let signal = workspace
        .post(&format!("/exec/{id}/signal"), json!({"signal": "SIGTERM"}))
        .await;
    signal.expect_status(200);
    let followed = workspace.get(&format!("/exec/{id}/output?follow=true")).await;
    assert_eq!(followed.expect_status(200).text(), "one\ntwo\n");
    let state = workspace.get(&format!("/exec/{id}")).await.json();
    assert_eq!(
        (&state["state"], &state["exit_code"], &state["signal"]),
        (&json!("exited"), &json!(143), &json!("SIGTERM"))
    );
    workspace
        .post(&format!("/exec/{id}/signal"), json!({"signal": "TERM"}))
        .await
        .expect_error(409, "conflict");
    let listed = workspace.get("/exec").await.expect_status(200).json();
    assert!(
        listed["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|item| item["exec_id"] == id.as_str())
    );
    let delete = || {
        workspace
            .server
            .call("DELETE", &workspace.path(&format!("/exec/{id}")))
            .send()
    };
    delete().await.expect_status(204);
    delete().await.expect_error(404, "not_found");
}

#[tokio::test]
async fn an_idempotency_key_runs_a_command_once() {
    let workspace = Workspace::start().await;
    let call = |command: &str| {
        let call = workspace
            .server
            .call("POST", &workspace.path("/exec"))
            .header("idempotency-key", "once");
        call.json(&json!({"command": command})).send()
    };
    let first = call("echo x >> ran; cat ran").await.expect_status(200).json();
    let second = call("echo x >> ran; cat ran").await.expect_status(200).json();
    assert_eq!(
        (&first["exec_id"], &first["stdout"]),
        (&second["exec_id"], &second["stdout"])
    );
    assert_eq!(workspace.output_of("cat ran").await, "x\n");
    call("something else").await.expect_error(422, "idempotency_key_reused");
}

/// Waits until the server has dropped a request whose client is gone.
async fn until_dropped(workspace: &Workspace) {
    until(async || {
        let path = format!("/audit?bot_id={}", workspace.bot);
        let trail = workspace.server.call("GET", &path).send().await.json();
        let items = trail["items"].as_array().expect("a list");
        match items.iter().any(|line| line["outcome"] == "gone") {
            true => Ok(()),
            false => Err(format!("{items:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_whose_caller_went_away_during_its_snapshot_is_no_dead_key() {
    let workspace = Workspace::start().await;
    let call = || {
        let call = workspace.server.call("POST", &workspace.path("/exec"));
        let call = call.header("idempotency-key", "left");
        call.json(&json!({"command": "echo x >> ran; cat ran", "snapshot": true}))
            .send()
    };
    let hold = workspace.server.runtime().faults().hold(Verb::Commit);
    let left = tokio::spawn(call());
    let snapshots = async || {
        let path = format!("/bots/{}/operations", workspace.bot);
        let listed = workspace.server.call("GET", &path).send().await.json();
        let of_kind = |one: &&Value| one["kind"] == "snapshot";
        let items = listed["items"].as_array().expect("a list").clone();
        items.iter().filter(of_kind).cloned().collect::<Vec<_>>()
    };
    until(async || match &snapshots().await[..] {
        [one] if one["state"] == "running" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    left.abort();
    until_dropped(&workspace).await;
    drop(hold);
    let repeated = call().await.expect_status(200).json();
    assert_eq!(
        (&repeated["stdout"], repeated["exit_code"].as_i64()),
        (&json!("x\n"), Some(0))
    );
    assert!(repeated["snapshot_version"].is_u64(), "{repeated}");
    assert_eq!(snapshots().await.len(), 1);
}

#[tokio::test]
async fn a_repeat_of_a_command_waits_for_the_snapshot_of_the_first() {
    let workspace = Workspace::start().await;
    let call = || {
        let call = workspace.server.call("POST", &workspace.path("/exec"));
        let call = call.header("idempotency-key", "slow");
        call.json(&json!({"command": "echo x >> ran; cat ran", "snapshot": true}))
            .send()
    };
    let commits = workspace.server.runtime().faults().calls(Verb::Commit);
    let hold = workspace.server.runtime().faults().hold(Verb::Commit);
    let first = tokio::spawn(call());
    until(async || match workspace.server.runtime().faults().calls(Verb::Commit) {
        calls if calls > commits => Ok(()),
        _ => Err("the snapshot is not being taken".to_owned()),
    })
    .await;
    let mut second = tokio::spawn(call());
    let early = tokio::time::timeout(std::time::Duration::from_secs(6), &mut second).await;
    assert!(early.is_err(), "{early:?}");
    drop(hold);
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    let (first, second) = (first.expect_status(200).json(), second.expect_status(200).json());
    assert_eq!(first["exec_id"], second["exec_id"]);
    assert_eq!((&first["stdout"], &second["stdout"]), (&json!("x\n"), &json!("x\n")));
}

#[tokio::test]
async fn a_command_of_an_idempotency_key_that_was_lost_with_its_workspace_is_not_run_again() {
    let workspace = Workspace::start().await;
    let call = || {
        let call = workspace
            .server
            .call("POST", &workspace.path("/exec"))
            .header("idempotency-key", "lost");
        call.json(&json!({"command": "echo x >> ran; sleep 600", "detach": true}))
            .send()
    };
    for _ in 0..2 {
        call().await.expect_status(202);
    }
    lose_the_bridge(&workspace).await;
    call().await.expect_error(404, "not_found");
    assert_eq!(workspace.output_of("cat ran").await, "x\n");
}

/// Until another one is in its place, which knows nothing of what the first one ran.
async fn lose_the_bridge(workspace: &Workspace) {
    let bot = workspace.bot.parse().unwrap();
    let process = workspace.server.runtime().host_pid(&bot);
    workspace.server.runtime().kill_process_one(&bot).unwrap();
    until(async || match workspace.server.runtime().host_pid(&bot) {
        now if now.is_some() && now != process => Ok(()),
        now => Err(format!("it is not started again: {now:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_command_whose_caller_went_away_while_it_was_started_is_not_run_again() {
    let workspace = Workspace::start().await;
    let call = |command: &str| {
        let call = workspace.server.call("POST", &workspace.path("/exec"));
        let call = call.header("idempotency-key", "left");
        call.json(&json!({"command": command, "detach": true})).send()
    };
    let command = "echo x >> ran; sleep 600";
    let store = SqliteConnectOptions::new().filename(workspace.server.directory().join("data/skep.db"));
    let store = store.busy_timeout(LIMIT);
    // 202: it has an id; 200: it was started.
    let until_remembered = async |status: u16| {
        until(async || {
            let mut store = SqliteConnection::connect_with(&store).await.unwrap();
            let query = sqlx::query_scalar("SELECT status FROM idempotency_keys WHERE key = 'left'");
            let found: Option<Option<u16>> = query.fetch_optional(&mut store).await.unwrap();
            store.close().await.unwrap();
            match found.flatten() == Some(status) {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
    };
    workspace.output_of("true").await;
    let bridge = workspace.server.runtime().host_pid(&workspace.bot.parse().unwrap());
    let bridge = Pid::from_raw(bridge.unwrap()).unwrap();
    kill_process(bridge, Signal::STOP).unwrap();
    let left = tokio::spawn(call(command));
    until_remembered(202).await;
    left.abort();
    until_dropped(&workspace).await;
    kill_process(bridge, Signal::CONT).unwrap();
    until_remembered(200).await;
    workspace.until_code("test -s ran", 0).await;
    lose_the_bridge(&workspace).await;
    call(command).await.expect_error(404, "not_found");
    assert_eq!(workspace.output_of("cat ran").await, "x\n");
}

#[tokio::test]
async fn a_stream_whose_bridge_dies_ends_with_an_error() {
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
    workspace
        .server
        .runtime()
        .kill_process_one(&workspace.bot.parse().unwrap())
        .unwrap();
    while let Some(piece) = response.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    let last = text.lines().rfind(|line| line.starts_with("data:")).unwrap();
    assert!(
        last.contains("\"type\":\"error\"") && last.contains("bridge_unavailable"),
        "{text}"
    );
}

#[tokio::test]
async fn an_offset_that_is_no_longer_kept_begins_at_the_oldest_and_says_so() {
    const WRITTEN: u64 = 1_000_000;
    let server = TestServer::with(&[("exec.log_bytes", "64KiB")]).await;
    let bot = server.bot_with_workspace().await;
    let workspace = Workspace { server, bot };
    let command = format!("head -c {WRITTEN} /dev/zero; exec sleep 600");
    let started = workspace
        .post("/exec", json!({"command": command, "detach": true}))
        .await;
    let id = text_of(&started.expect_status(202).json(), "exec_id");
    until(async || {
        let state = workspace.get(&format!("/exec/{id}")).await.expect_status(200).json();
        match state["stdout_bytes"] == WRITTEN {
            true => Ok(()),
            false => Err(state.to_string()),
        }
    })
    .await;
    // What is dropped is dropped a moment after what is written.
    until(async || {
        let output = workspace.get(&format!("/exec/{id}/output?offset=0")).await;
        let from: u64 = output.expect_status(200).header("x-offset").parse().unwrap();
        assert_eq!(from + output.body.len() as u64, WRITTEN);
        assert_eq!(output.header("x-next-offset"), WRITTEN.to_string());
        let state = workspace.get(&format!("/exec/{id}")).await.expect_status(200).json();
        match from > 0 && state["dropped_bytes"] == from {
            true => Ok(()),
            false => Err(format!("from {from}: {state}")),
        }
    })
    .await;
    let end = workspace.server.call("DELETE", &workspace.path(&format!("/exec/{id}")));
    end.send().await.expect_status(204);
}

#[tokio::test]
async fn a_stream_that_is_read_slowly_is_whole_whatever_the_log_keeps() {
    let server = TestServer::with(&[("exec.log_bytes", "64KiB")]).await;
    let bot = server.bot_with_workspace().await;
    let workspace = Workspace { server, bot };
    let call = workspace.server.call("POST", &workspace.path("/exec"));
    let call = call.header("accept", "text/event-stream");
    let mut response = call
        .json(&json!({"command": "seq 1 2000000", "timeout_seconds": COMMAND_SECONDS}))
        .open()
        .await;
    let (mut unread, mut at, mut pieces, mut exit) = (Vec::new(), 0, 0, None);
    while let Some(piece) = response.chunk().await.unwrap() {
        unread.extend_from_slice(&piece);
        pieces += 1;
        if pieces < 50 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        while let Some(end) = unread.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = unread.drain(..end + 2).collect();
            let Some(data) = event.strip_prefix(b"data:") else {
                continue;
            };
            let event: Value = serde_json::from_slice(data).unwrap();
            if event["type"] == "stdout" {
                assert_eq!(event["offset"], at, "a gap");
                at += event["data"].as_str().unwrap().len();
            } else if event["type"] != "start" {
                exit = Some(event);
            }
        }
    }
    assert_eq!((at, &exit.unwrap()["exit_code"]), (14_888_896, &json!(0)));
}

#[tokio::test]
async fn processes_are_told_where_skills_are_looked_for() {
    let server = TestServer::start().await;
    let roots = json!({"workspace": {"skill_discovery_roots": ["/srv//skills", "/data/skills", "/srv/skills"]}});
    for (metadata, expected) in [
        (json!({}), "/data/.agents/skills:/root/.agents/skills\n"),
        (roots, "/srv/skills\n"),
    ] {
        let body = json!({"metadata": metadata});
        let made = server.call("POST", "/bots?workspace=false").json(&body).send().await;
        let bot = text_of(&made.expect_status(201).json(), "id");
        let path = format!("/bots/{bot}/container");
        let create = server.call("POST", &path).header("accept", "application/json");
        create.json(&json!({})).send().await.expect_status(200);
        let command = json!({"command": "echo $MEMOH_SKILL_DISCOVERY_ROOTS"});
        let run = server.call("POST", &format!("{path}/exec")).json(&command).send().await;
        assert_eq!(run.expect_status(200).json()["stdout"], expected, "{metadata}");
    }
}
