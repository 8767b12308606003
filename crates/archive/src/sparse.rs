//! Files with holes: where their data is, and how tar says so.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::Reason;
use crate::header::{BLOCK, number};
use crate::pax::decimal;

/// More would be held in memory for one file. A file in more pieces is written with its smallest holes filled.
const MOST_WRITTEN: usize = 65_536;
/// Other programs may write more.
pub(crate) const MOST_READ: usize = 1 << 20;

/// A piece of a file that is data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Where the data of an open file is, of its first `size` bytes; `None`: it is all data.
pub(crate) fn data_of(file: impl AsFd, size: u64) -> io::Result<Option<Vec<Segment>>> {
    let mut smallest_hole = 0;
    loop {
        let segments = segments(&file, size, smallest_hole)?;
        let whole = segments
            .as_ref()
            .is_some_and(|all| matches!(all[..], [Segment { offset: 0, length }] if length == size));
        match segments {
            Some(_) if whole => return Ok(None),
            Some(segments) => return Ok(Some(segments)),
            None => smallest_hole = (smallest_hole * 4).max(16 * 1024),
        }
    }
}

/// `None`: there are too many. Holes smaller than `smallest_hole` count as data.
fn segments(file: impl AsFd, size: u64, smallest_hole: u64) -> io::Result<Option<Vec<Segment>>> {
    let mut found: Vec<Segment> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            // A file system that does not know of holes.
            Err(Errno::INVAL | Errno::NOTSUP) => 0,
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(&file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            // It was cut meanwhile: the check after the reading finds that out.
            Err(Errno::NXIO | Errno::INVAL | Errno::NOTSUP) => size,
            Err(error) => return Err(error.into()),
        };
        let is_full = found.len() == MOST_WRITTEN;
        match found.last_mut() {
            Some(last) if start - (last.offset + last.length) < smallest_hole => last.length = end - last.offset,
            _ if is_full => return Ok(None),
            _ => found.push(Segment {
                offset: start,
                length: end - start,
            }),
        }
        at = end;
    }
    Ok(Some(found))
}

/// The map as it stands before the data: how many, then offset and length of each, one number a line, filled up to a
/// whole block. GNU tar calls it sparse format 1.0.
pub(crate) fn map(segments: &[Segment], size: u64) -> Vec<u8> {
    let ends_in_a_hole = segments.last().is_none_or(|last| last.offset + last.length < size);
    let count = segments.len() + usize::from(ends_in_a_hole);
    let mut map = format!("{count}\n").into_bytes();
    for segment in segments {
        map.extend_from_slice(format!("{}\n{}\n", segment.offset, segment.length).as_bytes());
    }
    if ends_in_a_hole {
        map.extend_from_slice(format!("{size}\n0\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// Segments as an archive tells them, checked as they come.
pub(crate) struct Told {
    segments: Vec<Segment>,
    end: u64,
    stored: u64,
}

const BAD: Reason = Reason::Malformed("holes");

impl Told {
    pub(crate) fn new() -> Self {
        Self {
            segments: Vec::new(),
            end: 0,
            stored: 0,
        }
    }

    pub(crate) fn push(&mut self, offset: u64, length: u64) -> Result<(), Reason> {
        if offset < self.end || self.segments.len() == MOST_READ {
            return Err(BAD);
        }
        self.end = offset.checked_add(length).ok_or(BAD)?;
        self.stored += length;
        if length > 0 {
            self.segments.push(Segment { offset, length });
        }
        Ok(())
    }

    /// Of the old format: pairs of 12 bytes each; an empty one ends them.
    pub(crate) fn push_gnu(&mut self, pairs: &[u8]) -> Result<(), Reason> {
        for pair in pairs.chunks_exact(24).take_while(|pair| pair[0] != 0 || pair[12] != 0) {
            let value = |field| number(field).and_then(|value| u64::try_from(value).ok()).ok_or(BAD);
            self.push(value(&pair[..12])?, value(&pair[12..])?)?;
        }
        Ok(())
    }

    /// Of format 0.1: `offset,length,offset,length…`.
    pub(crate) fn push_list(&mut self, list: &[u8]) -> Result<(), Reason> {
        let mut numbers = list.split(|&byte| byte == b',').map(|text| decimal(text).ok_or(BAD));
        while let Some(offset) = numbers.next() {
            self.push(offset?, numbers.next().ok_or(BAD)??)?;
        }
        Ok(())
    }

    /// The segments, of a file of `size` bytes of which `stored` are in the archive.
    pub(crate) fn finish(self, size: u64, stored: u64) -> Result<Vec<Segment>, Reason> {
        if self.end > size || self.stored != stored {
            return Err(Reason::Disagreement("size"));
        }
        Ok(self.segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_says_where_a_file_ends() {
        let segments = [
            Segment {
                offset: 0,
                length: 4096,
            },
            Segment {
                offset: 8192,
                length: 1,
            },
        ];
        assert!(map(&segments, 8193).starts_with(b"2\n0\n4096\n8192\n1\n\0"));
        assert!(map(&segments, 9000).starts_with(b"3\n0\n4096\n8192\n1\n9000\n0\n\0"));
        assert!(map(&[], 5).starts_with(b"1\n5\n0\n\0"));
        assert_eq!(map(&[], 5).len(), BLOCK);
    }

    #[test]
    fn segments_that_overlap_or_do_not_fit_are_refused() {
        let told = |pairs: &[(u64, u64)], size, stored| {
            let mut told = Told::new();
            for (offset, length) in pairs {
                told.push(*offset, *length)?;
            }
            told.finish(size, stored)
        };
        assert!(told(&[(0, 10), (20, 5)], 25, 15).is_ok());
        assert!(told(&[(0, 10), (5, 5)], 25, 15).is_err());
        assert!(told(&[(20, 5), (0, 10)], 25, 15).is_err());
        assert!(told(&[(0, 10)], 9, 10).is_err());
        assert!(told(&[(0, 10)], 10, 9).is_err());
        assert!(told(&[(u64::MAX, 2)], 10, 2).is_err());
    }
}
