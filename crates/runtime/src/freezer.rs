//! Letting all processes of a control group stand still, by its files, on hosts with version 1, 2 or both.
//!
//! Who is frozen notices nothing but that time has passed. A server that dies meanwhile leaves it so: the sweep of the
//! next one thaws it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::isolation::{Result, Tried};

const ROOT: &str = "/sys/fs/cgroup";
/// A process in the middle of writing to a slow disk stands still only after that.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A group that stands still until this is dropped.
#[derive(Debug)]
pub(crate) struct Frozen {
    freezer: Freezer,
    group: String,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.freezer.ask(Wanted::Running) {
            tracing::error!(group = self.group, %error, "a workspace could not be thawed; the next sweep tries again");
        }
    }
}

/// Freezes a group; returns when all of it stands still. Tries for 10 s, and for no longer than `limit`.
///
/// # Errors
/// Without a freezer on this host, and when it does not stand still in time: then it runs on.
pub(crate) fn freeze(group: &str, limit: Duration) -> Result<Frozen> {
    let freezer = Freezer::of(group)?;
    let frozen = Frozen {
        freezer,
        group: group.to_owned(),
    };
    let begun = Instant::now();
    loop {
        // Asked for again each time: version 1 goes on only when it is written to or read.
        frozen.freezer.ask(Wanted::Still)?;
        if frozen.freezer.stands_still()? {
            return Ok(frozen);
        }
        if begun.elapsed() > limit.min(FREEZE_LIMIT) {
            return Err(io::Error::from(io::ErrorKind::TimedOut)).tried(|| format!("freezing the cgroup {group}"));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Lets a group run on that a server froze and then died. `true`: it did stand still.
pub(crate) fn thaw(group: &str) -> Result<bool> {
    let Ok(freezer) = Freezer::of(group) else {
        return Ok(false);
    };
    let stood_still = freezer.is_asked_to_stand_still()?;
    if stood_still {
        freezer.ask(Wanted::Running)?;
    }
    Ok(stood_still)
}

#[derive(Clone, Copy)]
enum Wanted {
    Still,
    Running,
}

/// The directory of a group in the hierarchy that can freeze it.
#[derive(Debug)]
enum Freezer {
    V1(PathBuf),
    V2(PathBuf),
}

impl Freezer {
    fn of(group: &str) -> Result<Self> {
        let (root, below) = (Path::new(ROOT), group.trim_start_matches('/'));
        let v1 = root.join("freezer").join(below);
        let v2 = root.join(below);
        if v1.join("freezer.state").exists() {
            return Ok(Self::V1(v1));
        }
        if v2.join("cgroup.freeze").exists() {
            return Ok(Self::V2(v2));
        }
        Err(io::Error::from(io::ErrorKind::NotFound)).tried(|| format!("looking for the freezer of {group}"))
    }

    fn ask(&self, wanted: Wanted) -> Result<()> {
        let (file, text) = match (self, wanted) {
            (Self::V1(directory), Wanted::Still) => (directory.join("freezer.state"), "FROZEN"),
            (Self::V1(directory), Wanted::Running) => (directory.join("freezer.state"), "THAWED"),
            (Self::V2(directory), Wanted::Still) => (directory.join("cgroup.freeze"), "1"),
            (Self::V2(directory), Wanted::Running) => (directory.join("cgroup.freeze"), "0"),
        };
        match std::fs::write(&file, text) {
            // Its last process has ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound && matches!(wanted, Wanted::Running) => Ok(()),
            written => written.tried(|| format!("writing {text} to {}", file.display())),
        }
    }

    fn stands_still(&self) -> Result<bool> {
        match self {
            Self::V1(directory) => Ok(read(&directory.join("freezer.state"))?.trim() == "FROZEN"),
            Self::V2(directory) => Ok(read(&directory.join("cgroup.events"))?
                .lines()
                .any(|line| line == "frozen 1")),
        }
    }

    fn is_asked_to_stand_still(&self) -> Result<bool> {
        match self {
            Self::V1(directory) => Ok(read(&directory.join("freezer.state"))?.trim() != "THAWED"),
            Self::V2(directory) => Ok(read(&directory.join("cgroup.freeze"))?.trim() == "1"),
        }
    }
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).tried(|| format!("reading {}", file.display()))
}
