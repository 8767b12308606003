//! What separates one workspace from the host and from the others, made by ourselves on the host:
//! ids, namespaces, root file system, socket directory and device nodes. No daemon is asked for any of it.
//!
//! Every function here blocks for a few milliseconds at most and is called on a blocking thread, but AppArmor's.

mod apparmor;
mod device_nodes;
mod ids;
mod mapped_root;
mod mount_table;
mod namespaces;
mod probe;
mod socket_directory;

use std::io;
use std::path::{Path, PathBuf};

use skep_names::BotId;

use crate::log::LogPlaces;
pub(crate) use apparmor::{AppArmor, PROFILE as APPARMOR_PROFILE};
pub(crate) use device_nodes::{
    NODE_MOUNT_OPTIONS, make as make_device_nodes, place_of as place_of_device_node, release as release_device_nodes,
};
pub(crate) use ids::IdBlock;
pub(crate) use mapped_root::{Layers, WHOLE_LAYERS, mount as mount_root, refuse_second_mount, unmount as unmount_root};
pub(crate) use namespaces::{make as make_namespaces, remove as remove_namespaces};
pub(crate) use probe::probe as probe_user_namespaces;
pub(crate) use socket_directory::{mount as mount_socket_directory, unmount as unmount_socket_directory};

/// A step on the host that failed, with what was tried on what.
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub(crate) struct HostError {
    pub(crate) operation: String,
    #[source]
    pub(crate) source: io::Error,
}

pub(crate) type Result<T> = std::result::Result<T, HostError>;

/// Adds what was tried.
pub(crate) trait Tried<T> {
    fn tried(self, operation: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Tried<T> for std::result::Result<T, E> {
    fn tried(self, operation: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| HostError {
            operation: operation(),
            source: source.into(),
        })
    }
}

/// Where things of one data root lie on the host.
#[derive(Debug, Clone)]
pub(crate) struct HostPaths {
    /// `/run/skep`: shared by all data roots.
    pub(crate) run_root: PathBuf,
    /// `/run/skep/<data root id>`.
    pub(crate) run_dir: PathBuf,
    /// The data root.
    pub(crate) data_root: PathBuf,
}

impl HostPaths {
    pub(crate) fn user_namespace(&self, bot: &BotId) -> PathBuf {
        self.run_dir.join("userns").join(bot.as_str())
    }

    pub(crate) fn network_namespace(&self, bot: &BotId) -> PathBuf {
        crate::network::namespace_path(bot)
    }

    pub(crate) fn root(&self, bot: &BotId) -> PathBuf {
        self.run_dir.join("root").join(bot.as_str())
    }

    /// Device nodes beyond the usual, until the workspace has bound them.
    pub(crate) fn device_nodes(&self, bot: &BotId) -> PathBuf {
        self.run_dir.join("devices").join(bot.as_str())
    }

    pub(crate) fn socket_directory(&self, bot: &BotId) -> PathBuf {
        self.data_root.join("run").join(bot.as_str())
    }

    /// The log of the bridge: in its socket directory, and the copy that is kept.
    pub(crate) fn log(&self, bot: &BotId) -> LogPlaces {
        LogPlaces {
            live_directory: self.socket_directory(bot),
            kept_file: self.data_root.join("logs").join(format!("{bot}.log")),
        }
    }

    /// What was started and is not yet released, one file for each workspace.
    pub(crate) fn records(&self) -> PathBuf {
        self.run_dir.join("running")
    }

    /// The bots that have a file or directory of that kind.
    pub(crate) fn bots_below(directory: &Path) -> Result<Vec<BotId>> {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).tried(|| format!("listing {}", directory.display())),
        };
        let mut bots = Vec::new();
        for entry in entries {
            let name = entry.tried(|| format!("listing {}", directory.display()))?.file_name();
            bots.extend(name.to_str().and_then(|name| name.parse::<BotId>().ok()));
        }
        Ok(bots)
    }
}

/// Makes a directory with this mode; one that exists is left as it is.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .tried(|| format!("making the directory {}", path.display()))
}

/// Unmounts whatever is mounted on a path, layer by layer; nothing mounted and no such path are a success.
pub(crate) fn unmount_all(path: &Path) -> Result<()> {
    use rustix::io::Errno;
    use rustix::mount::UnmountFlags;
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error).tried(|| format!("unmounting {}", path.display())),
        }
    }
}

/// Removes a file that may be gone.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).tried(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes an empty directory that may be gone.
pub(crate) fn remove_directory(path: &Path) -> Result<()> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).tried(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
