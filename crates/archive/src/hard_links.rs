//! Which file of more than one name went into an archive under which of them, on the disk, so that a million of them
//! take no memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::table::Table;

/// Device and inode.
pub(crate) type Identity = (u64, u64);

/// What tells a file from an earlier one whose inode it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Birth {
    /// When it was made: seconds and nanoseconds.
    At(i64, u32),
    /// Where its file system does not keep that: when it was written last, and its size.
    Unknown(i64, u32, u64),
}

impl Birth {
    const BYTES: usize = 21;

    fn bytes(self) -> [u8; Self::BYTES] {
        let (kind, seconds, nanoseconds, size) = match self {
            Self::At(seconds, nanoseconds) => (0, seconds, nanoseconds, 0),
            Self::Unknown(seconds, nanoseconds, size) => (1, seconds, nanoseconds, size),
        };
        let mut bytes = [kind; Self::BYTES];
        bytes[1..9].copy_from_slice(&seconds.to_le_bytes());
        bytes[9..13].copy_from_slice(&nanoseconds.to_le_bytes());
        bytes[13..].copy_from_slice(&size.to_le_bytes());
        bytes
    }
}

/// Made at the first file that has more than one name.
pub(crate) struct HardLinks {
    spill: PathBuf,
    seen: Option<Seen>,
}

struct Seen {
    /// Where the name of each begins.
    places: Table,
    /// Each with its length in 4 bytes and the birth of its file before it.
    names: File,
    names_end: u64,
}

impl HardLinks {
    pub(crate) fn new(spill: &Path) -> Self {
        Self {
            spill: spill.to_path_buf(),
            seen: None,
        }
    }

    /// The name under which the file went in; `None`: it has not yet, and does now as `name`.
    pub(crate) fn seen(&mut self, identity: Identity, birth: Birth, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let seen = match &mut self.seen {
            Some(seen) => seen,
            none => none.insert(Seen {
                places: Table::new(&self.spill)?,
                names: tempfile::tempfile_in(&self.spill)?,
                names_end: 0,
            }),
        };
        if let Some(place) = seen.places.get(identity)?
            && let Some(name) = seen.name(place, birth)?
        {
            return Ok(Some(name));
        }
        let place = seen.names_end;
        let length = u32::try_from(name.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        seen.names
            .write_all_at(&[&length.to_le_bytes()[..], &birth.bytes(), name].concat(), place)?;
        seen.names_end += (4 + Birth::BYTES) as u64 + u64::from(length);
        seen.places.set(identity, place)?;
        Ok(None)
    }
}

impl Seen {
    /// `None`: it is the name of an earlier file.
    fn name(&self, place: u64, birth: Birth) -> io::Result<Option<Vec<u8>>> {
        let (mut length, mut noted) = ([0; 4], [0; Birth::BYTES]);
        self.names.read_exact_at(&mut length, place)?;
        self.names.read_exact_at(&mut noted, place + 4)?;
        if noted != birth.bytes() {
            return Ok(None);
        }
        let mut name = vec![0; u32::from_le_bytes(length) as usize];
        self.names.read_exact_at(&mut name, place + (4 + Birth::BYTES) as u64)?;
        Ok(Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_found_again_under_its_first_name() {
        let spill = tempfile::tempdir().expect("a directory");
        let mut links = HardLinks::new(spill.path());
        for round in 0..2 {
            for inode in 0_u64..5000 {
                let identity = (inode % 3, inode * 1_000_003);
                let (birth, name) = (Birth::At(7, 8), format!("name/{inode}"));
                let seen = links.seen(identity, birth, name.as_bytes()).expect("asked");
                let expected = (round == 1).then(|| format!("name/{inode}").into_bytes());
                assert_eq!(seen, expected, "{inode}");
            }
        }
    }

    #[test]
    fn a_file_that_got_the_inode_of_an_earlier_one_is_another_file() {
        let spill = tempfile::tempdir().expect("a directory");
        let mut links = HardLinks::new(spill.path());
        let births = [
            Birth::At(7, 8),
            Birth::At(7, 9),
            Birth::Unknown(7, 9, 0),
            Birth::Unknown(7, 9, 1),
        ];
        for (number, birth) in births.into_iter().enumerate() {
            let (first, other) = (format!("first/{number}"), format!("other/{number}"));
            assert_eq!(links.seen((1, 2), birth, first.as_bytes()).expect("asked"), None);
            let seen = links.seen((1, 2), birth, other.as_bytes()).expect("asked");
            assert_eq!(seen, Some(first.into_bytes()));
        }
    }
}
