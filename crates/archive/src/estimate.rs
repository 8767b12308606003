//! How long an archive of a tree will be, about, without reading a file: for progress bars.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use crate::directories::{DIRECTORY, Descent, kind, step};

/// A header with the records of its time.
const ENTRY_BYTES: u64 = 3 * 512;

/// Directories in one directory that are looked into: what is not is left out. Their names are held in memory.
const MOST_DIRECTORIES: usize = 65_536;

/// Adds up sizes without holes, until all is added or `until` has come: then there is more than what is returned.
///
/// # Errors
/// Those of reading directories.
pub fn estimate(root: BorrowedFd<'_>, until: Instant) -> std::io::Result<u64> {
    let mut bytes = 0;
    let mut descent = Descent::new(root);
    let opened = rustix::fs::openat(root, c".", DIRECTORY, rustix::fs::Mode::empty())?;
    let below = look_through(&opened, until, &mut bytes)?;
    descent.enter(opened, b"", below)?;
    while let Some(directories) = descent.kept() {
        let Some(name) = directories.pop() else {
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
        if let Some(opened) = step(directory, &name)? {
            let below = look_through(&opened, until, &mut bytes)?;
            descent.enter(opened, &name, below)?;
        }
    }
    Ok(bytes)
}

/// Adds what lies in a directory, as far as there is time; the names of the directories in it.
fn look_through(directory: &OwnedFd, until: Instant, bytes: &mut u64) -> std::io::Result<Vec<Vec<u8>>> {
    let mut directories = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if Instant::now() >= until {
            break;
        }
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        *bytes += ENTRY_BYTES;
        match kind(&stat) {
            FileType::RegularFile => *bytes += (stat.st_size as u64).min((stat.st_blocks as u64).saturating_mul(512)),
            FileType::Directory if directories.len() < MOST_DIRECTORIES => directories.push(name.to_bytes().to_vec()),
            _ => {}
        }
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn all_of_a_tree_is_added_up_while_there_is_time_and_nothing_after_it() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(root.path().join("a/b")).expect("directories");
        std::fs::create_dir(root.path().join("c")).expect("a directory");
        for name in ["a/b/one", "a/two", "c/three"] {
            std::fs::write(root.path().join(name), "").expect("a file");
        }
        let opened = std::fs::File::open(root.path()).expect("a directory");
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        assert_eq!(estimate(opened.as_fd(), now + hour).expect("read"), 6 * ENTRY_BYTES);
        assert_eq!(estimate(opened.as_fd(), now).expect("read"), 0);
        let mut bytes = 0;
        let names = look_through(&opened.into(), now, &mut bytes).expect("read");
        assert_eq!((names.len(), bytes), (0, 0), "a directory is not read to its end first");
    }
}
