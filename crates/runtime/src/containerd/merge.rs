//! Several layers made into one that means the same, by hard links: no byte of a file is copied, but of one whose names
//! would have more links than its file system allows. All names of such a file are links to one copy; of a link, a pipe
//! or a socket, which have no content, each name that finds no room is one of its own.
//!
//! A layer is a directory as overlayfs writes it: a character device 0:0 hides the name below, a directory with the
//! attribute `trusted.overlay.opaque` hides all of that directory below. The sources are committed and never change,
//! and nobody has the destination mounted; all is done below open directories, and no link is followed.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::upper::{accessed, modified};

const OPAQUE: &CStr = c"trusted.overlay.opaque";
const METACOPY: &CStr = c"trusted.overlay.metacopy";
/// Begins the names of what the host's security modules note: theirs to remove.
const SECURITY: &[u8] = b"security.";
/// Attributes of overlayfs under which a layer cannot be taken apart from those below it.
const BOUND: [&CStr; 2] = [c"trusted.overlay.redirect", METACOPY];
/// The largest list of attributes, and the largest attribute, that Linux has.
const ATTRIBUTE_BYTES: usize = 64 << 10;
/// Of a file that is copied, between two questions whether to go on.
const PIECE_BYTES: u64 = 16 << 20;

/// Makes an empty directory the sum of these layers, the lowest first. It is on the disk when this returns.
/// `is_wanted` is asked at each entry, and again and again while a file is copied.
///
/// # Errors
/// `Unsupported` for layers that cannot be taken apart, `Interrupted` once it is not wanted; nothing but the destination
/// was touched then.
pub(super) fn merge(layers: &[PathBuf], destination: &Path, is_wanted: &dyn Fn() -> bool) -> io::Result<()> {
    let destination = open(destination)?;
    Links::new(link, is_wanted).merge(layers, &destination)?;
    Ok(rustix::fs::syncfs(&destination)?)
}

type Link = fn(&OwnedFd, &CStr, &OwnedFd) -> rustix::io::Result<()>;

fn link(source: &OwnedFd, name: &CStr, target: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::linkat(source, name, target, name, AtFlags::empty())
}

/// A file, by device and inode.
type Inode = (u64, u64);

/// How entries come into the destination.
struct Links<'a> {
    link: Link,
    is_wanted: &'a dyn Fn() -> bool,
    /// Files that cannot have a link more for each of their names.
    full: HashSet<Inode>,
    /// Of those, what their names are links to.
    copies: HashMap<Inode, OwnedFd>,
}

impl<'a> Links<'a> {
    fn new(link: Link, is_wanted: &'a dyn Fn() -> bool) -> Self {
        Self {
            link,
            is_wanted,
            full: HashSet::new(),
            copies: HashMap::new(),
        }
    }

    /// Once more from the beginning when a file turned out to be full: some of its names may be links to it by then, and
    /// the others would be another file.
    fn merge(&mut self, layers: &[PathBuf], destination: &OwnedFd) -> io::Result<()> {
        loop {
            let known = self.full.len();
            for layer in layers {
                self.apply(open(layer)?, destination.try_clone()?)?;
            }
            if self.full.len() == known {
                return Ok(());
            }
            self.copies.clear();
            for name in names_in(destination)? {
                self.go_on()?;
                remove(destination, &name)?;
            }
        }
    }

