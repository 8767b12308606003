//! Create, start, stop, restart, delete: what is kept, what is told, what is done once.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::events_of;
use crate::installation::{Installation, OciRuntime, field, process_one};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_create_keeps_every_byte_of_the_first() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.bot("twice").await;

    let first = skep.client.create(&bot, json!({})).await;
    let kinds: Vec<&str> = first.iter().map(|event| field(event, "type")).collect();
    assert_eq!(kinds.first(), Some(&"pulling"));
    assert_eq!(kinds[kinds.len() - 2..], ["creating", "complete"]);
    assert!(
        kinds.contains(&"pull_progress"),
        "the first create has to fetch the image: {kinds:?}"
    );
    totals_are_reached(&first);

    let sum = "find / -xdev -type f -newer /etc/mark -not -path '/var/lib/skep/*' -exec sha256sum {} + | sort -k2 | sha256sum";
    skep.client.output(&bot, "touch /etc/mark; sleep 1; dd if=/dev/urandom of=/data/random bs=1M count=8; echo kept > /etc/kept; mkdir -p /srv/a; ln -s /data/random /srv/a/link").await;
    let before = skep.client.output(&bot, sum).await;
    let second = skep.client.create(&bot, json!({})).await;
    let kinds: Vec<&str> = second.iter().map(|event| field(event, "type")).collect();
    assert_eq!(kinds, ["pulling", "creating", "complete"]);
    assert_eq!(skep.client.output(&bot, sum).await, before);
    skep.client.act(&bot, "restart").await;
    assert_eq!(skep.client.output(&bot, sum).await, before);
    skep.client.act(&bot, "stop").await;
    let third = skep.client.create(&bot, json!({})).await;
    assert_eq!(third.last().map(|event| field(event, "type")), Some("complete"));
    assert_eq!(skep.client.output(&bot, sum).await, before);
}

