//! A host of its own for each test: network and mount namespace are private, so that bridges, tables,
//! sysctls and mounts touch nothing else and vanish with the test, however it ends.
//!
//! ```text
//!   workspaces ── bridge ── [ host ] ── 192.0.2.0/24 ── [ internet: 198.51.100.10, 10.9.9.9, 10.9.9.53, … ]
//! ```

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use skep_names::BotId;
use skep_runtime::network::{Network, NetworkConfig};

use crate::system_calls::leave_namespaces;

/// Public; reached only with masquerade, as the internet has no route back.
pub(crate) const PUBLIC: &str = "198.51.100.10";
pub(crate) const PRIVATE: &str = "10.9.9.9";
pub(crate) const ALLOWED: &str = "10.9.9.10";
pub(crate) const RESOLVER: &str = "10.9.9.53";
pub(crate) const METADATA: &str = "169.254.169.254";
/// The host's address towards the internet.
pub(crate) const UPLINK: &str = "192.0.2.1";

pub(crate) struct Stage {
    directory: tempfile::TempDir,
    pub(crate) bridge: String,
    pub(crate) table: String,
    pub(crate) subnet: String,
}

/// Runs a test on a host of its own.
pub(crate) fn on_stage<F: Future<Output = ()>>(test: impl FnOnce(Stage) -> F + Send + 'static) {
    let host = std::thread::spawn(move || {
        leave_namespaces(UnshareFlags::NEWNET | UnshareFlags::NEWNS).expect("these tests need root");
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        mount_change("/", private).unwrap();
        let stage = Stage::build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(stage));
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Stage {
    fn build() -> Self {
        let random = BotId::random();
        let digits = &random.as_str()[..6];
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        let stage = Self {
            directory: tempfile::tempdir().unwrap(),
            bridge: format!("skt{digits}"),
            table: format!("skept_{digits}"),
            subnet: format!("10.20{}.{}.0/24", byte(0) % 10, byte(2)),
        };
        // The mount namespace dies with the test; what is bound in this directory must not keep it from going.
        for directory in ["netns", "conf", "run"] {
            std::fs::create_dir(stage.path(directory)).unwrap();
        }
        run("ip link set lo up");
        stage.make_internet();
        stage
    }

    fn make_internet(&self) {
        make_namespace(&self.internet());
        let internet = self.internet();
        let internet = internet.display();
        run("ip link add up0 type veth peer name up1");
        run(&format!("ip link set up1 netns {internet}"));
        run(&format!("ip addr add {UPLINK}/24 dev up0"));
        run("ip link set up0 up");
        run_in(&self.internet(), "ip link set lo up");
        run_in(&self.internet(), "ip addr add 192.0.2.2/24 dev up1");
        run_in(&self.internet(), "ip link set up1 up");
        for address in [PUBLIC, PRIVATE, ALLOWED, RESOLVER, METADATA] {
            run_in(&self.internet(), &format!("ip addr add {address}/32 dev lo"));
        }
        run("ip route add default via 192.0.2.2");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn internet(&self) -> PathBuf {
        self.path("internet")
    }

    pub(crate) fn config(&self) -> NetworkConfig {
        NetworkConfig {
            bridge: self.bridge.clone(),
            table: self.table.clone(),
            subnet: self.subnet.parse().unwrap(),
            run_root: self.path("run"),
            resolvers: vec![RESOLVER.parse().unwrap()],
            ..NetworkConfig::new("one")
        }
    }

    pub(crate) fn gateway(&self) -> String {
        self.subnet.replace(".0/24", ".1")
    }

    /// A network that is ready for workspaces.
    pub(crate) async fn network(&self, config: NetworkConfig) -> Network {
        let network = Network::new(config).unwrap();
        network.prepare().await.unwrap();
        network
    }

    /// A namespace for a workspace, not attached yet.
    pub(crate) fn workspace(&self) -> Workspace {
        let bot = BotId::random();
        let netns = self.path("netns").join(format!("skep-{bot}"));
        make_namespace(&netns);
        Workspace { bot, netns }
    }

    /// The same, owned by a user namespace of its own, as workspaces have it.
    pub(crate) fn workspace_with_user_namespace(&self) -> Workspace {
        let bot = BotId::random();
        let netns = self.path("netns").join(format!("skep-{bot}"));
        File::create(&netns).unwrap();
        let mut holder = Command::new("unshare")
            .args(["--user", "--net", "--map-root-user", "sh", "-c", "echo made; exec cat"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(holder.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert_eq!(line, "made\n");
        mount_bind(format!("/proc/{}/ns/net", holder.id()), &netns).unwrap();
        holder.kill().unwrap();
        holder.wait().unwrap();
        Workspace { bot, netns }
    }

    /// Addresses that host-local has given out.
    pub(crate) fn leases(&self) -> Vec<String> {
        let directory = self.path("run").join("one/cni/leases/skep");
        let Ok(entries) = std::fs::read_dir(directory) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("10.")).collect()
    }

    /// Records of attachments.
    pub(crate) fn records(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path("run").join("one/cni/attachments")) else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Waits until the kernel has removed the interfaces of namespaces that are gone.
    pub(crate) async fn interfaces_become(&self, wanted: &[String]) {
        let limit = Instant::now() + Duration::from_secs(20);
        while self.interfaces() != wanted {
            assert!(Instant::now() < limit, "{:?} is not {wanted:?}", self.interfaces());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Interfaces of the host, by name.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        let listed = output("ip -o link show");
        let mut names: Vec<String> = listed
            .lines()
            .filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned()))
            .collect();
        names.sort();
        names
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The mount namespace takes the rest with it; this one would keep its file from being removed.
        if let Err(error) = unmount(self.internet(), UnmountFlags::DETACH) {
            eprintln!("unbinding the internet: {error}");
        }
    }
}

/// A workspace's namespace; unbound when it is dropped.
pub(crate) struct Workspace {
    pub(crate) bot: BotId,
    pub(crate) netns: PathBuf,
}

impl Workspace {
    /// Removes the namespace, as a crash of the host's tools would.
    pub(crate) fn lose_namespace(&self) {
        unmount(&self.netns, UnmountFlags::DETACH).unwrap();
        std::fs::remove_file(&self.netns).unwrap();
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if unmount(&self.netns, UnmountFlags::DETACH).is_ok() {
            std::fs::remove_file(&self.netns).unwrap();
        }
    }
}

fn make_namespace(path: &Path) {
    File::create(path).unwrap();
    let path = path.to_path_buf();
    let made = std::thread::spawn(move || {
        leave_namespaces(UnshareFlags::NEWNET).unwrap();
        mount_bind("/proc/thread-self/ns/net", &path).unwrap();
    });
    made.join().unwrap();
}

/// Runs a closure in a network namespace, in a thread of its own.
pub(crate) fn inside<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let namespace = File::open(netns).unwrap();
    std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    })
}

/// Runs a command on the test's host; it must succeed.
pub(crate) fn run(command: &str) {
    output(command);
}

/// Runs a command in a namespace; it must succeed.
pub(crate) fn run_in(netns: &Path, command: &str) -> String {
    output(&format!("nsenter --net={} {command}", netns.display()))
}

pub(crate) fn output(command: &str) -> String {
    let mut words = command.split_ascii_whitespace();
    let done = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command}: {errors}");
    String::from_utf8(done.stdout).unwrap()
}
