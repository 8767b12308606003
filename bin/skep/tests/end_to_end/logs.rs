//! The log of a workspace: over its ends, as the command line shows it, and against the tenant who owns its place.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::installation::{Installation, OciRuntime};

const LIMIT: Duration = Duration::from_secs(30);
const REFUSAL: &str = " kernel: a process was not started: as many run as may";
const KILL: &str = " kernel: a process was killed for want of memory";

#[tokio::test(flavor = "multi_thread")]
async fn a_log_outlives_stops_and_crashes_and_goes_with_its_workspace() {
    let mut skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("logs", None).await;
    assert_eq!(skep.client.exec(&bot, "echo s3cret; exit 7").await.exit_code, 7);
    let seen = log_with(&skep, &bot, ", exit code 7\n").await;
    assert!(
        seen.contains(" started as process 1\n") && !seen.contains("s3cret"),
        "{seen}"
    );
    skep.client.act(&bot, "stop").await;
    let stopped = log(&skep, &bot).await;
    assert!(stopped.starts_with(&seen) && stopped.ends_with(" ended\n"), "{stopped}");
    let kept = skep.data_root().join("logs").join(format!("{bot}.log"));
    let mode = std::fs::metadata(&kept).expect("the log is kept").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    skep.kill_server();
    skep.start_server_again().await;
    assert_eq!(log(&skep, &bot).await, stopped);
    skep.client.act(&bot, "start").await;
    let again = log_with(&skep, &bot, "").await;
    assert!(again.starts_with(&stopped), "{again}");
    // Nobody stops it: the server is gone while it dies, and the next one clears up.
    skep.client.output(&bot, "true").await;
    let before = log_with(&skep, &bot, ", exit code 0\n").await;
    skep.kill_server();
    kill_process_one(&skep, &bot);
    skep.start_server_again().await;
    skep.client.act(&bot, "start").await;
    let after = log(&skep, &bot).await;
    assert!(after.starts_with(&before), "{after}");
    assert_eq!(after.matches(" started as process 1\n").count(), 3, "{after}");
    let path = format!("/bots/{bot}/container");
    skep.client.good(Method::DELETE, &path, None).await;
    assert!(!kept.exists(), "the log outlives its workspace");
    let (status, body) = skep.client.call(Method::GET, &format!("{path}/logs"), None).await;
    assert_eq!((status.as_u16(), &body["code"]), (404, &json!("container_not_found")));
}

