//! Process 1 of a fake workspace: a real bridge in process and mount namespaces of its own, below a plain directory.
//!
//! Not an isolation: it shares users, network and limits with the host. What it has is what exec and files
//! can tell: its own root, `/proc`, `/dev/pts`, a process 1 that reaps, and an end that takes everything along.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Run on the host. Its watcher kills process 1 when its standard input closes, so that a test run that is
/// killed leaves nothing. (The watcher is the first child of this shell, process 1 the second.)
const OUTER: &str = r#"exec 3<&0 </dev/null
( read -r _ <&3; read -r _ one _ < "/proc/$$/task/$$/children"; kill -KILL "$one" ) >/dev/null 2>&1 &
exec 3<&-
WATCHER=$! exec unshare --pid --mount /bin/sh -c "$MIDDLE" middle "$@""#;

/// Run in the new mount namespace; its first child is process 1 of the new pid namespace. Its own end is
/// that of process 1. (`unshare --fork` of util-linux 2.38 loses the status of a child that was killed.)
const MIDDLE: &str = r#"/bin/sh -c "$INNER" inner "$@" &
echo $!
wait $!
status=$?
kill "$WATCHER"
exit "$status""#;

/// Run as process 1: mounts, then becomes what it is told to be. `$1` root, `$2` socket directory, `$3` runtime directory.
const INNER: &str = r#"set -e
root=$1; mount --bind "$2" "$root/run/memoh"; mount --bind -o ro "$3" "$root/opt/memoh"
mount -t proc proc "$root/proc"; mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
shift 3
unset INNER MIDDLE WATCHER OLDPWD
echo ready
exec chroot "$root" "$@" >/dev/null"#;

/// How long the mounts may take before the start counts as failed.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a killed process tree may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// What to run and where.
pub(super) struct Launch {
    pub(super) root: PathBuf,
    pub(super) socket_directory: PathBuf,
    pub(super) runtime_directory: PathBuf,
    pub(super) log: PathBuf,
    pub(super) env: BTreeMap<String, String>,
    pub(super) argv: Vec<String>,
}

#[derive(Default)]
struct End {
    status: Mutex<Option<u32>>,
    changed: Condvar,
}

impl End {
    fn lock(&self) -> MutexGuard<'_, Option<u32>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running process 1. Dropping it kills everything in it and waits for that.
pub(super) struct Process {
    process_one: Option<(Pid, OwnedFd)>,
    outer: OwnedFd,
    end: Arc<End>,
    // Closing it is what tells the outer shell to kill.
    stdin: Option<ChildStdin>,
    waiter: Option<JoinHandle<()>>,
}

impl Process {
    /// Blocks until process 1 is what `launch` says, or has failed to become it.
    /// `on_end` is called once, on a thread of its own, with the status process 1 ended with.
    pub(super) fn launch(launch: &Launch, on_end: impl FnOnce(u32) + Send + 'static) -> io::Result<Self> {
        let mut child = spawn(launch)?;
        let outer = pidfd_open(pid_of(&child)?, PidfdFlags::empty())?;
        let stdin = child.stdin.take();
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("no pipe to the process"))?;
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let end = Arc::new(End::default());
        let told = Arc::clone(&end);
        let waiter = std::thread::spawn(move || {
            // The receiver has given up when this fails; the process is then killed by its owner's drop.
            if sender.send(read_until_ready(stdout)).is_err() {
                tracing::debug!("nobody waits for the fake process any more");
            }
            let status = child.wait().map_or(255, exit_status_of);
            *told.lock() = Some(status);
            told.changed.notify_all();
            on_end(status);
        });
        let mut process = Self {
            process_one: None,
            outer,
            end,
            stdin,
            waiter: Some(waiter),
        };
        let process_one = receiver
            .recv_timeout(READY_WITHIN)
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the namespaces were not ready in time"))??;
        process.process_one = open_process(process_one)?;
        Ok(process)
    }

    /// Process 1 as the host sees it; `None` when it had ended before it could be seen.
    pub(super) fn host_pid(&self) -> Option<i32> {
        self.process_one.as_ref().map(|(pid, _)| pid.as_raw_nonzero().get())
    }

