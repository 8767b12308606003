//! Writing a file so that nobody ever sees half of it: a temporary file beside it, fsync, rename.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use skep_bridge_protocol::workspace::FileInfo;

use super::{attributes, info};
use crate::log;
use crate::paths;

/// As many links as the kernel itself follows.
const MOST_LINKS: usize = 40;
const PARENT_MODE: u32 = 0o750;

/// Held from the look at what is there to its replacement, so that of two writers the second sees what the first wrote.
static REPLACING: Mutex<()> = Mutex::new(());

/// Where a write goes: through links, to an open directory and a name in it.
pub(crate) struct Target {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
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
            match look_at(&directory, name)?.as_ref().map(info::kind) {
                None | Some(FileType::RegularFile) => {
                    let name = name.to_owned();
                    return Ok(Self { path, directory, name });
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

    /// As [`NewFile::ready`] and [`ReadyFile::commit`].
    ///
    /// # Errors
    /// As theirs.
    pub(crate) fn commit(self, modes: &Commit) -> io::Result<(u64, FileInfo)> {
        self.ready()?.commit(modes)
    }

    /// Brings the content to disk and then waits for its turn: until the result is committed or dropped, no other file takes
    /// the place of one.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn ready(self) -> io::Result<ReadyFile> {
        self.file.sync_all()?;
        // Nothing is in it, so a poisoned one is whole.
        let turn = REPLACING.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(ReadyFile {
            file: self,
            _turn: turn,
        })
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

/// A file whose content is on disk, and whose turn it is to become visible.
pub(crate) struct ReadyFile {
    file: NewFile,
    _turn: MutexGuard<'static, ()>,
}

impl ReadyFile {
    pub(crate) fn target(&self) -> &Target {
        &self.file.target
    }

    /// Takes the place of what is there now, with its owner, mode and attributes. Returns the bytes written.
    ///
    /// # Errors
    /// Those of the file system; the old file is then as it was.
    pub(crate) fn commit(self, modes: &Commit) -> io::Result<(u64, FileInfo)> {
        // Closed after the turn: what a large file took is given back then, while nobody waits.
        let _replaced;
        let Self { mut file, _turn } = self;
        let Target { directory, name, .. } = &file.target;
        // What has come meanwhile in the place of a file has nothing that a file could keep.
        let existing = look_at(directory, name)?.filter(|existing| info::kind(existing) == FileType::RegularFile);
        if let Some(existing) = &existing {
            file.take_over(existing)?;
        }
        _replaced = existing.map(|_| {
            rustix::fs::openat(
                directory,
                name,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        });
        let kept = existing.map(|existing| existing.st_mode & 0o7777);
        let mode = modes.set_mode.or(kept).unwrap_or(modes.new_mode);
        // After the change of owner, which takes setuid and setgid away.
        rustix::fs::fchmod(&file.file, Mode::from_raw_mode(mode & 0o7777))?;
        let temporary = file.temporary.as_ref().ok_or(Errno::NOENT)?;
        rustix::fs::renameat(directory, temporary, directory, name)?;
        file.temporary = None;
        let info = info::info_of_file(&file.file, &file.target.path)?;
        Ok((file.bytes_written, info))
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

/// `None`: nothing is there.
fn look_at(directory: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const MODES: Commit = Commit {
        new_mode: 0o640,
        set_mode: None,
    };

    fn written(path: &Path, content: &[u8]) -> NewFile {
        let mut file = Target::find(path).and_then(Target::begin).expect("a new file");
        file.write(content).expect("written");
        file
    }

    #[test]
    fn between_the_look_at_what_is_there_and_its_replacement_nobody_else_looks() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let first = written(&path, b"first").ready().expect("its turn");
        let second = written(&path, b"second");
        let (tell, told) = mpsc::channel();
        let other = std::thread::spawn(move || {
            let second = second.ready().expect("its turn");
            tell.send(second.target().current().expect("looked at")).expect("told");
        });
        let too_early = told.recv_timeout(Duration::from_millis(300));
        assert!(too_early.is_err(), "both look at the same: {too_early:?}");
        let (_, info) = first.commit(&MODES).expect("committed");
        let seen = told.recv_timeout(Duration::from_secs(20)).expect("its turn");
        assert_eq!(
            seen.map(|seen| seen.inode),
            Some(info.inode),
            "the second sees the first"
        );
        other.join().expect("no panic");
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_mode_that_was_changed_during_a_write_is_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        written(&path, b"old").commit(&MODES).expect("committed");
        let new = written(&path, b"new");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).expect("changed");
        let (_, info) = new.commit(&MODES).expect("committed");
        assert_eq!(info.mode & 0o7777, 0o604);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o604);
        assert_eq!(fs::read(&path).expect("there"), b"new");
    }
}
