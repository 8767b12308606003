//! The two commands of a newcomer: `skep up` and `skep down`, with a containerd, a registry and a
//! network that are real. Root and what `scripts/install test` installs are needed.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use skep_testkit::images::busybox_image;
use skep_testkit::registry::Registry;

/// `up` with an image of a megabyte, on a busy machine.
const UP_LIMIT: Duration = Duration::from_secs(120);
const END_LIMIT: Duration = Duration::from_secs(45);

/// How long a process that was ended may take to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(5);

/// The command line takes the server that began last, whichever test it is of.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A data root with names on the host of its own; taken down and deleted in any case.
struct Machine {
    directory: tempfile::TempDir,
    bridge: String,
    table: String,
    up: Option<Child>,
    /// Its port is no other test's.
    _port: TcpListener,
}

impl Machine {
    /// `which` tells the machines of these tests apart: several run at once.
    fn new(which: u8, image: &str, registry: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("skep-up-")
            .tempdir_in("/var/tmp")
            .expect("a directory");
        let number = std::process::id() % 10_000;
        let (bridge, table) = (format!("skepup{number}{which}"), format!("skep_up_{number}_{which}"));
        // An address of its own: nobody else gets the port there while the server is away.
        let mut host = [127_u8; 4];
        host[1..].fill_with(|| rand::random_range(1..255));
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let address = format!("{}:{port}", Ipv4Addr::from(host));
        let text = format!(
            "[server]\naddr = \"{address}\"\n[workspace]\ndata_root = \"{root}\"\ndefault_image = \"{image}\"\n\
             [registry.\"{registry}\"]\nplain_http = true\n\
             [network]\nbridge = \"{bridge}\"\ntable = \"{table}\"\nsubnet = \"10.{second}.0.0/16\"\n",
            root = directory.path().join("data").display(),
            second = 120 + 3 * (number % 40) + u32::from(which),
        );
        std::fs::write(directory.path().join("skep.toml"), text).unwrap();
        Self {
            directory,
            bridge,
            table,
            up: None,
            _port: holder,
        }
    }

    fn skep(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
            .env_remove("SKEP_SERVER")
            .env_remove("SKEP_TOKEN")
            .env("NO_PROXY", "*");
        command
    }

    fn data_root(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The limits of open files of the server, soft and hard.
    fn open_files(&self) -> (String, String) {
        let pid = self.up.as_ref().expect("`skep up` runs").id();
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let mut words = line.unwrap().split_ascii_whitespace().map(str::to_owned);
        (words.next().unwrap(), words.next().unwrap())
    }

    /// Runs `skep up` until it is ready, and returns what it said.
    fn up(&mut self) -> String {
        let log = self.directory.path().join("up.log");
        let file = File::create(&log).unwrap();
        // With the soft limit that most systems give everybody.
        let skep = self.skep(&["up"]);
        let mut limited = Command::new("prlimit");
        limited
            .arg("--nofile=1024:")
            .arg(skep.get_program())
            .args(skep.get_args())
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .env_remove("SKEP_SERVER")
            .env_remove("SKEP_TOKEN")
            .env("NO_PROXY", "*");
        let child = limited
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .expect("skep runs");
        self.up = Some(child);
        let begun = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log).unwrap();
            if said.contains("Ctrl-C ends the server") {
                return said;
            }
            let ended = self.up.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "`skep up` ended ({ended:?}):\n{said}");
            assert!(begun.elapsed() < UP_LIMIT, "`skep up` is not ready; it said:\n{said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn address(&self) -> String {
        let config = std::fs::read_to_string(self.directory.path().join("skep.toml")).unwrap();
        config.split('"').nth(1).unwrap().to_owned()
    }

    fn signs_in(&self, user: &str, password: &str) -> bool {
        let address = self.address();
        let mut login = self.skep(&["--server", &address, "login", "--password-stdin", "--username", user]);
        login
            .env("XDG_CONFIG_HOME", self.directory.path())
            .stdin(Stdio::piped());
        let mut login = login.spawn().expect("skep runs");
        login.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
        login.wait().unwrap().success()
    }

