//! A workspace's root file system: an overlay over layers whose ids are mapped, so that ids on disk stay
//! as seen inside, whatever block of ids the workspace has today.
//!
//! A finished overlay cannot be mapped, only its layers can; so we mount it ourselves and hand it to
//! the container runtime as a bind mount.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::process::DumpableBehavior;
use skep_names::BotId;

use super::{HostPaths, IdBlock, Result, Tried, make_directory, mount_table, remove_directory, unmount_all};
use crate::system_calls;

/// Options of an overlay that writes whole files and directories into its layer, whatever the kernel does by itself: a
/// layer that only points to names and contents of the one below could not be taken apart from it.
pub(crate) const WHOLE_LAYERS: [&str; 2] = ["redirect_dir=off", "metacopy=off"];

/// What a layer consists of, all of it below one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layers {
    /// The one directory above all of them.
    directory: PathBuf,
    stack: Stack,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stack {
    /// A plain directory: a layer on nothing.
    Single(PathBuf),
    /// Paths relative to the directory.
    Overlay {
        lower: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
        options: Vec<String>,
    },
}

/// Why a mount is not one of layers that can be mapped.
#[derive(Debug, thiserror::Error)]
#[error("a {kind} mount with options {options:?} has no layers that can be mapped")]
pub(crate) struct NotLayers {
    kind: String,
    options: Vec<String>,
}

impl Layers {
    /// Reads them off a mount as a snapshotter describes it.
    pub(crate) fn parse(kind: &str, source: &str, options: &[String]) -> std::result::Result<Self, NotLayers> {
        let refused = || NotLayers {
            kind: kind.to_owned(),
            options: options.to_vec(),
        };
        match kind {
            "bind" => {
                let (directory, path) = below_snapshots(Path::new(source)).ok_or_else(refused)?;
                Ok(Self {
                    directory,
                    stack: Stack::Single(path),
                })
            }
            "overlay" => Self::parse_overlay(options).ok_or_else(refused),
            _ => Err(refused()),
        }
    }

    fn parse_overlay(options: &[String]) -> Option<Self> {
        let value = |name: &str| options.iter().find_map(|option| option.strip_prefix(name));
        let (directory, upper) = below_snapshots(Path::new(value("upperdir=")?))?;
        let relative = |path: &str| Path::new(path).strip_prefix(&directory).ok().map(Path::to_owned);
        let lower = value("lowerdir=")?
            .split(':')
            .map(relative)
            .collect::<Option<Vec<_>>>()?;
        let is_directory = |option: &&String| {
            ["upperdir=", "lowerdir=", "workdir="]
                .iter()
                .any(|name| option.starts_with(name))
        };
        let stack = Stack::Overlay {
            lower,
            upper,
            work: relative(value("workdir=")?)?,
            options: options
                .iter()
                .filter(|option| !is_directory(option))
                .cloned()
                .chain(WHOLE_LAYERS.map(str::to_owned))
                .collect(),
        };
        Some(Self { directory, stack })
    }

    /// The same, for a program that mounts them without mapped ids.
    pub(crate) fn for_host_access(&self) -> skep_layer_protocol::Mount {
        match &self.stack {
            Stack::Single(path) => skep_layer_protocol::Mount::Bind {
                path: self.directory.join(path),
            },
            Stack::Overlay {
                lower,
                upper,
                work,
                options,
            } => skep_layer_protocol::Mount::Overlay {
                directory: self.directory.clone(),
                lower: lower.clone(),
                upper: upper.clone(),
                work: work.clone(),
                options: options.clone(),
            },
        }
    }

    /// The options of the overlay with short paths below `m`, so that hundreds of layers fit into their one page.
    fn overlay_options(&self) -> Option<String> {
        let Stack::Overlay {
            lower,
            upper,
            work,
            options,
        } = &self.stack
        else {
            return None;
        };
        let short = |path: &PathBuf| format!("m/{}", path.display());
        let lower: Vec<_> = lower.iter().map(short).collect();
        let mut all = options.clone();
        all.push(format!("lowerdir={}", lower.join(":")));
        all.push(format!("upperdir={}", short(upper)));
        all.push(format!("workdir={}", short(work)));
        Some(all.join(","))
    }
}

/// `<directory>/<number>/fs` taken apart.
fn below_snapshots(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let directory = path.parent()?.parent()?;
    Some((directory.to_owned(), path.strip_prefix(directory).ok()?.to_owned()))
}

