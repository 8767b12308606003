//! The device nodes that a workspace is given beyond the usual: made anew for it, owned by its own root.
//!
//! The host's nodes belong to users that a workspace with ids of its own has not, so that its root could open only
//! those that everybody may. Ours lie in a tmpfs that nobody else can enter, and are bound into the workspace; once
//! they are, the tmpfs need not be mounted here any more.

use std::ffi::CString;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::MountFlags;
use skep_names::BotId;

use super::{HostPaths, Result, Tried, make_directory, remove_directory, unmount_all};
use crate::cdi::{Node, NodeKind};

/// Mount options of the nodes, here and inside; `nodev` is the one that cannot be.
pub(crate) const NODE_MOUNT_OPTIONS: [&str; 3] = ["bind", "nosuid", "noexec"];

/// Where the node of that number lies.
pub(crate) fn place_of(paths: &HostPaths, bot: &BotId, number: usize) -> PathBuf {
    paths.device_nodes(bot).join(number.to_string())
}

/// Makes them, in place of what an earlier start left. `root` is the host's id of the workspace's root.
pub(crate) fn make(paths: &HostPaths, bot: &BotId, root: u32, nodes: &[Node]) -> Result<()> {
    let directory = paths.device_nodes(bot);
    if let Some(parent) = directory.parent() {
        make_directory(parent, 0o711)?;
    }
    make_directory(&directory, 0o700)?;
    unmount_all(&directory)?;
    let options = format!(
        "size=64k,nr_inodes={},mode=0700,uid={root},gid={root}",
        nodes.len().saturating_add(8)
    );
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NOSYMFOLLOW;
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
        .tried(|| format!("mounting {}", directory.display()))?;
    for (number, node) in nodes.iter().enumerate() {
        make_node(&place_of(paths, bot, number), root, node)
            .tried(|| format!("making the device node {}", node.path))?;
    }
    Ok(())
}

fn make_node(place: &Path, root: u32, node: &Node) -> std::io::Result<()> {
    let kind = match node.kind {
        NodeKind::Character => FileType::CharacterDevice,
        NodeKind::Block => FileType::BlockDevice,
    };
    mknodat(CWD, place, kind, Mode::empty(), makedev(node.major, node.minor))?;
    chown(
        place,
        Some(root.saturating_add(node.uid)),
        Some(root.saturating_add(node.gid)),
    )?;
    // Last: the mode of making is cut by our umask, and a change of owner can take from it.
    std::fs::set_permissions(place, std::fs::Permissions::from_mode(node.mode))
}

/// Unmounts them here; a workspace that has bound them keeps its own. Repeatable.
pub(crate) fn release(paths: &HostPaths, bot: &BotId) -> Result<()> {
    let directory = paths.device_nodes(bot);
    unmount_all(&directory)?;
    remove_directory(&directory)
}
