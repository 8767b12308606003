//! A tree as a tar stream, read while its owner goes on changing it.
//!
//! A header cannot be taken back, and reading a file twice to be sure of it would cost as much as the archive. So a
//! file goes out as it is read, and when it turns out that it changed meanwhile, it goes out once more under the same
//! name: of several entries of one name, tar takes the last.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;

use crate::attributes::{self, Attribute, Attributes};
use crate::directories::{Descent, identity, kind, step};
use crate::error::ArchiveError;
use crate::hard_links::{Birth, HardLinks};
use crate::header::flag;
use crate::sort::{Sorted, Sorter};
use crate::sparse::{self, Segment};
use crate::writer::{Head, Writer};

/// How often a file that changes is read.
const TRIES: u32 = 3;
/// Names of one directory that are held in memory before they go to disk.
const MOST_NAME_BYTES: usize = 4 << 20;
const PIECE_BYTES: usize = 256 * 1024;

/// What becomes of a file that changed each time it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changing {
    /// It goes in as it was read last, and is counted.
    Counted,
    /// The archive fails.
    Refused,
}

/// Whether the root itself is an entry, `./`, which holds its mode and owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootEntry {
    /// Also when there is nothing in it.
    Always,
    /// An empty tree is an archive without entries.
    UnlessEmpty,
    /// It is not.
    Never,
}

/// What tar has no place for, or nobody wants elsewhere. Devices are always left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Pipes and sockets are left out, and counted.
    LeftOut,
    /// Pipes go in, each name of one as a pipe of its own.
    Pipes,
    /// Sockets too, in a way that only we read; others see a pipe. Of several names those after the first are hard links.
    All,
}

/// How a tree is packed.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions<'a> {
    /// Which attributes go in.
    pub attributes: Attributes,
    /// What becomes of files that do not hold still.
    pub changing: Changing,
    /// Whether the root is an entry.
    pub root: RootEntry,
    /// What becomes of pipes and sockets.
    pub special: Special,
    /// A directory for files without a name, used when there are hard links or very large directories.
    pub spill: &'a Path,
}

/// What went in.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PackReport {
    /// Files, directories and links, the root itself not counted.
    pub entries: u64,
    /// Sizes of the files together, holes included.
    pub bytes: u64,
    /// Devices, pipes and sockets that were left out.
    pub skipped: u64,
    /// Files that changed each time they were read.
    pub changed: u64,
}

/// Packs what lies below `root`, with names relative to it, sorted.
///
/// # Errors
/// Those of the file system and of `output`, with the path; what was written then has no end, and is no archive.
pub fn pack(
    root: BorrowedFd<'_>,
    options: &PackOptions<'_>,
    output: &mut dyn Write,
) -> Result<PackReport, ArchiveError> {
    let mut packer = Packer::new(*options, output);
    packer.tree(root, b"")?;
    packer.finish()
}

/// An archive of several trees and files.
pub struct Packer<'a> {
    options: PackOptions<'a>,
    writer: Writer<'a>,
    links: HardLinks,
    report: PackReport,
    piece: Vec<u8>,
}

/// One directory of the walk: the names that are left, and how long the path to it is.
struct Listed {
    names: Sorted,
    path_length: usize,
}

impl<'a> Packer<'a> {
    /// Writes to `output`.
    pub fn new(options: PackOptions<'a>, output: &'a mut dyn Write) -> Self {
        Self {
            options,
            writer: Writer::new(output),
            links: HardLinks::new(options.spill),
            report: PackReport::default(),
            piece: vec![0; PIECE_BYTES],
        }
    }

