//! The worker's own file system: its root holds the mounted layer and nothing else. What it may do is given up to
//! the last need once that is mounted.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};
use skep_layer_protocol::{Job, Mount, Task};

use crate::failure::{Result, Tried};

/// Where the layer is mounted, in the worker's own root.
const PLACE: &str = "layer";
/// Where the directory for nameless files is, there.
pub(crate) const SPOOL: &str = "/spool";

/// What the layer is mounted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// Mounts the layer, leaves everything else of the host behind, and returns the layer's root directory.
pub(crate) fn enter(job: &Job) -> Result<OwnedFd> {
    let access = match &job.task {
        Task::Pack(_) | Task::Estimate => Access::Read,
        Task::Apply(_) => Access::Write,
    };
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).tried("making mounts private")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(
        "tmpfs",
        &job.scratch,
        "tmpfs",
        flags,
        c"mode=0700,nr_inodes=16,size=64k",
    )
    .tried("mounting a private file system")?;
    let place = job.scratch.join(PLACE);
    rustix::fs::mkdir(&place, Mode::RWXU).tried("making the place of the layer")?;
    mount(&job.mount, &place, access)?;
    let spool = job.scratch.join(SPOOL.trim_start_matches('/'));
    rustix::fs::mkdir(&spool, Mode::RWXU).tried("making the place of the spool")?;
    bind(&job.spool, &spool, Access::Write)?;
    leave_the_host(&job.scratch).tried("leaving the host's file system")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, Path::new("/").join(PLACE), flags, Mode::empty()).tried("opening the layer")
}

fn mount(mount: &Mount, place: &Path, access: Access) -> Result<()> {
    match mount {
        Mount::Bind { path } => bind(path, place, access),
        Mount::Overlay { directory, .. } => {
            rustix::process::chdir(directory).tried("entering the directory of the layers")?;
            let options = CString::new(overlay_options(mount, access))
                .map_err(io::Error::from)
                .tried("writing the overlay's options")?;
            rustix::mount::mount("overlay", place, "overlay", flags(access), options.as_c_str())
                .tried("mounting the layers")
        }
    }
}

fn bind(directory: &Path, place: &Path, access: Access) -> Result<()> {
    rustix::mount::mount_bind(directory, place).tried("binding a directory")?;
    // The flags of a bind mount are only taken by a second call.
    rustix::mount::mount_remount(place, MountFlags::BIND | flags(access), c"").tried("restricting the bound directory")
}

/// Relative paths, so that hundreds of layers fit into the one page. What is only read has no upper directory: two
/// overlays must never share one.
fn overlay_options(mount: &Mount, access: Access) -> String {
    let Mount::Overlay {
        lower,
        upper,
        work,
        options,
        ..
    } = mount
    else {
        return String::new();
    };
    let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
    let (upper, lower) = (upper.display(), lower.join(":"));
    let mut all = options.clone();
    match access {
        Access::Read => all.push(format!("lowerdir={upper}:{lower}")),
        Access::Write => all.extend([
            format!("lowerdir={lower}"),
            format!("upperdir={upper}"),
            format!("workdir={}", work.display()),
        ]),
    }
    all.join(",")
}

fn flags(access: Access) -> MountFlags {
    let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSYMFOLLOW;
    match access {
        Access::Read => strict | MountFlags::RDONLY | MountFlags::NOATIME,
        Access::Write => strict,
    }
}

/// The private file system becomes the root; the host's is unmounted, in this namespace alone.
fn leave_the_host(root: &Path) -> rustix::io::Result<()> {
    rustix::process::chdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Gives up every capability but those over files of other owners.
pub(crate) fn give_up_privileges(task: &Task) -> Result<()> {
    let kept = match task {
        Task::Pack(_) | Task::Estimate => CapabilitySet::DAC_READ_SEARCH,
        Task::Apply(_) => {
            CapabilitySet::CHOWN
                | CapabilitySet::DAC_OVERRIDE
                | CapabilitySet::DAC_READ_SEARCH
                | CapabilitySet::FOWNER
                | CapabilitySet::FSETID
                | CapabilitySet::SETFCAP
        }
    };
    let tried = "giving up capabilities";
    for capability in CapabilitySet::all().iter().filter(|one| !kept.contains(*one)) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know cannot be held.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).tried(tried),
        }
    }
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).tried(tried)
}
