//! How long an archive of a tree will be, about, without reading a file: for progress bars.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use crate::directories::{DIRECTORY, Descent, kind, step};

/// A header with the records of its time.
const ENTRY_BYTES: u64 = 3 * 512;

/// Adds up sizes without holes, until all is added or `until` has come: then there is more than what is returned.
///
/// # Errors
/// Those of reading directories.
pub fn estimate(root: BorrowedFd<'_>, until: Instant) -> std::io::Result<u64> {
    let mut bytes = 0;
    let mut descent = Descent::new(root);
    let opened = rustix::fs::openat(root, c".", DIRECTORY, rustix::fs::Mode::empty())?;
    let names = names_in(&opened)?;
    descent.enter(opened, b"", names)?;
    while let Some(names) = descent.kept() {
        let Some(name) = names.pop() else {
            descent.leave();
            continue;
        };
        if Instant::now() >= until {
            break;
        }
        let Some(directory) = descent.deepest()? else {
            descent.leave();
            continue;
        };
        let stat = match rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        bytes += ENTRY_BYTES;
        match kind(&stat) {
            FileType::RegularFile => bytes += (stat.st_size as u64).min((stat.st_blocks as u64).saturating_mul(512)),
            FileType::Directory => {
                if let Some(below) = step(directory, &name)? {
                    let names = names_in(&below)?;
                    descent.enter(below, &name, names)?;
                }
            }
            _ => {}
        }
    }
    Ok(bytes)
}

fn names_in(directory: &OwnedFd) -> std::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