    /// Writes the end of the archive.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(self) -> Result<PackReport, ArchiveError> {
        let written = self.writer.finish();
        written.map_err(|error| ArchiveError::io("write the archive of", b"", error))?;
        Ok(self.report)
    }

    /// Adds what lies below `root`, below `prefix` (which has no `/` at its end) in the archive. With a prefix the root
    /// is an entry of that name.
    ///
    /// # Errors
    /// As [`pack`].
    pub fn tree(&mut self, root: BorrowedFd<'_>, prefix: &[u8]) -> Result<(), ArchiveError> {
        let mut path = prefix.to_vec();
        let opened = rustix::fs::openat(root, c".", crate::directories::DIRECTORY, Mode::empty())
            .map_err(|error| ArchiveError::io("open", &path, error))?;
        let mut listed = self.list(&opened, &path)?;
        if prefix.is_empty() {
            self.root(&opened, &mut listed)?;
        } else {
            self.directory(&opened, &path)?;
            path.push(b'/');
        }
        listed.path_length = path.len();
        let mut descent = Descent::new(root);
        let entered = descent.enter(opened, b"", listed);
        entered.map_err(|error| ArchiveError::io("open", prefix, error))?;
        while let Some(listed) = descent.kept() {
            path.truncate(listed.path_length);
            let name = listed.names.next();
            let Some(name) = name.map_err(|error| ArchiveError::io("list", &path, error))? else {
                descent.leave();
                continue;
            };
            path.extend_from_slice(&name);
            let directory = descent.deepest();
            let Some(directory) = directory.map_err(|error| ArchiveError::io("open", &path, error))? else {
                // It was moved away with what is left of it.
                self.changed(&path)?;
                descent.leave();
                continue;
            };
            let Some(below) = self.entry(directory, &name, &path)? else {
                continue;
            };
            let mut listed = self.list(&below, &path)?;
            path.push(b'/');
            listed.path_length = path.len();
            let entered = descent.enter(below, &name, listed);
            entered.map_err(|error| ArchiveError::io("open", &path, error))?;
        }
        Ok(())
    }

    /// Adds the regular file or link `name` of a directory as `path`; nothing when it is gone.
    ///
    /// # Errors
    /// As [`pack`].
    pub fn file(&mut self, directory: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), ArchiveError> {
        match self.entry(directory, name, path)? {
            Some(_) => Err(ArchiveError::io("read", path, Errno::ISDIR)),
            None => Ok(()),
        }
    }

    fn root(&mut self, opened: &OwnedFd, listed: &mut Listed) -> Result<(), ArchiveError> {
        let empty = match &listed.names {
            Sorted::Memory { places, .. } => places.is_empty(),
            Sorted::Runs(_) => false,
        };
        if self.options.root == RootEntry::Never || (empty && self.options.root == RootEntry::UnlessEmpty) {
            return Ok(());
        }
        self.directory(opened, b"")?;
        self.report.entries -= 1;
        Ok(())
    }

    fn list(&self, directory: &OwnedFd, path: &[u8]) -> Result<Listed, ArchiveError> {
        let told = |error: std::io::Error| ArchiveError::io("list", path, error);
        let mut sorter = Sorter::new(self.options.spill, MOST_NAME_BYTES);
        for entry in Dir::read_from(directory).map_err(|error| told(error.into()))? {
            let entry = entry.map_err(|error| told(error.into()))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                sorter.push(name).map_err(told)?;
            }
        }
        Ok(Listed {
            names: sorter.finish().map_err(told)?,
            path_length: 0,
        })
    }

    /// Adds one entry. A directory is returned open, for what lies in it.
    fn entry(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Option<OwnedFd>, ArchiveError> {
        // What becomes something else between the look and the opening is looked at again.
        for _ in 0..TRIES {
            let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(ArchiveError::io("look at", path, error)),
            };
            let done = match kind(&stat) {
                FileType::Directory => {
                    let opened = step(parent, name).map_err(|error| ArchiveError::io("open", path, error))?;
                    if let Some(opened) = opened {
                        self.directory(&opened, path)?;
                        return Ok(Some(opened));
                    }
                    false
                }
                FileType::RegularFile => self.regular(parent, name, path)?,
                FileType::Symlink => self.symlink(parent, name, &stat, path)?,
                _ => {
                    self.special(Place::Named(parent, name), &stat, path)?;
                    true
                }
            };
            if done {
                return Ok(None);
            }
        }
        self.changed(path)?;
        Ok(None)
    }

    fn directory(&mut self, opened: &OwnedFd, path: &[u8]) -> Result<(), ArchiveError> {
        let stat = rustix::fs::fstat(opened).map_err(|error| ArchiveError::io("look at", path, error))?;
        let attributes = self.attributes(opened, path)?;
        let name = if path.is_empty() {
            b"./".to_vec()
        } else {
            [path, b"/"].concat()
        };
        self.head(&Head {
            flag: flag::DIRECTORY,
            attributes: &attributes,
            ..described(&name, &stat)
        })
    }

    fn attributes(&self, file: impl AsFd, path: &[u8]) -> Result<Vec<Attribute>, ArchiveError> {
        let read = attributes::read(file, self.options.attributes);
        read.map_err(|error| ArchiveError::io("read the attributes of", path, error))
    }

    fn head(&mut self, head: &Head<'_>) -> Result<(), ArchiveError> {
        self.report.entries += 1;
        self.written(|writer| writer.head(head), head.name)
    }

    fn written(
        &mut self,
        write: impl FnOnce(&mut Writer<'a>) -> std::io::Result<()>,
        path: &[u8],
    ) -> Result<(), ArchiveError> {
        write(&mut self.writer).map_err(|error| ArchiveError::io("write the archive at", path, error))
    }

    fn changed(&mut self, path: &[u8]) -> Result<(), ArchiveError> {
        if self.options.changing == Changing::Refused {
            return Err(ArchiveError::Changed {
                path: path.to_vec(),
                tries: TRIES,
            });
        }
        self.report.changed += 1;
        Ok(())
    }

    /// Adds a link to the entry that has the content already; `false`: this one is the first, or it cannot be told.
    fn linked(&mut self, place: Place<'_>, stat: &Stat, path: &[u8]) -> Result<bool, ArchiveError> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let birth = birth(place, stat).map_err(|error| ArchiveError::io("look at", path, error))?;
        let Some(birth) = birth else { return Ok(false) };
        let seen = self.links.seen(identity(stat), birth, path);
        let Some(first) = seen.map_err(|error| ArchiveError::io("note the links of", path, error))? else {
            return Ok(false);
        };
        self.head(&Head {
            flag: flag::HARD_LINK,
            link: &first,
            ..described(path, stat)
        })?;
        Ok(true)
    }

    fn symlink(&mut self, parent: BorrowedFd<'_>, name: &[u8], stat: &Stat, path: &[u8]) -> Result<bool, ArchiveError> {
        let target = match rustix::fs::readlinkat(parent, name, Vec::new()) {
            Ok(target) => target.into_bytes(),
            // Gone, or no link any more.
            Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
            Err(error) => return Err(ArchiveError::io("read the link", path, error)),
        };
        if !self.linked(Place::Named(parent, name), stat, path)? {
            self.head(&Head {
                flag: flag::SYMLINK,
                link: &target,
                ..described(path, stat)
            })?;
        }
        Ok(true)
    }

    fn special(&mut self, place: Place<'_>, stat: &Stat, path: &[u8]) -> Result<(), ArchiveError> {
        let kind = kind(stat);
        let is_socket = kind == FileType::Socket;
        let goes_in = match self.options.special {
            Special::LeftOut => false,
            Special::Pipes => kind == FileType::Fifo,
            Special::All => kind == FileType::Fifo || is_socket,
        };
        if !goes_in {
            self.report.skipped += 1;
            return Ok(());
        }
        // Others may leave pipes out, and would look in vain for what a link leads to.
        if self.options.special == Special::All && self.linked(place, stat, path)? {
            return Ok(());
        }
        self.head(&Head {
            flag: flag::FIFO,
            is_socket,
            ..described(path, stat)
        })
    }

    /// `false`: it is no regular file any more.
    fn regular(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<bool, ArchiveError> {
        // Not blocking: a pipe that took its place must not hold us up.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Ok(false),
            Err(error) => return Err(ArchiveError::io("open", path, error)),
        };
        for attempt in 1..=TRIES {
            // The same file each time: what takes its name meanwhile is not what its other names are links to.
            let stat = rustix::fs::fstat(&file).map_err(|error| ArchiveError::io("look at", path, error))?;
            if kind(&stat) != FileType::RegularFile {
                return Ok(false);
            }
            if attempt == 1 {
                if self.linked(Place::Open(file.as_fd()), &stat, path)? {
                    return Ok(true);
                }
                self.report.bytes += stat.st_size as u64;
            } else {
                self.report.entries -= 1;
            }
            if self.content(&file, &stat, path)? {
                return Ok(true);
            }
        }
        self.changed(path)?;
        Ok(true)
    }

    /// Adds a file as it is now; `false`: it changed while it was read.
    fn content(&mut self, file: &OwnedFd, stat: &Stat, path: &[u8]) -> Result<bool, ArchiveError> {
        let reading = |error: std::io::Error| ArchiveError::io("read", path, error);
        let attributes = self.attributes(file, path)?;
        let size = stat.st_size as u64;
        let may_have_holes = (stat.st_blocks as u64).saturating_mul(512) < size;
        let holes = if may_have_holes {
            sparse::data_of(file, size).map_err(reading)?
        } else {
            None
        };
        let map = holes.as_ref().map(|segments| sparse::map(segments, size));
        let whole = vec![Segment {
            offset: 0,
            length: size,
        }];
        let segments = holes.unwrap_or(whole);
        let data: u64 = segments.iter().map(|segment| segment.length).sum();
        let map_bytes = map.as_deref().unwrap_or_default();
        self.head(&Head {
            flag: flag::FILE,
            stored: data + map_bytes.len() as u64,
            sparse_size: map.is_some().then_some(size),
            attributes: &attributes,
            ..described(path, stat)
        })?;
        self.written(|writer| writer.data(map_bytes), path)?;
        let mut whole = true;
        for segment in segments {
            whole &= self.segment(file, segment, path)?;
        }
        self.written(|writer| writer.pad(data), path)?;
        let after = rustix::fs::fstat(file).map_err(|error| reading(error.into()))?;
        Ok(whole && state(&after) == state(stat))
    }

    /// Adds as many bytes as were announced; `false`: the file had fewer, and zeros took their place.
    fn segment(&mut self, file: &OwnedFd, segment: Segment, path: &[u8]) -> Result<bool, ArchiveError> {
        let (mut offset, end) = (segment.offset, segment.offset + segment.length);
        let mut is_short = false;
        while offset < end {
            let most = (end - offset).min(PIECE_BYTES as u64) as usize;
            let length = if is_short {
                self.piece[..most].fill(0);
                most
            } else {
                match rustix::io::pread(file, &mut self.piece[..most], offset) {
                    Err(Errno::INTR) => continue,
                    Ok(0) => {
                        is_short = true;
                        continue;
                    }
                    result => result.map_err(|error| ArchiveError::io("read", path, error))?,
                }
            };
            let piece = &self.piece[..length];
            let written = self.writer.data(piece);
            written.map_err(|error| ArchiveError::io("write the archive at", path, error))?;
            offset += length as u64;
        }
        Ok(!is_short)
    }
}

