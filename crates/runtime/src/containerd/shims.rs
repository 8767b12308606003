//! The shim of a task whose making was cut off.
//!
//! When a server dies in the middle of a create, containerd clears the half-made task away by itself, and removes its
//! directory by the name of the container: a task of the same name that is made in that moment loses its directory
//! and is never answered for. Or containerd forgets the task and leaves its shim, which then is in the way of the
//! next one. Nothing of this can be asked of containerd; that a shim is there can be seen.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};

use super::ContainerdRuntime;
use crate::{Result, RuntimeError, TaskState};

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(10);
/// containerd clears away within this time, or not at all: then it is asked to.
const BY_ITSELF: Duration = Duration::from_secs(1);
/// A shim that containerd does not end within this time is unknown to it.
const BY_CONTAINERD: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The directory goes right after the shim.
const DIRECTORY_GOES: Duration = Duration::from_millis(300);

impl ContainerdRuntime {
    /// Clears away a task that does not run, and waits for what containerd itself clears away of it.
    pub(super) async fn clear_dead(&self, id: &str, state: TaskState) -> Result<()> {
        if state == TaskState::Dead {
            self.clear_task(id).await?;
        }
        self.no_shim_is_left_of(id).await
    }

    /// Returns when a container has no shim. At once when it has none.
    async fn no_shim_is_left_of(&self, id: &str) -> Result<()> {
        let begun = tokio::time::Instant::now();
        let (mut seen, mut asked) = (false, false);
        loop {
            let kill = begun.elapsed() > BY_CONTAINERD;
            if !on_shims_of(id, kill).await? {
                break;
            }
            seen = true;
            if begun.elapsed() > LIMIT {
                return Err(RuntimeError::other(
                    format!("clearing away what was half-made of the task {id}"),
                    "its shim is still there",
                ));
            }
            if !asked && begun.elapsed() > BY_ITSELF {
                asked = true;
                self.clear_task(id).await?;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        if seen {
            tokio::time::sleep(DIRECTORY_GOES).await;
        }
        Ok(())
    }
}

/// Whether a container has a shim, which is killed on request.
async fn on_shims_of(id: &str, kill: bool) -> Result<bool> {
    let id = id.to_owned();
    let looked = tokio::task::spawn_blocking(move || find_shim(&id, kill)).await;
    looked
        .map_err(|panicked| RuntimeError::other("looking for a shim", panicked))?
        .map_err(|error| RuntimeError::other("looking for a shim", error))
}

fn find_shim(id: &str, kill: bool) -> std::io::Result<bool> {
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(process) = number.and_then(Pid::from_raw) else {
            continue;
        };
        if !is_shim_of(&entry.path(), id) {
            continue;
        }
        if kill {
            kill_shim(process, &entry.path(), id)?;
        }
        return Ok(true);
    }
    Ok(false)
}

/// Names of containers hold the id of their bot, so that no other containerd on this host has the same.
fn is_shim_of(process: &Path, id: &str) -> bool {
    // A process may go between the listing and the reading.
    let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0);
    let program = String::from_utf8_lossy(words.next().unwrap_or_default());
    let name = program.rsplit('/').next().unwrap_or_default();
    name.starts_with("containerd-shim") && words.any(|word| word == id.as_bytes())
}

/// Whoever has its number when the handle is open is looked at once more, and then it is the one that is killed.
fn kill_shim(process: Pid, directory: &Path, id: &str) -> std::io::Result<()> {
    let handle = match rustix::process::pidfd_open(process, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !is_shim_of(directory, id) {
        return Ok(());
    }
    tracing::warn!(id, "containerd does not know a shim of its own; it is killed");
    match rustix::process::pidfd_send_signal(&handle, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_nobody_made_has_no_shim() {
        assert!(!find_shim("workspace-of-nobody", true).unwrap());
    }
}
