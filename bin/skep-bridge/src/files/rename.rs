//! Giving something another name. A directory of a lower layer of an overlay, and what would come to another file
//! system, the kernel does not rename: it is copied, put in place when it is whole, and removed, as by mv(1).

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::attributes;
use super::change::{forgive_missing, remove_entry};
use super::descent::{DIRECTORY, Descent, names_of};
use super::info;
use super::write::temporary_name;
use crate::{log, paths};

/// Gives `from` the name `to`, in the place of what had it, as `rename(2)`.
///
/// # Errors
/// Those of `rename(2)`, and when it must be copied also those of that: `ENOSPC`; `EBUSY` for what changes meanwhile and
/// for a directory with a mount below it. The old name is then as it was, unless its copy is whole and in place.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::rename(from, to) {
        Err(Errno::XDEV) => move_by_copy(from, to),
        done => Ok(done?),
    }
}

fn move_by_copy(from: &Path, to: &Path) -> io::Result<()> {
    let (Some((from_parent, from)), Some((to_parent, to))) = (paths::split(from), paths::split(to)) else {
        return Err(Errno::BUSY.into());
    };
    let from_parent = open_parent(from_parent)?;
    let to_parent = open_parent(to_parent)?;
    let stat = rustix::fs::statat(&from_parent, from, AtFlags::SYMLINK_NOFOLLOW)?;
    may_be_replaced(&to_parent, to, info::kind(&stat) == FileType::Directory)?;
    // Known now, and not when all has been copied.
    let removable = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(&from_parent, c".", removable, AtFlags::empty())?;
    let temporary = temporary_name()?;
    if let Err(error) = copy_and_put_in_place((&from_parent, from, &stat), &to_parent, (&temporary, to)) {
        if let Err(error) = forgive_missing(remove_entry(&to_parent, &temporary)) {
            log::tell!("remove {}: {error}", Path::new(&temporary).display());
        }
        return Err(error);
    }
    forgive_missing(remove_entry(&from_parent, from))
}

fn copy_and_put_in_place(
    (from_parent, from, stat): (&OwnedFd, &OsStr, &Stat),
    to_parent: &OwnedFd,
    (temporary, to): (&OsString, &OsStr),
) -> io::Result<()> {
    if info::kind(stat) == FileType::Directory {
        rustix::fs::mkdirat(to_parent, temporary, Mode::RWXU)?;
        let source = rustix::fs::openat(from_parent, from, DIRECTORY, Mode::empty())?;
        let target = rustix::fs::openat(to_parent, temporary, DIRECTORY, Mode::empty())?;
        copy_tree(source, target)?;
    } else {
        copy_other(
            (from_parent, &c_string(from)?),
            (to_parent, &c_string(temporary)?),
            stat,
        )?;
    }
    // What is removed next must not be all there is when the power fails.
    let synced = rustix::fs::openat(to_parent, c".", DIRECTORY, Mode::empty())?;
    rustix::fs::syncfs(synced)?;
    Ok(rustix::fs::renameat(to_parent, temporary, to_parent, to)?)
}

fn open_parent(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

fn c_string(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Errno::INVAL.into())
}

/// What `rename(2)` refuses is refused before anything is copied.
fn may_be_replaced(parent: &OwnedFd, name: &OsStr, by_directory: bool) -> io::Result<()> {
    let existing = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => info::kind(&stat),
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match (by_directory, existing == FileType::Directory) {
        (false, false) => Ok(()),
        (false, true) => Err(Errno::ISDIR.into()),
        (true, false) => Err(Errno::NOTDIR.into()),
        (true, true) => {
            let existing = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
            match names_of(&existing)?.is_empty() {
                true => Ok(()),
                false => Err(Errno::NOTEMPTY.into()),
            }
        }
    }
}

/// A directory on the way down, and what of it is not copied yet.
struct Level {
    name: CString,
    names: Vec<CString>,
}

