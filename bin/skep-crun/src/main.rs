//! crun for hosts with hybrid cgroups, as the `BinaryName` of containerd's runc shim.
//!
//! crun refuses to work where cgroup v2 is mounted beside v1 and holds a controller. In a mount namespace of its own
//! this program takes that mount away and becomes crun; nothing else on the host sees a change. It is not for hosts
//! with pure cgroup v2: there crun is used bare.
//!
//! And it says of a container that crun knows nothing of what runc says: the shim clears away what is left of one that
//! is gone only when it is told so in these words.

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

/// runc's words for a container without a state, which the shim knows.
const DOES_NOT_EXIST: &str = "container does not exist";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if is_about_one_that_is_gone(&arguments) {
        eprintln!("skep-crun: {DOES_NOT_EXIST}");
        return ExitCode::FAILURE;
    }
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

/// Whether a container is to be signalled or removed whose state crun does not have (any more).
fn is_about_one_that_is_gone(arguments: &[OsString]) -> bool {
    let mut left = arguments.iter();
    let mut root = None;
    loop {
        match left.next().map(|argument| argument.to_str().unwrap_or_default()) {
            Some("--root") => root = left.next(),
            Some("--log" | "--log-format") => drop(left.next()),
            Some("kill" | "delete") => break,
            Some(flag) if flag.starts_with('-') => {}
            Some(_) | None => return false,
        }
    }
    // crun itself takes a forced removal of nothing for a success.
    if left.clone().any(|argument| argument == "--force" || argument == "-f") {
        return false;
    }
    let id = left.find(|argument| !argument.as_encoded_bytes().starts_with(b"-"));
    root.zip(id)
        .is_some_and(|(root, id)| !Path::new(root).join(id).join("status").exists())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_and_removals_of_what_has_no_state_are_answered_here() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("there")).expect("a state directory");
        fs::write(root.path().join("there/status"), "{}").expect("a state");
        let asked = |rest: &[&str]| {
            let root = root.path().to_str().expect("a path");
            let all = [
                "--root",
                root,
                "--log",
                "/log",
                "--log-format",
                "json",
                "--systemd-cgroup",
            ];
            let arguments: Vec<OsString> = all.iter().chain(rest).map(OsString::from).collect();
            is_about_one_that_is_gone(&arguments)
        };
        assert!(asked(&["kill", "--all", "gone", "9"]));
        assert!(asked(&["delete", "gone"]));
        assert!(!asked(&["delete", "--force", "gone"]));
        assert!(!asked(&["kill", "there", "15"]));
        assert!(!asked(&["delete", "there"]));
        assert!(!asked(&["create", "--bundle", "/b", "gone"]));
        assert!(!asked(&["state", "gone"]));
        assert!(!asked(&[]));
    }
}
