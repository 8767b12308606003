//! Unpacking an archive below a directory: nothing is written outside it, and nothing through a link.

use std::collections::HashSet;
#[cfg(feature = "compression")]
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode as Bits, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::attributes;
use crate::directories::{DIRECTORY, identity, kind};
use crate::entry::{Entries, Entry, Kind, Trust, split};
use crate::error::{ArchiveError, Reason};
use crate::hard_links::Identity;
use crate::late::Late;
use crate::left_out::LeftOut;
use crate::reader::Reader;
use crate::remove;
use crate::way::Way;
#[cfg(feature = "compression")]
use crate::zip::ZipReader;

/// Of directories that an archive names only in what lies in them.
const IMPLIED_MODE: u32 = 0o750;
pub(crate) const PIECE_BYTES: usize = 256 * 1024;

/// What becomes of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It stays, but for what the archive has another of. The root keeps its own mode and owner.
    Merge,
    /// It goes: in the end there is exactly the archive.
    Replace,
}

/// Whose the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Those that the archive names.
    Kept,
    /// The caller.
    Caller,
}

/// What becomes of links that are there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// A name that leads through one is refused.
    Refused,
    /// They are followed, wherever they lead, but not those that the archive itself brought: for a process that runs
    /// inside a workspace, where `/bin` is a link in most images.
    ExistingFollowed,
}

/// How an archive is unpacked.
#[derive(Debug, Clone, Copy)]
pub struct ApplyOptions<'a> {
    /// What becomes of what is there.
    pub mode: Mode,
    /// Whose archive it is.
    pub trust: Trust,
    /// Whose the files are then.
    pub owners: Owners,
    /// What becomes of links on the way.
    pub links: Links,
    /// A directory for files without a name.
    pub spill: &'a Path,
}

/// What was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Files, directories and links, the root itself not counted.
    pub entries: u64,
    /// Sizes of the files together, holes included.
    pub bytes: u64,
    /// Devices, and of a stranger's archive pipes and sockets with each of their names, that were left out.
    pub skipped: u64,
    /// Entries of owners that a workspace does not have.
    pub remapped: u64,
}

/// Unpacks a plain tar stream below `root`.
///
/// # Errors
/// What was unpacked before one stays: who wants all or nothing unpacks into a layer of its own.
pub fn apply(root: BorrowedFd<'_>, input: impl Read, options: &ApplyOptions<'_>) -> Result<Applied, ArchiveError> {
    let input = BufReader::with_capacity(64 * 1024, input);
    unpack(root, &mut Reader::new(input, options.trust), options)
}

/// Unpacks a ZIP archive below `root`. All that is in one belongs to the caller or to root.
///
/// # Errors
/// As [`apply`].
#[cfg(feature = "compression")]
pub fn apply_zip(root: BorrowedFd<'_>, archive: &File, options: &ApplyOptions<'_>) -> Result<Applied, ArchiveError> {
    unpack(root, &mut ZipReader::open(archive, options.trust)?, options)
}

