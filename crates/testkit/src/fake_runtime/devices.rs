//! Devices of the fake: told from real specification files. Of what they ask for it gives variables and device nodes,
//! made in the layer; mounts and hooks are a container's.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use skep_names::BotId;
use skep_runtime::cdi::{Edits, Node, NodeKind, Registry};
use skep_runtime::{Result, RuntimeError};

use super::{FakeRuntime, blocking};

impl FakeRuntime {
    /// Where it looks for specifications of devices.
    pub fn cdi_directory(&self) -> PathBuf {
        self.root().join("cdi")
    }

    /// What the files say now.
    pub(super) fn registry(&self) -> Registry {
        Registry::read(&[self.cdi_directory()])
    }

    pub(super) fn edits_for(&self, names: &[String]) -> Result<Edits> {
        let edits = self.registry().edits(names);
        edits.map_err(|error| RuntimeError::Rejected {
            reason: error.to_string(),
        })
    }

    /// Makes the nodes in the layer; the answer is what is set in the environment.
    pub(super) async fn give_devices(&self, bot: &BotId, names: &[String]) -> Result<BTreeMap<String, String>> {
        let edits = self.edits_for(names)?;
        let root = self.layer_path(bot);
        blocking("make device nodes", move || {
            edits.nodes.iter().try_for_each(|node| make(&root, node))
        })
        .await?;
        let variables = edits.env.iter().filter_map(|entry| entry.split_once('='));
        Ok(variables
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }
}

fn make(root: &Path, node: &Node) -> io::Result<()> {
    let place = root.join(node.path.trim_start_matches('/'));
    if place.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let kind = match node.kind {
        NodeKind::Character => FileType::CharacterDevice,
        NodeKind::Block => FileType::BlockDevice,
    };
    mknodat(CWD, &place, kind, Mode::empty(), makedev(node.major, node.minor))?;
    chown(&place, Some(node.uid), Some(node.gid))?;
    std::fs::set_permissions(&place, Permissions::from_mode(node.mode))
}