fn totals_are_reached(events: &[Value]) {
    let progress: Vec<&Value> = events.iter().filter(|event| event["type"] == "pull_progress").collect();
    let last = progress.last().expect("there is progress");
    for layer in last["layers"].as_array().expect("layers are a list") {
        assert_eq!(
            layer["offset"], layer["total"],
            "a layer did not end at its total: {last}"
        );
    }
    for pair in progress.windows(2) {
        let offsets = |event: &Value| -> Vec<u64> {
            let layers = event["layers"].as_array().expect("layers are a list");
            layers
                .iter()
                .map(|layer| layer["offset"].as_u64().expect("an offset is a number"))
                .collect()
        };
        let (earlier, later) = (offsets(pair[0]), offsets(pair[1]));
        assert_eq!(earlier.len(), later.len());
        assert!(
            earlier.iter().zip(&later).all(|(earlier, later)| earlier <= later),
            "progress went back: {pair:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_requests_at_once_do_one_work_and_get_eight_good_answers() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.bot("eight").await;
    let creates = join_all((0..8).map(|_| skep.client.create(&bot, json!({})))).await;
    for events in &creates {
        let last = events.last().expect("a create tells something");
        assert_eq!(last["type"], "complete", "a create ended otherwise: {events:?}");
        assert_eq!(last["container"]["started"], true);
    }
    assert_eq!(operations(&skep, &bot, "create").await, 1);

    for (action, key) in [("stop", "stopped"), ("start", "started"), ("restart", "restarted")] {
        let answers = join_all((0..8).map(|_| skep.client.act(&bot, action))).await;
        for answer in answers {
            assert_eq!(answer[key], true);
        }
    }
    assert_eq!(skep.client.output(&bot, "echo alive").await, "alive\n");
}

async fn operations(skep: &Installation, bot: &str, kind: &str) -> usize {
    let all = skep
        .client
        .good(Method::GET, &format!("/bots/{bot}/operations"), None)
        .await;
    let items = all["items"].as_array().expect("items are a list");
    items.iter().filter(|item| item["kind"] == kind).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_client_goes_away_is_finished() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.bot("left alone").await;
    let answer = skep.client.create_stream(&bot, json!({})).await;
    let operation = answer.headers()["x-operation-id"]
        .to_str()
        .expect("an id is ASCII")
        .to_owned();
    let mut stream = answer.bytes_stream();
    stream
        .next()
        .await
        .expect("a first event comes")
        .expect("the stream is whole");
    drop(stream);

    let events = skep
        .client
        .request(Method::GET, &format!("/operations/{operation}/events"))
        .send()
        .await
        .expect("the server answers");
    assert_eq!(events.status(), StatusCode::OK);
    let events = events_of(events).await;
    assert_eq!(events.first().map(|event| field(event, "type")), Some("pulling"));
    assert_eq!(events.last().map(|event| field(event, "type")), Some("complete"));
    assert_eq!(skep.client.output(&bot, "echo finished").await, "finished\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn workspaces_outlive_the_server_and_stopped_stays_stopped() {
    let mut skep = Installation::start(OciRuntime::Found).await;
    let running = skep.client.workspace("running", None).await;
    let stopped = skep.client.workspace("stopped", None).await;
    skep.client
        .output(&running, "echo one > /data/file; (sleep 1000 & echo $! > /data/pid)")
        .await;
    skep.client.act(&stopped, "stop").await;

    for crash in [false, true] {
        if crash {
            skep.kill_server();
        } else {
            skep.end_server();
        }
        skep.start_server_again().await;
        let alive = skep
            .client
            .output(&running, "kill -0 $(cat /data/pid) && cat /data/file")
            .await;
        assert_eq!(alive, "one\n", "the workspace's processes did not outlive the server");
        let info = skep.client.info(&stopped).await;
        assert_eq!(info["task_running"], false);
        assert_eq!(info["status"], "stopped");
    }
    let (status, answer) = skep
        .client
        .call(
            Method::POST,
            &format!("/bots/{stopped}/container/exec"),
            Some(json!({"command": "true"})),
        )
        .await;
    assert_eq!(
        (status, field(&answer, "code")),
        (StatusCode::CONFLICT, "workspace_stopped")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn process_one_that_dies_is_started_again() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("mortal", None).await;
    skep.client.output(&bot, "echo kept > /data/kept").await;
    let first = skep.client.info(&bot).await["uptime_seconds"].clone();
    // The signal comes from outside the pid namespace: inside, process 1 cannot be killed.
    let pid = process_one(&bot).expect("the workspace's process 1 is seen");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it can be killed");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, answer) = skep
            .client
            .call(
                Method::POST,
                &format!("/bots/{bot}/container/exec"),
                Some(json!({"command": "cat /data/kept"})),
            )
            .await;
        if status.is_success() && answer["exit_code"] == 0 {
            assert_eq!(answer["stdout"], "kept\n");
            return;
        }
        assert!(
            Instant::now() < deadline,
            "it was not started again (uptime was {first}): {answer}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_told_twice_to_end_does_so_at_once_and_the_next_one_carries_on() {
    let mut skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("stubborn", None).await;
    let stubborn =
        json!({"command": "trap '' TERM; echo kept > /data/kept; while :; do sleep 1; done", "detach": true});
    let path = format!("/bots/{bot}/container");
    skep.client
        .good(Method::POST, &format!("{path}/exec"), Some(stubborn))
        .await;
    until_output(&skep, &bot, "cat /data/kept", "kept\n").await;
    let (client, stop) = (skep.client.clone(), format!("{path}/stop?timeout=20"));
    let stopping = tokio::spawn(async move { client.attempt(Method::POST, &stop, None).await });
    until_operation(&skep, &bot, "running").await;
    let (status, took) = skep.end_server_with_two_signals();
    assert_eq!(status.code(), Some(128 + 15), "{}", skep.log_tail());
    assert!(took < Duration::from_secs(15), "it took {took:?}");
    assert!(stopping.await.expect("it ended").is_none(), "it was answered as done");
    skep.start_server_again().await;
    until_operation(&skep, &bot, "succeeded").await;
    assert_eq!(skep.client.info(&bot).await["status"], "stopped");
    skep.client.act(&bot, "start").await;
    assert_eq!(skep.client.output(&bot, "cat /data/kept").await, "kept\n");
}

async fn until_output(skep: &Installation, bot: &str, command: &str, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let ended = skep.client.exec(bot, command).await;
        if ended.stdout == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{command}: {ended:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the newest operation of a bot is in this state.
async fn until_operation(skep: &Installation, bot: &str, state: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let listed = skep
            .client
            .good(Method::GET, &format!("/bots/{bot}/operations"), None)
            .await;
        if listed["items"][0]["kind"] == "stop" && listed["items"][0]["state"] == state {
            return;
        }
        assert!(Instant::now() < deadline, "not {state}: {listed}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_space_inside_is_507_and_leaves_what_was_there() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("full", None).await;
    // The one file system of a workspace with an end that a test can reach: 64 MiB.
    skep.client
        .output(
            &bot,
            "head -c 60000000 /dev/zero > /dev/shm/most; echo old > /dev/shm/file",
        )
        .await;
    let path = |route: &str| format!("/bots/{bot}/container/fs{route}");
    let written = json!({"path": "/dev/shm/file", "content": "x".repeat(12 << 20)});
    let upload = skep.client.request(Method::PUT, &path("/upload?path=/dev/shm/file"));
    let uploaded = upload.body(vec![0; 12 << 20]).send().await.expect("the server answers");
    let uploaded = (
        uploaded.status(),
        uploaded.json::<Value>().await.expect("an error is JSON"),
    );
    let written = skep.client.call(Method::POST, &path("/write"), Some(written)).await;
    for (status, refused) in [uploaded, written] {
        assert_eq!(
            (status, refused["code"].as_str()),
            (StatusCode::INSUFFICIENT_STORAGE, Some("disk_full")),
            "{refused}"
        );
    }
    let left = skep.client.output(&bot, "ls -A /dev/shm; cat /dev/shm/file").await;
    assert_eq!(left, "file\nmost\nold\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_does_the_main_job() {
    let skep = Installation::start(OciRuntime::Found).await;
    let run = |arguments: &[&str]| {
        let output = skep.skep(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, _, errors) = run(&["create", "shellbot"]);
    assert_eq!(code, Some(0), "{errors}");
    let (code, out, errors) = run(&["exec", "shellbot", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((code, out.as_str(), errors.as_str()), (Some(7), "out\n", "err\n"));
    let (code, _, errors) = run(&["create", "shellbot"]);
    assert_eq!(code, Some(1), "{errors}");
    assert_eq!(run(&["exec", "nobody", "--", "true"]).0, Some(3));
    let file = skep.data_root().join("a file");
    std::fs::write(&file, "copied").expect("a file can be written");
    let (code, _, errors) = run(&["cp", file.to_str().expect("UTF-8"), "shellbot:/data/there"]);
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(run(&["files", "cat", "shellbot:/data/there"]).1, "copied");
    let (code, out, errors) = run(&["ls", "-o", "json"]);
    assert_eq!(code, Some(0), "{errors}");
    serde_json::from_str::<Value>(&out).expect("it is JSON");
    assert_eq!(run(&["stop", "shellbot"]).0, Some(0));
    assert_eq!(run(&["rm", "--force", "shellbot"]).0, Some(0));
}

/// What a test leaves on the host is there for the next ones too.
#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_is_dropped_leaves_no_network_of_a_workspace_without_a_user_namespace() {
    let more = [("SKEP_ISOLATION__USER_NAMESPACE", "off".to_owned())];
    let skep = Installation::start_with(OciRuntime::Found, &more).await;
    let bot = skep.client.workspace("left", None).await;
    let pin = PathBuf::from(format!("/run/netns/skep-{bot}"));
    let record = skep.run_directory().join(format!("cni/attachments/{bot}.json"));
    let record: Value = serde_json::from_slice(&std::fs::read(record).expect("a record")).expect("it is JSON");
    let interface = Path::new("/sys/class/net").join(field(&record, "host_interface"));
    assert!(pin.exists() && interface.exists(), "{record}");
    drop(skep);
    assert!(!pin.exists(), "its network namespace is left");
    // The kernel removes it in its own time.
    let deadline = Instant::now() + Duration::from_secs(30);
    while interface.exists() {
        assert!(Instant::now() < deadline, "{} is left", interface.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
