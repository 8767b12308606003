//! The directory in which a workspace's bridge listens: a small tmpfs, so that a tenant can neither fill
//! the host's disk through it nor lead the host elsewhere by a link.

use std::ffi::CString;

use rustix::mount::MountFlags;
use skep_names::BotId;

use super::{HostPaths, Result, Tried, make_directory, remove_directory, unmount_all};

/// Mounts it anew, empty, owned by the workspace's root.
pub(crate) fn mount(paths: &HostPaths, bot: &BotId, owner: u32) -> Result<()> {
    let directory = paths.socket_directory(bot);
    make_directory(&directory, 0o700)?;
    unmount_all(&directory)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSYMFOLLOW;
    let options = format!("size=1m,nr_inodes=64,mode=0700,uid={owner},gid={owner}");
    CString::new(options)
        .map_err(std::io::Error::from)
        .and_then(|options| {
            Ok(rustix::mount::mount(
                "tmpfs",
                &directory,
                "tmpfs",
                flags,
                options.as_c_str(),
            )?)
        })
        .tried(|| format!("mounting the socket directory {}", directory.display()))
}

/// Copies the bridge's log out of it, unmounts and removes it. No process of the workspace may be left. Repeatable.
pub(crate) fn unmount(paths: &HostPaths, bot: &BotId) -> Result<()> {
    let directory = paths.socket_directory(bot);
    if let Err(error) = crate::log::keep(&paths.log(bot)) {
        // A full disk, say: a workspace that cannot end because of its log would be worse.
        tracing::warn!(%bot, error = &error as &dyn std::error::Error, "the log of a workspace is not kept");
    }
    unmount_all(&directory)?;
    remove_directory(&directory)
}