/// Mounts the layers as the root of this bot's workspace, at [`HostPaths::root`].
///
/// # Errors
/// When the layer is mounted somewhere already: two overlays must never share a writable layer.
pub(crate) fn mount(paths: &HostPaths, bot: &BotId, layers: &Layers, ids: IdBlock) -> Result<PathBuf> {
    // What is left at its own place by an earlier start is nobody's any more.
    unmount_root(paths, bot)?;
    refuse_second_mount(layers)?;
    let user_namespace = paths.user_namespace(bot);
    let user_namespace =
        std::fs::File::open(&user_namespace).tried(|| format!("opening {}", user_namespace.display()))?;
    let root = detached(paths, layers, &user_namespace, ids)?;
    let place = paths.root(bot);
    make_directory(&place, 0o700)?;
    rustix::mount::move_mount(root, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .tried(|| format!("mounting the root of workspace {bot}"))?;
    Ok(place)
}

/// Unmounts it; a task that has bound it keeps its own. Repeatable.
pub(crate) fn unmount(paths: &HostPaths, bot: &BotId) -> Result<()> {
    unmount_root(paths, bot)
}

fn unmount_root(paths: &HostPaths, bot: &BotId) -> Result<()> {
    let place = paths.root(bot);
    unmount_all(&place)?;
    remove_directory(&place)
}

/// Two overlays must never share a writable layer.
pub(crate) fn refuse_second_mount(layers: &Layers) -> Result<()> {
    let Stack::Overlay { upper, .. } = &layers.stack else {
        return Ok(());
    };
    let upper = layers.directory.join(upper);
    let (source, option) = (source_of(&upper)?, format!("upperdir={}", upper.display()));
    let used = mount_table::overlays()?
        .into_iter()
        .find(|mount| mount.source == source || mount.options.split(',').any(|found| found == option));
    match used {
        None => Ok(()),
        Some(mount) => Err(io::Error::from(io::ErrorKind::ResourceBusy))
            .tried(|| format!("using a layer that is mounted at {}", mount.place.display())),
    }
}

/// The source that our overlays over this writable layer are mounted from. The kernel shows the paths of an overlay as they were
/// given, and ours mean nothing outside of the mounter.
fn source_of(upper: &Path) -> Result<String> {
    let seen = rustix::fs::stat(upper).tried(|| format!("looking at the layer {}", upper.display()))?;
    Ok(format!("overlay-{:x}-{}", seen.st_dev, seen.st_ino))
}

/// The mounted root, attached nowhere.
///
/// In a thread of its own, which ends with it: its mount table and its credentials are spoilt.
pub(super) fn detached(
    paths: &HostPaths,
    layers: &Layers,
    user_namespace: &std::fs::File,
    ids: IdBlock,
) -> Result<OwnedFd> {
    let scratch = paths.run_dir.join("mounter");
    make_directory(&scratch, 0o700)?;
    let (layers, user_namespace) = (layers.clone(), user_namespace.try_clone());
    let mounter = std::thread::Builder::new().name("mounter".into()).spawn(move || {
        let user_namespace = user_namespace.tried(|| "keeping a user namespace open".into())?;
        let mounted = mount_privately(&scratch, &layers, &user_namespace, ids);
        // Another user's fsuid in any thread makes the whole process undumpable: its files in /proc
        // would belong to root and stay so.
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
            .tried(|| "making the process dumpable again".into())?;
        mounted
    });
    let mounter = mounter.tried(|| "starting the mounter's thread".into())?;
    mounter
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the mounter panicked")).tried(|| "mounting a root".into()))
}

fn mount_privately(scratch: &Path, layers: &Layers, user_namespace: &std::fs::File, ids: IdBlock) -> Result<OwnedFd> {
    system_calls::leave_the_mount_namespace().tried(|| "leaving the mount namespace".into())?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).tried(|| "making mounts private".into())?;
    let mapped = mapped_tree(layers, user_namespace)?;
    let (Some(options), Stack::Overlay { upper, .. }) = (layers.overlay_options(), &layers.stack) else {
        return Ok(mapped);
    };
    let source = source_of(&layers.directory.join(upper))?;
    rustix::mount::mount(
        "tmpfs",
        scratch,
        "tmpfs",
        MountFlags::empty(),
        c"mode=0755,nr_inodes=16,size=64k",
    )
    .tried(|| format!("mounting {}", scratch.display()))?;
    rustix::process::chdir(scratch).tried(|| format!("entering {}", scratch.display()))?;
    for name in ["m", "o"] {
        rustix::fs::mkdir(name, 0o755.into()).tried(|| format!("making {name}"))?;
    }
    rustix::mount::move_mount(mapped, "", CWD, "m", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .tried(|| "attaching the mapped layers".into())?;
    become_mapped_root(ids)?;
    let options = CString::new(options)
        .map_err(io::Error::from)
        .tried(|| "writing the overlay's options".into())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(source.as_str(), "o", "overlay", flags, options.as_c_str())
        .tried(|| "mounting the overlay over mapped layers".into())?;
    rustix::mount::open_tree(
        CWD,
        "o",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .tried(|| "taking the overlay off its place".into())
}

/// One mount of the directory above all layers, or of the single layer, with mapped ids.
fn mapped_tree(layers: &Layers, user_namespace: &std::fs::File) -> Result<OwnedFd> {
    let source = match &layers.stack {
        Stack::Single(path) => layers.directory.join(path),
        Stack::Overlay { .. } => layers.directory.clone(),
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, &source, flags)
        .tried(|| format!("opening the layers in {}", source.display()))?;
    system_calls::map_mount_ids(tree.as_fd(), user_namespace)
        .tried(|| format!("mapping the ids of {}", source.display()))?;
    if matches!(layers.stack, Stack::Single(_)) {
        system_calls::forbid_devices_and_set_id(tree.as_fd()).tried(|| "setting nosuid and nodev".into())?;
    }
    Ok(tree)
}

/// overlayfs works with the mounter's credentials, and the host's root has no id in a mapped layer.
fn become_mapped_root(ids: IdBlock) -> Result<()> {
    let held = rustix::thread::capabilities(None).tried(|| "reading capabilities".into())?;
    system_calls::act_on_files_as(ids.base()).tried(|| format!("acting on files as {}", ids.base()))?;
    // The change has dropped the capabilities over files; they are still permitted.
    rustix::thread::set_capabilities(None, held).tried(|| "taking capabilities back".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> std::result::Result<Layers, NotLayers> {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        Layers::parse("overlay", "overlay", &options)
    }

    #[test]
    fn paths_become_short_and_other_options_stay() {
        let layers = overlay(&[
            "index=off",
            "workdir=/r/snapshots/9/work",
            "upperdir=/r/snapshots/9/fs",
            "lowerdir=/r/snapshots/7/fs:/r/snapshots/3/fs",
        ]);
        let options = layers.unwrap().overlay_options();
        assert_eq!(
            options.as_deref(),
            Some("index=off,redirect_dir=off,metacopy=off,lowerdir=m/7/fs:m/3/fs,upperdir=m/9/fs,workdir=m/9/work")
        );
    }

    #[test]
    fn a_layer_that_is_the_root_of_a_workspace_is_mounted_nowhere_else() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let paths = HostPaths {
            run_root: directory.path().join("run"),
            run_dir: directory.path().join("run/id"),
            data_root: directory.path().join("data"),
        };
        let place = |name: &str| directory.path().join("snapshots").join(name);
        for name in ["1/fs", "2/fs", "2/work"] {
            std::fs::create_dir_all(place(name)).unwrap();
        }
        let layers = overlay(&[
            &format!("lowerdir={}", place("1/fs").display()),
            &format!("upperdir={}", place("2/fs").display()),
            &format!("workdir={}", place("2/work").display()),
        ])
        .unwrap();
        let (bot, other) = (BotId::random(), BotId::random());
        let ids = IdBlock::claim(&paths, "id", &bot).unwrap();
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET;
        let holder = system_calls::NamespaceHolder::new(flags, Some(ids.base())).unwrap();
        let process = Path::new("/proc").join(holder.pid().to_string());
        super::super::namespaces::map_ids(&process, ids).unwrap();
        make_directory(&paths.run_dir.join("userns"), 0o700).unwrap();
        for bot in [&bot, &other] {
            std::os::unix::fs::symlink(process.join("ns/user"), paths.user_namespace(bot)).unwrap();
        }
        refuse_second_mount(&layers).unwrap();
        mount(&paths, &bot, &layers, ids).unwrap();
        let looked = refuse_second_mount(&layers);
        let second = mount(&paths, &other, &layers, ids);
        // A start after a crash finds what is left at its own place.
        let again = mount(&paths, &bot, &layers, ids);
        unmount(&paths, &bot).unwrap();
        unmount(&paths, &other).unwrap();
        for refused in [looked.unwrap_err(), second.unwrap_err()] {
            assert_eq!(refused.source.kind(), io::ErrorKind::ResourceBusy, "{refused}");
        }
        again.unwrap();
        refuse_second_mount(&layers).unwrap();
    }

    #[test]
    fn layers_in_two_places_are_refused() {
        let layers = overlay(&["workdir=/r/s/9/work", "upperdir=/r/s/9/fs", "lowerdir=/elsewhere/3/fs"]);
        assert!(layers.is_err());
    }

    #[test]
    fn another_kind_of_mount_is_refused() {
        assert!(Layers::parse("fuse", "x", &[]).is_err());
    }
}
