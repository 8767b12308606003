//! Reading a ZIP archive entry by entry, as the directory at its end names them, in bounded memory.
//!
//! Our own for the reason that `reader` gives: where the directory and what lies before an entry's data disagree, two
//! programs would read different archives, and it is refused. Stored and deflated entries, also those of ZIP64.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use flate2::Crc;
use flate2::bufread::DeflateDecoder;

use crate::entry::{Entries, Entry, Kind, Trust, cleaned, link_target};
use crate::error::{ArchiveError, Reason};
use crate::zip_end::{find_directory, u16_at, u32_at};

const IN_DIRECTORY: &[u8] = b"PK\x01\x02";
const IN_DIRECTORY_BYTES: usize = 46;
const BEFORE_DATA: &[u8] = b"PK\x03\x04";
const BEFORE_DATA_BYTES: usize = 30;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;
/// Encrypted, in one way or another.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
/// The systems whose archives have Unix modes.
const UNIX: u8 = 3;
const DARWIN: u8 = 19;
const DOS: u8 = 0;
/// What a DOS directory has among its attributes.
const DOS_DIRECTORY: u32 = 0x10;

/// One after another, the entries that the directory names.
pub(crate) struct ZipReader<'a> {
    file: &'a File,
    trust: Trust,
    directory: BufReader<Section<'a>>,
    /// Where the directory begins, and all data has ended.
    data_end: u64,
    entries_left: u64,
    data: Option<Data<'a>>,
}

/// A part of the file.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = (buffer.len() as u64).min(self.end - self.at) as usize;
        let length = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

/// What of the current entry is not yet read.
struct Data<'a> {
    name: Vec<u8>,
    stream: Stream<'a>,
    left: u64,
    crc: Crc,
    told_crc: u32,
}

