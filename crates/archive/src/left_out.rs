//! What of an archive is left out: devices, and of a stranger's pipes and sockets, with every further name of those, which
//! an archive has as a hard link. The names are kept on the disk, so that a million of them take no memory.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use crate::entry::{Entry, Kind, Trust};
use crate::error::ArchiveError;
use crate::table::{Key, Table};

const LEFT_OUT: u64 = 1;
/// A later entry has the name, and is not left out.
const TAKEN: u64 = 0;

/// Told of every entry of an archive in its order.
pub struct LeftOut {
    trust: Trust,
    spill: PathBuf,
    /// Made at the first name.
    names: Option<Table>,
    /// Nobody outside can choose names that are taken for one another.
    hashes: [RandomState; 2],
}

impl LeftOut {
    /// Of an archive of that kind; `spill` is a directory for files without a name, not touched before there is
    /// something to leave out.
    pub fn new(trust: Trust, spill: &Path) -> Self {
        Self {
            trust,
            spill: spill.to_path_buf(),
            names: None,
            hashes: [RandomState::new(), RandomState::new()],
        }
    }

    /// Whether the next entry is left out, and to be counted.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn has(&mut self, entry: &Entry) -> Result<bool, ArchiveError> {
        self.noted(entry)
            .map_err(|error| ArchiveError::io("note what is left out at", &entry.name, error))
    }

    fn noted(&mut self, entry: &Entry) -> io::Result<bool> {
        let is_left_out = match entry.kind {
            // Nobody who means well has a hard link to one: it is refused.
            Kind::Device => return Ok(true),
            Kind::Fifo | Kind::Socket => self.trust == Trust::Stranger,
            Kind::HardLink => self.state(&entry.link)? == Some(LEFT_OUT),
            Kind::Directory | Kind::File | Kind::Symlink => false,
        };
        let key = self.key(&entry.name);
        match &mut self.names {
            Some(names) if is_left_out => names.set(key, LEFT_OUT)?,
            Some(names) if names.get(key)? == Some(LEFT_OUT) => names.set(key, TAKEN)?,
            None if is_left_out => self.names.insert(Table::new(&self.spill)?).set(key, LEFT_OUT)?,
            _ => {}
        }
        Ok(is_left_out)
    }

    fn state(&self, name: &[u8]) -> io::Result<Option<u64>> {
        let names = self.names.as_ref();
        Ok(names.map(|names| names.get(self.key(name))).transpose()?.flatten())
    }

    fn key(&self, name: &[u8]) -> Key {
        let [first, second] = &self.hashes;
        (first.hash_one(name), second.hash_one(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: Kind, link: &str) -> Entry {
        Entry {
            name: name.as_bytes().to_vec(),
            kind,
            link: link.as_bytes().to_vec(),
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            segments: None,
            attributes: Vec::new(),
        }
    }

    #[test]
    fn a_further_name_of_what_is_left_out_is_too() {
        let spill = tempfile::tempdir().expect("a directory");
        let steps = [
            ("file", Kind::File, "", [false, false]),
            ("again", Kind::HardLink, "file", [false, false]),
            ("pipe", Kind::Fifo, "", [true, false]),
            ("socket", Kind::Socket, "", [true, false]),
            ("device", Kind::Device, "", [true, true]),
            ("pipe too", Kind::HardLink, "pipe", [true, false]),
            ("pipe three", Kind::HardLink, "pipe too", [true, false]),
            ("socket too", Kind::HardLink, "socket", [true, false]),
            ("device too", Kind::HardLink, "device", [false, false]),
            ("again", Kind::HardLink, "nothing", [false, false]),
            // The name is a file's from here on, and then again none.
            ("pipe", Kind::File, "", [false, false]),
            ("pipe four", Kind::HardLink, "pipe", [false, false]),
            ("pipe", Kind::Socket, "", [true, false]),
            ("pipe five", Kind::HardLink, "pipe", [true, false]),
        ];
        for (at, trust) in [Trust::Stranger, Trust::Ours].into_iter().enumerate() {
            let mut left_out = LeftOut::new(trust, spill.path());
            for (name, kind, link, expected) in steps {
                let found = left_out.has(&entry(name, kind, link)).expect("noted");
                assert_eq!(found, expected[at], "{trust:?}: {name} {kind:?}");
            }
        }
    }
}
