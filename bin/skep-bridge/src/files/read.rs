//! Opening a file to be streamed.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use skep_bridge_protocol::workspace::FileInfo;

use super::info;

/// Opens a regular file for reading; links are followed. With `confine_below` nothing outside that directory is
/// reached, by whatever link: `PermissionDenied`.
///
/// # Errors
/// `EISDIR` for a directory, `ENXIO` for a pipe, socket or device (none of which is opened, nor waited for).
pub(crate) fn open_regular(path: &Path, confine_below: Option<&Path>) -> io::Result<(File, FileInfo)> {
    // Without NONBLOCK a pipe that nobody writes to would hold the thread for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match confine_below {
        None => File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?),
        Some(root) => open_below(root, path, flags)?,
    };
    let info = info::info_of_file(&file, path)?;
    match info.mode & 0o170_000 {
        0o100_000 => Ok((file, info)),
        0o040_000 => Err(Errno::ISDIR.into()),
        _ => Err(Errno::NXIO.into()),
    }
}

fn open_below(root: &Path, path: &Path, flags: OFlags) -> io::Result<File> {
    let below = path.strip_prefix(root).map_err(|_| io::Error::from(Errno::ACCESS))?;
    // The directory itself is the tenant's too: as a link it would lead out like any other.
    let root = rustix::fs::openat2(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    );
    let root = root.map_err(|error| match error {
        Errno::LOOP => Errno::ACCESS,
        error => error,
    })?;
    let below = if below.as_os_str().is_empty() {
        Path::new(".")
    } else {
        below
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, below, flags, Mode::empty(), resolve) {
        Ok(file) => Ok(File::from(file)),
        // The kernel's word for a path that leads out.
        Err(Errno::XDEV) => Err(Errno::ACCESS.into()),
        Err(error) => Err(error.into()),
    }
}

/// Which bytes of an open file are wanted.
pub(crate) struct ReadPlan {
    pub(crate) offset: u64,
    /// 0: to the end.
    pub(crate) length: u64,
}

impl ReadPlan {
    /// Moves `file` to the first byte and returns how many there are at most.
    pub(crate) fn begin(&self, file: &mut File) -> io::Result<u64> {
        if self.offset > 0 {
            file.seek(SeekFrom::Start(self.offset))?;
        }
        Ok(if self.length == 0 { u64::MAX } else { self.length })
    }
}
