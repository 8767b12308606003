//! Whether an archive is one that is taken: all of it read, nothing written but what is noted of its names.

use std::io::{self, Read};
use std::path::Path;

use crate::compression::Source;
use crate::entry::{Entries, Trust};
use crate::error::{ArchiveError, Reason};
use crate::history::History;
use crate::reader::Reader;

/// What an archive may be at most. What we wrote ourselves has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sizes of all files together, holes included.
    pub max_bytes: u64,
    /// Entries of any kind.
    pub max_entries: u64,
    /// How many times longer the tar stream may be than what was sent, once it is longer than 64 MiB.
    pub max_ratio: u64,
}

impl Limits {
    /// Of an archive that we wrote.
    pub const NONE: Self = Self {
        max_bytes: u64::MAX,
        max_entries: u64::MAX,
        max_ratio: u64::MAX,
    };
}

/// What an archive holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Files, directories and links that there will be, each name once, the root itself not counted.
    pub entries: u64,
    /// Sizes of the files together, holes included.
    pub bytes: u64,
    /// Devices, pipes and sockets that are left out.
    pub skipped: u64,
    /// Entries of owners that a workspace does not have.
    pub remapped: u64,
    /// Entries that lose setuid or setgid.
    pub cleared: u64,
}

/// Small archives compress to almost nothing, and do no harm.
const RATIO_COUNTS_FROM: u64 = 64 << 20;

/// Reads an archive to its end. What is noted of each entry spills to `spill`.
///
/// # Errors
/// `Refused` with the first thing that is wrong.
pub fn check(source: Source<impl Read>, limits: &Limits, trust: Trust, spill: &Path) -> Result<Checked, ArchiveError> {
    let metered = Metered {
        source,
        length: 0,
        max_ratio: limits.max_ratio,
    };
    let mut reader = Reader::new(io::BufReader::with_capacity(64 * 1024, metered), trust);
    let mut history = History::new(spill);
    let (mut checked, mut entries, mut bytes) = (Checked::default(), 0_u64, 0_u64);
    while let Some(mut entry) = reader.next()? {
        entries += 1;
        if entries > limits.max_entries {
            return Err(ArchiveError::refused(b"", Reason::TooManyEntries(limits.max_entries)));
        }
        bytes = bytes.saturating_add(entry.size);
        if bytes > limits.max_bytes {
            return Err(ArchiveError::refused(b"", Reason::TooManyBytes(limits.max_bytes)));
        }
        if entry.is_left_out(trust) {
            checked.skipped += 1;
            continue;
        }
        let settled = entry.settle(trust);
        checked.remapped += u64::from(settled.remapped);
        checked.cleared += u64::from(settled.cleared);
        history.push(&entry)?;
    }
    let totals = history.finish()?;
    (checked.entries, checked.bytes) = (totals.entries, totals.bytes);
    Ok(checked)
}

/// A source whose growth is watched.
struct Metered<R: Read> {
    source: Source<R>,
    length: u64,
    max_ratio: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.length += length as u64;
        let most = self.source.sent().saturating_mul(self.max_ratio);
        if self.length > RATIO_COUNTS_FROM && self.length > most {
            return Err(io::Error::other(Reason::Bomb(self.max_ratio)));
        }
        Ok(length)
    }
}
