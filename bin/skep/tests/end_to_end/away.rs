//! containerd is away, silent or comes back: what needs it says so, all else goes on, and nothing is made anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::json;
use skep_testkit::{Expected, UnixProxy};

use crate::installation::{Installation, OciRuntime, field, process_one};
use crate::model::{amount, converge_limit};

/// Of a server that is told to end while containerd does not answer: its own limits are 4 s for that, and 3 s each
/// for last answers, last writes and the database.
const END_LIMIT: Duration = Duration::from_secs(28);

#[tokio::test(flavor = "multi_thread")]
async fn while_containerd_is_away_bridges_work_and_nothing_is_made_anew() {
    let mut skep = Installation::start(OciRuntime::Found).await;
    let running = skep.client.workspace("running", None).await;
    let stopped = skep.client.workspace("stopped", None).await;
    skep.client.output(&running, "(sleep 1000 & echo $! > /data/pid)").await;
    skep.client.act(&stopped, "stop").await;
    let operations = operations_of(&skep, &[&running, &stopped]).await;

    skep.containerd_mut().kill().expect("containerd can be killed");
    bridge_goes_on(&skep, &running).await;
    needs_containerd(&skep, &running).await;
    // The next server finds it away, and the workspaces all the same.
    skep.end_server();
    skep.spawn_server_again();
    skep.wait_until_it_listens().await;
    bridge_goes_on(&skep, &running).await;
    needs_containerd(&skep, &running).await;
    skep.containerd_mut()
        .start_again()
        .await
        .expect("containerd starts again");
    skep.wait_until_ready().await;

    let model = BTreeMap::from([
        (running.clone(), Expected::Running),
        (stopped.clone(), Expected::Stopped),
    ]);
    skep.traces().until_as_in(&model, converge_limit()).await;
    bridge_goes_on(&skep, &running).await;
    assert_eq!(skep.client.info(&stopped).await["status"], "stopped");
    let started = 1;
    let after = operations_of(&skep, &[&running, &stopped]).await;
    // The start that was refused, from each of the two servers.
    assert_eq!(after, operations + 2 * started, "something was done by itself");
    skep.client.act(&stopped, "start").await;
    assert_eq!(skep.client.output(&stopped, "echo up").await, "up\n");
}

/// Files, exec and terminal of a workspace that runs, with the process it had all along.
async fn bridge_goes_on(skep: &Installation, bot: &str) {
    let alive = skep.client.output(bot, "kill -0 $(cat /data/pid) && echo alive").await;
    assert_eq!(alive, "alive\n");
    let path = format!("/bots/{bot}/container/fs");
    let body = json!({"path": "/data/note", "content": "written"});
    skep.client
        .good(Method::POST, &format!("{path}/write"), Some(body))
        .await;
    let read = skep
        .client
        .good(Method::GET, &format!("{path}/read?path=/data/note"), None)
        .await;
    assert_eq!(read["content"], "written");
    let terminal = skep
        .client
        .good(Method::GET, &format!("/bots/{bot}/container/terminal"), None)
        .await;
    assert_eq!(terminal["available"], true, "{terminal}");
}

/// What cannot be known or done without containerd: 503 with when to come again. The bot and its checks are shown.
async fn needs_containerd(skep: &Installation, running: &str) {
    for (method, path) in [
        (Method::GET, format!("/bots/{running}/container")),
        (Method::POST, format!("/bots/{running}/container/start")),
    ] {
        let answer = skep
            .client
            .request(method, &path)
            .send()
            .await
            .expect("the server answers");
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(
            answer.headers().contains_key("retry-after"),
            "{path} says not when to come again"
        );
        let body: serde_json::Value = answer.json().await.expect("it is JSON");
        assert_eq!(field(&body, "code"), "runtime_unavailable", "{path}");
    }
    assert!(
        !skep.client.is_ready().await,
        "a server without its runtime says that it is ready"
    );
    let checks = skep
        .client
        .good(Method::GET, &format!("/bots/{running}/checks"), None)
        .await;
    let items = checks["items"].as_array().expect("checks are a list");
    let task = items
        .iter()
        .find(|item| item["type"] == "container.task")
        .expect("the task is checked");
    assert_eq!(task["status"], "unknown");
    skep.client.good(Method::GET, &format!("/bots/{running}"), None).await;
}

