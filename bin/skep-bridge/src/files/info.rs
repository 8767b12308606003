//! What the API tells about a file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use chrono::{DateTime, Datelike, SecondsFormat};
use rustix::fs::{AtFlags, CWD, FileType, Stat};
use rustix::io::Errno;
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
        info.link_target = match rustix::fs::readlinkat(directory, name, Vec::new()) {
            Ok(target) => target.into_bytes(),
            // As those of another's process in /proc, or of one without a program: it must not hide all the others.
            Err(Errno::ACCESS | Errno::NOENT) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
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
    FileEntry {
        path: String::from_utf8_lossy(path).into_owned(),
        is_dir: info.mode & 0o170_000 == 0o040_000,
        size: info.size.try_into().unwrap_or(i64::MAX),
        mode: mode_text(info.mode),
        mod_time: time_text(info),
        summary: info.summary.clone(),
    }
}

/// Empty for a time outside of the years 0 to 9999, which the form has no words for: none is made up, and a directory
/// with such a file is still listed.
fn time_text(info: &FileInfo) -> String {
    DateTime::from_timestamp(info.modified_seconds, info.modified_nanos)
        .filter(|time| (0..=9999).contains(&time.year()))
        .map(|time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_has_no_words_is_not_told() {
        let text = |modified_seconds| {
            time_text(&FileInfo {
                modified_seconds,
                ..FileInfo::default()
            })
        };
        assert_eq!(text(-1), "1969-12-31T23:59:59Z");
        assert_eq!(text(253_402_300_799), "9999-12-31T23:59:59Z");
        for untold in [253_402_300_800, -62_167_219_201, i64::MAX, i64::MIN] {
            assert_eq!(text(untold), "", "{untold}");
        }
    }
}
