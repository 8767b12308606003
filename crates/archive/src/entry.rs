//! One entry of an archive, as it is read: its name below the root and what it says of itself.

use crate::attributes::{Attribute, Attributes};
use crate::error::{ArchiveError, Reason};
use crate::sparse::Segment;

/// The longest path of Linux, without its NUL: no program could name what lies deeper.
const LONGEST_PATH: usize = 4095;
/// What a walk makes, which a tree that is deeper than a path can say needs: ours go back as they were.
const LONGEST_PATH_OF_OURS: usize = 1 << 20;
const LONGEST_COMPONENT: usize = 255;

/// Ids that a workspace has.
const IDS: u64 = 65_536;
const NOBODY: u64 = 65_534;

/// Whose archive it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// A client sent it: setuid and setgid are cleared, owners that a workspace does not have become nobody, pipes and
    /// sockets are left out, and of the attributes only `user.*` are taken.
    Stranger,
    /// We wrote it: everything goes back as it was.
    Ours,
}

impl Trust {
    pub(crate) fn longest_path(self) -> usize {
        match self {
            Self::Stranger => LONGEST_PATH,
            Self::Ours => LONGEST_PATH_OF_OURS,
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each says itself what it is")]
pub enum Kind {
    Directory,
    File,
    Symlink,
    HardLink,
    Fifo,
    Socket,
    Device,
}

/// One entry of an archive.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Relative, without `.`, `..` and a `/` at its end; empty: the root itself.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Of a symbolic link: as it is. Of a hard link: a name like `name`.
    pub link: Vec<u8>,
    /// Permissions with setuid, setgid and the sticky bit.
    pub mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds after them.
    pub(crate) mtime: (i64, u32),
    /// Holes included.
    pub(crate) size: u64,
    /// Where the data that follows belongs; `None`: it is all of the file.
    pub(crate) segments: Option<Vec<Segment>>,
    pub(crate) attributes: Vec<Attribute>,
}

/// An archive, read entry by entry.
pub trait Entries {
    /// The next entry; what was not read of the one before is passed over. `None`: the archive has ended as it should.
    ///
    /// # Errors
    /// `Refused` with what is wrong with the archive, `Io` when it cannot be read.
    fn next(&mut self) -> Result<Option<Entry>, ArchiveError>;

    /// Bytes of the current entry's data; 0 at its end.
    ///
    /// # Errors
    /// As [`Entries::next`].
    fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError>;
}

/// What was not taken as the archive had it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Settled {
    pub(crate) remapped: bool,
    pub(crate) cleared: bool,
}

impl Entry {
    /// Takes away what an archive of this kind may not bring.
    pub(crate) fn settle(&mut self, trust: Trust) -> Settled {
        if trust == Trust::Ours {
            self.attributes.retain(|(name, _)| Attributes::Tenant.include(name));
            return Settled::default();
        }
        self.attributes.retain(|(name, _)| Attributes::User.include(name));
        let settled = Settled {
            remapped: self.uid >= IDS || self.gid >= IDS,
            cleared: self.mode & 0o6000 != 0,
        };
        self.mode &= 0o1777;
        for id in [&mut self.uid, &mut self.gid] {
            if *id >= IDS {
                *id = NOBODY;
            }
        }
        settled
    }
}

/// A name of an archive as [`Entry::name`] has it.
pub(crate) fn cleaned(name: &[u8], longest: usize) -> Result<Vec<u8>, Reason> {
    if name.contains(&0) {
        return Err(Reason::Nul);
    }
    if name.starts_with(b"/") {
        return Err(Reason::Absolute);
    }
    let mut clean = Vec::with_capacity(name.len());
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(Reason::ParentDirectory),
            _ if part.len() > LONGEST_COMPONENT => return Err(Reason::NameTooLong),
            _ => {}
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(part);
    }
    if clean.len() > longest {
        return Err(Reason::NameTooLong);
    }
    Ok(clean)
}

/// What a symbolic link may lead to: anything that the kernel would take.
pub(crate) fn link_target(target: &[u8]) -> Result<Vec<u8>, Reason> {
    if target.is_empty() || target.len() > LONGEST_PATH || target.contains(&0) {
        return Err(Reason::BadLinkTarget);
    }
    Ok(target.to_vec())
}

/// The directory a name lies in, and its last part.
pub(crate) fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&name[..slash], &name[slash + 1..]),
        None => (b"", name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_or_refused() {
        let long = "x".repeat(256);
        for (name, expected) in [
            (&b"a/b"[..], Ok(&b"a/b"[..])),
            (b"./a//b/./", Ok(b"a/b")),
            (b"./", Ok(b"")),
            (b"..a/b..", Ok(b"..a/b..")),
            (b"/a", Err(Reason::Absolute)),
            (b"a/../b", Err(Reason::ParentDirectory)),
            (b"..", Err(Reason::ParentDirectory)),
            (b"a\0b", Err(Reason::Nul)),
            (long.as_bytes(), Err(Reason::NameTooLong)),
            (&[b'x', b'/'].repeat(2048)[..], Ok(&[b'x', b'/'].repeat(2048)[..4095])),
            (&[b'x', b'/'].repeat(2049)[..], Err(Reason::NameTooLong)),
        ] {
            assert_eq!(cleaned(name, 4095), expected.map(<[u8]>::to_vec));
        }
    }
}
