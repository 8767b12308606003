//! Files, processes and terminals of a workspace over real HTTP: a real bridge and real processes below.
//! One binary, so that it is linked once.

mod downloads;
mod execs;
mod exports;
mod extracts;
mod files;
mod hostile;
mod imports;
mod loads;
mod logs;
mod metrics;
mod old_bridge;
mod ports;
mod refusals;
mod rooms;
mod searches;
mod sessions;
mod snapshots;
mod storage;
mod terminals;
mod uploads;
mod watches;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_names::BotId;
use skep_testkit::server::{Answer, TestServer};

/// How long anything that is waited for may take, on a busy machine; less than the minute after which a server looks at
/// everything by itself.
const LIMIT: Duration = Duration::from_secs(50);
/// The same for what nothing but the test brings about.
const SHOWN_WITHIN: Duration = Duration::from_secs(120);
/// How long a command of a test may run.
const COMMAND_SECONDS: u32 = 200;
/// How often what is waited for is looked at.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Looks until what is looked for is there; what was seen last is told when it does not come.
pub async fn until<T>(mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < end, "not within {LIMIT:?}: {seen}"),
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// A server with one running workspace.
pub struct Workspace {
    pub server: TestServer,
    pub bot: String,
}

impl Workspace {
    pub async fn start() -> Self {
        let server = TestServer::start().await;
        let bot = server.bot_with_workspace().await;
        Self { server, bot }
    }

    pub fn path(&self, rest: &str) -> String {
        format!("/bots/{}/container{rest}", self.bot)
    }

    /// `/data` as it is on the host.
    pub fn data(&self) -> PathBuf {
        let bot: BotId = self.bot.parse().expect("an id");
        self.server.runtime().layer_path(&bot).join("data")
    }

    pub async fn get(&self, rest: &str) -> Answer {
        self.server.call("GET", &self.path(rest)).send().await
    }

    pub async fn post(&self, rest: &str, body: Value) -> Answer {
        self.server.call("POST", &self.path(rest)).json(&body).send().await
    }

    /// The result of a command that must be started.
    pub async fn run(&self, command: &str) -> Value {
        let body = json!({"command": command, "timeout_seconds": COMMAND_SECONDS});
        let answer = self.post("/exec", body).await;
        answer.expect_status(200).json()
    }

    /// Waits until a command ends with this code.
    pub async fn until_code(&self, command: &str, code: i64) {
        until(async || match self.run(command).await {
            ended if ended["exit_code"] == code => Ok(()),
            ended => Err(format!("{command}: {ended}")),
        })
        .await;
    }

    /// What a command that must end well wrote to stdout.
    pub async fn output_of(&self, command: &str) -> String {
        let result = self.run(command).await;
        assert_eq!(result["exit_code"], 0, "{command}: {result}");
        result["stdout"].as_str().unwrap().to_owned()
    }
}
