//! Control groups by their files, on hosts with version 1, 2 or both: the weight of all workspaces together, and the
//! last means against processes that do not end. Their counters are read in [`crate::counters`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustix::process::{Pid, Signal};

use crate::counters::{Group, Hierarchies};
use crate::isolation::{Result, Tried, make_directory};

const ROOT: &str = "/sys/fs/cgroup";
/// Half of what everything else has: tenants at full load do not starve the server and the daemon.
const V1_SHARES: &str = "512";
const V2_WEIGHT: &str = "50";

/// They stay as they were when the host came up.
static HIERARCHIES: LazyLock<Hierarchies> = LazyLock::new(|| Hierarchies::below(Path::new(ROOT)));

/// The files of a group of this host.
pub(crate) fn group(name: &str) -> Group<'_> {
    Group {
        hierarchies: &HIERARCHIES,
        name,
    }
}

/// Whether processes are left in a group.
pub(crate) fn is_populated(group: &str) -> bool {
    !processes(group).is_empty()
}

/// Kills every process of a group, directly.
pub(crate) fn kill(group: &str) -> Result<()> {
    if let Some(directory) = unified(group) {
        let kill = directory.join("cgroup.kill");
        if kill.exists() {
            return std::fs::write(&kill, "1").tried(|| format!("writing {}", kill.display()));
        }
    }
    for pid in processes(group).into_iter().filter_map(Pid::from_raw) {
        match rustix::process::kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).tried(|| format!("killing process {pid:?} of {group}")),
        }
    }
    Ok(())
}

/// Removes a group without processes from every hierarchy, with what lies below it. An OCI runtime that was killed
/// while it made or removed a container leaves one that nobody else takes away. Repeatable.
pub(crate) fn remove(group: &str) -> Result<()> {
    let root = Path::new(ROOT);
    let mut hierarchies = vec![root.to_owned()];
    if unified(group).is_none() {
        let entries = std::fs::read_dir(root).tried(|| format!("listing {ROOT}"))?;
        hierarchies.extend(entries.flatten().map(|entry| entry.path()));
    }
    let directories = hierarchies.iter().map(|hierarchy| below(hierarchy, group));
    directories
        .filter(|directory| directory.is_dir())
        .try_for_each(|directory| remove_tree(&directory))
}

fn remove_tree(directory: &Path) -> Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error).tried(|| format!("listing {}", directory.display())),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if !gone(&error) => Err(error).tried(|| format!("removing the cgroup {}", directory.display())),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the group above all workspaces and gives it less weight than its siblings have.
pub(crate) fn prepare_parent(group: &str) -> Result<()> {
    let v1 = Path::new(ROOT).join("cpu");
    if v1.is_dir() {
        let directory = below(&v1, group);
        make_directory(&directory, 0o755)?;
        return write(&directory.join("cpu.shares"), V1_SHARES);
    }
    let root = Path::new(ROOT);
    let directory = below(root, group);
    make_directory(&directory, 0o755)?;
    let mut above = root.to_owned();
    for part in group.trim_matches('/').split('/') {
        write(&above.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
        above.push(part);
    }
    write(&directory.join("cpu.weight"), V2_WEIGHT)
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).tried(|| format!("writing {text} to {}", file.display()))
}

/// The group's directory, where version 2 has the controllers.
fn unified(group: &str) -> Option<PathBuf> {
    let root = Path::new(ROOT);
    root.join("cgroup.controllers").exists().then(|| below(root, group))
}

fn below(root: &Path, group: &str) -> PathBuf {
    root.join(group.trim_start_matches('/'))
}

/// The processes of a group, by their numbers on the host.
pub(crate) fn processes(name: &str) -> Vec<i32> {
    group(name).processes()
}
