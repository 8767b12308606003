//! A workspace to test against: the static bridge as process 1 of a pid and mount namespace of its own, in a root
//! directory with nothing but busybox, called over its socket from outside, as the host does.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use skep_bridge_protocol::MAX_MESSAGE_BYTES;
use skep_bridge_protocol::bridgepb::container_service_client::ContainerServiceClient;
use skep_bridge_protocol::workspace::workspace_client::WorkspaceClient;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

pub(crate) const SOCKET: &str = "run/memoh/bridge.sock";
const START_LIMIT: Duration = Duration::from_secs(60);

/// What the root directory holds.
pub(crate) struct Layout {
    pub(crate) busybox: bool,
    pub(crate) init: Init,
    pub(crate) environment: Vec<(&'static str, &'static str)>,
    pub(crate) prepare: fn(&Path),
}

#[derive(PartialEq)]
pub(crate) enum Init {
    Bridge,
    /// A shell is process 1 and the bridge its child.
    Shell,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            busybox: true,
            init: Init::Bridge,
            environment: Vec::new(),
            prepare: |_| {},
        }
    }
}

pub(crate) struct Workspace {
    directory: TempDir,
    process: Child,
}

impl Workspace {
    pub(crate) async fn start() -> Self {
        Self::with(Layout::default()).await
    }