/// As the kernel would: no server and no bridge has a say.
fn kill_process_one(skep: &Installation, bot: &str) {
    let running = skep.run_directory().join("running").join(bot);
    let record = std::fs::read_to_string(&running).expect("the record of a running workspace");
    let record: serde_json::Value = serde_json::from_str(&record).expect("a record is JSON");
    let cgroup = record["cgroup"].as_str().expect("its cgroup").trim_start_matches('/');
    let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
    let processes = roots
        .iter()
        .find_map(|root| std::fs::read_to_string(std::path::Path::new(root).join(cgroup).join("cgroup.procs")).ok());
    let first = processes.expect("the processes of its cgroup");
    let first: i32 = first.lines().next().expect("one").parse().expect("a number");
    let first = rustix::process::Pid::from_raw(first).expect("a process");
    rustix::process::kill_process(first, rustix::process::Signal::KILL).expect("killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_a_tail_and_follows_to_the_end_of_the_workspace() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("logs", None).await;
    assert_eq!(skep.client.exec(&bot, "exit 7").await.exit_code, 7);
    let seen = log_with(&skep, &bot, ", exit code 7\n").await;
    let shown = skep.skep(&["logs", "logs"]);
    assert!(shown.status.success(), "{shown:?}");
    assert_eq!(String::from_utf8_lossy(&shown.stdout), seen);
    let tail = skep.skep(&["logs", "logs", "--tail", "1"]);
    assert_eq!(
        String::from_utf8_lossy(&tail.stdout).trim_end(),
        seen.lines().last().expect("a line")
    );
    let mut followed = Followed::start(&skep, "logs");
    followed.until(", exit code 7");
    assert_eq!(skep.client.exec(&bot, "exit 8").await.exit_code, 8);
    followed.until(", exit code 8");
    skep.client.act(&bot, "restart").await;
    followed.until(" told to end");
    followed.until(" started as process 1");
    skep.client
        .good(Method::DELETE, &format!("/bots/{bot}/container"), None)
        .await;
    assert!(followed.end().success());
    let nobody = skep.skep(&["logs", "nobody"]);
    assert!(!nobody.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_for_want_of_memory_are_lines_of_the_log_and_events() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("memory", None).await;
    let limits = json!({"memory_bytes": 64 << 20});
    let path = format!("/bots/{bot}/container/limits");
    skep.client.good(Method::PUT, &path, Some(limits)).await;
    let mut events = Events::open(&skep, &bot).await;
    let eats = "head -c 200000000 /dev/zero | tail -c 190000000 > /dev/null";
    assert_ne!(skep.client.exec(&bot, eats).await.exit_code, 0);
    log_with(&skep, &bot, KILL).await;
    events.until("oom_killed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_processes_are_lines_of_the_log_and_events() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("forks", None).await;
    let path = format!("/bots/{bot}/container/limits");
    let limits = skep.client.good(Method::PUT, &path, Some(json!({"pids": 32}))).await;
    assert_eq!(limits["applied"]["pids"], 32, "{limits}");
    let mut events = Events::open(&skep, &bot).await;
    skep.client
        .exec(&bot, "for i in $(seq 64); do sleep 5 & done; wait")
        .await;
    log_with(&skep, &bot, REFUSAL).await;
    events.until("pids_exhausted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_does_not_steer_a_terminal_and_a_link_in_its_place_leads_nowhere() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("hostile", None).await;
    let write = r"printf '\033]0;owned\007\r\377\n' >> /run/memoh/bridge.log";
    skep.client.output(&bot, write).await;
    let text = log_with(&skep, &bot, "\\u{1b}]0;owned\\u{7}\\u{d}\u{fffd}\n").await;
    assert!(!text.contains('\u{1b}'));
    let link = "until rm -f /run/memoh/bridge.log && ln -s /etc/shadow /run/memoh/bridge.log; do :; done";
    skep.client.output(&bot, link).await;
    assert_eq!(log(&skep, &bot).await, "");
    skep.client.act(&bot, "stop").await;
    assert_eq!(log(&skep, &bot).await, "");
}

async fn log(skep: &Installation, bot: &str) -> String {
    let path = format!("/bots/{bot}/container/logs");
    let answer = skep
        .client
        .request(Method::GET, &path)
        .send()
        .await
        .expect("the server answers");
    assert_eq!(answer.status().as_u16(), 200);
    answer.text().await.expect("the log is whole")
}

async fn log_with(skep: &Installation, bot: &str, wanted: &str) -> String {
    let until = Instant::now() + LIMIT;
    loop {
        let text = log(skep, bot).await;
        if text.contains(wanted) {
            return text;
        }
        assert!(Instant::now() < until, "no {wanted:?} in {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The events of a workspace, and what came of them so far.
struct Events {
    answer: reqwest::Response,
    text: String,
}

impl Events {
    async fn open(skep: &Installation, bot: &str) -> Self {
        let path = format!("/bots/{bot}/container/events");
        let answer = skep.client.request(Method::GET, &path).send().await;
        let mut events = Self {
            answer: answer.expect("the server answers"),
            text: String::new(),
        };
        events.until_text("\"status\":\"running\"").await;
        events
    }

    async fn until(&mut self, reason: &str) {
        self.until_text(&format!("\"reason\":\"{reason}\"")).await;
    }

    async fn until_text(&mut self, wanted: &str) {
        while !self.text.contains(wanted) {
            match tokio::time::timeout(LIMIT, self.answer.chunk()).await {
                Ok(Ok(Some(piece))) => self.text.push_str(&String::from_utf8_lossy(&piece)),
                other => panic!("no {wanted:?} but {other:?} after {}", self.text),
            }
        }
    }
}

/// `skep logs -f`, its lines as they come. Dropping it ends it.
struct Followed {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Followed {
    fn start(skep: &Installation, name: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_skep"))
            .args(["logs", name, "-f"])
            .env("SKEP_SERVER", &skep.client.url)
            .env("SKEP_TOKEN", &skep.client.token)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can be run");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let (sender, lines) = mpsc::sync_channel(1024);
        std::thread::spawn(move || {
            for line in output.lines() {
                // The test may have seen enough.
                if sender.send(line.expect("a line")).is_err() {
                    return;
                }
            }
        });
        Self { process, lines }
    }

    fn until(&mut self, wanted: &str) {
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            if line
                .unwrap_or_else(|error| panic!("no {wanted:?}: {error}"))
                .contains(wanted)
            {
                return;
            }
        }
    }

    fn end(mut self) -> std::process::ExitStatus {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.process.try_wait().expect("it can be asked") {
                return status;
            }
            assert!(Instant::now() < until, "it does not end with its workspace");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("skep logs could not be ended: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credential_and_no_value_of_an_environment_is_in_the_servers_log() {
    let more = [("SKEP_LOG__LEVEL", "debug".to_owned())];
    let skep = Installation::start_with(OciRuntime::Found, &more).await;
    let bot = skep.client.bot("discreet").await;
    let create = json!({"env": {"OWNERS": "environment-of-the-owner"}});
    let events = skep.client.create(&bot, create).await;
    assert_eq!(events.last().expect("it tells something")["type"], "complete");
    let login = |password: &str| Some(json!({"username": "admin", "password": password}));
    let (status, _) = skep
        .client
        .call(Method::POST, "/auth/login", login("a-password-that-is-wrong"))
        .await;
    assert_eq!(status, 401);
    let token = skep
        .client
        .good(Method::POST, "/auth/login", login("a password of the tests"))
        .await["access_token"]
        .clone();
    let key = json!({"name": "k", "scope": "read"});
    let key = skep.client.good(Method::POST, "/auth/keys", Some(key)).await["key"].clone();
    let ticket = json!({"bot_id": bot, "use": "download"});
    let ticket = skep.client.good(Method::POST, "/auth/tickets", Some(ticket)).await["ticket"].clone();
    let ticket = ticket.as_str().expect("a ticket is text");
    let download = format!("/bots/{bot}/container/fs/download?path=/data/none&ticket={ticket}");
    let (status, _) = skep.client.call(Method::GET, &download, None).await;
    assert_eq!(status, 404);
    let exec = json!({"command": "echo $A", "env": {"A": "environment-of-the-caller"}});
    let path = format!("/bots/{bot}/container/exec");
    let ran = skep.client.good(Method::POST, &path, Some(exec)).await;
    assert_eq!(ran["stdout"], "environment-of-the-caller\n");
    let log = std::fs::read_to_string(skep.data_root().join("server.log")).expect("the log can be read");
    assert!(log.contains("answered"), "nothing of a request is logged: {log}");
    for secret in [
        "a-password-that-is-wrong",
        "a password of the tests",
        "environment-of-the-owner",
        "environment-of-the-caller",
        ticket,
        token.as_str().expect("a token is text"),
        key.as_str().expect("a key is text"),
        &skep.client.token,
    ] {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} stands in the log: {line:?}");
    }
}
