//! Whether an archive is one that is taken: all of it read, nothing written but what is noted of its names.

use std::io::{self, Read};
use std::path::Path;

use crate::compression::Source;
use crate::entry::{Entries, Trust};
use crate::error::{ArchiveError, Reason};
use crate::history::History;
use crate::left_out::LeftOut;
use crate::reader::Reader;

/// What an archive may be at most. What we wrote ourselves has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sizes of all files together, holes included.
    pub max_bytes: u64,
    /// Entries of any kind.
    pub max_entries: u64,
    /// Names of all entries, and what links name, together: about so much is written to the disk to check them.
    pub max_name_bytes: u64,
    /// How many times longer the tar stream may be than what was sent, once it is longer than 64 MiB.
    pub max_ratio: u64,
}

impl Limits {
    /// Of an archive that we wrote.
    pub const NONE: Self = Self {
        max_bytes: u64::MAX,
        max_entries: u64::MAX,
        max_name_bytes: u64::MAX,
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
    /// Devices, pipes and sockets that are left out; of pipes and sockets each name.
    pub skipped: u64,
    /// Entries of owners that a workspace does not have.
    pub remapped: u64,
    /// Entries that lose setuid or setgid.
    pub cleared: u64,
}

/// Small archives compress to almost nothing, and do no harm.
const RATIO_COUNTS_FROM: u64 = 64 << 20;
/// Headers of an entry, and names and attributes, on average at most. What is more than that is no file's.
const MOST_OVERHEAD_BYTES: u64 = 4096;

/// Reads an archive to its end. What is noted of each entry spills to `spill`.
///
/// # Errors
/// `Refused` with the first thing that is wrong.
pub fn check(source: Source<impl Read>, limits: &Limits, trust: Trust, spill: &Path) -> Result<Checked, ArchiveError> {
    check_while(source, limits, trust, spill, &|| true)
}

/// As [`check`], for as long as `is_wanted` says so. It is asked often.
///
/// # Errors
/// As [`check`]; `Io` of the kind `ConnectionAborted` when it is not wanted any more.
pub fn check_while(
    source: Source<impl Read>,
    limits: &Limits,
    trust: Trust,
    spill: &Path,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Checked, ArchiveError> {
    let overhead = limits.max_entries.saturating_mul(MOST_OVERHEAD_BYTES);
    let metered = Metered {
        source,
        length: 0,
        most: (limits.max_bytes.saturating_add(overhead)).saturating_add(RATIO_COUNTS_FROM),
        limits,
        is_wanted,
    };
    let mut reader = Reader::new(io::BufReader::with_capacity(64 * 1024, metered), trust);
    let mut left_out = LeftOut::new(trust, spill);
    let mut history = History::new(spill);
    let (mut checked, mut entries, mut bytes, mut name_bytes) = (Checked::default(), 0_u64, 0_u64, 0_u64);
    while let Some(mut entry) = reader.next()? {
        entries += 1;
        if entries > limits.max_entries {
            return Err(ArchiveError::refused(b"", Reason::TooManyEntries(limits.max_entries)));
        }
        bytes = bytes.saturating_add(entry.size);
        if bytes > limits.max_bytes {
            return Err(ArchiveError::refused(b"", Reason::TooManyBytes(limits.max_bytes)));
        }
        name_bytes += (entry.name.len() + entry.link.len()) as u64;
        if name_bytes > limits.max_name_bytes {
            return Err(ArchiveError::refused(
                b"",
                Reason::TooManyNameBytes(limits.max_name_bytes),
            ));
        }
        if left_out.has(&entry)? {
            checked.skipped += 1;
            continue;
        }
        let settled = entry.settle(trust);
        checked.remapped += u64::from(settled.remapped);
        checked.cleared += u64::from(settled.cleared);
        history.push(&entry)?;
    }
    let totals = history.finish(is_wanted)?;
    (checked.entries, checked.bytes) = (totals.entries, totals.bytes);
    Ok(checked)
}

/// What a check that nobody wants any more ends with.
pub(crate) fn unwanted() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// A source whose growth is watched.
struct Metered<'a, R: Read> {
    source: Source<R>,
    length: u64,
    /// The longest tar stream that can be within the limits.
    most: u64,
    limits: &'a Limits,
    is_wanted: &'a dyn Fn() -> bool,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.is_wanted)() {
            return Err(unwanted());
        }
        let length = self.source.read(buffer)?;
        self.length += length as u64;
        if self.length > self.most {
            return Err(io::Error::other(Reason::TooManyBytes(self.limits.max_bytes)));
        }
        let max_ratio = self.limits.max_ratio;
        let most = self.source.sent().saturating_mul(max_ratio);
        if self.length > RATIO_COUNTS_FROM && self.length > most {
            return Err(io::Error::other(Reason::Bomb(max_ratio)));
        }
        Ok(length)
    }
}
