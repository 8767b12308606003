//! `/data` in a mounted layer, whatever its tenant has put in its place.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use skep_layer_protocol::DataPlace;

use crate::failure::{Failure, Result, Tried};

const NAME: &str = "data";

/// Mode of a `/data` that had to be made, as images have it.
const NEW_MODE: u32 = 0o755;

/// The directory; `None` when nothing is there.
pub(crate) fn open(root: &OwnedFd, place: DataPlace) -> Result<Option<File>> {
    let name = match place {
        DataPlace::Below => NAME,
        DataPlace::Root => ".",
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, name, flags, Mode::empty(), resolve) {
        Ok(directory) => Ok(Some(directory.into())),
        Err(Errno::NOENT) => Ok(None),
        // A link is not resolved; a file is no directory.
        Err(Errno::LOOP | Errno::NOTDIR) => Err(Failure::not_a_directory()),
        Err(error) => Err(error).tried("opening /data"),
    }
}

/// The directory, made when nothing is there.
pub(crate) fn open_or_make(root: &OwnedFd, place: DataPlace) -> Result<File> {
    if let Some(directory) = open(root, place)? {
        return Ok(directory);
    }
    rustix::fs::mkdirat(root, NAME, Mode::from_raw_mode(NEW_MODE)).tried("making /data")?;
    // Whatever the umask of the server.
    let made = open(root, place)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
    let made = made.tried("opening /data")?;
    rustix::fs::fchmod(&made, Mode::from_raw_mode(NEW_MODE)).tried("setting the mode of /data")?;
    Ok(made)
}

/// Everything written to the layer is on the disk when this returns.
pub(crate) fn flush(root: &OwnedFd) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(root, ".", flags, Mode::empty()).tried("opening the layer's root")?;
    rustix::fs::syncfs(&root).tried("writing the layer to the disk")
}
