//! One whole Skep of a test's own: the real program, a real containerd, a real registry, a real network.
//!
//! Dropping it ends what it started and undoes what the host saw of it, failed test or not.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use skep_server::announcement;
use skep_testkit::images::{Image, busybox_image, debian_image};
use skep_testkit::registry::Registry;
use skep_testkit::{ContainerdServer, HostTraces, unmount_below};
use tempfile::TempDir;

use crate::client::Client;

/// Where data roots are.
const USUAL_PLACE: &str = "/var/tmp";
const START_LIMIT: Duration = Duration::from_secs(120);

/// Which OCI runtime containers are run by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum OciRuntime {
    /// The one the server finds best: crun, through the wrapper on hybrid cgroups.
    Found,
    Runc,
}

pub(crate) struct Installation {
    pub(crate) client: Client,
    pub(crate) registry: Arc<Registry>,
    /// `None`: that of another installation.
    containerd: Option<ContainerdServer>,
    containerd_socket: PathBuf,
    data_root: TempDir,
    settings: Vec<(String, String)>,
    server: Child,
    bridge: String,
    table: String,
    /// Its port is no other installation's: names are made of it.
    _port: TcpListener,
}

impl Installation {
    pub(crate) async fn start(runtime: OciRuntime) -> Self {
        Self::start_with(runtime, &[]).await
    }

    /// With more settings, as variables of the environment.
    pub(crate) async fn start_with(runtime: OciRuntime, more: &[(&str, String)]) -> Self {
        let containerd = ContainerdServer::start().await.expect("containerd is needed");
        Self::start_on(containerd, Path::new(USUAL_PLACE), (runtime, more)).await
    }

    /// With containerd's directory and the data root in this one.
    #[allow(dead_code, reason = "for the end-to-end tests, which share this file")]
    pub(crate) async fn start_in(place: &Path, runtime: OciRuntime, more: &[(&str, String)]) -> Self {
        let containerd = ContainerdServer::start_in(place).await.expect("containerd is needed");
        Self::start_on(containerd, place, (runtime, more)).await
    }

    async fn start_on(
        containerd: ContainerdServer,
        place: &Path,
        (runtime, more): (OciRuntime, &[(&str, String)]),
    ) -> Self {
        let registry = Arc::new(Registry::start());
        busybox_image().push(&registry, "test/busybox", "1").await;
        let socket = containerd.socket().to_owned();
        let mut installation = Self::in_containerd(runtime, more, (registry, socket), place).await;
        installation.containerd = Some(containerd);
        installation
    }

    /// Another server with a data root of its own, in the same containerd. To be dropped first.
    pub(crate) async fn start_beside(&self, more: &[(&str, String)]) -> Self {
        let shared = (self.registry.clone(), self.containerd_socket.clone());
        Self::in_containerd(OciRuntime::Found, more, shared, Path::new(USUAL_PLACE)).await
    }

