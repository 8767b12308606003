//! Root file systems as plain directories: how the test image is made, and how a layer is copied from it.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// The static multi-call binary of the host that the image is made of.
const BUSYBOX: &str = "/bin/busybox";

/// Makes the root file system of the test image: busybox with its applets, users, empty directories, devices.
///
/// # Errors
/// When busybox is missing or devices cannot be made (both need a host with root rights).
pub(super) fn make_busybox_root(root: &Path) -> io::Result<()> {
    let directories = [
        "bin",
        "dev/pts",
        "dev/shm",
        "etc",
        "home",
        "opt/memoh",
        "proc",
        "root",
        "run/memoh",
        "sys",
        "tmp",
        "usr/bin",
        "usr/sbin",
        "sbin",
        "var/log",
    ];
    for directory in directories {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::set_permissions(root.join("root"), fs::Permissions::from_mode(0o700))?;
    let busybox = root.join("bin/busybox");
    fs::copy(BUSYBOX, &busybox).map_err(|error| io::Error::new(error.kind(), format!("copy {BUSYBOX}: {error}")))?;
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755))?;
    let listing = std::process::Command::new(BUSYBOX).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&listing.stdout)
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        // Names, not inodes: some file systems find hundreds of new ones slowly while as many were just given back.
        fs::hard_link(&busybox, root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000:worker:/home/worker:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\ntools:x:50:worker\nworker:x:1000:\nnogroup:x:65534:\n",
    )?;
    let home = root.join("home/worker");
    fs::create_dir(&home)?;
    std::os::unix::fs::chown(&home, Some(1000), Some(1000))?;
    make_devices(&root.join("dev"))
}

fn make_devices(dev: &Path) -> io::Result<()> {
    let devices = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    for (name, major, minor) in devices {
        let path = dev.join(name);
        mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(major, minor),
        )?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    }
    symlink("pts/ptmx", dev.join("ptmx"))?;
    symlink("/proc/self/fd", dev.join("fd"))
}

/// Copies a tree with all it has, hard links, attributes and times too. `to` must not exist.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let output = std::process::Command::new("cp").arg("-a").arg(from).arg(to).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}