    /// The status it ended with, once it has.
    pub(super) fn ended(&self) -> Option<u32> {
        *self.end.lock()
    }

    /// Blocks until it has ended or the time is over; says whether it has.
    pub(super) fn wait(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut status = self.end.lock();
        while status.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.end.changed.wait_timeout(status, left);
            status = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Sends a signal to process 1; one that is gone is a success.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some((_, pidfd)) = &self.process_one else {
            return Ok(());
        };
        match pidfd_send_signal(pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A process 1 with all that is below it, stopped until this is dropped.
pub(super) struct Frozen(Vec<Pid>);

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            match rustix::process::kill_process(*pid, Signal::CONT) {
                // One that was killed meanwhile needs nothing.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => tracing::warn!(%error, "a fake workspace could not be thawed"),
            }
        }
    }
}

impl Process {
    /// Stops process 1 and, until there are no new ones, all that it has begun.
    pub(super) fn freeze(&self) -> io::Result<Frozen> {
        let mut frozen = Frozen(Vec::new());
        let mut next: Vec<i32> = self.host_pid().into_iter().collect();
        while let Some(number) = next.pop() {
            let Some(pid) = Pid::from_raw(number) else { continue };
            match rustix::process::kill_process(pid, Signal::STOP) {
                Ok(()) => frozen.0.push(pid),
                Err(rustix::io::Errno::SRCH) => continue,
                Err(error) => return Err(error.into()),
            }
            for task in fs::read_dir(format!("/proc/{number}/task"))?.flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                next.extend(
                    children
                        .split_whitespace()
                        .filter_map(|child| child.parse::<i32>().ok()),
                );
            }
        }
        Ok(frozen)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killing process 1 makes the kernel kill the rest of its namespace before anyone can reap it.
        if let Err(error) = self.signal(Signal::KILL) {
            tracing::warn!(%error, "a fake process 1 could not be killed");
        }
        if self.process_one.is_none() {
            drop(self.stdin.take());
        }
        if !self.wait(GONE_WITHIN) {
            tracing::warn!("a fake process 1 did not end in time");
            drop(self.stdin.take());
            if let Err(error) = pidfd_send_signal(&self.outer, Signal::KILL) {
                tracing::warn!(%error, "nor could its starter be killed");
            }
        }
        // The waiter itself may hold the last reference while it tells the end.
        let waiter = self
            .waiter
            .take()
            .filter(|waiter| waiter.thread().id() != std::thread::current().id());
        if let Some(waiter) = waiter
            && waiter.join().is_err()
        {
            tracing::warn!("the thread that waited for a fake process panicked");
        }
    }
}

fn spawn(launch: &Launch) -> io::Result<Child> {
    let log = File::options().create(true).append(true).open(&launch.log)?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", OUTER, "outer"]);
    command.args([&launch.root, &launch.socket_directory, &launch.runtime_directory]);
    command.args(&launch.argv);
    command
        .env_clear()
        .envs(&launch.env)
        .env("MIDDLE", MIDDLE)
        .env("INNER", INNER)
        .current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    command.spawn()
}

/// The pid of process 1, once it has made its mounts.
fn read_until_ready(stdout: impl io::Read) -> io::Result<i32> {
    let mut lines = BufReader::new(stdout).lines();
    let ended = || io::Error::other("the mounts of the fake workspace could not be made; see its log");
    // Two processes write one line each: on a busy host either may come first.
    let two = [lines.next().ok_or_else(ended)??, lines.next().ok_or_else(ended)??];
    let pid = two.iter().find_map(|line| line.trim().parse().ok());
    pid.ok_or_else(|| io::Error::other("process 1 was not named"))
}

/// `None` when it has ended and was reaped already.
fn open_process(pid: i32) -> io::Result<Option<(Pid, OwnedFd)>> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("a pid of zero"))?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some((pid, pidfd))),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn pid_of(child: &Child) -> io::Result<Pid> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("a pid of zero"))
}

fn exit_status_of(status: ExitStatus) -> u32 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u32::try_from(code).unwrap_or(255)
}

/// The last lines of a log, for the message of a failed start.
pub(super) fn tail_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}
