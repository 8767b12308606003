//! Modes and times of directories, which are set when all that lies in them is there.

use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use tempfile::SpooledTempFile;

use crate::entry::Entry;

/// Held in memory before it goes to disk.
const MOST_BYTES: usize = 1 << 20;

pub(crate) struct Noted {
    pub(crate) name: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, u32),
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
        let length = u32::try_from(entry.name.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut note = Vec::with_capacity(20 + entry.name.len());
        note.extend_from_slice(&length.to_le_bytes());
        note.extend_from_slice(&entry.mode.to_le_bytes());
        note.extend_from_slice(&entry.mtime.0.to_le_bytes());
        note.extend_from_slice(&entry.mtime.1.to_le_bytes());
        note.extend_from_slice(&entry.name);
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
        let length = u32::from_le_bytes(self.bytes()?);
        let mode = u32::from_le_bytes(self.bytes()?);
        let mtime = (i64::from_le_bytes(self.bytes()?), u32::from_le_bytes(self.bytes()?));
        let mut name = vec![0; length as usize];
        self.notes.read_exact(&mut name)?;
        Ok(Some(Noted { name, mode, mtime }))
    }

    fn bytes<const COUNT: usize>(&mut self) -> io::Result<[u8; COUNT]> {
        let mut bytes = [0; COUNT];
        self.notes.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
