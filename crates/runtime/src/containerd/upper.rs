//! The directory on the host that an active layer writes into: whether anything is in it, and the root directory's
//! own attributes, which a snapshotter does not carry over to a new layer.
//!
//! Both directories are the snapshotter's own. Only their own attributes and the fact that there is an entry are
//! looked at; nothing inside is opened.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};

use crate::LayerMount;

/// Attributes of overlayfs itself.
const OVERLAY_ATTRIBUTES: &[u8] = b"trusted.overlay.";

/// The directory an active layer writes into, and the one right below it.
pub(super) struct Upper {
    upper: PathBuf,
    below: PathBuf,
}

impl Upper {
    /// Reads them off a mount; `None` for one that is not of overlayfs, or stands on nothing.
    pub(super) fn of(mount: &LayerMount) -> Option<Self> {
        let value = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
        let lower = value("lowerdir=")?;
        Some(Self {
            upper: PathBuf::from(value("upperdir=")?),
            below: PathBuf::from(lower.split(':').next()?),
        })
    }

    /// Whether the layer is as it was made: no entry, and the root directory's attributes are those below.
    pub(super) fn is_unchanged(&self) -> io::Result<bool> {
        let (upper, below) = (open(&self.upper)?, open(&self.below)?);
        for entry in rustix::fs::Dir::read_from(&upper)? {
            if ![&b"."[..], b".."].contains(&entry?.file_name().to_bytes()) {
                return Ok(false);
            }
        }
        Ok(
            same(&rustix::fs::fstat(&upper)?, &rustix::fs::fstat(&below)?)
                && attributes(&upper)? == attributes(&below)?,
        )
    }

    /// Gives the new layer's root directory the attributes of the one below. Repeatable while nobody writes.
    pub(super) fn copy_root_attributes(&self) -> io::Result<()> {
        let (upper, below) = (open(&self.upper)?, open(&self.below)?);
        let of_below = rustix::fs::fstat(&below)?;
        let (owner, group) = (
            rustix::fs::Uid::from_raw(of_below.st_uid),
            rustix::fs::Gid::from_raw(of_below.st_gid),
        );
        rustix::fs::fchown(&upper, Some(owner), Some(group))?;
        rustix::fs::fchmod(&upper, Mode::from_raw_mode(of_below.st_mode))?;
        for (name, value) in attributes(&below)? {
            rustix::fs::fsetxattr(&upper, &name, &value, XattrFlags::empty())?;
        }
        let times = Timestamps {
            last_access: accessed(&of_below),
            last_modification: modified(&of_below),
        };
        Ok(rustix::fs::futimens(&upper, &times)?)
    }
}

fn open(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::empty())?)
}

fn same(one: &Stat, other: &Stat) -> bool {
    let of = |stat: &Stat| {
        (
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
            stat.st_mtime,
            stat.st_mtime_nsec,
        )
    };
    of(one) == of(other)
}

pub(super) fn accessed(stat: &Stat) -> Timespec {
    timespec(stat.st_atime, stat.st_atime_nsec)
}

pub(super) fn modified(stat: &Stat) -> Timespec {
    timespec(stat.st_mtime, stat.st_mtime_nsec)
}

fn timespec(seconds: i64, nanoseconds: impl TryInto<i64>) -> Timespec {
    Timespec {
        tv_sec: seconds,
        // Below a second's worth: it always fits.
        tv_nsec: nanoseconds.try_into().unwrap_or(0),
    }
}

/// Name and value of each, in the order of names, those of overlayfs left out.
fn attributes(directory: &OwnedFd) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::flistxattr(directory, &mut names)?;
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(OVERLAY_ATTRIBUTES) {
            continue;
        }
        let name = CString::new(name).map_err(io::Error::other)?;
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::fgetxattr(directory, &name, &mut value)?;
        value.truncate(length);
        found.push((name, value));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(directory: &Path) -> Upper {
        for name in ["upper", "below"] {
            std::fs::create_dir(directory.join(name)).unwrap();
        }
        let option = |name: &str, path: &str| format!("{name}={}", directory.join(path).display());
        let mount = LayerMount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                option("upperdir", "upper"),
                option("workdir", "work"),
                format!("{}:/elsewhere", option("lowerdir", "below")),
            ],
        };
        Upper::of(&mount).unwrap()
    }

    #[test]
    fn a_new_layer_is_unchanged_and_anything_written_shows() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let upper = pair(directory.path());
        let (top, below) = (directory.path().join("upper"), directory.path().join("below"));
        std::fs::set_permissions(&below, std::fs::Permissions::from_mode(0o1711)).unwrap();
        upper.copy_root_attributes().unwrap();
        assert!(upper.is_unchanged().unwrap());
        assert_eq!(std::fs::metadata(&top).unwrap().permissions().mode() & 0o7777, 0o1711);
        std::fs::set_permissions(&top, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!upper.is_unchanged().unwrap(), "another mode");
        upper.copy_root_attributes().unwrap();
        std::fs::write(top.join("file"), "x").unwrap();
        assert!(!upper.is_unchanged().unwrap(), "a file");
        std::fs::remove_file(top.join("file")).unwrap();
        assert!(
            !upper.is_unchanged().unwrap(),
            "a file that came and went changed the time"
        );
    }

    #[test]
    fn a_layer_on_nothing_has_none_below() {
        let mount = LayerMount {
            kind: "bind".into(),
            source: "/x".into(),
            options: vec![],
        };
        assert!(Upper::of(&mount).is_none());
    }
}
