//! Commands that are waited for: what Ctrl-C does to them, and that none outlives whoever waited.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::ready;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::{StreamExt, stream};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use super::setting::{LIMIT, Setting, pass_environment};

/// Each way a command is waited for.
const FORMS: [&[&str]; 3] = [&[], &["-i"], &["-t"]];

/// A workspace called `box`, and its id.
async fn setting_with_box() -> (Setting, String) {
    let setting = Setting::new().await;
    let id = setting.prints(&["create", "box", "-o", "name"]).await;
    (setting, id.trim().to_owned())
}

/// `skep exec` under way. Its input stays open.
struct Waiting {
    skep: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Waiting {
    fn start(setting: &Setting, form: &[&str], script: &str) -> Self {
        let shell = ["box", "--", "sh", "-c", script];
        let arguments = [&["exec"], form, &shell].concat();
        Self::of(setting.command(&arguments))
    }

    fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut skep = command.spawn().expect("skep runs");
        let stdout = skep.stdout.take().expect("its output");
        Self {
            skep,
            lines: Some(BufReader::new(stdout).lines()),
        }
    }

    async fn line(&mut self) -> String {
        next_line(&mut self.lines).await
    }

    fn press_ctrl_c(&self) {
        self.signal(Signal::INT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.skep), signal).expect("it runs");
    }

    async fn code(self) -> Option<i32> {
        let Self { mut skep, lines } = self;
        // `wait` closes its input.
        let code = in_time(tokio::task::spawn_blocking(move || {
            skep.wait().expect("its end").code()
        }))
        .await;
        drop(lines);
        code
    }
}

async fn next_line<R: Read + Send + 'static>(from: &mut Option<Lines<BufReader<R>>>) -> String {
    let mut lines = from.take().expect("it is open");
    let reading = tokio::task::spawn_blocking(move || (lines.next(), lines));
    let (line, lines) = in_time(reading).await;
    *from = Some(lines);
    let line = line.expect("it goes on").expect("a line");
    line.trim_end().to_owned()
}

async fn in_time<T>(task: tokio::task::JoinHandle<T>) -> T {
    let done = tokio::time::timeout(LIMIT, task).await;
    done.expect("in time").expect("it is waited for")
}

