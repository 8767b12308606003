//! What can go wrong: the archive is not one that is taken, or the file system fails.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Why an archive could not be written, checked or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive is at fault.
    #[error("{0}")]
    Refused(Refusal),
    /// A file would not hold still while it was read, and the caller wanted only what does.
    #[error("{}: changed while it was read, {tries} times", shown(path))]
    Changed {
        /// Below the root.
        path: Vec<u8>,
        /// How often it was read.
        tries: u32,
    },
    /// The operating system is.
    #[error("{what} {}", shown(path))]
    Io {
        /// What was tried, as in "open".
        what: &'static str,
        /// Below the root; empty: the root itself, or no file of the tree.
        path: Vec<u8>,
        /// What it said.
        source: io::Error,
    },
}

impl ArchiveError {
    pub(crate) fn io(what: &'static str, path: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Io {
            what,
            path: path.to_vec(),
            source: source.into(),
        }
    }

    pub(crate) fn refused(name: &[u8], reason: Reason) -> Self {
        Self::Refused(Refusal {
            name: name.to_vec(),
            reason,
        })
    }

    /// An error of reading the archive. What a decompressor finds has no number of the operating system.
    pub(crate) fn reading(error: io::Error) -> Self {
        if let Some(reason) = error.get_ref().and_then(|inner| inner.downcast_ref::<Reason>()) {
            return Self::refused(b"", reason.clone());
        }
        match (error.raw_os_error(), error.kind()) {
            (None, io::ErrorKind::UnexpectedEof) => Self::refused(b"", Reason::Truncated),
            (None, io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other) => {
                Self::refused(b"", Reason::Corrupt(error.to_string()))
            }
            _ => Self::io("read", b"", error),
        }
    }
}

fn shown(path: &[u8]) -> String {
    let path = if path.is_empty() { b"." } else { path };
    Path::new(OsStr::from_bytes(path)).display().to_string()
}

/// An archive that is not taken, and the entry that is at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As the archive has it; empty: the archive as a whole.
    pub name: Vec<u8>,
    /// What is wrong.
    pub reason: Reason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A name may be 4 KiB of anything: a message shows its beginning.
        const SHOWN: usize = 256;
        if self.name.is_empty() {
            return write!(formatter, "the archive {}", self.reason);
        }
        let name = String::from_utf8_lossy(&self.name[..self.name.len().min(SHOWN)]);
        write!(formatter, "the entry {name:?} {}", self.reason)
    }
}

/// What is wrong with an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself what it is")]
pub enum Reason {
    #[error("has an absolute name")]
    Absolute,
    #[error("has `..` in its name")]
    ParentDirectory,
    #[error("has a NUL in its name")]
    Nul,
    #[error("has no name")]
    NoName,
    #[error("has a name that is too long")]
    NameTooLong,
    #[error("leads through a link or a file")]
    ThroughLink,
    #[error("is a hard link to what is not in the archive before it")]
    LinkNotInArchive,
    #[error("is a link to nothing, or to a name that is too long")]
    BadLinkTarget,
    #[error("is a file or link over a directory that is not empty")]
    OverDirectory,
    #[error("is a directory over a link")]
    DirectoryOverLink,
    #[error("has records that disagree on its {0}")]
    Disagreement(&'static str),
    #[error("is of a kind that is not taken: {0:?}")]
    UnknownKind(char),
    #[error("is compressed in a way that is not taken: {0}")]
    UnknownCompression(u16),
    #[error("is encrypted")]
    Encrypted,
    #[error("says nonsense about its {0}")]
    Malformed(&'static str),
    #[error("ends too early")]
    Truncated,
    #[error("is corrupt: {0}")]
    Corrupt(String),
    #[error("goes on after its end")]
    Trailing,
    #[error("is more than {0} bytes")]
    TooManyBytes(u64),
    #[error("has more than {0} entries")]
    TooManyEntries(u64),
    #[error("has names of more than {0} bytes together")]
    TooManyNameBytes(u64),
    #[error("grows to more than {0} times what was sent")]
    Bomb(u64),
}
