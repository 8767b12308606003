//! A real server in this process: real HTTP on a free port, real SQLite, the fake runtime below.

mod call;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use skep_server::config::{Config, Settings};
use skep_server::server::{RunningServer, StartParts};
use skep_store::DataRoot;
use tempfile::TempDir;
use tokio::net::TcpListener;

pub use call::{Answer, Call};

use crate::fake_runtime::{FAKE_IMAGE, FakeRuntime};

/// The password of the user `admin` of every test server.
pub const ADMIN_PASSWORD: &str = "correct horse battery staple";
/// How long an answer may take, with the whole of a stream: it bounds what hangs, and tells nothing of a server.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);
/// How long operations get at an end in order.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// A server of its own for one test; it ends when this is dropped.
pub struct TestServer {
    // In the order of drops: the server, what it runs, its files.
    running: Option<RunningServer>,
    runtime: FakeRuntime,
    directory: TempDir,
    settings: Vec<(String, String)>,
    client: reqwest::Client,
    admin_key: String,
}

impl TestServer {
    /// A server with the defaults of a fresh data root.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server with some keys set, each as `section.key`.
    pub async fn with(keys: &[(&str, &str)]) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("skep-server-")
            .tempdir()
            .expect("a directory");
        let data_root = directory.path().join("data").display().to_string();
        let mut settings = vec![
            ("workspace.data_root".to_owned(), data_root),
            ("workspace.default_image".to_owned(), FAKE_IMAGE.to_owned()),
            ("admin.password".to_owned(), ADMIN_PASSWORD.to_owned()),
            ("server.addr".to_owned(), "127.0.0.1:0".to_owned()),
        ];
        settings.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let runtime = FakeRuntime::new().expect("the fake runtime needs root and /bin/busybox");
        let client = http_client();
        let running = start(&settings, &runtime).await;
        let admin_key = std::fs::read_to_string(running.admin_key()).expect("the admin key");
        Self {
            admin_key: admin_key.trim().to_owned(),
            running: Some(running),
            runtime,
            directory,
            settings,
            client,
        }
    }

    /// Ends the server in order and starts another one on the same data root and runtime.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.running = Some(start(&self.settings, &self.runtime).await);
    }

    /// Ends the server in order.
    pub async fn stop(&mut self) {
        self.stop_within(STOP_WITHIN).await;
    }

    /// The same; operations get so long to come to a safe step.
    pub async fn stop_within(&mut self, limit: Duration) {
        if let Some(mut running) = self.running.take() {
            running.shut_down(limit).await;
        }
    }

    /// The running server.
    pub fn running(&self) -> &RunningServer {
        self.running.as_ref().expect("the server was stopped by the test")
    }

    /// `http://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("http://{}", self.running().address())
    }

    /// What makes its workspaces.
    pub fn runtime(&self) -> &FakeRuntime {
        &self.runtime
    }

    /// The directory that holds its data root as `data`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The key of `admin.key`.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// A request as the admin; `path` begins with a slash.
    pub fn call(&self, method: &str, path: &str) -> Call {
        self.call_as(&self.admin_key, method, path)
    }

    /// A request with this token or key; an empty one sends none.
    pub fn call_as(&self, credential: &str, method: &str, path: &str) -> Call {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let request = self
            .client
            .request(method, format!("{}{path}", self.url()))
            .timeout(ANSWER_WITHIN);
        Call::new(match credential {
            "" => request,
            credential => request.bearer_auth(credential),
        })
    }

    /// A token for a user.
    pub async fn login(&self, username: &str, password: &str) -> String {
        let body = json!({"username": username, "password": password});
        let answer = self.call_as("", "POST", "/auth/login").json(&body).send().await;
        text_of(&answer.expect_status(200).json(), "access_token")
    }

    /// A new member with a token: id and token.
    pub async fn member(&self, username: &str) -> (String, String) {
        let body = json!({"username": username, "password": ADMIN_PASSWORD});
        let made = self.call("POST", "/users").json(&body).send().await;
        let id = text_of(&made.expect_status(201).json(), "id");
        (id, self.login(username, ADMIN_PASSWORD).await)
    }

    /// A new bot without a workspace, of whoever has this credential: its id.
    pub async fn bare_bot(&self, credential: &str) -> String {
        let call = self.call_as(credential, "POST", "/bots?workspace=false");
        let made = call.json(&json!({"display_name": "test"})).send().await;
        text_of(&made.expect_status(201).json(), "id")
    }

    /// A new bot with a running workspace: its id.
    pub async fn bot_with_workspace(&self) -> String {
        let bot = self.bare_bot(&self.admin_key).await;
        let path = format!("/bots/{bot}/container");
        let create = self.call("POST", &path).header("accept", "application/json");
        create.json(&json!({})).send().await.expect_status(200);
        bot
    }
}

/// A client that follows no redirects.
///
/// # Panics
/// When it cannot be made.
pub fn http_client() -> reqwest::Client {
    // A second install says that there is one, which is what is wanted.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::trace!("TLS is set up already");
    }
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("an HTTP client")
}

/// A text field of an answer.
pub fn text_of(value: &Value, field: &str) -> String {
    let text = value.get(field).and_then(Value::as_str);
    text.unwrap_or_else(|| panic!("no text {field:?} in {value}"))
        .to_owned()
}

async fn start(settings: &[(String, String)], runtime: &FakeRuntime) -> RunningServer {
    let environment: Vec<_> = settings
        .iter()
        .map(|(key, value)| (format!("SKEP_{}", key.replace('.', "__").to_uppercase()), value.clone()))
        .collect();
    let settings = Settings::read(Some(Path::new("/dev/null")), &environment).expect("the settings of a test");
    let config = Config::settle(&settings).expect("the configuration of a test");
    let data_root = DataRoot::claim(&config.workspace.data_root, "a test").expect("the data root");
    let listener = TcpListener::bind(config.server.addr).await.expect("a free port");
    let parts = StartParts {
        config,
        data_root,
        runtime: std::sync::Arc::new(runtime.clone()),
        listener,
    };
    RunningServer::start(parts).await.expect("the server starts")
}
