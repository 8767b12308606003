//! What the API tells about a file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use chrono::{DateTime, SecondsFormat};
use rustix::fs::{AtFlags, CWD, FileType, Stat};
use rustix::path::Arg;
use skep_bridge_protocol::bridgepb::FileEntry;
use skep_bridge_protocol::mode_text;
use skep_bridge_protocol::workspace::FileInfo;

use crate::paths;

/// With `follow` a link's target is told, and a dangling link itself.
pub(crate) fn stat(path: &Path, follow: bool) -> io::Result<FileInfo> {
    let own = rustix::fs::lstat(path)?;
    let mut info = from_stat(&own);
    if kind(&own) == FileType::Symlink {
        let target = rustix::fs::stat(path);
        match target {
            Ok(target) if follow => info = from_stat(&target),
            target => {
                info.link_target = rustix::fs::readlink(path, Vec::new())?.into_bytes();
                info.target_is_directory = target.is_ok_and(|target| kind(&target) == FileType::Directory);
            }
        }
    }
    info.name = paths::shown_name(path);
    info.path = path.as_os_str().as_bytes().to_vec();
    Ok(info)
}

/// What the open file is now; its path is the one it was asked for by.
pub(crate) fn info_of_file(file: &File, path: &Path) -> io::Result<FileInfo> {
    let mut info = from_stat(&rustix::fs::fstat(file)?);
    info.name = paths::shown_name(path);
    info.path = path.as_os_str().as_bytes().to_vec();
    Ok(info)
}

/// An entry of an open directory, links as themselves; `path` and `name` are the caller's to fill.
pub(crate) fn of_entry(directory: BorrowedFd<'_>, name: impl Arg + Copy) -> io::Result<FileInfo> {
    let own = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mut info = from_stat(&own);
    if kind(&own) == FileType::Symlink {
        info.link_target = rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes();
        let target = rustix::fs::statat(directory, name, AtFlags::empty());
        info.target_is_directory = target.is_ok_and(|target| kind(&target) == FileType::Directory);
    }
    Ok(info)
}

pub(crate) fn is_directory(path: &Path) -> io::Result<bool> {
    Ok(kind(&rustix::fs::statat(CWD.as_fd(), path, AtFlags::empty())?) == FileType::Directory)
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn from_stat(stat: &Stat) -> FileInfo {
    FileInfo {
        size: stat.st_size.try_into().unwrap_or(0),
        mode: stat.st_mode,
        modified_seconds: stat.st_mtime,
        modified_nanos: stat.st_mtime_nsec as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        inode: stat.st_ino,
        device: stat.st_dev,
        ..FileInfo::default()
    }
}

/// The same in the words of the reference's service, whose paths are texts: bytes that are none are replaced.
pub(crate) fn entry_of(info: &FileInfo, path: &[u8]) -> FileEntry {
    let time = DateTime::from_timestamp(info.modified_seconds, info.modified_nanos).unwrap_or_default();
    FileEntry {
        path: String::from_utf8_lossy(path).into_owned(),
        is_dir: info.mode & 0o170_000 == 0o040_000,
        size: info.size.try_into().unwrap_or(i64::MAX),
        mode: mode_text(info.mode),
        mod_time: time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        summary: info.summary.clone(),
    }
}
