//! crun for hosts with hybrid cgroups, as the `BinaryName` of containerd's runc shim.
//!
//! crun refuses to work where cgroup v2 is mounted beside v1 and holds a controller. In a mount namespace of its own
//! this program takes that mount away and becomes crun; nothing else on the host sees a change. It is not for hosts
//! with pure cgroup v2: there crun is used bare.

use std::error::Error;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

const HYBRID_MOUNT: &str = "/sys/fs/cgroup/unified";
const USUAL_CRUN: &str = "/usr/bin/crun";

fn main() -> ExitCode {
    let error = become_crun();
    eprintln!("skep-crun: {error}");
    ExitCode::FAILURE
}

/// Returns only when it failed.
fn become_crun() -> Box<dyn Error> {
    if let Err(error) = hide_hybrid_cgroups() {
        return error;
    }
    match find_crun() {
        Ok(crun) => {
            let error = Command::new(&crun).args(env::args_os().skip(1)).exec();
            format!("start {}: {error}", crun.display()).into()
        }
        Err(error) => error,
    }
}

fn hide_hybrid_cgroups() -> Result<(), Box<dyn Error>> {
    own_mount_namespace().map_err(|error| format!("make a mount namespace: {error}"))?;
    // Slave, not private: mounts that the host makes later (a workspace's root) must still arrive here.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|error| format!("make / a slave: {error}"))?;
    match unmount(HYBRID_MOUNT, UnmountFlags::DETACH) {
        // Not mounted, or no such directory: nothing to hide.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(format!("unmount {HYBRID_MOUNT}: {error}").into()),
    }
}

#[allow(unsafe_code)]
fn own_mount_namespace() -> rustix::io::Result<()> {
    // SAFETY: this process has one thread and no open directory that the new namespace could surprise.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
}

/// The crun named by the file `crun-path` beside this program; else `/usr/bin/crun`; else the first one in `PATH`.
/// A file, because containerd's shim hands no environment of ours on.
fn find_crun() -> Result<PathBuf, Box<dyn Error>> {
    let own = env::current_exe().map_err(|error| format!("find this program's own directory: {error}"))?;
    let named = own.with_file_name("crun-path");
    match fs::read(&named) {
        Ok(content) => return Ok(OsString::from_vec(content.trim_ascii().to_vec()).into()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(format!("read {}: {error}", named.display()).into()),
    }
    if Path::new(USUAL_CRUN).exists() {
        return Ok(USUAL_CRUN.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .map(|directory| directory.join("crun"))
        .find(|crun| crun.is_file());
    found.ok_or_else(|| "no crun: neither /usr/bin/crun nor one in PATH, nor a file crun-path beside skep-crun".into())
}
