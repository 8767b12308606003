//! Making a directory empty, however much is in it and however deep it is.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;

use crate::directories::{DIRECTORY, Descent, step};
use crate::error::ArchiveError;

/// Names that are read before what has them is removed.
const NAMES_AT_ONCE: usize = 4096;

/// Removes all that lies below `root`; links are removed and not followed.
///
/// # Errors
/// Those of the file system; what was removed before is gone.
pub(crate) fn all_below(root: BorrowedFd<'_>) -> Result<(), ArchiveError> {
    let told = |error: std::io::Error| ArchiveError::io("empty", b"", error);
    let opened = rustix::fs::openat(root, c".", DIRECTORY, rustix::fs::Mode::empty());
    let opened = opened.map_err(|error| told(error.into()))?;
    let mut descent = Descent::new(root);
    descent.enter(opened, b"", Vec::new()).map_err(told)?;
    let mut depth = 0;
    loop {
        let directory = descent.deepest().map_err(told)?;
        let directory = directory.ok_or_else(|| told(std::io::ErrorKind::NotFound.into()))?;
        match next_directory(directory).map_err(told)? {
            Some((below, name)) => {
                descent.enter(below, &name, name.clone()).map_err(told)?;
                depth += 1;
            }
            None if depth == 0 => return Ok(()),
            None => {
                let name = descent.leave().unwrap_or_default();
                depth -= 1;
                let above = descent.deepest().map_err(told)?;
                let above = above.ok_or_else(|| told(std::io::ErrorKind::NotFound.into()))?;
                rustix::fs::unlinkat(above, &name, AtFlags::REMOVEDIR).map_err(|error| told(error.into()))?;
            }
        }
    }
}

/// Removes what is no directory, or an empty one, until it meets one that is not empty; `None`: nothing is left.
fn next_directory(directory: BorrowedFd<'_>) -> std::io::Result<Option<(std::os::fd::OwnedFd, Vec<u8>)>> {
    loop {
        let mut names = Vec::new();
        for entry in Dir::read_from(directory.as_fd())? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
            if names.len() == NAMES_AT_ONCE {
                break;
            }
        }
        if names.is_empty() {
            return Ok(None);
        }
        for name in names {
            match rustix::fs::unlinkat(directory, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => {
                    if let Some(below) = step(directory, &name)? {
                        return Ok(Some((below, name)));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
