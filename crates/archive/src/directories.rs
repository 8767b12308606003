//! Going down into a tree that its owner changes meanwhile, without ever leaving it.
//!
//! Every step opens one name, which has no `/` in it and is not `..`, below an open directory, and follows no link: so
//! nothing outside is reached, whatever is moved or replaced under way. (`openat2` with `RESOLVE_BENEATH` says the same
//! of a whole path, but not every kernel a workspace runs on has it.)

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::hard_links::Identity;

/// Directories of a path that are held open. A tree may be deeper than a process may have files open.
const MOST_OPEN: usize = 64;

pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// Opens the directory of this name; `None`: it is gone, or is no directory any more.
pub(crate) fn step(parent: impl AsFd, name: &[u8]) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The path of a walk: a directory in each level, with what the walker keeps of it.
pub(crate) struct Descent<'a, T> {
    root: BorrowedFd<'a>,
    levels: Vec<Level<T>>,
}

struct Level<T> {
    /// `None`: too far up to be held open.
    directory: Option<OwnedFd>,
    name: Vec<u8>,
    identity: Identity,
    kept: T,
}

impl<'a, T> Descent<'a, T> {
    pub(crate) fn new(root: BorrowedFd<'a>) -> Self {
        Self {
            root,
            levels: Vec::new(),
        }
    }

    pub(crate) fn enter(&mut self, directory: OwnedFd, name: &[u8], kept: T) -> io::Result<()> {
        let identity = identity(&rustix::fs::fstat(&directory)?);
        self.levels.push(Level {
            directory: Some(directory),
            name: name.to_vec(),
            identity,
            kept,
        });
        if let Some(far_up) = self.levels.len().checked_sub(MOST_OPEN + 1) {
            self.levels[far_up].directory = None;
        }
        Ok(())
    }

    pub(crate) fn leave(&mut self) -> Option<T> {
        self.levels.pop().map(|level| level.kept)
    }

    /// What is kept of the deepest directory; `None`: the walk is over.
    pub(crate) fn kept(&mut self) -> Option<&mut T> {
        self.levels.last_mut().map(|level| &mut level.kept)
    }

    /// The deepest directory; `None`: it is no longer where it was.
    pub(crate) fn deepest(&mut self) -> io::Result<Option<BorrowedFd<'_>>> {
        let Some(last) = self.levels.len().checked_sub(1) else {
            return Ok(Some(self.root));
        };
        if self.levels[last].directory.is_none() && !self.reopen(last)? {
            return Ok(None);
        }
        Ok(self.levels[last].directory.as_ref().map(AsFd::as_fd))
    }

    /// Opens the way down to this level again, and holds what is near its end; `false`: something is not where it was.
    fn reopen(&mut self, last: usize) -> io::Result<bool> {
        let mut at = self.root.try_clone_to_owned()?;
        for level in 0..=last {
            if level > 0 {
                match step(&at, &self.levels[level].name)? {
                    Some(next) => at = next,
                    None => return Ok(false),
                }
            }
            if level + MOST_OPEN > last {
                if identity(&rustix::fs::fstat(&at)?) != self.levels[level].identity {
                    return Ok(false);
                }
                self.levels[level].directory = Some(at.try_clone()?);
            }
        }
        Ok(true)
    }
}
