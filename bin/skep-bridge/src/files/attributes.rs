//! Extended attributes that go with a file.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

const ACCESS_LIST: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACCESS_LIST: &[u8] = b"system.posix_acl_default";
/// As large as the kernel lets names together, or one value, be.
const MOST_BYTES: usize = 64 * 1024;

/// User attributes and access lists. File capabilities and security labels belong to the content: the kernel too drops
/// them when a file is written.
pub(super) fn outlives_content(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == ACCESS_LIST || name == DEFAULT_ACCESS_LIST
}

/// Of the same content in another place.
pub(super) fn goes_with_content(name: &[u8]) -> bool {
    outlives_content(name) || name == b"security.capability"
}

/// Gives `to` those of `from` that are `wanted`, as far as the file systems of both have such.
pub(super) fn copy(from: impl AsFd, to: impl AsFd, wanted: fn(&[u8]) -> bool) -> io::Result<()> {
    let mut names = vec![0; MOST_BYTES];
    let length = match rustix::fs::flistxattr(&from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let names = names[..length].split(|&byte| byte == 0);
    let mut value = vec![0; MOST_BYTES];
    for name in names.filter(|name| wanted(name)) {
        let length = rustix::fs::fgetxattr(&from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(&to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Takes away the access lists that a new file got from its directory.
pub(super) fn remove_access_lists(of: impl AsFd) -> io::Result<()> {
    for name in [ACCESS_LIST, DEFAULT_ACCESS_LIST] {
        match rustix::fs::fremovexattr(&of, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
