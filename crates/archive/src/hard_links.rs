//! Which file of more than one name went into an archive under which of them, on the disk, so that a million of them
//! take no memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::table::Table;

/// Device and inode.
pub(crate) type Identity = (u64, u64);

/// Made at the first file that has more than one name.
pub(crate) struct HardLinks {
    spill: PathBuf,
    seen: Option<Seen>,
}

struct Seen {
    /// Where the name of each begins.
    places: Table,
    /// Each with its length in 4 bytes before it.
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
    pub(crate) fn seen(&mut self, identity: Identity, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let seen = match &mut self.seen {
            Some(seen) => seen,
            none => none.insert(Seen {
                places: Table::new(&self.spill)?,
                names: tempfile::tempfile_in(&self.spill)?,
                names_end: 0,
            }),
        };
        if let Some(place) = seen.places.get(identity)? {
            return seen.name(place).map(Some);
        }
        let place = seen.names_end;
        let length = u32::try_from(name.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        seen.names
            .write_all_at(&[&length.to_le_bytes()[..], name].concat(), place)?;
        seen.names_end += 4 + u64::from(length);
        seen.places.set(identity, place)?;
        Ok(None)
    }
}

impl Seen {
    fn name(&self, place: u64) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.names.read_exact_at(&mut length, place)?;
        let mut name = vec![0; u32::from_le_bytes(length) as usize];
        self.names.read_exact_at(&mut name, place + 4)?;
        Ok(name)
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
                let seen = links.seen(identity, format!("name/{inode}").as_bytes()).expect("asked");
                let expected = (round == 1).then(|| format!("name/{inode}").into_bytes());
                assert_eq!(seen, expected, "{inode}");
            }
        }
    }
}