/// The processes that the workspace knows, by their states.
async fn states(setting: &Setting, id: &str) -> Vec<String> {
    let path = format!("/bots/{id}/container/exec");
    let listed = setting.server.call("GET", &path).send().await.expect_status(200).json();
    let items = listed["items"].as_array().expect("a list");
    let state = |item: &Value| item["state"].as_str().expect("a state").to_owned();
    items.iter().map(state).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_output_nobody_reads_any_more_is_ended() {
    let (setting, id) = setting_with_box().await;
    for form in FORMS {
        let mut waiting = Waiting::start(&setting, form, "while :; do echo line; done");
        assert_eq!(waiting.line().await, "line");
        waiting.lines = None;
        assert_eq!(waiting.code().await, Some(141), "{form:?}");
        assert_eq!(states(&setting, &id).await, [""; 0], "{form:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_ends_a_command_that_does_not_mind_the_first() {
    let (setting, id) = setting_with_box().await;
    // The fake runtime starts all with SIGINT ignored.
    let script = "echo ready; while :; do sleep 0.1; done";
    for form in FORMS {
        let mut waiting = Waiting::start(&setting, form, script);
        assert_eq!(waiting.line().await, "ready");
        // Two that come close together are one.
        for _ in 0..600 {
            if waiting.skep.try_wait().expect("it can be asked").is_some() {
                break;
            }
            waiting.press_ctrl_c();
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert_eq!(waiting.code().await, Some(130), "{form:?}");
        // One more may have come while the command was being ended: then that was not waited for.
        let end = std::time::Instant::now() + LIMIT;
        while !states(&setting, &id).await.is_empty() {
            assert!(std::time::Instant::now() < end, "{form:?}: it runs on");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

/// `skep` as `env` starts it with these options: whether these tests were started with a signal ignored does not count.
fn with_signals(option: &str, command: &Command) -> Command {
    let mut with = Command::new("env");
    with.arg(option).arg(command.get_program()).args(command.get_args());
    pass_environment(command, &mut with);
    with
}

const AS_USUAL: &str = "--default-signal=HUP,TERM";

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_us_when_we_are_terminated_or_hung_up() {
    let (setting, id) = setting_with_box().await;
    for form in FORMS {
        for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
            let shell = [
                "box",
                "--",
                "sh",
                "-c",
                "trap '' HUP; echo ready; while :; do sleep 0.1; done",
            ];
            let command = setting.command(&[&["exec"], form, &shell].concat());
            let mut waiting = Waiting::of(with_signals(AS_USUAL, &command));
            assert_eq!(waiting.line().await, "ready");
            // A terminal that closes may tell it twice, as `timeout` does: its end is waited for all the same.
            waiting.signal(signal);
            waiting.signal(signal);
            assert_eq!(waiting.code().await, Some(code), "{form:?}");
            assert_eq!(states(&setting, &id).await, [""; 0], "{form:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_over_a_hang_up_that_we_were_started_to_ignore() {
    let (setting, _) = setting_with_box().await;
    let script = "echo ready; until test -e /data/go; do sleep 0.1; done; echo went; exit 4";
    let command = setting.command(&["exec", "box", "--", "sh", "-c", script]);
    let mut waiting = Waiting::of(with_signals("--ignore-signal=HUP", &command));
    assert_eq!(waiting.line().await, "ready");
    waiting.signal(Signal::HUP);
    setting.prints(&["exec", "box", "--", "touch", "/data/go"]).await;
    assert_eq!(waiting.line().await, "went");
    assert_eq!(waiting.code().await, Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_put_back_when_we_are_terminated() {
    let (setting, _) = setting_with_box().await;
    for line in ["exec -it box -- sleep 1000", "shell box", "shell box --session one"] {
        let skep = setting.command(&[]);
        let ended_when_raw = format!(
            "(for i in $(seq 600); do stty -a -F /dev/tty | grep -qe -icanon && break; sleep 0.1; done; \
             kill -TERM $$) & exec {} {line}",
            skep.get_program().to_string_lossy()
        );
        let mut script = Command::new("script");
        let shown = "sh -c \"$ENDED_WHEN_RAW\"; echo ended-$?; stty -a; echo over";
        script.args(["-q", "-e", "-c", shown, "/dev/null"]);
        let mut script = with_signals(AS_USUAL, &script);
        pass_environment(&skep, &mut script);
        script.env("ENDED_WHEN_RAW", ended_when_raw);
        let mut waiting = Waiting::of(script);
        let mut told = Vec::new();
        while told.last().is_none_or(|line| line != "over") {
            told.push(waiting.line().await);
        }
        let told = told.join("\n");
        assert!(told.contains("ended-143") && told.contains(" icanon"), "{line}: {told}");
        assert_eq!(waiting.code().await, Some(0), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paste_of_many_frames_comes_whole() {
    let (setting, _) = setting_with_box().await;
    let skep = setting.command(&[]);
    let mut script = Command::new("script");
    let shown = format!("{} shell box", skep.get_program().to_string_lossy());
    script.args(["-q", "-e", "-c", &shown, "/dev/null"]);
    pass_environment(&skep, &mut script);
    let mut waiting = Waiting::of(script);
    let mut keys = waiting.skep.stdin.take().expect("a pipe");
    let line = b"stty raw -echo; echo be''gun; head -c 307200 > /data/pasted; exit 6\n";
    keys.write_all(line).expect("typed");
    while waiting.line().await != "begun" {}
    let pasted = "0123456789abcdef".repeat(19_200);
    keys.write_all(pasted.as_bytes()).expect("pasted");
    assert_eq!(waiting.code().await, Some(6));
    assert!(setting.prints(&["exec", "box", "--", "cat", "/data/pasted"]).await == pasted);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_at_a_password_ends_us_and_leaves_a_terminal_that_shows_what_is_typed() {
    let setting = Setting::new().await;
    for line in ["login -u admin", "users create ada"] {
        let skep = setting.command(&[]);
        let mut script = Command::new("script");
        let tells_when_hidden = format!(
            "(until stty -a -F /dev/tty | grep -qe ' -echo '; do sleep 0.1; done; echo hidden) & exec {} {line}",
            skep.get_program().to_string_lossy()
        );
        let shown = "sh -c \"$TELLS_WHEN_HIDDEN\"; echo ended-$?; stty -a; echo over";
        script.args(["-q", "-e", "-c", shown, "/dev/null"]);
        pass_environment(&skep, &mut script);
        script.env("TELLS_WHEN_HIDDEN", tells_when_hidden);
        let mut waiting = Waiting::of(script);
        let mut keys = waiting.skep.stdin.take().expect("a pipe");
        while !waiting.line().await.ends_with("hidden") {}
        keys.write_all(b"half of it\x03").expect("typed");
        let mut told = Vec::new();
        while told.last().is_none_or(|line| line != "over") {
            told.push(waiting.line().await);
        }
        let told = told.join("\n");
        assert!(told.contains("ended-130") && !told.contains("half"), "{line}: {told}");
        assert!(told.contains("isig icanon iexten echo "), "{line}: {told}");
        assert_eq!(waiting.code().await, Some(0), "{line}");
    }
}

/// Between `skep` and its server: while it is away, connections are cut and refused.
struct Way {
    url: String,
    is_open: watch::Sender<bool>,
    refused: watch::Receiver<u32>,
}

impl Way {
    async fn to(setting: &Setting) -> Self {
        let server = setting.server.running().address();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (is_open, opened) = watch::channel(true);
        let (refuse, refused) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let (mut from, _) = listener.accept().await.expect("a connection");
                let mut opened = opened.clone();
                if !*opened.borrow_and_update() {
                    refuse.send_modify(|count| *count += 1);
                    continue;
                }
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(server).await.expect("the server is there");
                    tokio::select! {
                        // Either side may reset it.
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                        _ = opened.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { url, is_open, refused }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_with_input_goes_on_when_the_server_comes_back() {
    let (setting, _) = setting_with_box().await;
    let mut way = Way::to(&setting).await;
    let script = "echo ready; until test -e /data/go; do sleep 0.1; done; echo went; exit 4";
    let mut command = setting.command(&["exec", "-i", "box", "--", "sh", "-c", script]);
    command.env("SKEP_SERVER", &way.url);
    let mut waiting = Waiting::of(command);
    assert_eq!(waiting.line().await, "ready");
    way.is_open.send_replace(false);
    let tried = tokio::time::timeout(LIMIT, way.refused.wait_for(|count| *count > 2)).await;
    tried.expect("it is tried again").expect("the way is there");
    way.is_open.send_replace(true);
    setting.prints(&["exec", "box", "--", "touch", "/data/go"]).await;
    assert_eq!(waiting.line().await, "went");
    assert_eq!(waiting.code().await, Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_command_that_could_not_be_ended_is_told() {
    let (setting, id) = setting_with_box().await;
    let way = Way::to(&setting).await;
    let mut command = setting.command(&["exec", "box", "--", "sh", "-c", "echo ready; sleep 1000"]);
    command.env("SKEP_SERVER", &way.url).stderr(Stdio::piped());
    let mut waiting = Waiting::of(command);
    assert_eq!(waiting.line().await, "ready");
    let path = format!("/bots/{id}/container/exec");
    let listed = setting.server.call("GET", &path).send().await.expect_status(200).json();
    let exec_id = listed["items"][0]["exec_id"].as_str().expect("its id").to_owned();
    way.is_open.send_replace(false);
    let mut stderr = waiting.skep.stderr.take().expect("a pipe");
    assert_eq!(waiting.code().await, Some(1));
    let mut told = String::new();
    stderr.read_to_string(&mut told).expect("text");
    assert!(told.contains(&format!("may still run, as {exec_id}")), "{told}");
    let gone = setting.server.call("DELETE", &format!("{path}/{exec_id}")).send().await;
    gone.expect_status(204);
}

/// A server that starts a command when it is told to; what is asked for the command then is noted.
struct SlowServer {
    url: String,
    asked: Arc<Notify>,
    start: Arc<Notify>,
    deleted: watch::Receiver<bool>,
}

impl SlowServer {
    async fn new() -> Self {
        let (asked, start) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (delete, deleted) = watch::channel(false);
        let bot = get(|Path(id): Path<String>| async move { Json(json!({"id": id, "display_name": "slow"})) });
        let (has_asked, may_start) = (asked.clone(), start.clone());
        let run = post(move || async move {
            has_asked.notify_one();
            may_start.notified().await;
            let started = Ok::<_, Infallible>("data: {\"type\":\"start\",\"exec_id\":\"it\"}\n\n");
            Body::from_stream(stream::once(ready(started)).chain(stream::pending()))
        });
        let end = axum::routing::delete(move || async move {
            delete.send_replace(true);
            StatusCode::NO_CONTENT
        });
        let router = Router::new()
            .route("/bots/{id}", bot)
            .route("/bots/{id}/container/exec", run)
            .route("/bots/{id}/container/exec/it", end);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            url,
            asked,
            start,
            deleted,
        }
    }
}

/// `skep exec` at this server, which has been asked for the command; and what it tells.
async fn starting(server: &SlowServer) -> (Waiting, Option<Lines<BufReader<ChildStderr>>>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
    command
        .args(["exec", "01234567-89ab-7def-8123-456789abcdef", "--", "true"])
        .env("SKEP_SERVER", &server.url)
        .env("SKEP_TOKEN", "any");
    let mut command = with_signals(AS_USUAL, &command);
    command.stderr(Stdio::piped());
    let mut waiting = Waiting::of(command);
    let told = BufReader::new(waiting.skep.stderr.take().expect("its errors")).lines();
    let asked = tokio::time::timeout(LIMIT, server.asked.notified()).await;
    asked.expect("it asks for the command");
    (waiting, Some(told))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_given_up_before_it_has_started_is_ended_when_it_has() {
    let server = SlowServer::new().await;
    let (waiting, mut told) = starting(&server).await;
    waiting.press_ctrl_c();
    let line = next_line(&mut told).await;
    assert!(line.contains("interrupted as soon as it has"), "{line}");
    waiting.press_ctrl_c();
    let line = next_line(&mut told).await;
    assert!(line.contains("ended as soon as it has started"), "{line}");
    server.start.notify_one();
    assert_eq!(waiting.code().await, Some(130));
    assert!(*server.deleted.borrow());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_ended_when_it_has_started_after_we_were_terminated() {
    let server = SlowServer::new().await;
    let (waiting, mut told) = starting(&server).await;
    waiting.signal(Signal::TERM);
    let line = next_line(&mut told).await;
    assert!(line.contains("ended as soon as it has started"), "{line}");
    server.start.notify_one();
    assert_eq!(waiting.code().await, Some(143));
    assert!(*server.deleted.borrow());
}

/// A server whose command has written ten bytes by its end, of which five come with it and `log` is all that is kept.
async fn server_of_a_late_end(log: &'static str) -> String {
    let bot = get(|Path(id): Path<String>| async move { Json(json!({"id": id, "display_name": "late"})) });
    let events = [
        json!({"type": "start", "exec_id": "it"}),
        json!({"type": "stdout", "offset": 0, "data": "head\n", "encoding": "utf-8"}),
        json!({"type": "exit", "exit_code": 0, "timed_out": false, "stdout_bytes": 10, "stderr_bytes": 0}),
    ];
    let events: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    let run = post(async move || events);
    let output = get(async move |Query(asked): Query<HashMap<String, String>>| {
        let offset: usize = asked["offset"].parse().expect("a number");
        log[offset.min(log.len())..].to_owned()
    });
    let router = Router::new()
        .route("/bots/{id}", bot)
        .route("/bots/{id}/container/exec", run)
        .route("/bots/{id}/container/exec/it/output", output);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_with_the_end_is_taken_from_the_log_or_told_as_missing() {
    for (log, code, told) in [("head\ntail\n", 0, ""), ("head\nta", 1, "3 bytes of its stdout")] {
        let url = server_of_a_late_end(log).await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
        command
            .args(["exec", "01234567-89ab-7def-8123-456789abcdef", "--", "true"])
            .env("SKEP_SERVER", url)
            .env("SKEP_TOKEN", "any");
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.expect("it runs").expect("it can be started");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), log, "{errors}");
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(errors.contains(told), "{errors}");
    }
}
