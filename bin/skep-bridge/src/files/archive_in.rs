//! Unpacking a tar stream below a directory. The archive is a stranger's: nothing is written outside the directory, and
//! nothing through a link that the archive itself brought. Links that were there before are the workspace's own, and
//! are followed (`/bin` is one in most images).

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use skep_bridge_protocol::workspace::ArchiveInResult;
use tar::{Archive, Entry, EntryType};

const DIRECTORY_MODE: u32 = 0o750;

/// Unpacks into `directory`, which is made if missing. Modes, times and links are kept; the owner is the bridge's own
/// user, as with other tools that copy into a container.
///
/// # Errors
/// With the path of the entry. What was unpacked before stays.
pub(crate) fn unpack(directory: &Path, input: impl Read) -> Result<ArchiveInResult, (PathBuf, io::Error)> {
    let told = |error: io::Error| (directory.to_path_buf(), error);
    super::make_directory(directory, DIRECTORY_MODE).map_err(told)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, directory, flags, Mode::empty()).map_err(|error| told(error.into()))?;
    let mut unpacker = Unpacker {
        root,
        links: HashSet::new(),
        directories: Vec::new(),
        done: ArchiveInResult::default(),
    };
    let mut archive = Archive::new(input);
    for entry in archive.entries().map_err(malformed).map_err(told)? {
        let mut entry = entry.map_err(malformed).map_err(told)?;
        let name = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        unpacker
            .entry(&mut entry, &name)
            .map_err(malformed)
            .map_err(|error| (directory.join(&name), error))?;
    }
    unpacker.finish().map_err(|(name, error)| (directory.join(name), error))
}

/// What the reader of the archive finds wrong has no kind of its own: it is the archive that is wrong, not we.
fn malformed(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::UnexpectedEof if error.raw_os_error().is_none() => {
            io::Error::new(io::ErrorKind::InvalidData, error)
        }
        _ => error,
    }
}

struct Unpacker {
    root: OwnedFd,
    /// Device and inode of the symbolic links that this archive made.
    links: HashSet<(u64, u64)>,
    /// Modes and times are set at the end: a directory without the write bit could not be filled.
    directories: Vec<(PathBuf, u32, i64)>,
    done: ArchiveInResult,
}

impl Unpacker {
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>, name: &Path) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let parts = parts_of(name)?;
        let (mode, time) = (
            entry.header().mode()? & 0o7777,
            entry.header().mtime()?.try_into().unwrap_or(i64::MAX),
        );
        let Some((last, above)) = parts.split_last() else {
            // "./": the directory itself. Its mode is its owner's, not the archive's.
            return if kind.is_dir() {
                Ok(())
            } else {
                Err(invalid("an entry without a name"))
            };
        };
        let parent = self.open_parts(above)?;
        self.done.entries += 1;
        match kind {
            EntryType::Directory => {
                self.make_directory(&parent, last)?;
                self.directories.push((name.to_path_buf(), mode, time));
                return Ok(());
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.file(&parent, last, entry, (mode, time));
            }
            _ => make_room(&parent, last)?,
        }
        match kind {
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| invalid("a link to nothing"))?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &parent, *last)?;
                let made = rustix::fs::statat(&parent, *last, AtFlags::SYMLINK_NOFOLLOW)?;
                self.links.insert((made.st_dev, made.st_ino));
                return set_time(&parent, last, time);
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().ok_or_else(|| invalid("a link to nothing"))?;
                return self.hard_link(Path::new(OsStr::from_bytes(&target)), &parent, last);
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(&parent, *last, FileType::Fifo, Mode::from_raw_mode(mode), 0)?;
            }
            EntryType::Char | EntryType::Block => {
                let header = entry.header();
                let number = |part: io::Result<Option<u32>>| part.map(Option::unwrap_or_default);
                let device = rustix::fs::makedev(number(header.device_major())?, number(header.device_minor())?);
                let kind = if kind == EntryType::Char {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                rustix::fs::mknodat(&parent, *last, kind, Mode::from_raw_mode(mode), device)?;
            }
            other => return Err(invalid(&format!("an entry of a kind that is not known: {other:?}"))),
        }
        set_mode(&parent, last, mode)?;
        set_time(&parent, last, time)
    }

    /// Opens the directory that `parts` lead to, and makes what is missing.
    fn open_parts(&self, parts: &[&OsStr]) -> io::Result<OwnedFd> {
        let mut at = self.root.try_clone()?;
        for part in parts {
            at = self.step(&at, part)?;
        }
        Ok(at)
    }

    fn step(&self, at: &OwnedFd, part: &OsStr) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(at, part, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(next) => return Ok(next),
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(at, part, Mode::from_raw_mode(DIRECTORY_MODE))?;
                return Ok(rustix::fs::openat(at, part, flags | OFlags::NOFOLLOW, Mode::empty())?);
            }
            Err(Errno::LOOP | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
        let link = rustix::fs::statat(at, part, AtFlags::SYMLINK_NOFOLLOW)?;
        if self.links.contains(&(link.st_dev, link.st_ino)) {
            return Err(invalid("the archive leads through a link of its own"));
        }
        Ok(rustix::fs::openat(at, part, flags, Mode::empty())?)
    }

    fn make_directory(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                match super::info::kind(&there) {
                    FileType::Directory => Ok(()),
                    // A link to a directory that was there before stands for the directory.
                    FileType::Symlink => self.step(parent, name).map(drop),
                    _ => {
                        make_room(parent, name)?;
                        Ok(rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?)
                    }
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        content: &mut impl Read,
        (mode, time): (u32, i64),
    ) -> io::Result<()> {
        make_room(parent, name)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = std::fs::File::from(file);
        self.done.bytes += io::copy(content, &mut file)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(rustix::fs::futimens(&file, &times(time))?)
    }

    /// The target is a name of the archive: found below the directory, and never through a link at its end.
    fn hard_link(&self, target: &Path, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let parts = parts_of(target)?;
        let (last, above) = parts.split_last().ok_or_else(|| invalid("a hard link to nothing"))?;
        let target_parent = self.open_parts(above)?;
        Ok(rustix::fs::linkat(
            &target_parent,
            *last,
            parent,
            name,
            AtFlags::empty(),
        )?)
    }

    fn finish(self) -> Result<ArchiveInResult, (PathBuf, io::Error)> {
        // The deepest first: the time of a directory changes when its entries do.
        for (path, mode, time) in self.directories.iter().rev() {
            let set = || {
                let parts = parts_of(path)?;
                let Some((last, above)) = parts.split_last() else {
                    return Ok(());
                };
                let parent = self.open_parts(above)?;
                set_mode(&parent, last, *mode)?;
                let timestamps = times(*time);
                Ok(rustix::fs::utimensat(&parent, *last, &timestamps, AtFlags::empty())?)
            };
            set().map_err(|error: io::Error| (path.clone(), error))?;
        }
        Ok(self.done)
    }
}

fn parts_of(path: &Path) -> io::Result<Vec<&OsStr>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(invalid("a name that leads out of the archive")),
        }
    }
    Ok(parts)
}

/// Takes away what has the name, so that nothing is written into it or through it.
fn make_room(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn set_mode(parent: impl AsFd, name: &OsStr, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::chmodat(
        parent,
        name,
        Mode::from_raw_mode(mode),
        AtFlags::empty(),
    )?)
}

fn set_time(parent: impl AsFd, name: &OsStr, seconds: i64) -> io::Result<()> {
    Ok(rustix::fs::utimensat(
        parent,
        name,
        &times(seconds),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
