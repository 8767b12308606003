//! Extended attributes of files and directories.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Name and value.
pub(crate) type Attribute = (Vec<u8>, Vec<u8>);

/// The access list of a directory that what is made in it begins with.
pub(crate) const DEFAULT_ACCESS: &[u8] = b"system.posix_acl_default";

/// Which attributes go into an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attributes {
    /// Those that any program may set: `user.*`.
    User,
    /// Access lists and file capabilities too: everything that is the tenant's own.
    Tenant,
}

impl Attributes {
    pub(crate) fn include(self, name: &[u8]) -> bool {
        // Of an overlay file system: what it means to the host is none of the tenant's business.
        if name.starts_with(b"user.overlay.") {
            return false;
        }
        let own = name.starts_with(b"system.posix_acl_") || name == b"security.capability";
        name.starts_with(b"user.") || (own && self == Self::Tenant)
    }
}

/// Those of an open file or directory, by name.
pub(crate) fn read(file: impl AsFd, which: Attributes) -> io::Result<Vec<Attribute>> {
    let mut found = Vec::new();
    let Some(names) = grown(|buffer| rustix::fs::flistxattr(&file, buffer))? else {
        return Ok(found);
    };
    for name in names.split(|&byte| byte == 0).filter(|name| which.include(name)) {
        // One that went away meanwhile is left out.
        if let Some(value) = grown(|buffer| rustix::fs::fgetxattr(&file, name, buffer))? {
            found.push((name.to_vec(), value));
        }
    }
    found.sort();
    Ok(found)
}

/// `None`: there is no such thing.
fn grown(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            // More than 64 KiB the kernel does not hand out.
            Err(Errno::RANGE) if buffer.len() <= 64 * 1024 => buffer.resize(buffer.len() * 4, 0),
            Err(Errno::NOTSUP | Errno::NODATA) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// All but [`DEFAULT_ACCESS`], which is set when all that lies in a directory is there: see [`set_default_access`].
pub(crate) fn set(file: impl AsFd, attributes: &[Attribute]) -> io::Result<()> {
    for (name, value) in attributes.iter().filter(|(name, _)| name != DEFAULT_ACCESS) {
        rustix::fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty())?;
    }
    Ok(())
}

pub(crate) fn set_default_access(directory: impl AsFd, list: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(&directory, DEFAULT_ACCESS, list, XattrFlags::empty())
}
