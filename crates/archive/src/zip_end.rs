//! The end of a ZIP archive, which tells where its directory lies, and the numbers of all its records.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::{ArchiveError, Reason};

const END: &[u8] = b"PK\x05\x06";
const END_BYTES: u64 = 22;
const END_64: &[u8] = b"PK\x06\x06";
const END_64_BYTES: u64 = 56;
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const LOCATOR_64_BYTES: u64 = 20;
/// The longest comment, which may follow the end.
const MOST_COMMENT_BYTES: u64 = 65_535;

/// Where the directory begins and ends, and how many entries it has. The end is searched from behind: it may be
/// followed by a comment, and by nothing else.
pub(crate) fn find_directory(file: &File) -> Result<(u64, u64, u64), ArchiveError> {
    let refused = |reason| ArchiveError::refused(b"", reason);
    let length = file.metadata().map_err(ArchiveError::reading)?.len();
    let tail_at = length.saturating_sub(END_BYTES + MOST_COMMENT_BYTES);
    let mut tail = vec![0; (length - tail_at) as usize];
    file.read_exact_at(&mut tail, tail_at).map_err(ArchiveError::reading)?;
    let is_end = |at: &usize| {
        let end = &tail[*at..];
        end.starts_with(END) && usize::from(u16_at(end, 20)) == end.len() - END_BYTES as usize
    };
    let last = tail
        .len()
        .checked_sub(END_BYTES as usize)
        .ok_or_else(|| refused(Reason::Truncated))?;
    let at = (0..=last)
        .rev()
        .find(is_end)
        .ok_or_else(|| refused(Reason::Truncated))?;
    let (end, end_at) = (&tail[at..], tail_at + at as u64);
    let (mut entries, mut size, mut begin) = (
        u64::from(u16_at(end, 10)),
        u64::from(u32_at(end, 12)),
        u64::from(u32_at(end, 16)),
    );
    let mut directory_end = end_at;
    if entries == u16::MAX.into() || size == u32::MAX.into() || begin == u32::MAX.into() {
        (entries, size, begin, directory_end) = large_end(file, end_at)?;
    } else if u16_at(end, 4) != 0 || u16_at(end, 6) != 0 || u64::from(u16_at(end, 8)) != entries {
        return Err(refused(Reason::Malformed("parts")));
    }
    match begin.checked_add(size) {
        Some(end) if end == directory_end => Ok((begin, end, entries)),
        _ => Err(refused(Reason::Malformed("directory"))),
    }
}

/// ZIP64: entries, size and beginning of the directory, and where it has ended.
fn large_end(file: &File, end_at: u64) -> Result<(u64, u64, u64, u64), ArchiveError> {
    let refused = || ArchiveError::refused(b"", Reason::Malformed("end"));
    let mut locator = [0; LOCATOR_64_BYTES as usize];
    let locator_at = end_at.checked_sub(LOCATOR_64_BYTES).ok_or_else(refused)?;
    file.read_exact_at(&mut locator, locator_at)
        .map_err(ArchiveError::reading)?;
    let record_at = u64_at(&locator, 8);
    let fits = record_at.checked_add(END_64_BYTES).is_some_and(|end| end <= locator_at);
    if &locator[..4] != LOCATOR_64 || !fits {
        return Err(refused());
    }
    let mut record = [0; END_64_BYTES as usize];
    file.read_exact_at(&mut record, record_at)
        .map_err(ArchiveError::reading)?;
    if &record[..4] != END_64 || u64_at(&record, 24) != u64_at(&record, 32) {
        return Err(refused());
    }
    Ok((u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48), record_at))
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