    fn go_on(&self) -> io::Result<()> {
        match (self.is_wanted)() {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "nobody waits for it any more",
            )),
        }
    }

    /// Puts one layer over what the destination has. Goes down and up by one open directory each, however deep.
    fn apply(&mut self, mut source: OwnedFd, mut target: OwnedFd) -> io::Result<()> {
        let mut open_directories = vec![names_in(&source)?];
        while let Some(names) = open_directories.last_mut() {
            let Some(name) = names.pop() else {
                copy_attributes(&source, &target)?;
                open_directories.pop();
                if !open_directories.is_empty() {
                    (source, target) = (open_at(&source, c"..")?, open_at(&target, c"..")?);
                }
                continue;
            };
            self.go_on()?;
            let stat = rustix::fs::statat(&source, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                self.put(&source, &name, &stat, &target)?;
                continue;
            }
            let below = open_at(&source, &name)?;
            make_directory(&below, &target, &name)?;
            open_directories.push(names_in(&below)?);
            (source, target) = (below, open_at(&target, &name)?);
        }
        Ok(())
    }

    /// Anything but a directory takes the place of what is there.
    fn put(&mut self, source: &OwnedFd, name: &CStr, stat: &Stat, target: &OwnedFd) -> io::Result<()> {
        remove(target, name)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            // Made anew: overlayfs itself links all its whiteouts, and there may be as many as a file can have links.
            let hidden = rustix::fs::mknodat(target, name, FileType::CharacterDevice, Mode::empty(), 0);
            return Ok(hidden?);
        }
        if kind == FileType::RegularFile {
            has_its_content(source, name)?;
        }
        let inode = (stat.st_dev, stat.st_ino);
        if self.full.contains(&inode) {
            return self.put_copy(source, name, stat, target);
        }
        match (self.link)(source, name, target) {
            // The next round has it.
            Err(Errno::MLINK) if kind == FileType::RegularFile => {
                self.full.insert(inode);
                Ok(())
            }
            Err(Errno::MLINK) => make_anew(source, name, stat, target),
            linked => Ok(linked?),
        }
    }

    /// All names of a file are links to one copy. It has not more of them than the file itself had.
    fn put_copy(&mut self, source: &OwnedFd, name: &CStr, stat: &Stat, target: &OwnedFd) -> io::Result<()> {
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(copy) = self.copies.get(&inode) {
            return Ok(rustix::fs::linkat(copy, c"", target, name, AtFlags::EMPTY_PATH)?);
        }
        let copy = self.copy_file(source, name, stat, target)?;
        self.copies.insert(inode, copy);
        Ok(())
    }

    /// With its holes, owner, mode, attributes and times.
    fn copy_file(&self, source: &OwnedFd, name: &CStr, stat: &Stat, target: &OwnedFd) -> io::Result<OwnedFd> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = rustix::fs::openat(source, name, flags | OFlags::RDONLY, Mode::empty())?;
        let new = flags | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mut to = File::from(rustix::fs::openat(target, name, new, Mode::RUSR | Mode::WUSR)?);
        let mut from = File::from(from);
        let size = stat.st_size.cast_unsigned();
        let mut at = 0;
        while at < size {
            self.go_on()?;
            let data = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
                Ok(data) => data,
                // Nothing but a hole is left.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let hole = rustix::fs::seek(&from, SeekFrom::Hole(data))?;
            let end = hole.min(data + PIECE_BYTES);
            rustix::fs::seek(&from, SeekFrom::Start(data))?;
            rustix::fs::seek(&to, SeekFrom::Start(data))?;
            io::copy(&mut io::Read::take(&mut from, end - data), &mut to)?;
            at = end;
        }
        rustix::fs::ftruncate(&to, size)?;
        let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
        own(&to, stat)?;
        for (name, value) in attributes(&from)? {
            rustix::fs::fsetxattr(&to, &name, &value, XattrFlags::empty())?;
        }
        set_times(&to, stat)?;
        Ok(to)
    }
}

/// What has no content, with its owner, mode, attributes and times.
fn make_anew(source: &OwnedFd, name: &CStr, stat: &Stat, target: &OwnedFd) -> io::Result<()> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_link = kind == FileType::Symlink;
    match is_link {
        true => rustix::fs::symlinkat(&rustix::fs::readlinkat(source, name, Vec::new())?, target, name)?,
        false => rustix::fs::mknodat(target, name, kind, Mode::empty(), stat.st_rdev)?,
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !is_link {
        rustix::fs::chmodat(target, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    // Neither can be opened to be asked.
    let (from, to) = (path_of(source, name)?, path_of(target, name)?);
    let kept = attributes_by(
        |names| rustix::fs::llistxattr(&from, names),
        |attribute, value| rustix::fs::lgetxattr(&from, attribute, value),
    )?;
    for (attribute, value) in kept {
        rustix::fs::lsetxattr(&to, &attribute, &value, XattrFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(
        target,
        name,
        &times(stat),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// For calls that take a path alone.
fn path_of(directory: &OwnedFd, name: &CStr) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).map_err(io::Error::other)
}

fn own(file: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(file, Some(uid), Some(gid))?;
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode))?)
}

fn set_times(file: &OwnedFd, stat: &Stat) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, &times(stat))?)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: accessed(stat),
        last_modification: modified(stat),
    }
}

