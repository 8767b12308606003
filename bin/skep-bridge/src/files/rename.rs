//! Giving something another name. A directory of a lower layer of an overlay the kernel does not rename: it is copied, put
//! in place when it is whole, and what was copied is removed. What others change meanwhile stays under the old name.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, StatxAttributes, StatxFlags, Timespec, Timestamps, Uid,
};
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
/// Those of `rename(2)`, `EXDEV` for another file system among them. When a directory must be copied also `ENOSPC`, and
/// `EBUSY` when something in it changes meanwhile or is a mount: the old name is then as it was, or has what was changed
/// after the copy was in place.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::rename(from, to) {
        Err(Errno::XDEV) => move_by_copy(from, to, Copying::Allowed),
        done => Ok(done?),
    }
}

/// As [`rename`], and copies nothing.
///
/// # Errors
/// `EDQUOT` for a directory that must be copied.
pub(crate) fn rename_in_place(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::rename(from, to) {
        Err(Errno::XDEV) => move_by_copy(from, to, Copying::Refused),
        done => Ok(done?),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Copying {
    Allowed,
    Refused,
}

/// By the clock of a file system: seconds and nanoseconds since 1970.
type Moment = (i64, i64);

fn move_by_copy(from: &Path, to: &Path, copying: Copying) -> io::Result<()> {
    let (Some((from_parent, from)), Some((to_parent, to))) = (paths::split(from), paths::split(to)) else {
        return Err(Errno::BUSY.into());
    };
    let from_parent = open_parent(from_parent)?;
    let to_parent = open_parent(to_parent)?;
    let stat = rustix::fs::statat(&from_parent, from, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_here = stat.st_dev == rustix::fs::fstat(&to_parent)?.st_dev;
    if info::kind(&stat) != FileType::Directory || !is_here {
        return Err(Errno::XDEV.into());
    }
    may_be_replaced(&to_parent, to)?;
    if copying == Copying::Refused {
        return Err(Errno::DQUOT.into());
    }
    // Known now, and not when all has been copied.
    let removable = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(&from_parent, c".", removable, AtFlags::empty())?;
    let source = rustix::fs::openat(&from_parent, from, DIRECTORY, Mode::empty())?;
    let temporary = temporary_name()?;
    rustix::fs::mkdirat(&to_parent, &temporary, Mode::RWXU)?;
    match copy_and_put_in_place(source, &to_parent, (&temporary, to)) {
        Ok(copied) => copied.remove(&from_parent, from),
        Err(error) => {
            if let Err(error) = forgive_missing(remove_entry(&to_parent, &temporary)) {
                log::tell!("remove {}: {error}", Path::new(&temporary).display());
            }
            Err(error)
        }
    }
}

fn copy_and_put_in_place(
    source: OwnedFd,
    to_parent: &OwnedFd,
    (temporary, to): (&OsString, &OsStr),
) -> io::Result<Copied> {
    let target = rustix::fs::openat(to_parent, temporary, DIRECTORY, Mode::empty())?;
    let since = moment(&target)?;
    let copied = copy_tree(source.try_clone()?, target, since)?;
    // What is removed next must not be all there is when the power fails.
    rustix::fs::syncfs(rustix::fs::openat(to_parent, c".", DIRECTORY, Mode::empty())?)?;
    still_as_copied(source, since)?;
    rustix::fs::renameat(to_parent, temporary, to_parent, to)?;
    Ok(copied)
}

/// What is changed from here on has this time or a later one, and what was changed before has an earlier one.
fn moment(own: &OwnedFd) -> io::Result<Moment> {
    // The times of files count the kernel's ticks, of 10 ms at most.
    std::thread::sleep(Duration::from_millis(20));
    rustix::fs::fchmod(own, Mode::RWXU)?;
    Ok(last_change(&rustix::fs::fstat(own)?))
}

fn last_change(stat: &Stat) -> Moment {
    (stat.st_ctime, stat.st_ctime_nsec as _)
}

/// What was copied.
struct Copied {
    since: Moment,
    /// Files with several names: the removal of one of them changes the others' times.
    of_several_names: HashSet<(u64, u64)>,
}

impl Copied {
    /// Removes it; what came or was changed since it was copied stays.
    fn remove(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let top = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
        let mut levels = vec![Level {
            name: CString::default(),
            names: names_of(&top)?,
        }];
        let mut descent = Descent::begin(top);
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                let done = levels.pop();
                if let (Some(done), false) = (done, levels.is_empty()) {
                    descent.leave()?;
                    remove_empty(descent.at(), &done.name)?;
                }
                continue;
            };
            let stat = match rustix::fs::statat(descent.at(), &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            if info::kind(&stat) == FileType::Directory {
                descent.enter(&name)?;
                let names = names_of(descent.at())?;
                levels.push(Level { name, names });
            } else if self.has(&stat) {
                forgive_missing(rustix::fs::unlinkat(descent.at(), &name, AtFlags::empty()).map_err(io::Error::from))?;
            }
        }
        remove_empty(parent, name)?;
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            _ => Err(Errno::BUSY.into()),
        }
    }

    fn has(&self, stat: &Stat) -> bool {
        let is_old = last_change(stat) < self.since;
        let is_written = (stat.st_mtime, stat.st_mtime_nsec as _) >= self.since;
        is_old || (self.of_several_names.contains(&identity(stat)) && !is_written)
    }
}

/// A directory with something in it stays.
fn remove_empty(parent: &OwnedFd, name: impl rustix::path::Arg) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// # Errors
/// `EBUSY` when anything below was changed since.
fn still_as_copied(top: OwnedFd, since: Moment) -> io::Result<()> {
    let refuse_changed = |stat: &Stat| match last_change(stat) < since {
        true => Ok(()),
        false => Err(io::Error::from(Errno::BUSY)),
    };
    refuse_changed(&rustix::fs::fstat(&top)?)?;
    let mut levels = vec![names_of(&top)?];
    let mut descent = Descent::begin(top);
    while let Some(names) = levels.last_mut() {
        let Some(name) = names.pop() else {
            levels.pop();
            if !levels.is_empty() {
                descent.leave()?;
            }
            continue;
        };
        let stat = rustix::fs::statat(descent.at(), &name, AtFlags::SYMLINK_NOFOLLOW).map_err(gone_is_busy)?;
        refuse_changed(&stat)?;
        if info::kind(&stat) == FileType::Directory {
            descent.enter(&name)?;
            levels.push(names_of(descent.at())?);
        }
    }
    Ok(())
}

fn open_parent(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// What `rename(2)` refuses is refused before anything is copied.
fn may_be_replaced(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if info::kind(&stat) == FileType::Directory => {}
        Ok(_) => return Err(Errno::NOTDIR.into()),
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let existing = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    match names_of(&existing)?.is_empty() {
        true => Ok(()),
        false => Err(Errno::NOTEMPTY.into()),
    }
}

/// A directory on the way down, and what of it is not copied yet.
struct Level {
    name: CString,
    names: Vec<CString>,
}

/// Copies all that is in `source` into the new directory `target`, then owner, mode, attributes and times of each
/// directory. What cannot be removed afterwards, as a mount, is refused.
fn copy_tree(source: OwnedFd, target: OwnedFd, since: Moment) -> io::Result<Copied> {
    let top = target.try_clone()?;
    let own = identity(&rustix::fs::fstat(&top)?);
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
                take_over(source.at(), target.at())?;
                break;
            }
            let (from, to) = (source.leave()?, target.leave()?);
            take_over(&from, &to)?;
            continue;
        };
        let stat = rustix::fs::statat(source.at(), &name, AtFlags::SYMLINK_NOFOLLOW).map_err(gone_is_busy)?;
        refuse_mount(source.at(), &name)?;
        if info::kind(&stat) == FileType::Directory {
            if identity(&stat) == own {
                return Err(Errno::INVAL.into());
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
    Ok(Copied {
        since,
        of_several_names: links.into_keys().collect(),
    })
}

fn refuse_mount(directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    let looked = rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE);
    match looked
        .map_err(gone_is_busy)?
        .stx_attributes
        .contains(StatxAttributes::MOUNT_ROOT)
    {
        true => Err(Errno::BUSY.into()),
        false => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A tree and an empty directory to copy it to.
    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("sub/empty")).expect("made");
        for file in ["one", "two", "sub/three"] {
            fs::write(tree.join(file), "as it was").expect("written");
        }
        fs::hard_link(tree.join("one"), tree.join("sub/again")).expect("linked");
        fs::create_dir(directory.path().join("copy")).expect("made");
        directory
    }

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, DIRECTORY, Mode::empty()).expect("opened")
    }

    fn copy(directory: &Path) -> Copied {
        let target = open(&directory.join("copy"));
        let since = moment(&target).expect("a time");
        let copied = copy_tree(open(&directory.join("tree")), target, since).expect("copied");
        still_as_copied(open(&directory.join("tree")), since).expect("nobody changed it");
        copied
    }

    fn is_busy<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
        let error = result.expect_err("it was changed");
        Errno::from_io_error(&error) == Some(Errno::BUSY)
    }

    #[test]
    fn all_that_was_copied_is_removed() {
        let directory = tree();
        let copied = copy(directory.path());
        copied
            .remove(&open(directory.path()), OsStr::new("tree"))
            .expect("removed");
        assert!(!directory.path().join("tree").exists());
        let again = fs::read(directory.path().join("copy/sub/again"));
        assert_eq!(again.expect("read"), b"as it was");
    }

    #[test]
    fn a_change_during_the_copy_is_seen() {
        let changes: [fn(&Path); 4] = [
            |tree| fs::write(tree.join("two"), "newer").expect("written"),
            |tree| fs::write(tree.join("sub/new"), "new").expect("written"),
            |tree| fs::rename(tree.join("two"), tree.join("sub/moved")).expect("moved"),
            |tree| fs::remove_dir(tree.join("sub/empty")).expect("removed"),
        ];
        for change in changes {
            let directory = tree();
            let copied = copy(directory.path());
            change(&directory.path().join("tree"));
            assert!(is_busy(still_as_copied(
                open(&directory.path().join("tree")),
                copied.since
            )));
        }
    }

    #[test]
    fn what_came_after_the_copy_stays_under_the_old_name() {
        let directory = tree();
        let tree = directory.path().join("tree");
        let copied = copy(directory.path());
        fs::write(tree.join("two"), "newer").expect("written");
        fs::write(tree.join("sub/new"), "new").expect("written");
        assert!(is_busy(copied.remove(&open(directory.path()), OsStr::new("tree"))));
        assert_eq!(fs::read(tree.join("two")).expect("read"), b"newer");
        assert_eq!(fs::read(tree.join("sub/new")).expect("read"), b"new");
        for gone in ["one", "sub/three", "sub/again", "sub/empty"] {
            assert!(!tree.join(gone).exists(), "{gone}");
        }
    }

    #[test]
    fn nothing_below_a_mount_is_taken_for_a_part_of_the_tree() {
        assert!(is_busy(refuse_mount(&open(Path::new("/")), c"proc")));
        refuse_mount(&open(Path::new("/proc")), c"self").expect("no mount");
    }
}