/// Copies all that is in `source` into the new directory `target`, then owner, mode, attributes and times of each
/// directory.
fn copy_tree(source: OwnedFd, target: OwnedFd) -> io::Result<()> {
    let top = target.try_clone()?;
    let (device, own) = (rustix::fs::fstat(&source)?.st_dev, identity(&rustix::fs::fstat(&top)?));
    let mut levels = vec![Level {
        name: CString::default(),
        names: names_of(&source)?,
    }];
    let (mut source, mut target) = (Descent::begin(source), Descent::begin(target));
    // Where the first of the names of a file with several is, below the top.
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            if levels.is_empty() {
                return take_over(source.at(), target.at());
            }
            let (from, to) = (source.leave()?, target.leave()?);
            take_over(&from, &to)?;
            continue;
        };
        let stat = rustix::fs::statat(source.at(), &name, AtFlags::SYMLINK_NOFOLLOW).map_err(gone_is_busy)?;
        if info::kind(&stat) == FileType::Directory {
            if identity(&stat) == own {
                return Err(Errno::INVAL.into());
            }
            if stat.st_dev != device {
                return Err(Errno::BUSY.into());
            }
            rustix::fs::mkdirat(target.at(), &name, Mode::RWXU)?;
            source.enter(&name)?;
            target.enter(&name)?;
            let names = names_of(source.at())?;
            levels.push(Level { name, names });
        } else if let Some(first) = links.get(&identity(&stat)) {
            rustix::fs::linkat(&top, first, target.at(), &name, AtFlags::empty())?;
        } else {
            copy_other((source.at(), &name), (target.at(), &name), &stat)?;
            if stat.st_nlink > 1 {
                links.insert(identity(&stat), path_of(&levels, &name));
            }
        }
    }
    Ok(())
}

fn path_of(levels: &[Level], name: &CStr) -> PathBuf {
    let above = levels[1..].iter().map(|level| level.name.as_c_str());
    above
        .chain([name])
        .map(|name| OsStr::from_bytes(name.to_bytes()))
        .collect()
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn gone_is_busy(error: Errno) -> Errno {
    match error {
        Errno::NOENT => Errno::BUSY,
        error => error,
    }
}

/// Copies what is no directory, under a name that is free.
fn copy_other((source, name): (&OwnedFd, &CStr), (target, new_name): (&OwnedFd, &CStr), stat: &Stat) -> io::Result<()> {
    match info::kind(stat) {
        FileType::RegularFile => return copy_file((source, name), (target, new_name), stat),
        FileType::Symlink => {
            let leads_to = rustix::fs::readlinkat(source, name, Vec::new()).map_err(gone_is_busy)?;
            rustix::fs::symlinkat(leads_to, target, new_name)?;
        }
        kind => rustix::fs::mknodat(target, new_name, kind, Mode::RUSR, stat.st_rdev)?,
    }
    let (uid, gid) = owner(stat);
    rustix::fs::chownat(target, new_name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if info::kind(stat) != FileType::Symlink {
        rustix::fs::chmodat(target, new_name, mode(stat), AtFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(
        target,
        new_name,
        &times(stat),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn copy_file((source, name): (&OwnedFd, &CStr), (target, new_name): (&OwnedFd, &CStr), stat: &Stat) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(source, name, flags, Mode::empty()).map_err(gone_is_busy)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = rustix::fs::openat(target, new_name, flags, Mode::RUSR | Mode::WUSR)?;
    let (from, to) = (File::from(from), File::from(to));
    copy_content(&from, &to)?;
    take_over(&from, &to)?;
    let state = |stat: &Stat| (identity(stat), stat.st_size, stat.st_ctime, stat.st_ctime_nsec);
    match state(&rustix::fs::fstat(&from)?) == state(stat) {
        true => Ok(()),
        false => Err(Errno::BUSY.into()),
    }
}

/// Holes stay holes.
fn copy_content(mut from: &File, mut to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data))?;
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(data))?;
        io::copy(&mut from.take(at - data), &mut to)?;
    }
    to.set_len(size)
}

/// Owner, mode, attributes and times.
fn take_over(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(&from)?;
    let (uid, gid) = owner(&stat);
    attributes::remove_access_lists(&to)?;
    rustix::fs::fchown(&to, Some(uid), Some(gid))?;
    // After the change of owner, which takes setuid, setgid and capabilities away.
    rustix::fs::fchmod(&to, mode(&stat))?;
    attributes::copy(&from, &to, attributes::goes_with_content)?;
    Ok(rustix::fs::futimens(&to, &times(&stat))?)
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}