enum Stream<'a> {
    Stored(BufReader<Section<'a>>),
    Deflated(Box<DeflateDecoder<BufReader<Section<'a>>>>),
}

/// What the directory says of an entry.
struct Told {
    system: u8,
    flags: u16,
    method: u16,
    modified: (u16, u16),
    crc: u32,
    packed: u64,
    size: u64,
    attributes: u32,
    offset: u64,
    name: Vec<u8>,
    /// Seconds, from a record of Unix programs.
    unix_time: Option<i64>,
}

impl<'a> ZipReader<'a> {
    pub(crate) fn open(file: &'a File, trust: Trust) -> Result<Self, ArchiveError> {
        let (begin, end, entries_left) = find_directory(file)?;
        let section = Section { file, at: begin, end };
        Ok(Self {
            file,
            trust,
            directory: BufReader::with_capacity(64 * 1024, section),
            data_end: begin,
            entries_left,
            data: None,
        })
    }

    fn told(&mut self) -> Result<Told, ArchiveError> {
        let mut fixed = [0; IN_DIRECTORY_BYTES];
        self.directory.read_exact(&mut fixed).map_err(ArchiveError::reading)?;
        if &fixed[..4] != IN_DIRECTORY {
            return Err(ArchiveError::refused(b"", Reason::Malformed("directory")));
        }
        let mut part = |length: u16| {
            let mut bytes = vec![0; length.into()];
            let read = self.directory.read_exact(&mut bytes);
            read.map(|()| bytes).map_err(ArchiveError::reading)
        };
        let name = part(u16_at(&fixed, 28))?;
        let extra = part(u16_at(&fixed, 30))?;
        part(u16_at(&fixed, 32))?;
        let mut told = Told {
            system: fixed[5],
            flags: u16_at(&fixed, 8),
            method: u16_at(&fixed, 10),
            modified: (u16_at(&fixed, 14), u16_at(&fixed, 12)),
            crc: u32_at(&fixed, 16),
            packed: u32_at(&fixed, 20).into(),
            size: u32_at(&fixed, 24).into(),
            attributes: u32_at(&fixed, 38),
            offset: u32_at(&fixed, 42).into(),
            name,
            unix_time: None,
        };
        let taken = told.take_extra(&extra);
        taken.map_err(|reason| ArchiveError::refused(&told.name, reason))?;
        Ok(told)
    }

    /// Where the data of an entry begins: after a header that says the same of it.
    fn data_of(&self, told: &Told) -> Result<Section<'a>, ArchiveError> {
        let refused = |reason| ArchiveError::refused(&told.name, reason);
        let mut fixed = [0; BEFORE_DATA_BYTES];
        self.fill(&mut fixed, told.offset)?;
        let mut name = vec![0; u16_at(&fixed, 26).into()];
        let name_at = told.offset + BEFORE_DATA_BYTES as u64;
        self.fill(&mut name, name_at)?;
        if &fixed[..4] != BEFORE_DATA {
            return Err(refused(Reason::Malformed("place")));
        }
        if name != told.name {
            return Err(refused(Reason::Disagreement("name")));
        }
        if (u16_at(&fixed, 8), u16_at(&fixed, 6) & ENCRYPTED) != (told.method, told.flags & ENCRYPTED) {
            return Err(refused(Reason::Disagreement("compression")));
        }
        let at = name_at + name.len() as u64 + u64::from(u16_at(&fixed, 28));
        match at.checked_add(told.packed) {
            Some(end) if end <= self.data_end => Ok(Section {
                file: self.file,
                at,
                end,
            }),
            _ => Err(refused(Reason::Truncated)),
        }
    }

    fn fill(&self, buffer: &mut [u8], at: u64) -> Result<(), ArchiveError> {
        match at.checked_add(buffer.len() as u64) {
            Some(end) if end <= self.data_end => self.file.read_exact_at(buffer, at).map_err(ArchiveError::reading),
            _ => Err(ArchiveError::refused(b"", Reason::Truncated)),
        }
    }

    fn begin(&mut self, told: &Told) -> Result<(), ArchiveError> {
        let refused = |reason| ArchiveError::refused(&told.name, reason);
        if told.flags & ENCRYPTED != 0 {
            return Err(refused(Reason::Encrypted));
        }
        let section = BufReader::with_capacity(64 * 1024, self.data_of(told)?);
        let stream = match told.method {
            STORED if told.packed == told.size => Stream::Stored(section),
            STORED => return Err(refused(Reason::Disagreement("size"))),
            DEFLATED => Stream::Deflated(Box::new(DeflateDecoder::new(section))),
            other => return Err(refused(Reason::UnknownCompression(other))),
        };
        let mut data = Data {
            name: told.name.clone(),
            stream,
            left: told.size,
            crc: Crc::new(),
            told_crc: told.crc,
        };
        if told.size == 0 {
            data.check_end()?;
        }
        self.data = Some(data);
        Ok(())
    }

    fn entry(&mut self, told: &Told) -> Result<Entry, ArchiveError> {
        let refused = |reason| ArchiveError::refused(&told.name, reason);
        let (kind, mode) = told.kind_and_mode();
        let name = cleaned(&told.unix_name(), self.trust.longest_path()).map_err(refused)?;
        if name.is_empty() && kind != Kind::Directory {
            return Err(refused(Reason::NoName));
        }
        let mut link = Vec::new();
        if kind == Kind::Symlink {
            // Longer than any can be: it is refused for it.
            let mut target = vec![0; told.size.min(1 << 16) as usize];
            let mut read = 0;
            while read < target.len() {
                read += self.read_data(&mut target[read..])?;
            }
            link = link_target(&target).map_err(refused)?;
        }
        Ok(Entry {
            name,
            kind,
            link,
            mode,
            uid: 0,
            gid: 0,
            mtime: (told.unix_time.unwrap_or_else(|| told.dos_time()), 0),
            size: if kind == Kind::File { told.size } else { 0 },
            segments: None,
            attributes: Vec::new(),
        })
    }
}

impl Entries for ZipReader<'_> {
    fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.entries_left == 0 {
            let rest = io::copy(&mut self.directory, &mut io::sink()).map_err(ArchiveError::reading)?;
            return match rest {
                0 => Ok(None),
                _ => Err(ArchiveError::refused(b"", Reason::Trailing)),
            };
        }
        self.entries_left -= 1;
        let told = self.told()?;
        self.begin(&told)?;
        self.entry(&told).map(Some)
    }

    fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        match &mut self.data {
            Some(data) => data.read(buffer),
            None => Ok(0),
        }
    }
}

