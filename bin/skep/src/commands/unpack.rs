//! Takes in a tar stream that a workspace made, without trusting it.
//!
//! Whoever controls the workspace controls every byte of the stream. Each name is resolved below
//! the target's descriptor, and no link, neither one of the archive nor one that was there, is walked
//! through. Devices, owners, setuid bits and extended attributes are not taken over.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use skep_archive::{ArchiveError, Entries, Entry, Kind, LeftOut, Reader, Trust};

use crate::failure::{Failure, Result, with_causes};
use crate::output::printable;

/// Read of the stream at a time.
const BUFFER_BYTES: usize = 64 << 10;

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
    let mut left_out = LeftOut::new(Trust::Stranger, &std::env::temp_dir());
    let mut reader = Reader::new(BufReader::with_capacity(BUFFER_BYTES, from), Trust::Stranger);
    while let Some(entry) = reader.next().map_err(broken)? {
        let parts = parts_of(&entry.name);
        let is_left_out = left_out.has(&entry).map_err(broken)?;
        if parts.is_empty() {
            continue;
        }
        if is_left_out && entry.kind == Kind::HardLink {
            let [name, link] = [&entry.name, &entry.link].map(|name| printable(&String::from_utf8_lossy(name)));
            eprintln!("skep: left out {name}: it is {link}, which was left out");
            continue;
        }
        place(&root, &parts, &entry, &mut reader)?;
        if entry.kind == Kind::Directory {
            modes.push_front((parts, entry.mode));
        }
    }
    for (parts, mode) in modes {
        let directory = open_directory(&root, &parts).map_err(failed)?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode & 0o777)).map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

fn broken(error: ArchiveError) -> Failure {
    Failure::Failed(format!("cannot unpack what was sent: {}", with_causes(&error)))
}

/// The parts of a name, which the reader has seen to lead nowhere else; none for the root itself.
fn parts_of(name: &[u8]) -> Vec<OsString> {
    let parts = name.split(|&byte| byte == b'/').filter(|part| !part.is_empty());
    parts.map(|part| OsStr::from_bytes(part).to_owned()).collect()
}

fn place<R: Read>(root: &OwnedFd, parts: &[OsString], entry: &Entry, reader: &mut Reader<R>) -> Result<()> {
    let failed = |error: std::io::Error| {
        let name = String::from_utf8_lossy(&entry.name);
        Failure::local(format!("cannot unpack {name}"), error)
    };
    match entry.kind {
        Kind::File => {
            let file = make_file(root, parts).map_err(failed)?;
            reader.write_data(entry, &file).map_err(broken)?;
            let mode = Mode::from_raw_mode(entry.mode & 0o777);
            rustix::fs::fchmod(&file, mode).map_err(|error| failed(error.into()))
        }
        _ => place_without_data(root, parts, entry).map_err(failed),
    }
}

fn make_file(root: &OwnedFd, parts: &[OsString]) -> std::io::Result<File> {
    let (directory, name) = make_room(root, parts)?;
    remove_other(&directory, name)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o600))?;
    Ok(File::from(file))
}

fn place_without_data(root: &OwnedFd, parts: &[OsString], entry: &Entry) -> std::io::Result<()> {
    let (directory, name) = make_room(root, parts)?;
    match entry.kind {
        Kind::Directory => make_directory(&directory, name),
        Kind::Symlink => {
            remove_other(&directory, name)?;
            rustix::fs::symlinkat(&entry.link[..], &directory, name).map_err(Into::into)
        }
        Kind::HardLink => hard_link(root, &entry.link, &directory, name),
        kind => {
            let name = printable(&name.to_string_lossy());
            eprintln!("skep: left out {name}: {kind:?} cannot be had here");
            Ok(())
        }
    }
}

/// The directory of a name, made when it is not there, and its last part.
fn make_room<'a>(root: &OwnedFd, parts: &'a [OsString]) -> std::io::Result<(OwnedFd, &'a OsString)> {
    let (name, above) = parts
        .split_last()
        .ok_or_else(|| std::io::Error::other("it has no name"))?;
    Ok((make_directories(root, above)?, name))
}

fn hard_link(root: &OwnedFd, target: &[u8], directory: &OwnedFd, name: &OsString) -> std::io::Result<()> {
    let parts = parts_of(target);
    let (file, above) = parts
        .split_last()
        .ok_or_else(|| std::io::Error::other("a hard link to the root"))?;
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

    use tar::EntryType;

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
    fn a_name_of_any_length_is_not_held_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let length = 2 << 20;
        let bytes = archive(|tar| {
            let long = raw(EntryType::GNULongName, "././@LongLink", "", length);
            tar.append(&long, &vec![b'x'; length as usize][..]).unwrap();
            tar.append(&raw(EntryType::Regular, "f", "", 0), &[][..]).unwrap();
        });
        let failure = unpack(&bytes[..], &directory.path().join("t")).unwrap_err();
        assert!(failure.to_string().contains("name that is too long"), "{failure}");
    }

    #[test]
    fn every_name_of_a_pipe_is_left_out_and_what_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("pipe"), "mine").unwrap();
        let bytes = archive(|tar| {
            tar.append(&raw(EntryType::Fifo, "pipe", "", 0), &[][..]).unwrap();
            tar.append(&raw(EntryType::Link, "pipe too", "pipe", 0), &[][..])
                .unwrap();
            tar.append(&raw(EntryType::Fifo, "other", "", 0), &[][..]).unwrap();
            tar.append(&raw(EntryType::Link, "other too", "other", 0), &[][..])
                .unwrap();
            tar.append(&raw(EntryType::Regular, "z", "", 1), &b"z"[..]).unwrap();
        });
        unpack(&bytes[..], &target).unwrap();
        let mut names: Vec<_> = fs::read_dir(&target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["pipe", "z"]);
        assert_eq!(fs::read_to_string(target.join("pipe")).unwrap(), "mine");
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
