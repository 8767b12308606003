//! One whole Skep of a test's own: the real program, a real containerd, a real registry, a real network.
//!
//! Dropping it ends what it started and undoes what the host saw of it, failed test or not.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use skep_testkit::images::{Image, busybox_image, debian_image};
use skep_testkit::registry::Registry;
use skep_testkit::{ContainerdServer, unmount_below};
use tempfile::TempDir;

use crate::client::Client;

const START_LIMIT: Duration = Duration::from_secs(30);

/// Which OCI runtime containers are run by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum OciRuntime {
    /// The one the server finds best: crun, through the wrapper on hybrid cgroups.
    Found,
    Runc,
}

pub(crate) struct Installation {
    pub(crate) client: Client,
    pub(crate) registry: Registry,
    containerd: ContainerdServer,
    data_root: TempDir,
    settings: Vec<(String, String)>,
    server: Child,
    bridge: String,
    table: String,
}

impl Installation {
    pub(crate) async fn start(runtime: OciRuntime) -> Self {
        Self::start_with(runtime, &[]).await
    }

    /// As [`Installation::start`], with more in the server's environment.
    pub(crate) async fn start_with(runtime: OciRuntime, more: &[(&str, String)]) -> Self {
        let containerd = ContainerdServer::start().await.expect("containerd is needed");
        let registry = Registry::start();
        let busybox = registry.reference("test/busybox", "1");
        busybox_image().push(&registry, "test/busybox", "1").await;
        let data_root = tempfile::Builder::new()
            .prefix("skep-e2e-")
            .tempdir_in("/var/tmp")
            .expect("a data root can be made");
        let port = free_port();
        // Names and a subnet of this test's own: several tests and servers share the host.
        let bridge = format!("ske{port}");
        let table = format!("ske{port}");
        let subnet = format!("10.{}.{}.0/24", 200 + port % 50, (port / 50) % 256);
        let mut settings = vec![
            ("SKEP_SERVER__ADDR", format!("127.0.0.1:{port}")),
            ("SKEP_WORKSPACE__DATA_ROOT", text(data_root.path())),
            ("SKEP_WORKSPACE__DEFAULT_IMAGE", busybox),
            ("SKEP_CONTAINERD__SOCKET_PATH", text(containerd.socket())),
            ("SKEP_NETWORK__BRIDGE", bridge.clone()),
            ("SKEP_NETWORK__TABLE", table.clone()),
            ("SKEP_NETWORK__SUBNET", subnet),
            ("SKEP_ADMIN__PASSWORD", "a password of the tests".to_owned()),
        ];
        if runtime == OciRuntime::Runc {
            settings.push(("SKEP_CONTAINERD__RUNTIME_BINARY", "runc".to_owned()));
        }
        settings.extend(more.iter().cloned());
        let mut settings: Vec<(String, String)> = settings
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let file = data_root.path().join("skep.toml");
        std::fs::write(
            &file,
            format!("[registry.\"{}\"]\nplain_http = true\n", registry.host()),
        )
        .expect("the configuration can be written");
        settings.push(("SKEP_TEST_CONFIG".to_owned(), text(&file)));
        let server = spawn(&settings, data_root.path());
        let client = Client::new(format!("http://127.0.0.1:{port}"));
        let mut installation = Self {
            client,
            registry,
            containerd,
            data_root,
            settings,
            server,
            bridge,
            table,
        };
        installation.wait_until_ready().await;
        installation
    }

    /// Pushes the image with a Debian userland and returns its name.
    pub(crate) async fn debian(&self) -> String {
        self.push(&debian_image(), "test/debian").await
    }

    pub(crate) async fn push(&self, image: &Image, repository: &str) -> String {
        image.push(&self.registry, repository, "1").await;
        self.registry.reference(repository, "1")
    }

    /// Ends the server as a crash would.
    pub(crate) fn kill_server(&mut self) {
        self.server.kill().expect("the server can be killed");
        self.server.wait().expect("the server can be waited for");
    }

