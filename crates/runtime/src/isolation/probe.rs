//! Whether this host can give workspaces ids of their own: tried by doing it once on a throwaway layer.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use skep_names::BotId;

use super::mapped_root::{Layers, detached};
use super::{HostPaths, IdBlock, Result, Tried, namespaces};
use crate::system_calls::{NamespaceHolder, act_on_files_as};

/// Makes a user namespace and an overlay over mapped layers below `snapshotter_root`, writes a file as the
/// mapped root and looks at it on disk. `stranger`: a bot that there is not, whose claim it is meanwhile. `daemon`: the
/// process that starts container runtimes.
///
/// # Errors
/// The step that this host cannot do.
pub(crate) fn probe(
    paths: &HostPaths,
    (data_root_id, stranger): (&str, &BotId),
    (snapshotter_root, daemon): (&Path, i32),
) -> Result<()> {
    // A claim of its own, so that a workspace of another server can never meet these ids.
    let ids = IdBlock::claim(paths, data_root_id, stranger)?;
    let probed = namespaces::owner_for(ids, daemon).and_then(|owner| probe_with(paths, snapshotter_root, (ids, owner)));
    ids.release(paths, data_root_id, stranger)?;
    probed
}

fn probe_with(paths: &HostPaths, snapshotter_root: &Path, (ids, owner): (IdBlock, Option<u32>)) -> Result<()> {
    if owner.is_none() {
        tracing::warn!(
            "root, or containerd, has not every capability here: what the kernel limits for each user (inotify, queued signals) workspaces \
             share with root"
        );
    }
    let holder = NamespaceHolder::new(libc::CLONE_NEWUSER | libc::CLONE_NEWNET, owner)
        .tried(|| "making a user namespace".into())?;
    let process = Path::new("/proc").join(holder.pid().to_string());
    namespaces::map_ids(&process, ids)?;
    let user_namespace = File::open(process.join("ns/user")).tried(|| "opening a user namespace".into())?;
    let layers = tempfile::Builder::new()
        .prefix("skep-probe-")
        .tempdir_in(snapshotter_root)
        .tried(|| format!("making a layer in {}", snapshotter_root.display()))?;
    let place = |name: &str| layers.path().join(name).to_string_lossy().into_owned();
    for directory in ["1/fs", "2/fs", "2/work"] {
        std::fs::create_dir_all(layers.path().join(directory)).tried(|| "making a layer".into())?;
    }
    let options = [
        format!("lowerdir={}", place("1/fs")),
        format!("upperdir={}", place("2/fs")),
        format!("workdir={}", place("2/work")),
    ];
    let parsed = Layers::parse("overlay", "overlay", &options)
        .map_err(io::Error::other)
        .tried(|| "reading a layer's options".into())?;
    let root = detached(paths, &parsed, &user_namespace, ids)?;
    write_as_mapped_root(root, ids)?;
    let written = std::fs::metadata(layers.path().join("2/fs/probe")).tried(|| "reading what was written".into())?;
    if (written.uid(), written.gid()) == (0, 0) {
        return Ok(());
    }
    let found = io::Error::other(format!("it belongs to {}:{} on disk", written.uid(), written.gid()));
    Err(found).tried(|| "checking the owner of a file written as the mapped root".into())
}

/// In a thread of its own, whose file ids are spoilt afterwards.
fn write_as_mapped_root(root: std::os::fd::OwnedFd, ids: IdBlock) -> Result<()> {
    let place = format!("/proc/self/fd/{}/probe", std::os::fd::AsRawFd::as_raw_fd(&root));
    let writer = std::thread::spawn(move || {
        act_on_files_as(ids.base())?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, place.as_str(), flags, Mode::from_raw_mode(0o600))?;
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
        drop(root);
        Ok(())
    });
    let written = writer
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the writer panicked")));
    written.tried(|| "writing a file as the mapped root".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_passes_on_an_ordinary_file_system_and_nothing_stays() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let paths = HostPaths {
            run_root: directory.path().join("run"),
            run_dir: directory.path().join("run/id"),
            data_root: directory.path().join("data"),
        };
        let snapshots = directory.path().join("snapshots");
        std::fs::create_dir(&snapshots).unwrap();
        let this = i32::try_from(std::process::id()).unwrap();
        probe(&paths, ("id", &BotId::random()), (&snapshots, this)).unwrap();
        assert_eq!(std::fs::read_dir(&snapshots).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(directory.path().join("run/ids")).unwrap().count(), 0);
    }
}
