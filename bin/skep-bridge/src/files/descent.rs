//! A way down into a tree and up again that holds one descriptor: trees may be deeper than descriptors or paths reach.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

/// Links are not entered.
pub(super) const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::RDONLY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

pub(super) struct Descent {
    at: OwnedFd,
    /// Device and inode of each directory above, the top's first.
    above: Vec<(u64, u64)>,
}

impl Descent {
    pub(super) fn begin(top: OwnedFd) -> Self {
        Self {
            at: top,
            above: Vec::new(),
        }
    }

    pub(super) fn at(&self) -> &OwnedFd {
        &self.at
    }

    /// Goes down.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR` or `ELOOP` when there is no such directory (any more).
    pub(super) fn enter(&mut self, name: &CStr) -> io::Result<()> {
        let own = rustix::fs::fstat(&self.at)?;
        self.at = rustix::fs::openat(&self.at, name, DIRECTORY, Mode::empty())?;
        self.above.push((own.st_dev, own.st_ino));
        Ok(())
    }

    /// Goes up again, and gives the directory that was left.
    ///
    /// # Errors
    /// `EBUSY` when somebody has moved that directory elsewhere; `EINVAL` at the top.
    pub(super) fn leave(&mut self) -> io::Result<OwnedFd> {
        let above = self.above.pop().ok_or(Errno::INVAL)?;
        let parent = rustix::fs::openat(&self.at, c"..", DIRECTORY, Mode::empty())?;
        let stat = rustix::fs::fstat(&parent)?;
        if (stat.st_dev, stat.st_ino) != above {
            return Err(Errno::BUSY.into());
        }
        Ok(std::mem::replace(&mut self.at, parent))
    }
}

pub(super) fn names_of(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_directory_that_was_moved_elsewhere_is_not_left_for_its_new_place() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(directory.path().join("a/b")).expect("made");
        fs::create_dir(directory.path().join("other")).expect("made");
        let top = rustix::fs::open(directory.path(), DIRECTORY, Mode::empty()).expect("opened");
        let mut descent = Descent::begin(top);
        descent.enter(c"a").expect("entered");
        descent.enter(c"b").expect("entered");
        fs::rename(directory.path().join("a/b"), directory.path().join("other/b")).expect("moved");
        let error = descent.leave().expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(Errno::BUSY.raw_os_error()));
    }
}