fn unpack(
    root: BorrowedFd<'_>,
    entries: &mut impl Entries,
    options: &ApplyOptions<'_>,
) -> Result<Applied, ArchiveError> {
    if options.mode == Mode::Replace {
        remove::all_below(root)?;
    }
    let mut unpacker = Unpacker {
        root,
        options: *options,
        way: Way::default(),
        made_links: HashSet::new(),
        late: Late::new(options.spill),
        done: Applied::default(),
        piece: vec![0; PIECE_BYTES],
    };
    let mut left_out = LeftOut::new(options.trust, options.spill);
    while let Some(mut entry) = entries.next()? {
        if left_out.has(&entry)? {
            unpacker.done.skipped += 1;
            continue;
        }
        let settled = entry.settle(options.trust);
        unpacker.done.remapped += u64::from(settled.remapped);
        unpacker.entry(&entry, entries)?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    options: ApplyOptions<'a>,
    way: Way,
    /// The symbolic links that this archive made, where those of others are followed.
    made_links: HashSet<Identity>,
    late: Late,
    done: Applied,
    piece: Vec<u8>,
}

/// An error of the operating system at this entry.
fn at(entry: &Entry, what: &'static str) -> impl Fn(Errno) -> ArchiveError {
    let name = entry.name.clone();
    move |error| ArchiveError::io(what, &name, error)
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &Entry, reader: &mut impl Entries) -> Result<(), ArchiveError> {
        if entry.name.is_empty() {
            return self.root(entry);
        }
        self.done.entries += 1;
        let (above, name) = split(&entry.name);
        let parent = self.directory(above, &entry.name)?;
        if entry.kind == Kind::Directory {
            self.make_directory(&parent, name, entry)?;
        } else {
            if entry.kind == Kind::HardLink && entry.link == entry.name {
                return Err(ArchiveError::refused(&entry.name, Reason::LinkNotInArchive));
            }
            self.make_room(&parent, name, entry)?;
            match entry.kind {
                Kind::File => self.file(&parent, name, entry, reader)?,
                Kind::HardLink => self.hard_link(&parent, name, entry)?,
                Kind::Symlink => self.symlink(&parent, name, entry)?,
                _ => self.special(&parent, name, entry)?,
            }
        }
        Ok(())
    }

    /// `./`: in a merge the root's own mode and owner stay.
    fn root(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        if self.options.mode == Mode::Merge {
            return Ok(());
        }
        let root = rustix::fs::openat(self.root, c".", DIRECTORY, Bits::empty());
        self.settle_directory(&root.map_err(at(entry, "open"))?, entry)
    }

    /// Opens the directory of this path, and makes what is missing of it.
    fn directory(&mut self, path: &[u8], entry: &[u8]) -> Result<Rc<OwnedFd>, ArchiveError> {
        let (nearest, rest) = self.way.nearest(path);
        let mut directory = match nearest {
            Some(nearest) => nearest,
            None => {
                let root = self.root.try_clone_to_owned();
                Rc::new(root.map_err(|error| ArchiveError::io("open", entry, error))?)
            }
        };
        let mut length = path.len() - rest.len();
        for part in rest.split(|&byte| byte == b'/') {
            if !part.is_empty() {
                directory = Rc::new(self.step(&directory, part, entry)?);
                length += part.len() + usize::from(length > 0);
                self.way.went(&path[..length], &directory);
            }
        }
        Ok(directory)
    }

    fn step(&self, parent: &OwnedFd, name: &[u8], entry: &[u8]) -> Result<OwnedFd, ArchiveError> {
        let told = |error: Errno| ArchiveError::io("open the directory of", entry, error);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(parent, name, flags | OFlags::NOFOLLOW, Bits::empty()) {
            Ok(next) => return Ok(next),
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(parent, name, Bits::from_raw_mode(IMPLIED_MODE)).map_err(told)?;
                return rustix::fs::openat(parent, name, flags | OFlags::NOFOLLOW, Bits::empty()).map_err(told);
            }
            Err(Errno::LOOP | Errno::NOTDIR) => {}
            Err(error) => return Err(told(error)),
        }
        let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(told)?;
        let is_followed = self.options.links == Links::ExistingFollowed
            && kind(&there) == FileType::Symlink
            && !self.made_links.contains(&identity(&there));
        if !is_followed {
            return Err(ArchiveError::refused(entry, Reason::ThroughLink));
        }
        rustix::fs::openat(parent, name, flags, Bits::empty()).map_err(told)
    }

    fn make_directory(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ArchiveError> {
        match rustix::fs::mkdirat(parent, name, Bits::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
                match (kind(&there.map_err(at(entry, "look at"))?), self.options.links) {
                    (FileType::Directory, _) | (FileType::Symlink, Links::ExistingFollowed) => {}
                    (FileType::Symlink, Links::Refused) => {
                        return Err(ArchiveError::refused(&entry.name, Reason::DirectoryOverLink));
                    }
                    _ => {
                        self.make_room(parent, name, entry)?;
                        rustix::fs::mkdirat(parent, name, Bits::RWXU).map_err(at(entry, "make"))?;
                    }
                }
            }
            Err(error) => return Err(at(entry, "make")(error)),
        }
        let place = self.step(parent, name, &entry.name)?;
        let opened = rustix::fs::openat(&place, c".", DIRECTORY, Bits::empty()).map_err(at(entry, "open"))?;
        self.settle_directory(&opened, entry)
    }

    /// Its mode and time are set when it is full: a directory that may not be written to could not be filled. So is the
    /// access list that what is made in it would begin with.
    fn settle_directory(&mut self, directory: &OwnedFd, entry: &Entry) -> Result<(), ArchiveError> {
        self.own(directory, entry)?;
        let noted = self.late.push(entry);
        noted.map_err(|error| ArchiveError::io("note the mode of", &entry.name, error))
    }

    fn own(&self, file: &OwnedFd, entry: &Entry) -> Result<(), ArchiveError> {
        if let Some((uid, gid)) = self.owner(entry) {
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(at(entry, "give away"))?;
        }
        let set = attributes::set(file, &entry.attributes);
        set.map_err(|error| ArchiveError::io("set the attributes of", &entry.name, error))
    }

    fn owner(&self, entry: &Entry) -> Option<(Uid, Gid)> {
        // The reader has seen to it that they fit.
        let owner = (Uid::from_raw(entry.uid as u32), Gid::from_raw(entry.gid as u32));
        (self.options.owners == Owners::Kept).then_some(owner)
    }

    /// Takes away what has the name, so that nothing is written into it or through it.
    fn make_room(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ArchiveError> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => Err(ArchiveError::refused(&entry.name, Reason::OverDirectory)),
                result => {
                    self.way.forget();
                    result.map_err(at(entry, "replace"))
                }
            },
            Err(error) => Err(at(entry, "replace")(error)),
        }
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        reader: &mut impl Entries,
    ) -> Result<(), ArchiveError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Bits::RUSR | Bits::WUSR).map_err(at(entry, "make"))?;
        fill(&file, entry, reader, &mut self.piece)?;
        self.own(&file, entry)?;
        // After the change of owner, which takes setuid and setgid away.
        rustix::fs::fchmod(&file, Bits::from_raw_mode(entry.mode)).map_err(at(entry, "set the mode of"))?;
        rustix::fs::futimens(&file, &times(entry.mtime)).map_err(at(entry, "set the time of"))?;
        self.done.bytes += entry.size;
        Ok(())
    }

    fn symlink(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ArchiveError> {
        rustix::fs::symlinkat(&entry.link[..], parent, name).map_err(at(entry, "make"))?;
        if self.options.links == Links::ExistingFollowed {
            let made = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at(entry, "look at"))?;
            self.made_links.insert(identity(&made));
        }
        self.describe(parent, name, entry)
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ArchiveError> {
        let (above, target) = split(&entry.link);
        let directory = self.directory(above, &entry.name)?;
        match rustix::fs::linkat(&directory, target, parent, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(ArchiveError::refused(&entry.name, Reason::LinkNotInArchive)),
            result => result.map_err(at(entry, "link")),
        }
    }

    fn special(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ArchiveError> {
        let kind = if entry.kind == Kind::Socket {
            FileType::Socket
        } else {
            FileType::Fifo
        };
        let mode = Bits::from_raw_mode(entry.mode);
        rustix::fs::mknodat(parent, name, kind, mode, 0).map_err(at(entry, "make"))?;
        self.describe(parent, name, entry)?;
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(at(entry, "set the mode of"))
    }

    /// Owner and time of what cannot be opened.
    fn describe(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ArchiveError> {
        if let Some((uid, gid)) = self.owner(entry) {
            let owned = rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
            owned.map_err(at(entry, "give away"))?;
        }
        let timed = rustix::fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW);
        timed.map_err(at(entry, "set the time of"))
    }

    fn finish(mut self) -> Result<Applied, ArchiveError> {
        let told = |error: std::io::Error| ArchiveError::io("set the modes of", b"", error);
        let mut late = std::mem::replace(&mut self.late, Late::new(self.options.spill))
            .finish()
            .map_err(told)?;
        while let Some(noted) = late.next().map_err(told)? {
            let (above, name) = split(&noted.name);
            let parent = self.directory(above, &noted.name)?;
            let opened = self.open_again(&parent, name);
            match opened {
                Ok(directory) => {
                    let told = |error: Errno| ArchiveError::io("set the mode of", &noted.name, error);
                    if !noted.default_access.is_empty() {
                        let set = attributes::set_default_access(&directory, &noted.default_access);
                        set.map_err(|error| ArchiveError::io("set the attributes of", &noted.name, error))?;
                    }
                    rustix::fs::fchmod(&directory, Bits::from_raw_mode(noted.mode)).map_err(told)?;
                    rustix::fs::futimens(&directory, &times(noted.mtime)).map_err(told)?;
                }
                // A later entry of the archive took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(ArchiveError::io("open", &noted.name, error)),
            }
        }
        Ok(self.done)
    }
}

impl Unpacker<'_> {
    /// The directory that an entry made, or the one a link that was there before leads to.
    fn open_again(&self, parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
        if name.is_empty() {
            return rustix::fs::openat(parent, c".", DIRECTORY, Bits::empty());
        }
        let opened = rustix::fs::openat(parent, name, DIRECTORY, Bits::empty());
        if self.options.links == Links::Refused || !matches!(opened, Err(Errno::LOOP | Errno::NOTDIR)) {
            return opened;
        }
        let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if self.made_links.contains(&identity(&there)) {
            return opened;
        }
        rustix::fs::openat(parent, name, DIRECTORY - OFlags::NOFOLLOW, Bits::empty())
    }
}

/// Writes the data of an entry to its file, which is empty: holes stay holes.
pub(crate) fn fill(
    file: impl AsFd,
    entry: &Entry,
    reader: &mut impl Entries,
    piece: &mut [u8],
) -> Result<(), ArchiveError> {
    for segment in entry.data() {
        let (mut offset, mut left) = (segment.offset, segment.length);
        while left > 0 {
            let most = left.min(piece.len() as u64) as usize;
            let length = reader.read_data(&mut piece[..most])?;
            let mut piece = &piece[..length];
            while !piece.is_empty() {
                let written = match rustix::io::pwrite(&file, piece, offset) {
                    Err(Errno::INTR) => 0,
                    result => result.map_err(at(entry, "write"))?,
                };
                piece = &piece[written..];
                offset += written as u64;
            }
            left -= length as u64;
        }
    }
    if entry.segments.is_some() {
        rustix::fs::ftruncate(&file, entry.size).map_err(at(entry, "write"))?;
    }
    Ok(())
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