    /// Ends the server as an administrator would.
    pub(crate) fn end_server(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.server);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the server can be told to end");
        let status = self.server.wait().expect("the server can be waited for");
        assert!(status.success(), "the server ended with {status}: {}", self.log_tail());
    }

    /// Starts the server again on the same data root.
    pub(crate) async fn start_server_again(&mut self) {
        self.spawn_server_again();
        self.wait_until_ready().await;
    }

    /// Starts the server again on the same data root, ready or not.
    pub(crate) fn spawn_server_again(&mut self) {
        self.server = spawn(&self.settings, self.data_root.path());
    }

    /// How the server ended, when it has.
    #[allow(dead_code, reason = "for the crash tests, which share this file")]
    pub(crate) fn server_end(&mut self) -> Option<ExitStatus> {
        self.server.try_wait().expect("the server can be asked for")
    }

    pub(crate) fn server_pid(&self) -> u32 {
        self.server.id()
    }

    pub(crate) fn data_root(&self) -> &Path {
        self.data_root.path()
    }

    pub(crate) fn containerd(&self) -> &ContainerdServer {
        &self.containerd
    }

    pub(crate) fn bridge(&self) -> &str {
        &self.bridge
    }

    #[allow(dead_code, reason = "for the crash tests, which share this file")]
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// The directory of what must not outlive a reboot.
    pub(crate) fn run_directory(&self) -> PathBuf {
        let id = std::fs::read_to_string(self.data_root.path().join("id")).expect("the data root has an id");
        Path::new("/run/skep").join(id.trim())
    }

    /// Runs the program itself as its command line.
    pub(crate) fn skep(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_skep"))
            .args(arguments)
            .env("SKEP_SERVER", &self.client.url)
            .env("SKEP_TOKEN", &self.client.token)
            .stdin(Stdio::null())
            .output()
            .expect("the program can be run")
    }

    async fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START_LIMIT;
        let key = self.data_root.path().join("admin.key");
        loop {
            if let Some(status) = self.server.try_wait().expect("the server can be asked for") {
                panic!("the server ended with {status}: {}", self.log_tail());
            }
            if let Ok(token) = std::fs::read_to_string(&key) {
                self.client.token = token.trim().to_owned();
                if self.client.is_ready().await {
                    return;
                }
            }
            assert!(
                Instant::now() < deadline,
                "the server did not become ready: {}",
                self.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn log_tail(&self) -> String {
        let log =
            std::fs::read_to_string(self.data_root.path().join("server.log")).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server's last lines:\n{}", self.log_tail());
        }
        if let Err(error) = self.server.kill().and_then(|()| self.server.wait()) {
            eprintln!("the server could not be ended: {error}");
        }
        let Ok(id) = std::fs::read_to_string(self.data_root.path().join("id")) else {
            return;
        };
        let run_directory = Path::new("/run/skep").join(id.trim());
        let pins = namespaces_of(&run_directory);
        // The containers go with their containerd; what the host saw of them goes here.
        let socket_directories = self.data_root.path().join("run");
        for pin in pins {
            report("unmounting a network namespace", unmount_below(&pin).map(|_| ()));
            report("removing a network namespace", std::fs::remove_file(&pin));
        }
        for directory in [run_directory.as_path(), socket_directories.as_path()] {
            report("unmounting", unmount_below(directory).map(|_| ()));
        }
        run_quietly("ip", &["link", "delete", &self.bridge]);
        run_quietly("nft", &["delete", "table", "inet", &self.table]);
        report("removing the run directory", std::fs::remove_dir_all(&run_directory));
        for claim in id_claims_of(id.trim()) {
            report("removing a claim of ids", std::fs::remove_file(claim));
        }
        for claim in [format!("bridge-{}", self.bridge), format!("table-{}", self.table)] {
            report(
                "removing a claim",
                std::fs::remove_file(Path::new("/run/skep/claims").join(claim)),
            );
        }
    }
}

/// Claims name their data root: those of others on this host stay.
fn id_claims_of(data_root_id: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir("/run/skep/ids") else {
        return Vec::new();
    };
    let ours = |path: &PathBuf| std::fs::read_to_string(path).is_ok_and(|claim| claim.contains(data_root_id));
    entries.flatten().map(|entry| entry.path()).filter(ours).collect()
}

fn namespaces_of(run_directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(run_directory.join("userns")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| Path::new("/run/netns").join(format!("skep-{}", entry.file_name().to_string_lossy())))
        .filter(|path| path.exists())
        .collect()
}

fn report(what: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        eprintln!("{what} failed: {error}");
    }
}

fn run_quietly(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    if let Err(error) = output {
        eprintln!("{program} could not be run: {error}");
    }
}

fn spawn(settings: &[(String, String)], data_root: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(data_root.join("server.log"))
        .expect("the log can be opened");
    let config = settings
        .iter()
        .find(|(key, _)| key == "SKEP_TEST_CONFIG")
        .expect("it is always set");
    Command::new(env!("CARGO_BIN_EXE_skep"))
        .args(["serve", "--config", &config.1])
        .envs(settings.iter().filter(|(key, _)| key != "SKEP_TEST_CONFIG").cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the server can be started")
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port is free")
        .port()
}

fn text(path: &Path) -> String {
    path.to_str().expect("the path is UTF-8").to_owned()
}

/// The RSS of a process in bytes.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("it has memory");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("it is a number");
    kibibytes * 1024
}

/// A field of a JSON answer as text.
pub(crate) fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no text {name} in {value}"))
}
