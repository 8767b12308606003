//! A client that knows the contract only: JSON and server-sent events over HTTP.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use skep_testkit::images::http_client;

/// Of any request; a command has the time it is given beside that.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) url: String,
    pub(crate) token: String,
    http: reqwest::Client,
}

/// The end of one command in a workspace.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) exit_code: i64,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Client {
    pub(crate) fn new(url: String) -> Self {
        Self {
            url,
            token: String::new(),
            http: http_client(),
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token)
            .timeout(ANSWER_WITHIN)
    }

    pub(crate) async fn is_ready(&self) -> bool {
        matches!(self.request(Method::GET, "/ready").send().await, Ok(answer) if answer.status().is_success())
    }

    /// Sends and returns status and JSON (null for an empty body).
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let request = self.request(method, path);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await.expect("the server answers");
        let status = answer.status();
        let bytes = answer.bytes().await.expect("the answer is whole");
        let value = if bytes.is_empty() { Value::Null } else { json_of(&bytes) };
        (status, value)
    }

    /// As [`Client::call`] of a server that may die meanwhile: `None` when no whole answer came.
    pub(crate) async fn attempt(&self, method: Method, path: &str, body: Option<Value>) -> Option<(StatusCode, Value)> {
        let request = self.request(method, path).header("accept", "application/json");
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let (status, bytes) = whole_answer(request).await?;
        let value = if bytes.is_empty() { Value::Null } else { json_of(&bytes) };
        Some((status, value))
    }

    /// Sends and expects a success.
    pub(crate) async fn good(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, value) = self.call(method.clone(), path, body).await;
        assert!(status.is_success(), "{method} {path} answered {status}: {value}");
        value
    }

    /// A bot without a workspace.
    pub(crate) async fn bot(&self, name: &str) -> String {
        let bot = self
            .good(
                Method::POST,
                "/bots?workspace=false",
                Some(json!({"display_name": name})),
            )
            .await;
        bot["id"].as_str().expect("a bot has an id").to_owned()
    }

    /// A bot with a running workspace.
    pub(crate) async fn workspace(&self, name: &str, image: Option<&str>) -> String {
        let bot = self.bot(name).await;
        let body = image.map_or(json!({}), |image| json!({"image": image}));
        let events = self.create(&bot, body).await;
        let last = events.last().expect("a create tells something");
        assert_eq!(last["type"], "complete", "the create ended otherwise: {events:?}");
        bot
    }

    /// Creates the workspace and returns all events of the stream.
    pub(crate) async fn create(&self, bot: &str, body: Value) -> Vec<Value> {
        let answer = self.create_stream(bot, body).await;
        assert_eq!(
            answer.status(),
            StatusCode::OK,
            "the create was refused: {:?}",
            answer.text().await
        );
        events_of(answer).await
    }

    pub(crate) async fn create_stream(&self, bot: &str, body: Value) -> Response {
        self.request(Method::POST, &format!("/bots/{bot}/container"))
            .header("accept", "text/event-stream")
            .json(&body)
            .send()
            .await
            .expect("the server answers")
    }

    /// Runs a shell command to its end.
    pub(crate) async fn exec(&self, bot: &str, command: &str) -> Ended {
        self.exec_within(bot, command, 30).await
    }

    pub(crate) async fn exec_within(&self, bot: &str, command: &str, seconds: u64) -> Ended {
        let body = json!({"command": command, "timeout_seconds": seconds});
        let request = self
            .request(Method::POST, &format!("/bots/{bot}/container/exec"))
            .timeout(ANSWER_WITHIN + Duration::from_secs(seconds))
            .json(&body);
        let answer = request.send().await.expect("the server answers");
        let (status, bytes) = (answer.status(), answer.bytes().await.expect("the answer is whole"));
        let value = json_of(&bytes);
        assert!(status.is_success(), "{command:?} was answered {status}: {value}");
        assert_eq!(value["timed_out"], false, "{command:?} took over {seconds} s: {value}");
        Ended {
            exit_code: value["exit_code"].as_i64().expect("an exit code is a number"),
            stdout: value["stdout"].as_str().expect("output is text").to_owned(),
            stderr: value["stderr"].as_str().expect("output is text").to_owned(),
        }
    }

    /// Runs a shell command that must succeed, and returns its output.
    pub(crate) async fn output(&self, bot: &str, command: &str) -> String {
        self.output_within(bot, command, 30).await
    }

    pub(crate) async fn output_within(&self, bot: &str, command: &str, seconds: u64) -> String {
        let ended = self.exec_within(bot, command, seconds).await;
        assert_eq!(ended.exit_code, 0, "{command:?} failed: {ended:?}");
        ended.stdout
    }

    pub(crate) async fn info(&self, bot: &str) -> Value {
        self.good(Method::GET, &format!("/bots/{bot}/container"), None).await
    }

    pub(crate) async fn act(&self, bot: &str, action: &str) -> Value {
        self.good(Method::POST, &format!("/bots/{bot}/container/{action}"), None)
            .await
    }

    pub(crate) async fn delete_bot(&self, bot: &str) {
        self.good(Method::DELETE, &format!("/bots/{bot}"), None).await;
        self.wait_until_gone(bot).await;
    }

    pub(crate) async fn wait_until_gone(&self, bot: &str) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let (status, value) = self.call(Method::GET, &format!("/bots/{bot}"), None).await;
            if status == StatusCode::NOT_FOUND {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "the bot is still there: {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Status and body; `None` when the server went away before the end.
pub(crate) async fn whole_answer(request: RequestBuilder) -> Option<(StatusCode, Vec<u8>)> {
    let answer = request.send().await.ok()?;
    let status = answer.status();
    let bytes = answer.bytes().await.ok()?;
    Some((status, bytes.to_vec()))
}

/// All events of a stream, which must end by itself.
pub(crate) async fn events_of(answer: Response) -> Vec<Value> {
    let mut text = String::new();
    let mut stream = answer.bytes_stream();
    while let Some(piece) = stream.next().await {
        text.push_str(std::str::from_utf8(&piece.expect("the stream is whole")).expect("the events are ASCII here"));
    }
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|line| json_of(line.as_bytes()))
        .collect()
}

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(bytes)))
}
