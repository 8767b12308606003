//! What a failure of the host says: to the caller what was tried, without a path of the host; to the log everything,
//! under the caller's request id.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use skep_runtime::{CheckStatus, RuntimeError};
use skep_testkit::fake_runtime::Verb;
use skep_testkit::server::{ADMIN_PASSWORD, TestServer, text_of};
use sqlx::{Connection, Executor};

use crate::database_of;

/// What this thread logs while the test lives.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn of_this_thread() -> (Self, tracing::subscriber::DefaultGuard) {
        Self::at("info")
    }

    fn at(level: &str) -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let lines = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_env_filter(tracing_subscriber::EnvFilter::new(level))
            .with_writer(move || lines.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("the log is text")
    }

    fn has_line(&self, of: &[&str]) -> bool {
        self.text()
            .lines()
            .any(|line| of.iter().all(|part| line.contains(part)))
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn busy() -> io::Error {
    io::Error::other("/secret/cause is busy")
}

#[tokio::test]
async fn no_answer_event_operation_or_check_names_a_path_of_the_host_and_the_log_does() {
    let (log, _guard) = Log::of_this_thread();
    let server = TestServer::start().await;
    let network = || RuntimeError::Network {
        reason: "the CNI plugin bridge failed to ADD".to_owned(),
        source: Some("/secret/bridge ended".into()),
    };
    let full = || RuntimeError::NoSpace {
        operation: "copying to /secret/layer".to_owned(),
    };
    let other = || RuntimeError::other("mounting /secret/socket", busy());
    let cases = [
        (Verb::Create, other(), 500, "internal", "mounting …", "/secret/socket"),
        (
            Verb::Start,
            other(),
            500,
            "container_start_failed",
            "mounting …",
            "/secret/cause",
        ),
        (
            Verb::Start,
            network(),
            500,
            "network_setup_failed",
            "failed to ADD",
            "/secret/bridge",
        ),
        (Verb::Start, full(), 507, "disk_full", "copying to …", "/secret/layer"),
    ];
    for (number, (verb, error, status, code, said, logged)) in cases.into_iter().enumerate() {
        let bot = server.bare_bot(server.admin_key()).await;
        let request_id = format!("mine-{number}");
        let create = || {
            let call = server.call("POST", &format!("/bots/{bot}/container"));
            let call = call
                .header("accept", "application/json")
                .header("idempotency-key", &request_id);
            call.header("x-request-id", &request_id).json(&json!({})).send()
        };
        server.runtime().faults().fail_next(verb, error);
        let answer = create().await;
        let message = answer.expect_error(status, code);
        assert!(message.contains(said) && !message.contains("secret"), "{message}");
        assert_eq!(create().await.expect_error(status, code), message, "to the same key");
        let operation = format!("/operations/{}", answer.header("x-operation-id"));
        for path in [
            operation.clone(),
            format!("{operation}/events"),
            format!("/bots/{bot}/operations"),
            format!("/bots/{bot}/checks"),
            format!("/bots/{bot}?include=container"),
        ] {
            let text = server.call("GET", &path).send().await.expect_status(200).text();
            assert!(!text.contains("secret"), "{path}: {text}");
        }
        let told = server.call("GET", &operation).send().await.json();
        assert_eq!(told["error"]["message"], json!(message));
        assert!(
            log.has_line(&[&request_id, logged]),
            "no line of {request_id} has {logged}"
        );
    }
    server.runtime().faults().fail_next(Verb::Images, other());
    let images = server.call("GET", "/images").header("x-request-id", "mine-images");
    let message = images.send().await.expect_error(500, "internal");
    assert_eq!(message, "mounting … failed");
    assert!(log.has_line(&["mine-images", "/secret/socket", "/secret/cause"]));
}

#[tokio::test]
async fn readiness_names_no_path_of_the_host_and_the_log_does() {
    let (log, _guard) = Log::of_this_thread();
    let server = TestServer::start().await;
    let detail = "there is no CNI plugin \"bridge\" in /secret/cni:/secret/more cni";
    for (status, expected) in [(CheckStatus::Warn, 200), (CheckStatus::Error, 503)] {
        server.runtime().faults().set_check(status, detail);
        let ready = server.call_as("", "GET", "/ready").header("x-request-id", "mine-ready");
        let ready = ready.send().await;
        let told = ready.expect_status(expected).json();
        assert_eq!(told["checks"][1]["detail"], "there is no CNI plugin \"bridge\" in …");
        assert!(!ready.text().contains("secret"), "{}", ready.text());
    }
    assert!(log.has_line(&["mine-ready", "/secret/more cni"]));
}

#[tokio::test]
async fn a_store_that_cannot_write_is_told_without_sql_and_the_log_says_why() {
    let (log, _guard) = Log::of_this_thread();
    let server = TestServer::start().await;
    let mut another = database_of(&server).await;
    // While another program writes, the store cannot.
    another.execute("BEGIN IMMEDIATE").await.unwrap();
    let call = server.call("POST", "/bots?workspace=false");
    let answer = call.header("x-request-id", "mine-locked").json(&json!({})).send().await;
    let message = answer.expect_error(503, "store_unavailable");
    assert_eq!(message, "the store is not reachable");
    assert!(
        answer.header("retry-after").parse::<u64>().is_ok(),
        "{:?}",
        answer.headers
    );
    // The store waits for the lock, or for who waits for it already.
    let causes = ["database is locked", "pool timed out"];
    assert!(
        causes.iter().any(|cause| log.has_line(&["mine-locked", cause])),
        "{}",
        log.text()
    );
    another.execute("ROLLBACK").await.unwrap();
    another.close().await.unwrap();
    let call = server.call("POST", "/bots?workspace=false");
    call.json(&json!({})).send().await.expect_status(201);
}

#[tokio::test]
async fn no_credential_is_ever_logged_whole_or_in_a_url() {
    let (log, _guard) = Log::at("debug,skep_server=trace,skep_core=trace,skep_store=trace,skep_api=trace");
    let server = TestServer::with(&[("auth.query_token", "true")]).await;
    let mut secrets = vec![ADMIN_PASSWORD.to_owned(), server.admin_key().to_owned()];
    let send = async |credential: &str, method: &str, path: &str, body: serde_json::Value| {
        server.call_as(credential, method, path).json(&body).send().await
    };
    let token = server.login("admin", ADMIN_PASSWORD).await;
    for wrong in ["a-wrong-password", "skep_made-up-key-of-nobody", "made.up.token"] {
        let body = json!({"username": "admin", "password": wrong});
        send(wrong, "POST", "/auth/login", body).await.expect_status(401);
        send(wrong, "GET", "/users/me", json!({})).await.expect_status(401);
        let broken = format!("{{\"username\": \"admin\", \"password\": [\"{wrong}\"]}}");
        let call = server.call_as("", "POST", "/auth/login");
        call.body("application/json", broken).send().await.expect_status(400);
        secrets.push(wrong.to_owned());
    }
    let refreshed = send(&token, "POST", "/auth/refresh", json!({})).await.json();
    let key = json!({"name": "mine", "scope": "manage"});
    let key = text_of(&send(&token, "POST", "/auth/keys", key).await.json(), "key");
    send(&key, "GET", "/users/me", json!({})).await.expect_status(200);
    let ada = json!({"username": "ada", "password": "the-password-of-ada"});
    send(&token, "POST", "/users", ada).await.expect_status(201);
    secrets.push("the-password-of-ada".to_owned());
    let bot = server.bare_bot(&token).await;
    let container = format!("/bots/{bot}/container");
    let env = json!({"env": {"NAME": "a-value-of-the-workspace"}});
    send(&token, "POST", &container, env).await.expect_status(200);
    let run = json!({"command": "echo \"$OTHER\" > /data/file", "env": {"OTHER": "a-value-of-a-process"}});
    let ran = send(&token, "POST", &format!("{container}/exec"), run).await;
    assert_eq!(ran.expect_status(200).json()["exit_code"], 0);
    secrets.extend(["a-value-of-the-workspace", "a-value-of-a-process"].map(str::to_owned));
    let wanted = json!({"bot_id": bot, "use": "download"});
    let ticket = text_of(&send(&token, "POST", "/auth/tickets", wanted).await.json(), "ticket");
    let download = format!("{container}/fs/download?path=/data/file");
    for (with, status) in [
        (format!("ticket={ticket}"), 200),
        (format!("ticket={ticket}"), 401),
        (format!("token={token}"), 200),
    ] {
        let answer = server.call_as("", "GET", &format!("{download}&{with}")).send().await;
        answer.expect_status(status);
    }
    send(&token, "POST", "/auth/logout", json!({})).await.expect_status(204);
    secrets.extend([token, text_of(&refreshed, "access_token"), key, ticket]);
    assert!(log.has_line(&["answered", "/fs/download", "401"]), "{}", log.text());
    let text = log.text();
    for secret in secrets {
        let line = text.lines().find(|line| line.contains(&secret));
        assert_eq!(line, None, "{secret}");
    }
}

#[tokio::test]
async fn a_key_counts_while_its_use_cannot_be_noted() {
    let server = TestServer::start().await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        let body = json!({"name": "unused", "scope": "read"});
        let made = server.call("POST", "/auth/keys").json(&body).send().await;
        keys.push(text_of(&made.expect_status(201).json(), "key"));
    }
    let mut another = database_of(&server).await;
    another.execute("BEGIN IMMEDIATE").await.unwrap();
    let mut taken = Vec::new();
    for key in &keys {
        let asked = Instant::now();
        let me = server.call_as(key, "GET", "/users/me").send().await;
        me.expect_status(200);
        taken.push(asked.elapsed());
    }
    // The store itself gives a lock up after five seconds, and others may stand before it.
    let fastest = taken.iter().min().expect("three");
    assert!(*fastest < Duration::from_secs(4), "{taken:?}");
    another.execute("ROLLBACK").await.unwrap();
    another.close().await.unwrap();
}