    async fn in_containerd(
        runtime: OciRuntime,
        more: &[(&str, String)],
        (registry, containerd_socket): (Arc<Registry>, PathBuf),
        place: &Path,
    ) -> Self {
        let busybox = registry.reference("test/busybox", "1");
        let data_root = tempfile::Builder::new()
            .prefix("skep-e2e-")
            .tempdir_in(place)
            .expect("a data root can be made");
        let holder = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = holder.local_addr().expect("it has an address").port();
        // An address of its own: nobody else gets the port there while the server is away.
        let address = format!("{}:{port}", any_loopback_address());
        // Names and a subnet of this test's own: several tests and servers share the host.
        let bridge = format!("ske{port}");
        let table = format!("ske{port}");
        let subnet = format!("10.{}.{}.0/24", 200 + port % 50, (port / 50) % 256);
        let mut settings = vec![
            ("SKEP_SERVER__ADDR", address.clone()),
            ("SKEP_WORKSPACE__DATA_ROOT", text(data_root.path())),
            ("SKEP_WORKSPACE__DEFAULT_IMAGE", busybox),
            ("SKEP_CONTAINERD__SOCKET_PATH", text(&containerd_socket)),
            ("SKEP_NETWORK__BRIDGE", bridge.clone()),
            ("SKEP_NETWORK__TABLE", table.clone()),
            ("SKEP_NETWORK__SUBNET", subnet),
            ("SKEP_ADMIN__PASSWORD", "a password of the tests".to_owned()),
            // What is not mended when it happens, or at a start, must not be mended by the clock.
            ("SKEP_WORKSPACE__RECONCILE_INTERVAL", "1h".to_owned()),
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
        let client = Client::new(format!("http://{address}"));
        let mut installation = Self {
            client,
            registry,
            containerd: None,
            containerd_socket,
            data_root,
            settings,
            server,
            bridge,
            table,
            _port: holder,
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

    /// Ends the server as an administrator would, and says how long that took.
    pub(crate) fn end_server(&mut self) -> Duration {
        let begun = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.server);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the server can be told to end");
        let status = self.server.wait().expect("the server can be waited for");
        assert!(status.success(), "the server ended with {status}: {}", self.log_tail());
        begun.elapsed()
    }

    /// Tells the server to end, and again when it is about to: how it ended, and how long after the second time.
    #[allow(dead_code, reason = "for the end-to-end tests, which share this file")]
    pub(crate) fn end_server_with_two_signals(&mut self) -> (ExitStatus, Duration) {
        let pid = rustix::process::Pid::from_child(&self.server);
        let tell = || rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it can be told to end");
        tell();
        let deadline = Instant::now() + START_LIMIT;
        while !self.log_tail().contains("ending; workspaces stay running") {
            assert!(
                Instant::now() < deadline,
                "it does not begin to end: {}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let begun = Instant::now();
        tell();
        let status = self.server.wait().expect("the server can be waited for");
        (status, begun.elapsed())
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

    /// A second server on the same data root: how it ended, and what it said.
    pub(crate) fn second_server(&self, limit: Duration) -> (ExitStatus, String) {
        let log = self.data_root.path().join("second.log");
        let mut second = spawn_logging_to(&self.settings, &log);
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = second.try_wait().expect("the second server can be asked for") {
                break status;
            }
            if Instant::now() >= deadline {
                second.kill().and_then(|()| second.wait()).expect("it can be killed");
                panic!("a second server on one data root runs on after {limit:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = std::fs::read_to_string(&log).expect("the second server's log can be read");
        (status, said)
    }

    /// As if the machine lost its power: server, containerd, shims and tasks are gone at once, and whatever a boot
    /// does not find again. Nothing of ours reads the machine's boot id: what a boot changes is that all this is gone.
    pub(crate) fn lose_power(&mut self) {
        self.kill_server();
        self.containerd_mut()
            .lose_power()
            .expect("containerd can lose its power");
        self.forget_what_a_boot_forgets();
    }

    fn forget_what_a_boot_forgets(&self) {
        let Ok(id) = std::fs::read_to_string(self.data_root.path().join("id")) else {
            return;
        };
        let run_directory = Path::new("/run/skep").join(id.trim());
        let announced = announcement::of_data_root_here(id.trim());
        let withdrawn = announced.and_then(|left| left.map_or(Ok(()), |left| announcement::withdraw(&left)));
        report("withdrawing the announcement of a killed server", withdrawn);
        let socket_directories = self.data_root.path().join("run");
        for pin in namespaces_of(&run_directory, &socket_directories) {
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

    pub(crate) fn server_pid(&self) -> u32 {
        self.server.id()
    }

    pub(crate) fn data_root(&self) -> &Path {
        self.data_root.path()
    }

    pub(crate) fn containerd(&self) -> &ContainerdServer {
        self.containerd
            .as_ref()
            .expect("this installation has a containerd of its own")
    }

    pub(crate) fn containerd_mut(&mut self) -> &mut ContainerdServer {
        self.containerd
            .as_mut()
            .expect("this installation has a containerd of its own")
    }

    /// Where what its workspaces have is looked for.
    pub(crate) fn traces(&self) -> HostTraces {
        HostTraces {
            data_root: self.data_root.path().to_owned(),
            run_directory: self.run_directory(),
            socket: self.containerd_socket.clone(),
            namespace: "default".to_owned(),
            cgroup_parent: "/skep".to_owned(),
            bridge: self.bridge.clone(),
            others: BTreeSet::new(),
        }
    }

    pub(crate) fn bridge(&self) -> &str {
        &self.bridge
    }

    #[allow(dead_code, reason = "for the crash tests, which share this file")]
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// Asks containerd by its own tool.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> std::process::Output {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(&self.containerd_socket)
            .args(arguments)
            .output();
        output.expect("ctr can be run")
    }

    /// The first processes of all workspaces of this data root.
    pub(crate) fn process_ones(&self) -> Vec<i32> {
        let bots = std::fs::read_dir(self.data_root.path().join("run")).map(|entries| {
            let names = entries.flatten().map(|entry| entry.file_name());
            names
                .map(|name| name.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        });
        let bots = bots.unwrap_or_default();
        bots.iter()
            .filter_map(|bot| process_one(bot))
            .map(|pid| pid.as_raw_nonzero().get())
            .collect()
    }

    /// Waits until the server answers at all.
    pub(crate) async fn wait_until_it_listens(&mut self) {
        let deadline = Instant::now() + START_LIMIT;
        while self
            .client
            .attempt(reqwest::Method::GET, "/health", None)
            .await
            .is_none()
        {
            assert!(
                Instant::now() < deadline,
                "the server does not listen: {}",
                self.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The directory of what must not outlive a reboot.
    pub(crate) fn run_directory(&self) -> PathBuf {
        let id = std::fs::read_to_string(self.data_root.path().join("id")).expect("the data root has an id");
        Path::new("/run/skep").join(id.trim())
    }

    /// Runs the program itself as its command line.
    pub(crate) fn skep(&self, arguments: &[&str]) -> std::process::Output {
        self.skep_command(arguments).output().expect("the program can be run")
    }

    pub(crate) fn skep_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
        command
            .args(arguments)
            .env("SKEP_SERVER", &self.client.url)
            .env("SKEP_TOKEN", &self.client.token)
            .stdin(Stdio::null());
        command
    }

    pub(crate) async fn wait_until_ready(&mut self) {
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
        // The containers go with their containerd; what the host saw of them goes here.
        self.forget_what_a_boot_forgets();
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

/// Of every bot that left anything here: a workspace without a user namespace has no pin of one, and a half-made start
/// has little more than its record.
fn namespaces_of(run_directory: &Path, socket_directories: &Path) -> BTreeSet<PathBuf> {
    let [records, users, roots] = ["running", "userns", "root"].map(|name| run_directory.join(name));
    let directories = [&records, &users, &roots, socket_directories];
    let entries = directories
        .into_iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok());
    entries
        .flat_map(|entries| entries.flatten())
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
    spawn_logging_to(settings, &data_root.join("server.log"))
}

fn spawn_logging_to(settings: &[(String, String)], log: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
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

fn any_loopback_address() -> Ipv4Addr {
    let [second, third, fourth] = std::array::from_fn(|_| rand::random_range(1..255_u8));
    Ipv4Addr::new(127, second, third, fourth)
}

fn text(path: &Path) -> String {
    path.to_str().expect("the path is UTF-8").to_owned()
}

/// A workspace's first process, as the host sees it.
pub(crate) fn process_one(bot: &str) -> Option<rustix::process::Pid> {
    let processes = std::fs::read_dir("/proc").expect("processes can be listed");
    let pid = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"/opt/memoh/bridge"))
                && std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(bot))
        });
    rustix::process::Pid::from_raw(pid?)
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
