//! A file as its bridge tells it, after the checks that a stranger's words need.

use chrono::{DateTime, TimeDelta, Utc};
use skep_bridge_protocol::workspace::FileInfo;
use skep_bridge_protocol::{etag, mode_text};

use crate::bridge::{BridgeError, BridgeResult, sentence};

/// The longest name of Linux.
const LONGEST_NAME_BYTES: usize = 255;
/// The longest target of a link.
const LONGEST_TARGET_BYTES: usize = 4096;
const KIND: u32 = 0o170_000;

/// What there is under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its own name; that of the root is `/`. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Absolute.
    pub path: String,
    /// Bytes.
    pub size_bytes: u64,
    /// `st_mode`: kind and permission bits.
    pub mode: u32,
    /// Last change of its content. Times before the year 0 or after 9999 are moved to these.
    pub modified_at: DateTime<Utc>,
    /// Owner, as seen inside; `None` where the bridge does not tell.
    pub uid: Option<u32>,
    /// Group, as seen inside; `None` where the bridge does not tell.
    pub gid: Option<u32>,
    /// Where a link leads, as written in it.
    pub link_target: Option<String>,
    /// The link leads to a directory.
    pub target_is_directory: bool,
    /// Changes when the file changes; quotes included. `None` where the bridge tells too little for that.
    pub etag: Option<String>,
    /// Of a directory that is not expanded: how much is in it.
    pub summary: Option<String>,
}

impl FileEntry {
    /// A directory.
    pub fn is_directory(&self) -> bool {
        self.mode & KIND == 0o040_000
    }

    /// A symbolic link.
    pub fn is_link(&self) -> bool {
        self.mode & KIND == 0o120_000
    }

    /// A regular file.
    pub fn is_regular(&self) -> bool {
        self.mode & KIND == 0o100_000
    }

    /// The mode in letters, as `-rw-r--r--`.
    pub fn mode_letters(&self) -> String {
        mode_text(self.mode)
    }

    /// The entry of the very path that was asked for. Its name and path are ours, not the bridge's.
    pub(super) fn of_path(info: &FileInfo, path: &super::WorkspacePath) -> BridgeResult<Self> {
        Self::named(info, path.name().to_owned(), path.as_str().to_owned())
    }

    /// An entry of a listing of `directory`: what it says of its place must be below it.
    pub(super) fn below(info: &FileInfo, directory: &super::WorkspacePath) -> BridgeResult<Self> {
        let relative = relative_name(info, directory)?;
        let last = relative.rsplit(|byte| *byte == b'/').next().unwrap_or(relative);
        let (mut name, mut relative) = (text(last), text(relative));
        if !info.summary.is_empty() {
            name.push('/');
            relative.push('/');
        }
        let parent = directory.as_str().trim_end_matches('/');
        Self::named(info, name, format!("{parent}/{relative}"))
    }

    fn named(info: &FileInfo, name: String, path: String) -> BridgeResult<Self> {
        if info.link_target.len() > LONGEST_TARGET_BYTES {
            return Err(BridgeError::Untrustworthy(
                "a link's target of impossible length".to_owned(),
            ));
        }
        // No file has the inode 0: an old bridge does not tell which file it is, nor whose.
        let is_told = info.inode != 0;
        Ok(Self {
            name,
            path,
            size_bytes: info.size.min(i64::MAX as u64),
            mode: info.mode & 0o177_777,
            modified_at: time(info)?,
            uid: is_told.then_some(info.uid),
            gid: is_told.then_some(info.gid),
            link_target: Some(text(&info.link_target)).filter(|target| !target.is_empty()),
            target_is_directory: info.target_is_directory,
            etag: is_told.then(|| etag(info)),
            summary: Some(sentence(&info.summary)).filter(|summary| !summary.is_empty()),
        })
    }
}

/// The place of an entry below the listed directory, checked: real names, joined by single slashes.
pub(super) fn relative_name<'a>(info: &'a FileInfo, directory: &super::WorkspacePath) -> BridgeResult<&'a [u8]> {
    match info.summary.is_empty() {
        true => relative_to(&info.path, directory),
        false => relative_to(info.path.strip_suffix(b"/").unwrap_or(&info.path), directory),
    }
}

