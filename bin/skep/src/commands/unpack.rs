//! Takes in a tar stream that a workspace made, without trusting it.
//!
//! Whoever controls the workspace controls every byte of the stream. Each name is resolved below
//! the target's descriptor, and no link, neither one of the archive nor one that was there, is walked
//! through. Devices, owners, setuid bits and extended attributes are not taken over.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, copy};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use tar::EntryType;

use crate::failure::{Failure, Result};
use crate::output::printable;

/// Unpacks into `target`, which is made when it is not there.
///
/// # Errors
/// A name leads out of the target, something of another kind is in the way, or the stream breaks.
pub(crate) fn unpack(from: impl Read, target: &Path) -> Result<()> {
    let failed = |error| Failure::local(format!("cannot write {}", target.display()), error);
    match std::fs::create_dir(target) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(target, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    // Directories get their modes last: one without `w` could not be filled.
    let mut modes = VecDeque::new();
    let broken = |error| Failure::local("the archive cannot be read", error);
    for entry in tar::Archive::new(from).entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        let Some(parts) = parts_of(&path)? else { continue };
        let placed = place(&root, &parts, &mut entry);
        placed.map_err(|error| Failure::local(format!("cannot unpack {}", path.display()), error))?;
        if entry.header().entry_type() == EntryType::Directory {
            modes.push_front((parts, entry.header().mode().unwrap_or(0o755)));
        }
    }
    for (parts, mode) in modes {
        let directory = open_directory(&root, &parts).map_err(failed)?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode & 0o777)).map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

/// The parts of a name; `None` for the root itself.
fn parts_of(path: &Path) -> Result<Option<Vec<OsString>>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Failure::Failed(format!(
                    "the archive names {}, which leads out of it",
                    path.display()
                )));
            }
        }
    }
    Ok(Some(parts).filter(|parts| !parts.is_empty()))
}

fn place<R: Read>(root: &OwnedFd, parts: &[OsString], entry: &mut tar::Entry<'_, R>) -> std::io::Result<()> {
    let Some((name, above)) = parts.split_last() else {
        return Ok(());
    };
    let directory = make_directories(root, above)?;
    let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
    match entry.header().entry_type() {
        EntryType::Directory => make_directory(&directory, name),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            remove_other(&directory, name)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o600))?;
            let mut file = File::from(file);
            copy(entry, &mut file)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(Into::into)
        }
        EntryType::Symlink => {
            let target = entry
                .link_name()?
                .ok_or_else(|| std::io::Error::other("a link without a target"))?;
            remove_other(&directory, name)?;
            rustix::fs::symlinkat(target.as_os_str(), &directory, name).map_err(Into::into)
        }
        EntryType::Link => {
            let target = entry
                .link_name()?
                .ok_or_else(|| std::io::Error::other("a link without a target"))?;
            hard_link(root, &target, &directory, name)
        }
        kind => {
            let name = printable(&name.to_string_lossy());
            eprintln!("skep: left out {name}: {kind:?} cannot be had here");
            Ok(())
        }
    }
}

fn hard_link(root: &OwnedFd, target: &Path, directory: &OwnedFd, name: &OsString) -> std::io::Result<()> {
    let parts = parts_of(target).map_err(|failure| std::io::Error::other(failure.to_string()))?;
    let parts = parts.ok_or_else(|| std::io::Error::other("a hard link to the root"))?;
    let Some((file, above)) = parts.split_last() else {
        return Ok(());
    };
    let source = open_directory(root, above)?;
    remove_other(directory, name)?;
    rustix::fs::linkat(&source, file, directory, name, AtFlags::empty()).map_err(Into::into)
}

/// Opens without walking through any link, the last part included.
fn open_directory(root: &OwnedFd, parts: &[OsString]) -> std::io::Result<OwnedFd> {
    if parts.is_empty() {
        return root.try_clone();
    }
    let path: PathBuf = parts.iter().collect();
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root.as_fd(), &path, flags, Mode::empty(), resolve).map_err(Into::into)
}

