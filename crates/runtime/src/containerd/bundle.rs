//! What a containerd that was killed leaves of a task it was about to create, and never takes away itself: the
//! bundle's directory, in the way of every later task of that container.

use std::io;
use std::path::{Path, PathBuf};

use tonic::Status;

use crate::isolation::{self, Result, Tried};

/// Where containerd keeps the bundles of tasks, below its state directory.
const BUNDLES: &str = "io.containerd.runtime.v2.task";

/// The bundle that is in the way of a new task, when that is what containerd says.
pub(super) fn in_the_way(status: &Status, namespace: &str, id: &str) -> Option<PathBuf> {
    let (_, path) = status.message().split_once("mkdir ")?;
    let path = PathBuf::from(path.split_once(": file exists")?.0);
    let ours = Path::new(BUNDLES).join(namespace).join(id);
    (path.is_absolute() && path.ends_with(&ours)).then_some(path)
}

/// Removes a bundle that no task has. Never recurses: what lies below its root file system may be a workspace's.
pub(super) fn remove(bundle: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(bundle) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).tried(|| format!("listing {}", bundle.display())),
    };
    for entry in entries {
        let path = entry.tried(|| format!("listing {}", bundle.display()))?.path();
        let kind = path
            .symlink_metadata()
            .tried(|| format!("looking at {}", path.display()))?;
        if kind.is_dir() {
            isolation::unmount_all(&path)?;
            // Refused by the kernel when anything is in it.
            isolation::remove_directory(&path)?;
        } else {
            isolation::remove_file(&path)?;
        }
    }
    isolation::remove_directory(bundle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bundle_of_this_very_container_is_in_the_way() {
        let status = |text: &str| Status::unknown(text.to_owned());
        let path = "/run/x/io.containerd.runtime.v2.task/default/workspace-1";
        let said = status(&format!("failed to start shim: mkdir {path}: file exists"));
        assert_eq!(in_the_way(&said, "default", "workspace-1"), Some(PathBuf::from(path)));
        assert_eq!(in_the_way(&said, "default", "workspace-2"), None);
        assert_eq!(in_the_way(&said, "other", "workspace-1"), None);
        assert_eq!(
            in_the_way(&status("mkdir /etc: file exists"), "default", "workspace-1"),
            None
        );
    }

    #[test]
    fn a_bundle_is_removed_and_a_root_with_files_in_it_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("bundle");
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        std::fs::write(bundle.join("config.json"), "{}").unwrap();
        std::os::unix::fs::symlink("/", bundle.join("work")).unwrap();
        remove(&bundle).unwrap();
        assert!(!bundle.exists());
        remove(&bundle).unwrap();

        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        std::fs::write(bundle.join("rootfs/data"), "a workspace's").unwrap();
        remove(&bundle).unwrap_err();
        assert!(bundle.join("rootfs/data").exists());
    }
}