impl Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = (buffer.len() as u64).min(self.left) as usize;
        if most == 0 {
            return Ok(0);
        }
        let length = self.stream.read(&mut buffer[..most]).map_err(ArchiveError::reading)?;
        if length == 0 {
            return Err(ArchiveError::refused(&self.name, Reason::Truncated));
        }
        self.crc.update(&buffer[..length]);
        self.left -= length as u64;
        if self.left == 0 {
            self.check_end()?;
        }
        Ok(length)
    }

    /// All that was told has come: there must be no more, and it must be right.
    fn check_end(&mut self) -> Result<(), ArchiveError> {
        let more = self.stream.read(&mut [0]).map_err(ArchiveError::reading)?;
        if more > 0 {
            return Err(ArchiveError::refused(&self.name, Reason::Disagreement("size")));
        }
        if self.crc.sum() != self.told_crc {
            let what = "its checksum is wrong".to_owned();
            return Err(ArchiveError::refused(&self.name, Reason::Corrupt(what)));
        }
        Ok(())
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stored(stream) => stream.read(buffer),
            Self::Deflated(stream) => stream.read(buffer),
        }
    }
}

impl Told {
    /// Records of two numbers before each: which one it is, and its length.
    fn take_extra(&mut self, mut extra: &[u8]) -> Result<(), Reason> {
        while extra.len() >= 4 {
            let (kind, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
            let record = extra.get(4..4 + length).ok_or(Reason::Malformed("records"))?;
            match kind {
                0x0001 => self.take_large(record)?,
                0x5455 if record.first().is_some_and(|has| has & 1 != 0) && record.len() >= 5 => {
                    self.unix_time = Some(u32_at(record, 1).cast_signed().into());
                }
                _ => {}
            }
            extra = &extra[4 + length..];
        }
        Ok(())
    }

    /// ZIP64: what has no room in its own field, in this order.
    fn take_large(&mut self, mut record: &[u8]) -> Result<(), Reason> {
        for field in [&mut self.size, &mut self.packed, &mut self.offset] {
            if *field == u32::MAX.into() {
                let (value, rest) = record.split_first_chunk().ok_or(Reason::Malformed("size"))?;
                *field = u64::from_le_bytes(*value);
                record = rest;
            }
        }
        Ok(())
    }

    /// Some programs of Windows write its own separator.
    fn unix_name(&self) -> Vec<u8> {
        let mut name = self.name.clone();
        if self.system == DOS && !name.contains(&b'/') {
            for byte in &mut name {
                if *byte == b'\\' {
                    *byte = b'/';
                }
            }
        }
        name
    }

    fn kind_and_mode(&self) -> (Kind, u32) {
        let unix = match self.system {
            UNIX | DARWIN => self.attributes >> 16,
            _ => 0,
        };
        let is_directory = self.unix_name().ends_with(b"/") || self.attributes & DOS_DIRECTORY != 0;
        let kind = match unix & 0o170_000 {
            0o120_000 => Kind::Symlink,
            0o040_000 => Kind::Directory,
            0 | 0o100_000 if is_directory => Kind::Directory,
            0 | 0o100_000 => Kind::File,
            _ => Kind::Device,
        };
        let mode = match (unix, kind) {
            (0, Kind::Directory) => 0o755,
            (0, _) => 0o644,
            (unix, _) => unix & 0o7777,
        };
        (kind, mode)
    }

    /// DOS times have no zone: they are taken for UTC. What is no time is that of 1980.
    fn dos_time(&self) -> i64 {
        let (date, time) = (i64::from(self.modified.0), i64::from(self.modified.1));
        let (year, month, day) = (1980 + (date >> 9), (date >> 5 & 15).clamp(1, 12), (date & 31).max(1));
        // Days since 1970 in the calendar of today, years counted from March.
        let (year, month) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
        days * 86_400 + (time >> 11) * 3600 + (time >> 5 & 63) * 60 + (time & 31) * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dos_times_are_those_of_the_calendar() {
        let told = |date: u16, time: u16| {
            let told = Told {
                system: DOS,
                flags: 0,
                method: STORED,
                modified: (date, time),
                crc: 0,
                packed: 0,
                size: 0,
                attributes: 0,
                offset: 0,
                name: Vec::new(),
                unix_time: None,
            };
            told.dos_time()
        };
        assert_eq!(told(0, 0), 315_532_800, "1980-01-01");
        assert_eq!(
            told((46 << 9) | (11 << 5) | 28, (7 << 11) | (55 << 5) | 15),
            1_795_852_530,
            "2026-11-28T07:55:30"
        );
    }
}