    pub(crate) async fn with(layout: Layout) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("skep-bridge-")
            .tempdir()
            .expect("a directory");
        let root = directory.path().join("root");
        build_root(&root, layout.busybox);
        (layout.prepare)(&root);
        let process = spawn(&root, &layout);
        let workspace = Self { directory, process };
        workspace.wait_for_answer().await;
        workspace
    }

    /// What a bridge says that refuses to start.
    pub(crate) async fn refused(layout: Layout) -> String {
        let directory = tempfile::Builder::new()
            .prefix("skep-bridge-")
            .tempdir()
            .expect("a directory");
        let root = directory.path().join("root");
        build_root(&root, layout.busybox);
        (layout.prepare)(&root);
        let process = spawn(&root, &layout);
        let mut workspace = Self { directory, process };
        let status = workspace.wait_for_end(START_LIMIT).await;
        assert!(!status.success(), "the bridge ended well: {status}");
        fs::read_to_string(workspace.directory.path().join("stderr")).expect("what it said")
    }

    /// Starts the bridge again on the same files, after it has ended.
    pub(crate) async fn start_again(&mut self, layout: Layout) {
        assert!(
            self.process.try_wait().expect("asked").is_some(),
            "the bridge still runs"
        );
        self.process = spawn(&self.root(), &layout);
        self.wait_for_answer().await;
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// A path of the workspace as the host sees it.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.root().join(inside.trim_start_matches('/'))
    }

    async fn wait_for_answer(&self) {
        let until = Instant::now() + START_LIMIT;
        loop {
            let answer = match self.try_channel().await {
                Ok(channel) => {
                    let info = skep_bridge_protocol::workspace::InfoRequest {};
                    WorkspaceClient::new(channel)
                        .info(info)
                        .await
                        .map(|_| ())
                        .map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            let Err(last) = answer else { return };
            assert!(Instant::now() < until, "the bridge does not answer: {last}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A place beside the root directory, which no process of the workspace sees.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn try_channel(&self) -> Result<Channel, tonic::transport::Error> {
        let socket = self.root().join(SOCKET);
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://bridge")
            .initial_stream_window_size(2 * 1024 * 1024)
            .initial_connection_window_size(8 * 1024 * 1024)
            .connect_with_connector(connector)
            .await
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.try_channel().await.expect("a connection")
    }

    pub(crate) async fn reference(&self) -> ContainerServiceClient<Channel> {
        ContainerServiceClient::new(self.channel().await)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) async fn ours(&self) -> WorkspaceClient<Channel> {
        WorkspaceClient::new(self.channel().await)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The bridge's pid as the host sees it: the only child of `unshare`.
    pub(crate) fn bridge_pid(&self) -> i32 {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let children = fs::read_to_string(children).expect("the children of unshare");
        children
            .split_whitespace()
            .next()
            .expect("one child")
            .parse()
            .expect("a pid")
    }

    pub(crate) fn signal_bridge(&self, signal: &str) {
        let sent = Command::new("/bin/busybox")
            .args(["kill", signal, &self.bridge_pid().to_string()])
            .status();
        assert!(sent.expect("busybox").success());
    }

    pub(crate) async fn wait_for_end(&mut self, limit: Duration) -> ExitStatus {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.process.try_wait().expect("asked") {
                return status;
            }
            assert!(Instant::now() < until, "the bridge did not end within {limit:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn open_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.bridge_pid()))
            .expect("the bridge's descriptors")
            .count()
    }

    /// All processes of the workspace but the bridge: state and command name.
    pub(crate) fn processes(&self) -> Vec<(char, String)> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", self.bridge_pid())).expect("a namespace");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let Ok(link) = fs::read_link(format!("/proc/{pid}/ns/pid")) else {
                continue;
            };
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
                continue;
            };
            if link == namespace && pid != self.bridge_pid() {
                let (name, rest) = stat.split_once(')').expect("a name");
                let state = rest.trim_start().chars().next().expect("a state");
                found.push((state, name.split_once('(').expect("a name").1.to_owned()));
            }
        }
        found
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default();
            eprintln!("the bridge said: {said}");
        }
        // --kill-child ends the bridge, and with process 1 its namespace and mounts.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// By a process of its own. What this one writes itself, a child that another test forks at that moment holds open for
/// writing until it executes its own program, and until then the new program is "text file busy" to who executes it.
fn put_program(program: &[u8], place: &Path) {
    let mut writer = Command::new("install")
        .args(["-m", "0755", "/dev/stdin"])
        .arg(place)
        .stdin(Stdio::piped())
        .spawn()
        .expect("install");
    let mut input = writer.stdin.take().expect("its input");
    std::io::Write::write_all(&mut input, program).expect("a program");
    drop(input);
    assert!(writer.wait().expect("install").success());
}

fn build_root(root: &Path, busybox: bool) {
    for directory in [
        "opt/memoh/templates",
        "opt/memoh/toolkit/bin",
        "run/memoh",
        "proc",
        "dev/pts",
        "etc",
        "small",
    ] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    put_program(skep_bridge_binary::BRIDGE, &root.join("opt/memoh/bridge"));
    symlink("pts/ptmx", root.join("dev/ptmx")).expect("ptmx");
    if busybox {
        fs::create_dir_all(root.join("bin")).expect("bin");
        fs::create_dir_all(root.join("tmp")).expect("tmp");
        let program = fs::read("/bin/busybox").expect("busybox (install busybox-static)");
        put_program(&program, &root.join("bin/busybox"));
        let install = Command::new("chroot")
            .arg(root)
            .args(["/bin/busybox", "--install", "-s", "/bin"])
            .status();
        assert!(install.expect("chroot").success());
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
        )
        .expect("");
        fs::write(root.join("etc/group"), "root:x:0:\nann:x:1000:\nvideo:x:44:ann\n").expect("");
        fs::create_dir_all(root.join("home/ann")).expect("a home");
        std::os::unix::fs::chown(root.join("home/ann"), Some(1000), Some(1000)).expect("owned");
    }
}

fn spawn(root: &Path, layout: &Layout) -> Child {
    let script = r#"
        set -e
        ulimit -Sn 1024
        mount -t proc proc "$1/proc"
        mount -t devpts -o newinstance,ptmxmode=0666 devpts "$1/dev/pts"
        mount -t tmpfs -o size=1m tmpfs "$1/small"
        if [ -d "$1/layers" ]; then
            # With the options of the runtime's own mounts.
            options="index=off,redirect_dir=off,metacopy=off"
            mount -t overlay -o "$options,lowerdir=$1/layers/lower,upperdir=$1/layers/upper,workdir=$1/layers/work" \
                overlay "$1/layered"
        fi
        [ -e "$1/dev/null" ] || mknod -m 666 "$1/dev/null" c 1 3
        if [ "$2" = shell ]; then
            chroot "$1" /opt/memoh/bridge & wait
        else
            exec chroot "$1" /opt/memoh/bridge
        fi
    "#;
    let init = if layout.init == Init::Shell { "shell" } else { "bridge" };
    Command::new("unshare")
        .args([
            "--fork",
            "--pid",
            "--mount",
            "--propagation",
            "private",
            "--kill-child",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(root)
        .arg(init)
        .env_clear()
        .envs([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("TZ", "Asia/Tokyo"),
            ("LANG", "C.UTF-8"),
        ])
        .env("BRIDGE_SOCKET_PATH", format!("/{SOCKET}"))
        .envs(layout.environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(root.with_file_name("stderr")).expect("a file for what the bridge says"))
        .spawn()
        .expect("unshare (util-linux)")
}
