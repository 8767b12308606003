//! The user and the network namespace of a workspace: made before its first process, pinned to files.
//!
//! The network namespace is owned by the user namespace. That is what lets the workspace mount sysfs,
//! set `net.*` and listen on low ports.

use std::fs::OpenOptions;
use std::path::Path;

use skep_names::{BotId, IDS_PER_BOT};

use super::{HostPaths, IdBlock, Result, Tried, make_directory, remove_file, unmount_all};
use crate::failpoint;
use crate::system_calls::NamespaceHolder;

/// Makes the namespaces of a bot and pins them; what an earlier start left there is replaced.
/// Without ids there is only a network namespace, owned by the host.
pub(crate) fn make(paths: &HostPaths, bot: &BotId, ids: Option<IdBlock>) -> Result<()> {
    let flags = libc::CLONE_NEWNET | ids.map_or(0, |_| libc::CLONE_NEWUSER);
    let holder = NamespaceHolder::new(flags).tried(|| format!("making the namespaces of workspace {bot}"))?;
    let process = Path::new("/proc").join(holder.pid().to_string());
    if let Some(ids) = ids {
        map_ids(&process, ids)?;
        pin(&process.join("ns/user"), &paths.user_namespace(bot))?;
        failpoint::USER_NAMESPACE_PINNED.pass().tried(pinning)?;
    }
    pin(&process.join("ns/net"), &paths.network_namespace(bot))?;
    failpoint::NETWORK_NAMESPACE_PINNED.pass().tried(pinning)
}

fn pinning() -> String {
    "pinning the namespaces of a workspace".to_owned()
}

/// Lets the namespaces go; they end with their last process. Repeatable.
pub(crate) fn remove(paths: &HostPaths, bot: &BotId) -> Result<()> {
    for pinned in [paths.network_namespace(bot), paths.user_namespace(bot)] {
        unmount_all(&pinned)?;
        remove_file(&pinned)?;
    }
    Ok(())
}

pub(super) fn map_ids(process: &Path, ids: IdBlock) -> Result<()> {
    for file in ["uid_map", "gid_map"] {
        let map = process.join(file);
        std::fs::write(&map, format!("0 {} {IDS_PER_BOT}", ids.base()))
            .tried(|| format!("giving a user namespace its ids from {}", ids.base()))?;
    }
    Ok(())
}

fn pin(namespace: &Path, place: &Path) -> Result<()> {
    if let Some(parent) = place.parent() {
        make_directory(parent, 0o755)?;
    }
    unmount_all(place)?;
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(place)
        .tried(|| format!("making {}", place.display()))?;
    rustix::mount::mount_bind(namespace, place).tried(|| format!("pinning a namespace to {}", place.display()))
}
