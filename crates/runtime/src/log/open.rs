//! How a file is opened in a directory that a tenant can write.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};
use rustix::io::Errno;

use super::LIVE_FILES;

/// A regular file, whatever its name leads to by now.
#[derive(Debug)]
pub(super) struct LogFile {
    descriptor: OwnedFd,
    /// Device and number: what tells it from others.
    pub(super) identity: (u64, u64),
}

impl LogFile {
    fn new(descriptor: OwnedFd, seen: &Stat) -> Self {
        Self {
            descriptor,
            identity: (seen.st_dev, seen.st_ino),
        }
    }

    pub(super) fn size(&self) -> io::Result<u64> {
        Ok(fstat(&self.descriptor)?.st_size.cast_unsigned())
    }

    /// What is there from `offset` on, at most `most` bytes. A file that its tenant shortens meanwhile gives less.
    pub(super) fn read_at(&self, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; most];
        let mut length = 0;
        while length < most {
            let at = offset.saturating_add(length as u64);
            let read = rustix::io::retry_on_intr(|| rustix::io::pread(&self.descriptor, &mut bytes[length..], at))?;
            if read == 0 {
                break;
            }
            length += read;
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Its last bytes: a file may be said to be of any size.
    pub(super) fn tail(&self, most: usize) -> io::Result<Vec<u8>> {
        self.read_at(self.size()?.saturating_sub(most as u64), most)
    }
}

/// The files of the bridge's ring that are there, the older one first.
///
/// What has one of the names and is no plain file is left out: it is none of the bridge's.
pub(super) fn live(directory: &Path) -> io::Result<Vec<LogFile>> {
    let Some(directory) = open_directory(directory)? else {
        return Ok(Vec::new());
    };
    let mut files = Vec::new();
    for name in LIVE_FILES {
        files.extend(open_below(&directory, name)?);
    }
    Ok(files)
}

pub(super) fn open_directory(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, path, flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) => absent(error.into()),
    }
}

/// Opens a plain file of this directory. By a place first, then that very file: nothing that is no plain file is
/// ever opened, so no device is touched and no pipe waits for us.
pub(super) fn open_below(directory: impl AsFd, name: &str) -> io::Result<Option<LogFile>> {
    let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let place = match openat2(directory, name, place, Mode::empty(), within) {
        Ok(place) => place,
        Err(error) => return absent(error.into()),
    };
    let seen = fstat(&place)?;
    if FileType::from_raw_mode(seen.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match openat(
        CWD,
        format!("/proc/self/fd/{}", place.as_raw_fd()),
        flags,
        Mode::empty(),
    ) {
        Ok(descriptor) => Ok(Some(LogFile::new(descriptor, &seen))),
        // Its tenant has a lease on it, which keeps it from everybody for a while.
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Not there, or not what a log of ours would be.
fn absent<T>(error: io::Error) -> io::Result<Option<T>> {
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        _ => Err(error),
    }
}
