//! Writing a file so that nobody ever sees half of it: a temporary file beside it, fsync, rename.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use skep_bridge_protocol::workspace::FileInfo;

use super::{attributes, info};
use crate::log;
use crate::paths;

/// As many links as the kernel itself follows.
const MOST_LINKS: usize = 40;
const PARENT_MODE: u32 = 0o750;

/// Where a write goes: through links, to an open directory and a name in it.
pub(crate) struct Target {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    existing: Option<Stat>,
}

/// Modes of what is written.
pub(crate) struct Commit {
    /// Of a file that was not there.
    pub(crate) new_mode: u32,
    /// Also of one that was.
    pub(crate) set_mode: Option<u32>,
}

impl Target {
    /// Follows links (a dangling one to what it names) and makes the directories above (0750).
    ///
    /// # Errors
    /// `EISDIR` for a directory, `ENXIO` for a device, pipe or socket: a rename would replace those.
    pub(crate) fn find(path: &Path) -> io::Result<Self> {
        let mut path = path.to_path_buf();
        for _ in 0..MOST_LINKS {
            let Some((parent, name)) = paths::split(&path) else {
                return Err(Errno::ISDIR.into());
            };
            make_parents(parent)?;
            let directory = rustix::fs::openat(
                CWD,
                parent,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let existing = match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(error.into()),
            };
            match existing.as_ref().map(info::kind) {
                None | Some(FileType::RegularFile) => {
                    let name = name.to_owned();
                    return Ok(Self {
                        path,
                        directory,
                        name,
                        existing,
                    });
                }
                Some(FileType::Symlink) => {
                    let target = rustix::fs::readlinkat(&directory, name, Vec::new())?.into_bytes();
                    // Joined without cleaning: `..` after a link means the parent of where the link leads.
                    path = parent.join(OsString::from_vec(target));
                    if path.file_name().is_none() {
                        return Err(Errno::ISDIR.into());
                    }
                }
                Some(FileType::Directory) => return Err(Errno::ISDIR.into()),
                Some(_) => return Err(Errno::NXIO.into()),
            }
        }
        Err(Errno::LOOP.into())
    }

    /// What is there now; `None`: nothing. Through the link that may have been given.
    pub(crate) fn current(&self) -> io::Result<Option<FileInfo>> {
        match info::stat(&self.path, false) {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the temporary file.
    pub(crate) fn begin(self) -> io::Result<NewFile> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        for _ in 0..16 {
            let temporary = temporary_name()?;
            match rustix::fs::openat(&self.directory, &temporary, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => {
                    let file = File::from(file);
                    return Ok(NewFile {
                        target: self,
                        file,
                        temporary: Some(temporary),
                        bytes_written: 0,
                    });
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EXIST.into())
    }
}

pub(super) fn temporary_name() -> io::Result<OsString> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!(".skep-{:016x}.part", u64::from_le_bytes(random)).into())
}

/// A file that is not yet visible; dropped before [`NewFile::commit`] it leaves nothing behind.
pub(crate) struct NewFile {
    target: Target,
    file: File,
    temporary: Option<OsString>,
    bytes_written: u64,
}

impl NewFile {
    pub(crate) fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)?;
        self.bytes_written += data.len() as u64;
        Ok(())
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Takes the place of what was there, with its owner, mode and attributes. Returns the bytes written.
    ///
    /// # Errors
    /// Those of the file system; the old file is then as it was.
    pub(crate) fn commit(mut self, modes: &Commit) -> io::Result<(u64, FileInfo)> {
        if let Some(existing) = &self.target.existing {
            self.take_over(existing)?;
        }
        let kept = self.target.existing.as_ref().map(|existing| existing.st_mode & 0o7777);
        let mode = modes.set_mode.or(kept).unwrap_or(modes.new_mode);
        // After the change of owner, which takes setuid and setgid away.
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode & 0o7777))?;
        self.file.sync_all()?;
        let Some(temporary) = self.temporary.take() else {
            return Err(Errno::NOENT.into());
        };
        if let Err(error) = rustix::fs::renameat(
            &self.target.directory,
            &temporary,
            &self.target.directory,
            &self.target.name,
        ) {
            self.temporary = Some(temporary);
            return Err(error.into());
        }
        Ok((self.bytes_written, info::info_of_file(&self.file, &self.target.path)?))
    }

    fn take_over(&self, existing: &Stat) -> io::Result<()> {
        let own = rustix::fs::fstat(&self.file)?;
        if (own.st_uid, own.st_gid) != (existing.st_uid, existing.st_gid) {
            let (uid, gid) = (Uid::from_raw(existing.st_uid), Gid::from_raw(existing.st_gid));
            rustix::fs::fchown(&self.file, Some(uid), Some(gid))?;
        }
        copy_attributes(&self.target, &self.file)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take()
            && let Err(error) = rustix::fs::unlinkat(&self.target.directory, &temporary, AtFlags::empty())
        {
            log::tell!("remove {}: {error}", Path::new(&temporary).display());
        }
    }
}

fn copy_attributes(target: &Target, file: &File) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::openat(&target.directory, &target.name, flags, Mode::empty()) {
        Ok(old) => attributes::copy(&old, file, attributes::outlives_content),
        // Gone meanwhile, or not readable by us: then there is nothing that could be kept.
        Err(Errno::NOENT | Errno::ACCESS | Errno::LOOP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn make_parents(directory: &Path) -> io::Result<()> {
    super::change::make_directory(directory, PARENT_MODE)
}