async fn operations_of(skep: &Installation, bots: &[&str]) -> usize {
    let mut count = 0;
    for bot in bots {
        let all = skep
            .client
            .good(Method::GET, &format!("/bots/{bot}/operations"), None)
            .await;
        count += all["items"].as_array().expect("operations are a list").len();
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_containerd_keeps_no_server_from_ending_and_is_told_as_away() {
    let mut skep = Installation::start(OciRuntime::Found).await;
    let running = skep.client.workspace("running", None).await;
    let stopped = skep.client.workspace("stopped", None).await;
    skep.client.output(&running, "(sleep 1000 & echo $! > /data/pid)").await;
    skep.client.act(&stopped, "stop").await;

    skep.containerd().freeze().expect("containerd can be frozen");
    bridge_goes_on(&skep, &running).await;
    if amount(0, 1) == 1 {
        let begun = Instant::now();
        needs_containerd(&skep, &running).await;
        println!("every 503 of a silent containerd together: {:?}", begun.elapsed());
    }
    // A start, a stream of states and an exec are under way when the server is told to end.
    let under_way = [
        (Method::POST, format!("/bots/{stopped}/container/start"), None),
        (
            Method::POST,
            format!("/bots/{running}/container/exec"),
            Some(json!({"command": "sleep 100"})),
        ),
    ];
    let requests: Vec<_> = under_way
        .into_iter()
        .map(|(method, path, body)| {
            let client = skep.client.clone();
            tokio::spawn(async move { client.attempt(method, &path, body).await })
        })
        .collect();
    let events = skep
        .client
        .request(Method::GET, &format!("/bots/{running}/container/events"));
    let mut events = events.send().await.expect("the stream begins").bytes_stream();
    events
        .next()
        .await
        .expect("the present state is told")
        .expect("the stream is whole");
    until_running(&skep, &stopped, "start").await;
    let took = skep.end_server();
    assert!(
        took < END_LIMIT,
        "the server took {took:?} to end:\n{}",
        skep.log_tail()
    );
    println!("told to end while containerd is silent: {took:?}");
    for request in requests {
        // Answered with a refusal or cut off: both are an end.
        request.await.expect("a request ends with its server");
    }

    skep.containerd().thaw().expect("containerd can be thawed");
    skep.start_server_again().await;
    let model = BTreeMap::from([
        (running.clone(), Expected::Running),
        (stopped.clone(), Expected::Running),
    ]);
    // The start was in the journal: it is carried on.
    skep.traces().until_as_in(&model, converge_limit()).await;
    bridge_goes_on(&skep, &running).await;
}

/// In its long form the silence is longer than any call of the server waits for an answer.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_silence_of_containerd_nothing_is_made_anew_and_what_died_is_seen() {
    let mut skep = Installation::start(OciRuntime::Found).await;
    let running = skep.client.workspace("running", None).await;
    let dying = skep.client.workspace("dying", None).await;
    let stopped = skep.client.workspace("stopped", None).await;
    skep.client.output(&running, "(sleep 1000 & echo $! > /data/pid)").await;
    skep.client.output(&dying, "echo kept > /data/file").await;
    skep.client.act(&stopped, "stop").await;
    let before = operations_of(&skep, &[&running, &stopped]).await;
    let (server, process) = (skep.server_pid(), process_one(&running).expect("it runs"));

    skep.containerd().freeze().expect("containerd can be frozen");
    let begun = Instant::now();
    let died = process_one(&dying).expect("it runs");
    rustix::process::kill_process(died, rustix::process::Signal::KILL).expect("it can be killed");
    let silence = Duration::from_secs(amount(2, 75).try_into().expect("it fits"));
    let refused = match amount(0, 1) {
        0 => 0,
        _ => {
            // A start is among what it refuses.
            needs_containerd(&skep, &running).await;
            println!(
                "all that a silent containerd is needed for was refused after {:?}",
                begun.elapsed()
            );
            1
        }
    };
    while begun.elapsed() < silence {
        bridge_goes_on(&skep, &running).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    skep.containerd().thaw().expect("containerd can be thawed");

    skep.wait_until_ready().await;
    let model = BTreeMap::from([
        (running.clone(), Expected::Running),
        (dying.clone(), Expected::Running),
        (stopped.clone(), Expected::Stopped),
    ]);
    skep.traces().until_as_in(&model, Duration::from_secs(120)).await;
    bridge_goes_on(&skep, &running).await;
    assert_eq!(process_one(&running), Some(process), "it was started anew");
    assert_eq!(skep.server_pid(), server);
    let deadline = Instant::now() + Duration::from_secs(120);
    while process_one(&dying).is_none_or(|other| other == died) {
        assert!(
            Instant::now() < deadline,
            "it is not started again: {}",
            skep.log_tail()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(skep.client.output(&dying, "cat /data/file").await, "kept\n");
    let after = operations_of(&skep, &[&running, &stopped]).await;
    assert_eq!(after, before + refused, "something was done by itself");
    assert_eq!(skep.client.info(&stopped).await["status"], "stopped");
    skep.client.act(&stopped, "start").await;
    assert_eq!(skep.client.output(&stopped, "echo up").await, "up\n");
}

async fn until_running(skep: &Installation, bot: &str, kind: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let all = skep
            .client
            .good(Method::GET, &format!("/bots/{bot}/operations"), None)
            .await;
        let items = all["items"].as_array().expect("operations are a list");
        if items.iter().any(|one| one["kind"] == kind && one["state"] == "running") {
            return;
        }
        assert!(Instant::now() < deadline, "no {kind} runs: {all}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_that_a_cut_stream_did_not_tell_is_seen_when_the_stream_is_back() {
    let first = Installation::start(OciRuntime::Found).await;
    let mut proxy = UnixProxy::start(first.containerd().socket()).expect("a proxy can listen");
    let socket = proxy.socket().to_str().expect("UTF-8").to_owned();
    let behind = [("SKEP_CONTAINERD__SOCKET_PATH", socket)];
    let skep = first.start_beside(&behind).await;
    let bot = skep.client.workspace("dies unseen", None).await;
    skep.client.output(&bot, "echo kept > /data/file").await;
    let process = process_one(&bot).expect("it runs");

    proxy.cut().await.expect("it can be cut");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("it can be killed");
    until_gone(process).await;
    let refused = skep.client.request(Method::GET, &format!("/bots/{bot}/container"));
    let refused = refused.send().await.expect("the server answers");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    proxy.mend().expect("it can listen again");

    let deadline = Instant::now() + Duration::from_secs(20);
    while process_one(&bot).is_none_or(|other| other == process) {
        assert!(
            Instant::now() < deadline,
            "it is not started again: {}",
            skep.log_tail()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let model = BTreeMap::from([(bot.clone(), Expected::Running)]);
    skep.traces().until_as_in(&model, converge_limit()).await;
    assert_eq!(skep.client.output(&bot, "cat /data/file").await, "kept\n");
}

async fn until_gone(process: rustix::process::Pid) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while rustix::process::test_kill_process(process).is_ok() {
        assert!(Instant::now() < deadline, "{process:?} does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_stays_stopped_over_restarts_of_server_and_containerd() {
    let mut skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("stopped", None).await;
    skep.client.output(&bot, "echo kept > /data/file").await;
    skep.client.act(&bot, "stop").await;
    let model = BTreeMap::from([(bot.clone(), Expected::Stopped)]);
    for restart in ["server", "containerd", "both"] {
        if restart != "server" {
            skep.containerd_mut().kill().expect("containerd can be killed");
            skep.containerd_mut()
                .start_again()
                .await
                .expect("containerd starts again");
        }
        if restart != "containerd" {
            skep.end_server();
            skep.start_server_again().await;
        }
        skep.wait_until_ready().await;
        // What a comparison does is seen within one of them: ask for another's create, which comes after it.
        let other = skep.client.workspace("after it", None).await;
        skep.client.delete_bot(&other).await;
        skep.traces().until_as_in(&model, converge_limit()).await;
        assert_eq!(
            skep.client.info(&bot).await["status"],
            "stopped",
            "after a restart of {restart}"
        );
    }
    skep.client.act(&bot, "start").await;
    assert_eq!(skep.client.output(&bot, "cat /data/file").await, "kept\n");
}