/// Where a file was looked at.
#[derive(Clone, Copy)]
enum Place<'a> {
    Open(BorrowedFd<'a>),
    /// In a directory; no link is followed.
    Named(BorrowedFd<'a>, &'a [u8]),
}

/// `None`: another file is in its place by now.
fn birth(place: Place<'_>, stat: &Stat) -> rustix::io::Result<Option<Birth>> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let looked = match place {
        Place::Open(file) => rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted),
        Place::Named(parent, name) => rustix::fs::statx(parent, name, AtFlags::SYMLINK_NOFOLLOW, wanted),
    };
    let looked = match looked {
        Ok(looked) if looked.stx_ino == stat.st_ino => looked,
        Ok(_) | Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let has_birth = StatxFlags::from_bits_retain(looked.stx_mask).contains(StatxFlags::BTIME);
    Ok(Some(match has_birth {
        true => Birth::At(looked.stx_btime.tv_sec, looked.stx_btime.tv_nsec),
        false => Birth::Unknown(looked.stx_mtime.tv_sec, looked.stx_mtime.tv_nsec, looked.stx_size),
    }))
}

/// What is the same before and after, when nobody wrote to the file meanwhile.
fn state(stat: &Stat) -> [i128; 5] {
    [
        stat.st_size.into(),
        stat.st_mtime.into(),
        stat.st_mtime_nsec.into(),
        stat.st_ctime.into(),
        stat.st_ctime_nsec.into(),
    ]
}

fn described<'n>(name: &'n [u8], stat: &Stat) -> Head<'n> {
    Head {
        name,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        ..Head::default()
    }
}