    /// Ctrl-C.
    fn interrupt(&mut self) {
        let mut child = self.up.take().expect("`skep up` runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < END_LIMIT, "`skep up` does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(child.wait().unwrap().success());
    }

    /// Ends a server that runs, too: nothing may be left on the host, whatever a test did.
    fn down(&mut self) -> Output {
        if self.up.is_some() {
            self.interrupt();
        }
        self.skep(&["down"]).output().expect("skep runs")
    }

    fn id(&self) -> String {
        std::fs::read_to_string(self.data_root().join("id"))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Mounts, bridge and table of this data root.
    fn left_on_the_host(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let (root, id) = (self.directory.path().display().to_string(), self.id());
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&root) || line.contains(&id))
                .map(str::to_owned),
        );
        if Path::new("/sys/class/net").join(&self.bridge).exists() {
            left.push(self.bridge.clone());
        }
        let tables = Command::new("nft").args(["list", "tables"]).output().expect("nft runs");
        if String::from_utf8_lossy(&tables.stdout).contains(&self.table) {
            left.push(self.table.clone());
        }
        left
    }

    fn processes(&self) -> Vec<String> {
        let (mut found, id) = (Vec::new(), self.id());
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&id) {
                found.push(line);
            }
        }
        found
    }

    /// After `down`. A process that was ended may be seen a little longer, all else is gone when `down` has returned.
    fn nothing_is_left_on_the_host(&self) {
        let left = self.left_on_the_host();
        assert!(left.is_empty(), "left on the host: {left:?}");
        let begun = Instant::now();
        loop {
            let running = self.processes();
            if running.is_empty() {
                return;
            }
            assert!(begun.elapsed() < GONE_LIMIT, "left on the host: {running:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut child) = self.up.take() {
            child.kill().expect("`skep up` can be killed");
            child.wait().expect("`skep up` ends");
        }
        if self.data_root().join("id").exists() {
            let output = self.skep(&["down"]).output().expect("skep runs");
            if !output.status.success() {
                eprintln!("`skep down` failed: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn up_makes_a_workspace_that_outlives_the_server_and_comes_back_after_down() {
    let registry = Registry::start();
    let image = busybox_image().push(&registry, "base/busybox", "1").await;
    let host = registry.host();
    tokio::task::spawn_blocking(move || {
        let _alone = alone();
        let mut machine = Machine::new(0, &image, &host);
        let first = machine.up();
        assert!(first.contains("1 visits"), "the command's output is missing:\n{first}");
        assert!(
            first.contains("with the password"),
            "nobody is told how to sign in:\n{first}"
        );
        // It said that to a file: the password is in another one, for root alone.
        let file = machine.data_root().join("first-password");
        assert!(first.contains(&file.display().to_string()), "{first}");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let kept = std::fs::read_to_string(&file).unwrap();
        let (user, password) = kept.trim().split_once(' ').expect("a user and a password");
        assert!(!first.contains(password), "the password is in a log");
        assert!(machine.signs_in(user, password));
        let (soft, hard) = machine.open_files();
        assert_eq!(soft, hard, "the server has no more open files than everybody");
        let file = std::fs::metadata("/run/skep/server.json").expect("the server says where it is");
        assert_eq!(file.permissions().mode() & 0o777, 0o644);
        machine.interrupt();
        assert!(!machine.left_on_the_host().is_empty(), "the network stays");
        assert!(!machine.processes().is_empty(), "workspaces and containerd run on");

        let begun = Instant::now();
        let second = machine.up();
        assert!(second.contains("2 visits"), "the workspace is another one:\n{second}");
        assert!(
            second.contains("runs already"),
            "containerd was started again:\n{second}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "a second `up` took {:?}",
            begun.elapsed()
        );

        let down = machine.down();
        assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
        machine.nothing_is_left_on_the_host();
        assert!(
            machine.skep(&["down"]).output().unwrap().status.success(),
            "a second `down` is accepted"
        );

        let third = machine.up();
        assert!(third.contains("3 visits"), "`down` lost something:\n{third}");

        // What its people do to one workspace keeps no server from the others.
        let (server, spoil) = (machine.address(), "rm visits && mkdir visits");
        let spoiled = machine.skep(&["--server", &server, "exec", "demo", "--", "sh", "-c", spoil]);
        assert!({ spoiled }.status().unwrap().success());
        machine.interrupt();
        let fourth = machine.up();
        assert!(fourth.contains("the first workspace cannot be shown"), "{fourth}");
        assert!(machine.down().status.success());
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_a_data_root_is_refused_and_down_ends_the_one_of_its_own() {
    let registry = Registry::start();
    let image = busybox_image().push(&registry, "base/busybox", "1").await;
    let host = registry.host();
    tokio::task::spawn_blocking(move || {
        let _alone = alone();
        let mut machine = Machine::new(1, &image, &host);
        machine.up();
        let refused = machine.skep(&["serve"]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("skep up, process"), "{said}");

        // `down` ends the server of its data root, whichever began last, and takes only that one from the command line.
        let mut second = Machine::new(2, &image, &host);
        second.up();
        let down = machine.skep(&["down"]).output().unwrap();
        assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
        assert!(machine.up.as_mut().unwrap().wait().unwrap().success());
        machine.up = None;
        machine.nothing_is_left_on_the_host();
        let list = second.skep(&["ls"]).output().unwrap();
        assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
        assert!(second.down().status.success());
    })
    .await
    .unwrap();
}
