//! A containerd of a test's own, gone with everything it made when the test ends, failed or not.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use skep_runtime::containerd::daemon::{Daemon, DaemonConfig, DaemonError};

/// How long processes and mounts may take to go.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(20);

/// Environment variable that chooses the containerd of tests that do not choose one themselves: `1.6` (the host's,
/// also when it is unset), `1.7` or `2`.
pub const CONTAINERD_VARIABLE: &str = "SKEP_TEST_CONTAINERD";

/// Where the directories of those are that no test wants elsewhere.
const USUAL_PLACE: &str = "/tmp";

/// Where `scripts/install test` unpacks those that are not the host's.
const CACHE_DIRECTORY: &str = "/var/cache/skep-test";

/// The containerds Skep is tested on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerdRelease {
    /// The host's own; Debian 12 has 1.6.20, the oldest that is supported.
    Installed,
    /// Debian 13's.
    V1_7,
    /// The newest in Debian.
    V2,
}

impl ContainerdRelease {
    /// What [`CONTAINERD_VARIABLE`] says.
    ///
    /// # Panics
    /// When it says something else than the three.
    pub fn chosen() -> Self {
        match std::env::var(CONTAINERD_VARIABLE).as_deref() {
            Err(_) | Ok("1.6") => Self::Installed,
            Ok("1.7") => Self::V1_7,
            Ok("2") => Self::V2,
            Ok(other) => panic!("{CONTAINERD_VARIABLE} is {other:?}, neither 1.6 nor 1.7 nor 2"),
        }
    }

    /// One of its programs. A bare name is looked up in `PATH`.
    pub fn program(self, name: &str) -> PathBuf {
        match self {
            Self::Installed => PathBuf::from(name),
            Self::V1_7 => Path::new(CACHE_DIRECTORY).join("containerd-1.7").join(name),
            Self::V2 => Path::new(CACHE_DIRECTORY).join("containerd-2").join(name),
        }
    }
}

/// A running containerd with root, state and socket in a directory of its own.
///
/// Dropping it kills its containers, its shims and itself, unmounts all below its directory and removes that.
#[derive(Debug)]
pub struct ContainerdServer {
    directory: tempfile::TempDir,
    config: DaemonConfig,
    release: ContainerdRelease,
    pid: i32,
    // Held so that the daemon is reaped, not left as a zombie of the test.
    _daemon: Daemon,
}

impl ContainerdServer {
    /// Starts the [chosen](ContainerdRelease::chosen) one and waits until it answers.
    ///
    /// # Errors
    /// As [`ContainerdServer::start_release`].
    pub async fn start() -> Result<Self, DaemonError> {
        Self::start_release(ContainerdRelease::chosen()).await
    }

    /// Starts one of a release and waits until it answers.
    ///
    /// # Errors
    /// When it is not there (`scripts/install test` brings it) or does not start; a test that needs it fails then.
    pub async fn start_release(release: ContainerdRelease) -> Result<Self, DaemonError> {
        Self::start_program(release, release.program("containerd"), Path::new(USUAL_PLACE)).await
    }

    /// Starts the [chosen](ContainerdRelease::chosen) one with all it keeps in a directory of its own in this one.
    ///
    /// # Errors
    /// As [`ContainerdServer::start_release`].
    pub async fn start_in(place: &Path) -> Result<Self, DaemonError> {
        let release = ContainerdRelease::chosen();
        Self::start_program(release, release.program("containerd"), place).await
    }

    /// Starts the host's own through this program, which becomes it in the end.
    ///
    /// # Errors
    /// As [`ContainerdServer::start_release`].
    pub async fn start_through(program: &Path) -> Result<Self, DaemonError> {
        Self::start_program(ContainerdRelease::Installed, program.to_owned(), Path::new(USUAL_PLACE)).await
    }

