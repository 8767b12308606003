//! A containerd, a registry and servers of the benchmark's own. Dropping them undoes what the host saw.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use skep_testkit::ContainerdServer;
use skep_testkit::images::{Image, busybox_image, http_client};
use skep_testkit::registry::Registry;
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request as SocketRequest;

use crate::Result;

const READY_WITHIN: Duration = Duration::from_secs(30);

/// What all rows are measured on.
pub(crate) struct Stage {
    /// Containers by crun, where the host has it: what a user gets.
    pub(crate) skep: Server,
    pub(crate) containerd: ContainerdServer,
    pub(crate) registry: Registry,
    /// A small image with a shell.
    pub(crate) image: String,
    program: PathBuf,
}

impl Stage {
    pub(crate) async fn start(program: PathBuf) -> Result<Self> {
        let containerd = ContainerdServer::start().await?;
        let registry = Registry::start();
        busybox_image().push(&registry, "bench/busybox", "1").await;
        let image = registry.reference("bench/busybox", "1");
        let settings = Settings {
            containerd: containerd.socket(),
            registry: &registry.host(),
            image: &image,
            runtime: None,
        };
        let skep = Server::start(&program, &settings).await?;
        Ok(Self {
            skep,
            containerd,
            registry,
            image,
            program,
        })
    }

    /// Another server on the same containerd, whose containers are run by `runtime`.
    pub(crate) async fn another(&self, runtime: Option<&str>) -> Result<Server> {
        let settings = Settings {
            containerd: self.containerd.socket(),
            registry: &self.registry.host(),
            image: &self.image,
            runtime,
        };
        Server::start(&self.program, &settings).await
    }

    pub(crate) async fn push(&self, image: &Image, repository: &str) -> String {
        image.push(&self.registry, repository, "1").await;
        self.registry.reference(repository, "1")
    }
}

struct Settings<'a> {
    containerd: &'a Path,
    registry: &'a str,
    image: &'a str,
    runtime: Option<&'a str>,
}

/// `skep serve` with a data root of its own.
pub(crate) struct Server {
    program: PathBuf,
    environment: Vec<(&'static str, String)>,
    data_root: TempDir,
    address: String,
    process: Child,
    token: String,
    http: reqwest::Client,
}

impl Server {
    async fn start(program: &Path, settings: &Settings<'_>) -> Result<Self> {
        let data_root = TempDir::with_prefix_in("skep-bench-", "/var/tmp")?;
        let config = data_root.path().join("skep.toml");
        std::fs::write(
            &config,
            format!("[registry.\"{}\"]\nplain_http = true\n", settings.registry),
        )?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut environment = vec![
            ("SKEP_SERVER__ADDR", format!("127.0.0.1:{port}")),
            ("SKEP_WORKSPACE__DATA_ROOT", text(data_root.path())?),
            ("SKEP_WORKSPACE__DEFAULT_IMAGE", settings.image.to_owned()),
            ("SKEP_CONTAINERD__SOCKET_PATH", text(settings.containerd)?),
            ("SKEP_NETWORK__BRIDGE", format!("skb{port}")),
            ("SKEP_NETWORK__TABLE", format!("skb{port}")),
            ("SKEP_NETWORK__SUBNET", format!("10.{}.0.0/16", 100 + port % 100)),
            ("SKEP_LOG__LEVEL", "warn".to_owned()),
        ];
        if let Some(runtime) = settings.runtime {
            environment.push(("SKEP_CONTAINERD__RUNTIME_BINARY", runtime.to_owned()));
        }
        let process = spawn(program, &environment, data_root.path())?;
        let mut server = Self {
            program: program.to_owned(),
            environment,
            data_root,
            address: format!("http://127.0.0.1:{port}"),
            process,
            token: String::new(),
            http: http_client(),
        };
        server.until_ready().await?;
        Ok(server)
    }

    async fn until_ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < READY_WITHIN {
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("the server ended with {status}").into());
            }
            if let Ok(key) = std::fs::read_to_string(self.data_root.path().join("admin.key")) {
                self.token = key.trim().to_owned();
            }
            if !self.token.is_empty() && self.answers("/ready").await {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Err(format!("the server is not ready after {READY_WITHIN:?}").into())
    }

    async fn answers(&self, path: &str) -> bool {
        matches!(self.request(Method::GET, path).send().await, Ok(answer) if answer.status().is_success())
    }

