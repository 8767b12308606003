//! Directories made, things removed or given another mode.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::descent::{DIRECTORY, Descent, names_of};
use super::info;
use crate::paths;

/// Makes a directory and those above it with `mode`; one that is there is fine.
///
/// # Errors
/// `ENOTDIR` when something else is in the way.
pub(crate) fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) if info::is_directory(path)? => Ok(()),
        Err(Errno::EXIST) => Err(Errno::NOTDIR.into()),
        Err(Errno::NOENT) => {
            let parent = path.parent().ok_or(Errno::NOENT)?;
            make_directory_above(parent, mode)?;
            make_one(path, mode)
        }
        Err(error) => Err(error.into()),
    }
}

/// From the top down, so that a path of thousands of parts needs no stack.
fn make_directory_above(path: &Path, mode: u32) -> io::Result<()> {
    let mut missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    while let Some(directory) = missing.pop() {
        make_one(directory, mode)?;
    }
    Ok(())
}

fn make_one(path: &Path, mode: u32) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(()),
        // Somebody else was faster.
        Err(Errno::EXIST) if info::is_directory(path)? => Ok(()),
        Err(Errno::EXIST) => Err(Errno::NOTDIR.into()),
        Err(error) => Err(error.into()),
    }
}

/// Sets mode and, where given, owner. Links are followed: a link has no mode of its own.
pub(crate) fn change_mode(path: &Path, mode: u32, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL.into());
    }
    if uid.is_some() || gid.is_some() {
        // Before the mode: a change of owner takes setuid and setgid away.
        rustix::fs::chown(path, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
    }
    Ok(rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o7777))?)
}

/// Removes a file, a link (not what it names) or a directory.
///
/// # Errors
/// `ENOENT` when there is nothing, `ENOTEMPTY` for a directory with entries unless `recursive`, `EBUSY` for `/`.
pub(crate) fn remove(path: &Path, recursive: bool) -> io::Result<()> {
    let Some((parent, name)) = paths::split(path) else {
        return Err(Errno::BUSY.into());
    };
    let parent = rustix::fs::openat(
        CWD,
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if recursive {
        return remove_entry(&parent, name);
    }
    match unlink(&parent, name)? {
        Unlinked::Gone => Ok(()),
        Unlinked::NotEmpty => Err(Errno::NOTEMPTY.into()),
    }
}

enum Unlinked {
    Gone,
    NotEmpty,
}

fn unlink(directory: &OwnedFd, name: impl rustix::path::Arg + Copy) -> io::Result<Unlinked> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) => return Ok(Unlinked::Gone),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(Unlinked::Gone),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Unlinked::NotEmpty),
        // Not a directory after all: then the first answer, "not permitted", was the true one.
        Err(Errno::NOTDIR) => Err(Errno::PERM.into()),
        Err(error) => Err(error.into()),
    }
}

/// Removes an entry of an open directory, with all that is in it.
pub(super) fn remove_entry(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlink(parent, name)? {
        Unlinked::Gone => Ok(()),
        Unlinked::NotEmpty => remove_tree(parent, name),
    }
}

/// Empties the directory and removes it. Entries that others make meanwhile are removed too.
fn remove_tree(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    loop {
        let top = match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
            Ok(top) => top,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        empty(top)?;
        match unlink(parent, name) {
            Ok(Unlinked::Gone) => return Ok(()),
            Ok(Unlinked::NotEmpty) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// A directory on the way down, and what is still in it.
struct Level {
    names: Vec<CString>,
    name: CString,
}

fn empty(top: OwnedFd) -> io::Result<()> {
    let mut levels = vec![Level {
        names: names_of(&top)?,
        name: CString::default(),
    }];
    let mut descent = Descent::begin(top);
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            let done = levels.pop();
            if let (Some(done), false) = (done, levels.is_empty()) {
                descent.leave()?;
                forgive_missing(unlink(descent.at(), done.name.as_c_str()).map(drop))?;
            }
            continue;
        };
        match unlink(descent.at(), name.as_c_str()) {
            Ok(Unlinked::Gone) => continue,
            Ok(Unlinked::NotEmpty) => {}
            Err(error) => {
                forgive_missing(Err(error))?;
                continue;
            }
        }
        match descent.enter(&name) {
            Ok(()) => levels.push(Level {
                names: names_of(descent.at())?,
                name,
            }),
            Err(error) => match Errno::from_io_error(&error) {
                // It became something else meanwhile, which the next round from the top sees to.
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

pub(super) fn forgive_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let top = rustix::fs::openat(CWD, directory.path(), flags, Mode::empty()).expect("opened");
        let mut at = top.try_clone().expect("a copy");
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "deep", Mode::RWXU).expect("made");
            at = rustix::fs::openat(&at, "deep", flags, Mode::empty()).expect("opened");
        }
        drop(at);
        remove(&directory.path().join("deep"), true).expect("removed");
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 0);
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_names() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("real")).expect("made");
        fs::write(directory.path().join("real/file"), b"x").expect("written");
        std::os::unix::fs::symlink("real", directory.path().join("link")).expect("linked");
        remove(&directory.path().join("link"), true).expect("removed");
        assert!(directory.path().join("real/file").exists());
    }

    #[test]
    fn a_directory_with_entries_needs_recursive() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(directory.path().join("a/b")).expect("made");
        let error = remove(&directory.path().join("a"), false).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(Errno::NOTEMPTY.raw_os_error()));
        remove(&directory.path().join("a/b"), false).expect("an empty one goes");
    }
}
