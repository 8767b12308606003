//! Modes and times of directories, which are set when all that lies in them is there, and the access lists that what is
//! made in them would begin with.

use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use tempfile::SpooledTempFile;

use crate::attributes::DEFAULT_ACCESS;
use crate::entry::Entry;

/// Held in memory before it goes to disk.
const MOST_BYTES: usize = 1 << 20;

pub(crate) struct Noted {
    pub(crate) name: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, u32),
    /// Empty: it has none.
    pub(crate) default_access: Vec<u8>,
}

pub(crate) struct Late {
    notes: SpooledTempFile,
    count: u64,
}

impl Late {
    pub(crate) fn new(spill: &Path) -> Self {
        Self {
            notes: tempfile::spooled_tempfile_in(MOST_BYTES, spill),
            count: 0,
        }
    }

    pub(crate) fn push(&mut self, entry: &Entry) -> io::Result<()> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge);
        let default_access = entry.attributes.iter().find(|(name, _)| name == DEFAULT_ACCESS);
        let default_access = default_access.map_or(&[][..], |(_, list)| list);
        let mut note = Vec::with_capacity(24 + entry.name.len() + default_access.len());
        note.extend_from_slice(&length(&entry.name)?.to_le_bytes());
        note.extend_from_slice(&length(default_access)?.to_le_bytes());
        note.extend_from_slice(&entry.mode.to_le_bytes());
        note.extend_from_slice(&entry.mtime.0.to_le_bytes());
        note.extend_from_slice(&entry.mtime.1.to_le_bytes());
        note.extend_from_slice(&entry.name);
        note.extend_from_slice(default_access);
        self.count += 1;
        self.notes.write_all(&note)
    }

    /// What was noted, in its order.
    pub(crate) fn finish(mut self) -> io::Result<Notes> {
        self.notes.rewind()?;
        Ok(Notes {
            notes: BufReader::new(self.notes),
            left: self.count,
        })
    }
}

pub(crate) struct Notes {
    notes: BufReader<SpooledTempFile>,
    left: u64,
}

impl Notes {
    pub(crate) fn next(&mut self) -> io::Result<Option<Noted>> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        let lengths = [u32::from_le_bytes(self.bytes()?), u32::from_le_bytes(self.bytes()?)];
        let mode = u32::from_le_bytes(self.bytes()?);
        let mtime = (i64::from_le_bytes(self.bytes()?), u32::from_le_bytes(self.bytes()?));
        let [mut name, mut default_access] = lengths.map(|length| vec![0; length as usize]);
        self.notes.read_exact(&mut name)?;
        self.notes.read_exact(&mut default_access)?;
        Ok(Some(Noted {
            name,
            mode,
            mtime,
            default_access,
        }))
    }

    fn bytes<const COUNT: usize>(&mut self) -> io::Result<[u8; COUNT]> {
        let mut bytes = [0; COUNT];
        self.notes.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
