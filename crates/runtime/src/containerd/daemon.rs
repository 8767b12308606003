//! A containerd of our own: its configuration, its start in a session of its own, its end.
//!
//! It outlives whoever starts it, so that workspaces run on while the server restarts; whoever wants
//! it gone calls [`stop`]. Nothing of another containerd on the host is touched.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use containerd_client::services::v1::version_client::VersionClient;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::time::Instant;

/// How long a new daemon may take until it answers. It loads its plugins in well under a second.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The longest path a Unix socket can be bound to.
const SOCKET_PATH_LIMIT: usize = 107;

/// Where a containerd of our own keeps its things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// The program; a bare name is looked up in `PATH`. Its shims are looked for beside it first.
    pub binary: PathBuf,
    /// What lasts: images, layers, records. On a file system that can carry overlayfs and id-mapped mounts.
    pub root: PathBuf,
    /// What must not outlive a reboot: bundles, sockets of shims.
    pub state: PathBuf,
    /// Its gRPC socket, at most 107 bytes long.
    pub socket: PathBuf,
    /// Its configuration file, written anew by every start.
    pub config_file: PathBuf,
    /// Its log, appended to.
    pub log_file: PathBuf,
}

/// Why a containerd of our own could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket's path does not fit into an address.
    #[error("the containerd socket path {0} is longer than 107 bytes")]
    SocketPathTooLong(PathBuf),
    /// A file or directory could not be made.
    #[error("preparing {path} for containerd failed")]
    Prepare {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The program could not be run.
    #[error("starting {binary} failed")]
    Spawn {
        binary: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It ended before it answered.
    #[error("containerd ended with {status} before it answered; the end of its log {log_file}: {log_tail}")]
    Ended {
        status: String,
        log_file: PathBuf,
        log_tail: String,
    },
    /// It runs and does not answer.
    #[error("containerd did not answer on {socket} within {seconds} s; the end of its log {log_file}: {log_tail}")]
    Silent {
        socket: PathBuf,
        seconds: u64,
        log_file: PathBuf,
        log_tail: String,
    },
    /// It did not end, or its end could not be watched.
    #[error("ending containerd (process {pid}) failed")]
    Stop {
        pid: i32,
        #[source]
        source: io::Error,
    },
}

/// A daemon that answers.
#[derive(Debug)]
pub struct Daemon {
    /// Its process.
    pub pid: i32,
    /// It ran before this call.
    pub already_running: bool,
    /// Reaps it when it ends before us; never kills it.
    _child: Option<tokio::process::Child>,
}

impl DaemonConfig {
    /// The usual places: `lasting` for its root, `volatile` (below `/run`) for all else.
    pub fn new(lasting: &Path, volatile: &Path) -> Self {
        Self {
            binary: PathBuf::from("containerd"),
            root: lasting.to_owned(),
            state: volatile.join("state"),
            socket: volatile.join("containerd.sock"),
            config_file: volatile.join("config.toml"),
            log_file: volatile.join("containerd.log"),
        }
    }

    /// The text of the configuration file, in version 2, which 1.6 and 2.x both read.
    ///
    /// Kubernetes' plugin is off under its old and new names: it wants CNI and listens for nobody here.
    pub fn text(&self) -> String {
        let quoted = |path: &Path| toml_string(&path.to_string_lossy());
        format!(
            "version = 2\n\
             root = {root}\n\
             state = {state}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
             \"io.containerd.cri.v1.runtime\", \"io.containerd.podsandbox.controller.v1.podsandbox\"]\n\
             \n[grpc]\n  address = {socket}\n\
             \n[debug]\n  level = \"info\"\n",
            root = quoted(&self.root),
            state = quoted(&self.state),
            socket = quoted(&self.socket),
        )
    }

    /// Starts it, or finds it running, and waits until it answers.
    ///
    /// # Errors
    /// When it cannot be run, ends at once or does not answer within 30 s; then it does not run.
    pub async fn start(&self) -> Result<Daemon, DaemonError> {
        if self.socket.as_os_str().len() > SOCKET_PATH_LIMIT {
            return Err(DaemonError::SocketPathTooLong(self.socket.clone()));
        }
        if let Some(pid) = peer_process(&self.socket) {
            self.until_answering(None).await?;
            return Ok(Daemon {
                pid,
                already_running: true,
                _child: None,
            });
        }
        self.prepare()?;
        let mut child = self.spawn()?;
        if let Err(error) = self.until_answering(Some(&mut child)).await {
            if let Err(source) = child.kill().await {
                tracing::warn!(error = %source, "a containerd that did not answer could not be killed");
            }
            return Err(error);
        }
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.or_else(|| peer_process(&self.socket)).unwrap_or_default();
        Ok(Daemon {
            pid,
            already_running: false,
            _child: Some(child),
        })
    }

    fn prepare(&self) -> Result<(), DaemonError> {
        let parents = [&self.socket, &self.config_file, &self.log_file];
        let directories = parents.iter().filter_map(|file| file.parent());
        for directory in directories.chain([self.root.as_path(), self.state.as_path()]) {
            std::fs::create_dir_all(directory).map_err(|source| DaemonError::Prepare {
                path: directory.to_owned(),
                source,
            })?;
        }
        std::fs::write(&self.config_file, self.text()).map_err(|source| DaemonError::Prepare {
            path: self.config_file.clone(),
            source,
        })
    }

    fn spawn(&self) -> Result<tokio::process::Child, DaemonError> {
        let open = || {
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(&self.log_file)
        };
        let log = |source| DaemonError::Prepare {
            path: self.log_file.clone(),
            source,
        };
        let mut command = std::process::Command::new(&self.binary);
        if let Some(path) = self.search_path() {
            command.env("PATH", path);
        }
        command
            .arg("--config")
            .arg(&self.config_file)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(open().map_err(log)?)
            .stderr(open().map_err(log)?);
        crate::system_calls::in_own_session(&mut command);
        let spawned = tokio::process::Command::from(command).spawn();
        spawned.map_err(|source| DaemonError::Spawn {
            binary: self.binary.clone(),
            source,
        })
    }

    /// With the program's own directory first: a containerd of one release with shims of another is nobody's test.
    fn search_path(&self) -> Option<OsString> {
        let beside = self.binary.parent().filter(|directory| directory.is_absolute())?;
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let directories = std::iter::once(beside.to_owned()).chain(std::env::split_paths(&inherited));
        std::env::join_paths(directories).ok()
    }

    async fn until_answering(&self, mut child: Option<&mut tokio::process::Child>) -> Result<(), DaemonError> {
        let end = Instant::now() + START_LIMIT;
        loop {
            if answers(&self.socket).await {
                return Ok(());
            }
            if let Some(status) = child.as_mut().and_then(|child| child.try_wait().transpose()) {
                return Err(DaemonError::Ended {
                    status: status.map_or_else(|error| error.to_string(), |status| status.to_string()),
                    log_file: self.log_file.clone(),
                    log_tail: tail(&self.log_file),
                });
            }
            if Instant::now() >= end {
                return Err(DaemonError::Silent {
                    socket: self.socket.clone(),
                    seconds: START_LIMIT.as_secs(),
                    log_file: self.log_file.clone(),
                    log_tail: tail(&self.log_file),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The process that listens on a socket, by `SO_PEERCRED`; `None` when nobody does.
pub fn peer_process(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    Some(peer.pid.as_raw_nonzero().get())
}

/// Ends a daemon: SIGTERM, after 10 s SIGKILL. Its containers run on. One that is gone is a success.
///
/// # Errors
/// When it cannot be signalled or is still there after that.
pub async fn stop(pid: i32) -> Result<(), DaemonError> {
    let failed = |source: io::Error| DaemonError::Stop { pid, source };
    let process = Pid::from_raw(pid).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    // A descriptor of the process, so that its number can go to another one without harm.
    let handle = match rustix::process::pidfd_open(process, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(source) => return Err(failed(source.into())),
    };
    let ended = tokio::task::spawn_blocking(move || {
        for signal in [Signal::TERM, Signal::KILL] {
            match rustix::process::pidfd_send_signal(&handle, signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                Err(source) => return Err(source.into()),
            }
            if has_ended(&handle, STOP_LIMIT)? {
                return Ok(());
            }
        }
        Err(io::Error::from(io::ErrorKind::TimedOut))
    });
    ended
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(failed)
}

fn has_ended(handle: &std::os::fd::OwnedFd, limit: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let mut waited = [PollFd::new(handle, PollFlags::IN)];
    Ok(poll(&mut waited, Some(&timeout))? > 0)
}

async fn answers(socket: &Path) -> bool {
    let asked = async {
        let channel = containerd_client::connect(socket).await.ok()?;
        VersionClient::new(channel).version(()).await.ok()
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), asked).await, Ok(Some(_)))
}

fn tail(log_file: &Path) -> String {
    match std::fs::read(log_file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2048)..]).into_owned(),
        Err(error) => format!("(unreadable: {error})"),
    }
}

/// TOML's basic string.
fn toml_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => quoted.push_str(&format!("\\u{:04X}", control as u32)),
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_as_toml_wants_them() {
        assert_eq!(toml_string("/a \"b\"\\c\n"), "\"/a \\\"b\\\"\\\\c\\u000A\"");
    }

    #[tokio::test]
    async fn a_socket_path_that_cannot_be_bound_is_refused() {
        let deep = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let refused = DaemonConfig::new(&deep, &deep).start().await;
        assert!(matches!(refused, Err(DaemonError::SocketPathTooLong(_))));
    }

    #[tokio::test]
    async fn a_daemon_that_ends_at_once_is_told_with_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = DaemonConfig::new(&directory.path().join("root"), directory.path());
        config.binary = PathBuf::from("/bin/false");
        let error = config.start().await.unwrap_err();
        assert!(matches!(error, DaemonError::Ended { .. }), "{error}");
    }
}