fn make_directories(root: &OwnedFd, parts: &[OsString]) -> std::io::Result<OwnedFd> {
    match open_directory(root, parts) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        result => return result,
    }
    for depth in 1..=parts.len() {
        let above = open_directory(root, &parts[..depth - 1])?;
        make_directory(&above, &parts[depth - 1])?;
    }
    open_directory(root, parts)
}

fn make_directory(directory: &OwnedFd, name: &OsString) -> std::io::Result<()> {
    match rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)) {
        Err(rustix::io::Errno::EXIST) => {
            // A directory that is there is filled; anything else is in the way.
            open_directory(directory, std::slice::from_ref(name)).map(|_| ())
        }
        result => result.map_err(Into::into),
    }
}

/// Removes a file or link that is in the way, never a directory.
fn remove_other(directory: &OwnedFd, name: &OsString) -> std::io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(rustix::io::Errno::NOENT) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        fill(&mut tar);
        tar.into_inner().unwrap()
    }

    /// A header whose name is written as it is, without the checks of honest writers.
    fn raw(kind: EntryType, name: &str, link: &str, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        header
    }

    #[test]
    fn files_directories_and_links_arrive_with_their_modes() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = archive(|tar| {
            let mut read_only = raw(EntryType::Directory, "d/", "", 0);
            read_only.set_mode(0o555);
            read_only.set_cksum();
            tar.append(&read_only, &[][..]).unwrap();
            tar.append(&raw(EntryType::Regular, "d/f", "", 2), &b"hi"[..]).unwrap();
            tar.append(&raw(EntryType::Symlink, "l", "d/f", 0), &[][..]).unwrap();
            tar.append(&raw(EntryType::Link, "h", "d/f", 0), &[][..]).unwrap();
        });
        let target = directory.path().join("new");
        unpack(&bytes[..], &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("l")).unwrap(), "hi");
        assert_eq!(fs::read_to_string(target.join("h")).unwrap(), "hi");
        assert_eq!(
            fs::metadata(target.join("d")).unwrap().permissions().mode() & 0o777,
            0o555
        );
        fs::set_permissions(target.join("d"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn nothing_is_written_outside_of_the_target() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let target = directory.path().join("target");
        let evil = [
            archive(|tar| {
                tar.append(&raw(EntryType::Regular, "../outside/f", "", 1), &b"x"[..])
                    .unwrap()
            }),
            archive(|tar| {
                tar.append(&raw(EntryType::Symlink, "way", &outside.to_string_lossy(), 0), &[][..])
                    .unwrap();
                tar.append(&raw(EntryType::Regular, "way/f", "", 1), &b"x"[..]).unwrap();
            }),
            archive(|tar| {
                tar.append(&raw(EntryType::Symlink, "up", "..", 0), &[][..]).unwrap();
                tar.append(&raw(EntryType::Link, "h", "up/outside/secret", 0), &[][..])
                    .unwrap();
            }),
        ];
        fs::write(outside.join("secret"), "s").unwrap();
        for bytes in evil {
            assert!(unpack(&bytes[..], &target).is_err());
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert!(!target.join("h").exists());
    }

    #[test]
    fn a_link_that_was_there_is_replaced_and_not_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        let target = directory.path().join("target");
        fs::create_dir(&target).unwrap();
        symlink(&victim, target.join("f")).unwrap();
        let bytes = archive(|tar| tar.append(&raw(EntryType::Regular, "f", "", 1), &b"x"[..]).unwrap());
        unpack(&bytes[..], &target).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    }

    #[test]
    fn a_stream_that_is_cut_off_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = archive(|tar| {
            tar.append(&raw(EntryType::Regular, "f", "", 600), &[0; 600][..])
                .unwrap()
        });
        assert!(unpack(&bytes[..700], &directory.path().join("t")).is_err());
    }
}