    async fn start_program(release: ContainerdRelease, program: PathBuf, place: &Path) -> Result<Self, DaemonError> {
        let directory = tempfile::Builder::new()
            .prefix("skep-ctd-")
            .tempdir_in(place)
            .map_err(|source| DaemonError::Prepare {
                path: place.to_owned(),
                source,
            })?;
        let mut config = DaemonConfig::new(&directory.path().join("root"), &directory.path().join("run"));
        config.binary = program;
        let daemon = started(&config).await?;
        Ok(Self {
            directory,
            config,
            release,
            pid: daemon.pid,
            _daemon: daemon,
        })
    }

    /// Its gRPC socket.
    pub fn socket(&self) -> &Path {
        &self.config.socket
    }

    /// containerd's own client, of the same release, told where this one is.
    pub fn ctr(&self) -> Command {
        let mut command = Command::new(self.release.program("ctr"));
        command.arg("--address").arg(self.socket());
        command
    }

    /// Its directory: tests may keep theirs beside what containerd keeps there.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its configuration.
    pub fn config(&self) -> &DaemonConfig {
        &self.config
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Kills it as a crash would: its shims and containers run on.
    ///
    /// # Errors
    /// When it cannot be killed or does not go.
    pub fn kill(&mut self) -> io::Result<()> {
        kill_and_wait(self.pid)
    }

    /// Starts it again after [`ContainerdServer::kill`], on the same directory.
    ///
    /// # Errors
    /// As [`ContainerdServer::start`].
    pub async fn start_again(&mut self) -> Result<(), DaemonError> {
        self._daemon = started(&self.config).await?;
        self.pid = self._daemon.pid;
        Ok(())
    }

    /// Stops it in the middle of whatever it does, without ending it: it listens and never answers.
    ///
    /// # Errors
    /// When it cannot be signalled, or is not stopped 10 s later.
    pub fn freeze(&self) -> io::Result<()> {
        signal(self.pid, Signal::STOP)?;
        // Its threads stop one after the other: one that runs yet may still answer.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_stopped(self.pid)? {
            if Instant::now() > deadline {
                return Err(io::Error::other("it is not stopped 10 s after SIGSTOP"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets it go on after [`ContainerdServer::freeze`].
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn thaw(&self) -> io::Result<()> {
        signal(self.pid, Signal::CONT)
    }

    /// As if the machine lost its power: itself, its shims and its containers are gone at once, and so is what it
    /// keeps below `/run` on a real host. [`ContainerdServer::start_again`] is the boot after it.
    ///
    /// # Errors
    /// As [`ContainerdServer::end`].
    pub fn lose_power(&mut self) -> io::Result<()> {
        self.end()?;
        std::fs::remove_dir_all(&self.config.state)?;
        match std::fs::remove_file(&self.config.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends it with its shims and containers, and unmounts what they had. Repeatable.
    ///
    /// # Errors
    /// When something of it does not go.
    pub fn end(&self) -> io::Result<()> {
        let shims = shims_of(&self.config.socket)?;
        kill_and_wait(self.pid)?;
        for shim in shims {
            // A container outlives its shim, so its process 1 goes first; its pid namespace goes with it.
            for child in children_of(shim)? {
                kill_and_wait(child)?;
            }
            kill_and_wait(shim)?;
        }
        unmount_below(self.directory.path())
    }
}

impl Drop for ContainerdServer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            let directory = self.directory.path().display();
            eprintln!("cleaning up the containerd in {directory} failed: {error}");
        }
    }
}

/// Once more when it does not answer in time, and once more: the machine may have other work.
async fn started(config: &DaemonConfig) -> Result<Daemon, DaemonError> {
    for _ in 0..2 {
        match config.start().await {
            Err(silent @ DaemonError::Silent { .. }) => eprintln!("a containerd is started once more: {silent}"),
            other => return other,
        }
    }
    config.start().await
}

fn shims_of(socket: &Path) -> io::Result<Vec<i32>> {
    let address = socket.to_string_lossy();
    let mut shims = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        // A process may go between the listing and the reading.
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        if words[0].contains("containerd-shim") && words.contains(&address) {
            shims.push(pid);
        }
    }
    Ok(shims)
}

fn children_of(pid: i32) -> io::Result<Vec<i32>> {
    let mut children = Vec::new();
    let tasks = match std::fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(children),
        Err(error) => return Err(error),
    };
    for task in tasks {
        let Ok(line) = std::fs::read_to_string(task?.path().join("children")) else {
            continue;
        };
        children.extend(line.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
    }
    Ok(children)
}

fn signal(pid: i32, signal: Signal) -> io::Result<()> {
    let process = Pid::from_raw(pid).ok_or_else(|| io::Error::other("it has no process"))?;
    Ok(rustix::process::kill_process(process, signal)?)
}

/// Every thread of it.
fn is_stopped(pid: i32) -> io::Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("stat"))?;
        // The name before it is in parentheses, and may hold anything.
        let state = text.rsplit(") ").next().and_then(|rest| rest.chars().next());
        if state != Some('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

fn kill_and_wait(pid: i32) -> io::Result<()> {
    let Some(process) = Pid::from_raw(pid) else {
        return Ok(());
    };
    let handle = match rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match rustix::process::pidfd_send_signal(&handle, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    let mut waited = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec {
        tv_sec: CLEAN_UP_LIMIT.as_secs() as i64,
        tv_nsec: 0,
    };
    if rustix::event::poll(&mut waited, Some(&limit))? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("process {pid} does not end"),
        ));
    }
    Ok(())
}

/// Unmounts everything at or below a directory, the deepest first, until nothing is left.
///
/// # Errors
/// When mounts are still there after 20 s.
pub fn unmount_below(directory: &Path) -> io::Result<()> {
    let end = Instant::now() + CLEAN_UP_LIMIT;
    loop {
        let mut mounts = mounts_below(directory)?;
        if mounts.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(io::Error::other(format!("still mounted: {mounts:?}")));
        }
        mounts.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
        for mount in mounts {
            match rustix::mount::unmount(&mount, UnmountFlags::DETACH) {
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What is mounted at or below a directory, as the kernel tells it.
///
/// # Errors
/// When the mount table cannot be read.
pub fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let places = table.lines().filter_map(|line| line.split(' ').nth(4));
    let places = places.map(|place| PathBuf::from(place.replace("\\040", " ")));
    Ok(places.filter(|place| place.starts_with(directory)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_containerd_starts_answers_and_leaves_nothing() {
        let server = ContainerdServer::start().await.unwrap();
        let (directory, pid) = (server.directory().to_owned(), server.pid());
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(server);
        assert!(!directory.exists(), "{} is left", directory.display());
        assert_eq!(mounts_below(&directory).unwrap(), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn on_1_7_with_its_own_client_and_server() {
        is_what_its_name_says(ContainerdRelease::V1_7, "1.7.").await;
    }

    #[tokio::test]
    async fn on_2_with_its_own_client_and_server() {
        is_what_its_name_says(ContainerdRelease::V2, "2.").await;
    }

    async fn is_what_its_name_says(release: ContainerdRelease, begins: &str) {
        let server = ContainerdServer::start_release(release).await.unwrap();
        let told = server.ctr().arg("version").output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        let versions: Vec<&str> = told
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Version:"))
            .collect();
        assert_eq!(versions.len(), 2, "client and server: {told}");
        assert!(
            versions.iter().all(|version| version.trim().starts_with(begins)),
            "{told}"
        );
    }

    #[tokio::test]
    async fn a_killed_containerd_starts_again_on_the_same_directory() {
        let mut server = ContainerdServer::start().await.unwrap();
        let before = server.pid();
        server.kill().unwrap();
        server.start_again().await.unwrap();
        assert_ne!(before, server.pid());
    }
}