/// A layer may have a file's attributes alone, when it was mounted by others: its content is in the layer below, and the
/// link would be an empty file.
fn has_its_content(directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    match rustix::fs::fgetxattr(&file, METACOPY, &mut [0; 64]) {
        Err(Errno::NODATA) => Ok(()),
        Ok(_) | Err(Errno::RANGE) => Err(depends_on_the_one_below()),
        Err(error) => Err(error.into()),
    }
}

fn depends_on_the_one_below() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "a layer depends on the one below it by a redirection",
    )
}

/// A directory joins one that is there; over anything else it hides what is further below.
fn make_directory(source: &OwnedFd, target: &OwnedFd, name: &CStr) -> io::Result<()> {
    if is_opaque(source)? {
        remove(target, name)?;
    }
    let there = match rustix::fs::statat(target, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::NOENT) => None,
        Err(error) => return Err(error.into()),
    };
    match there {
        Some(FileType::Directory) => return Ok(()),
        Some(_) => remove(target, name)?,
        None => {}
    }
    rustix::fs::mkdirat(target, name, Mode::RWXU)?;
    if there.is_some() {
        let made = open_at(target, name)?;
        rustix::fs::fsetxattr(&made, OPAQUE, b"y", XattrFlags::empty())?;
    }
    Ok(())
}

/// Removes an entry with all below it; none is fine.
fn remove(parent: &OwnedFd, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let mut directory = open_at(parent, name)?;
    let mut open_directories = vec![(name.to_owned(), names_in(&directory)?)];
    while let Some((_, names)) = open_directories.last_mut() {
        if let Some(entry) = names.pop() {
            match rustix::fs::unlinkat(&directory, &entry, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    directory = open_at(&directory, &entry)?;
                    let below = names_in(&directory)?;
                    open_directories.push((entry, below));
                }
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        let Some((empty, _)) = open_directories.pop() else {
            break;
        };
        if open_directories.is_empty() {
            rustix::fs::unlinkat(parent, &empty, AtFlags::REMOVEDIR)?;
        } else {
            directory = open_at(&directory, c"..")?;
            rustix::fs::unlinkat(&directory, &empty, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}

/// Owner, mode, attributes and times of a directory, those of the upper one; what it hides stays hidden.
fn copy_attributes(source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(source)?;
    let opaque = is_opaque(target)?;
    own(target, &stat)?;
    for (name, _) in attributes(target)? {
        if !name.to_bytes().starts_with(SECURITY) {
            rustix::fs::fremovexattr(target, &name)?;
        }
    }
    for (name, value) in attributes(source)? {
        if BOUND.contains(&name.as_c_str()) {
            return Err(depends_on_the_one_below());
        }
        rustix::fs::fsetxattr(target, &name, &value, XattrFlags::empty())?;
    }
    if opaque {
        rustix::fs::fsetxattr(target, OPAQUE, b"y", XattrFlags::empty())?;
    }
    set_times(target, &stat)
}

fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    let mut value = [0; 8];
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA) => Ok(false),
        // Longer than any value it has.
        Err(Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn attributes(directory: &OwnedFd) -> io::Result<Vec<(CString, Vec<u8>)>> {
    attributes_by(
        |names| rustix::fs::flistxattr(directory, names),
        |name, value| rustix::fs::fgetxattr(directory, name, value),
    )
}

fn attributes_by(
    list: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut names = vec![0; ATTRIBUTE_BYTES];
    let length = list(&mut names)?;
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name).map_err(io::Error::other)?;
        let mut value = vec![0; ATTRIBUTE_BYTES];
        let length = get(&name, &mut value)?;
        value.truncate(length);
        found.push((name, value));
    }
    Ok(found)
}

fn names_in(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if ![&b"."[..], b".."].contains(&name.to_bytes()) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn open(directory: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(directory, DIRECTORY, Mode::empty())?)
}

fn open_at(parent: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?)
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests;