    /// Kills the server and starts it again: how long until it answers, and until it is ready.
    pub(crate) async fn restart(&mut self) -> Result<(Duration, Duration)> {
        self.process.kill()?;
        self.process.wait()?;
        let begun = Instant::now();
        self.process = spawn(&self.program, &self.environment, self.data_root.path())?;
        while !self.answers("/ping").await {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if begun.elapsed() > READY_WITHIN {
                return Err("the server does not answer".into());
            }
        }
        let answered = begun.elapsed();
        self.until_ready().await?;
        Ok((answered, begun.elapsed()))
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.address))
            .bearer_auth(&self.token)
            .timeout(Duration::from_secs(300))
    }

    /// What opens a WebSocket.
    pub(crate) fn socket_request(&self, path: &str) -> Result<SocketRequest> {
        let url = format!("{}{path}", self.address).replace("http://", "ws://");
        let mut request = url.into_client_request()?;
        let key = format!("Bearer {}", self.token).parse()?;
        request.headers_mut().insert("authorization", key);
        Ok(request)
    }

    /// Sends and expects a success.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let request = self.request(method.clone(), path);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await?;
        let status = answer.status();
        let bytes = answer.bytes().await?;
        if !status.is_success() {
            return Err(format!("{method} {path} answered {status}: {}", String::from_utf8_lossy(&bytes)).into());
        }
        Ok(if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)?
        })
    }

    /// A bot without a workspace.
    pub(crate) async fn bot(&self) -> Result<String> {
        let bot = self
            .call(Method::POST, "/bots?workspace=false", Some(json!({})))
            .await?;
        Ok(bot["id"].as_str().ok_or("a bot has no id")?.to_owned())
    }

    /// A workspace for a bot; waits for the end of the create.
    pub(crate) async fn create(&self, bot: &str) -> Result<()> {
        let path = format!("/bots/{bot}/container");
        self.until_complete(&path, &json!({})).await
    }

    /// A figure of a workspace without a user namespace would be one of weaker walls.
    pub(crate) async fn require_walls(&self, bot: &str) -> Result<()> {
        let info = self.call(Method::GET, &format!("/bots/{bot}/container"), None).await?;
        match info["isolation"]["user_namespace"] == true {
            true => Ok(()),
            false => Err(format!("the workspace has no user namespace: {info}").into()),
        }
    }

    /// Sends what is answered by a stream of events, and waits for its `complete`.
    pub(crate) async fn until_complete(&self, path: &str, body: &Value) -> Result<()> {
        let request = self.request(Method::POST, path).header("accept", "text/event-stream");
        let events = request.json(body).send().await?.text().await?;
        if events.contains("\"type\":\"complete\"") {
            Ok(())
        } else {
            Err(format!("{path} did not complete: {events}").into())
        }
    }

    pub(crate) async fn exec(&self, bot: &str, argv: &[&str]) -> Result<()> {
        let body = json!({"argv": argv, "timeout_seconds": 30});
        let ended = self
            .call(Method::POST, &format!("/bots/{bot}/container/exec"), Some(body))
            .await?;
        if ended["exit_code"] == 0 {
            Ok(())
        } else {
            Err(format!("{argv:?} failed: {ended}").into())
        }
    }

    /// Removes a bot and waits until it is gone.
    pub(crate) async fn remove(&self, bot: &str) -> Result<()> {
        self.call(Method::DELETE, &format!("/bots/{bot}"), None).await?;
        let begun = Instant::now();
        while self.answers(&format!("/bots/{bot}")).await {
            if begun.elapsed() > READY_WITHIN {
                return Err(format!("the bot {bot} is still there").into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Where a workspace's bridge listens.
    pub(crate) fn bridge_socket(&self, bot: &str) -> PathBuf {
        self.data_root.path().join("run").join(bot).join("bridge.sock")
    }

    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.process);
        // One that has ended by itself was waited for already.
        let ended = match self.process.try_wait() {
            Ok(Some(_)) => Ok(()),
            _ => kill_process(pid, Signal::TERM).map_err(std::io::Error::from),
        };
        if let Err(error) = ended.and_then(|()| self.process.wait()) {
            eprintln!("the server could not be ended: {error}");
        }
        // Stops its workspaces and undoes what the host saw; the files go with the data root.
        let down = Command::new(&self.program)
            .args(["down", "--config"])
            .arg(self.data_root.path().join("skep.toml"))
            .envs(self.environment.iter().cloned())
            .stdout(Stdio::null())
            .status();
        if !down.as_ref().is_ok_and(ExitStatus::success) {
            eprintln!("skep down: {down:?}");
        }
    }
}

fn spawn(program: &Path, environment: &[(&'static str, String)], data_root: &Path) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(data_root.join("server.log"))?;
    Ok(Command::new(program)
        .args(["serve", "--config"])
        .arg(data_root.join("skep.toml"))
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?)
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().ok_or("a path is not UTF-8")?.to_owned())
}