/// What of a path lies below a directory, checked: real names, joined by single slashes.
fn relative_to<'a>(path: &'a [u8], directory: &super::WorkspacePath) -> BridgeResult<&'a [u8]> {
    let parent = directory.as_str().trim_end_matches('/').as_bytes();
    let below = path.strip_prefix(parent).and_then(|rest| rest.strip_prefix(b"/"));
    let relative = below.ok_or_else(|| BridgeError::Untrustworthy("an entry outside of the directory".to_owned()))?;
    for name in relative.split(|byte| *byte == b'/') {
        let is_name = !name.is_empty() && name != b"." && name != b"..";
        if !is_name || name.len() > LONGEST_NAME_BYTES || name.contains(&0) {
            return Err(BridgeError::Untrustworthy("a name that no file can have".to_owned()));
        }
    }
    Ok(relative)
}

/// A path that the bridge tells of, checked to be the one it was asked about or one below it.
pub(super) fn path_within(path: &[u8], root: &super::WorkspacePath) -> BridgeResult<String> {
    if path == root.as_str().as_bytes() {
        return Ok(root.as_str().to_owned());
    }
    let parent = root.as_str().trim_end_matches('/');
    Ok(format!("{parent}/{}", text(relative_to(path, root)?)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn time(info: &FileInfo) -> BridgeResult<DateTime<Utc>> {
    // 0000-01-01 and 9999-12-31T23:59:59: what RFC 3339 can say.
    let seconds = info.modified_seconds.clamp(-62_167_219_200, 253_402_300_799);
    let whole = DateTime::from_timestamp(seconds, 0);
    let impossible = || BridgeError::Untrustworthy("a time that cannot be".to_owned());
    if info.modified_nanos >= 1_000_000_000 {
        return Err(impossible());
    }
    let nanos = TimeDelta::nanoseconds(i64::from(info.modified_nanos));
    whole.map(|whole| whole + nanos).ok_or_else(impossible)
}

#[cfg(test)]
mod tests {
    use super::super::WorkspacePath;
    use super::*;

    fn info(path: &str) -> FileInfo {
        FileInfo {
            path: path.into(),
            mode: 0o100_644,
            ..FileInfo::default()
        }
    }

    #[test]
    fn an_entry_must_lie_below_the_listed_directory() {
        let data = WorkspacePath::parse("/data").unwrap();
        for bad in [
            "",
            "/data",
            "/data/",
            "/etc/passwd",
            "/data/../etc",
            "/data//x",
            "/data/./x",
            "/data/x/",
            "/datax/y",
            "x",
            "/data/a\0b",
        ] {
            assert!(FileEntry::below(&info(bad), &data).is_err(), "{bad:?} was taken");
        }
        assert!(FileEntry::below(&info(&format!("/data/{}", "n".repeat(256))), &data).is_err());
        let entry = FileEntry::below(&info("/data/a/b"), &data).unwrap();
        assert_eq!((entry.name.as_str(), entry.path.as_str()), ("b", "/data/a/b"));
        let root = WorkspacePath::parse("/").unwrap();
        assert_eq!(FileEntry::below(&info("/etc"), &root).unwrap().path, "/etc");
    }

    #[test]
    fn impossible_times_are_moved_or_refused() {
        let data = WorkspacePath::parse("/data").unwrap();
        let far = FileInfo {
            modified_seconds: i64::MAX,
            modified_nanos: 999_999_999,
            ..info("/data/x")
        };
        let shown = FileEntry::below(&far, &data).unwrap().modified_at.to_rfc3339();
        assert!(shown.starts_with("9999-12-31T23:59:59"), "{shown}");
        let nanos = FileInfo {
            modified_nanos: 1_000_000_000,
            ..info("/data/x")
        };
        assert!(FileEntry::below(&nanos, &data).is_err());
    }
}
