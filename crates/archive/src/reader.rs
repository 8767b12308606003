//! Reading a tar archive entry by entry: ustar, PAX and GNU's own extensions, as one stream, in bounded memory.
//!
//! Our own and not a crate's, because an archive that two programs read differently is refused here and not guessed
//! at: records that disagree, an end that is missing, something after the end.

use std::io::{self, Read};
use std::os::fd::AsFd;

use crate::apply::{PIECE_BYTES, fill};
use crate::attributes::Attribute;
use crate::entry::{Entries, Entry, Kind, Trust, cleaned, link_target};
use crate::error::{ArchiveError, Reason};
use crate::header::{BLOCK, Block, Header, LARGEST_SIZE, flag};
use crate::pax;
use crate::sparse::{MOST_READ, Segment, Told};

/// Records of one entry: attributes of 64 KiB each are the largest there are. Of a stranger's few are taken.
const MOST_PAX_BYTES: u64 = 1 << 20;
const MOST_PAX_BYTES_OF_OURS: u64 = 16 << 20;
const MOST_NAME_BYTES: u64 = 1 << 20;
/// Headers for all entries that follow: programs write one, at the beginning.
const MOST_GLOBAL: u32 = 1000;

/// A plain tar stream, for callers that put the entries in place themselves.
pub struct Reader<R> {
    input: R,
    trust: Trust,
    /// Bytes of the current entry that are not yet read, and what fills its last block.
    left: u64,
    padding: u64,
    /// Headers for all entries that there were.
    global: u32,
}

/// What comes before a header and belongs to it.
#[derive(Default)]
struct Extensions {
    pax: Option<Vec<u8>>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Entries for Reader<R> {
    fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        self.skip(self.left + self.padding)?;
        (self.left, self.padding) = (0, 0);
        let mut extensions = Extensions::default();
        loop {
            let block = self.block()?;
            if block.iter().all(|&byte| byte == 0) {
                if extensions.pax.is_some() || extensions.long_name.is_some() || extensions.long_link.is_some() {
                    return Err(ArchiveError::refused(b"", Reason::Truncated));
                }
                self.end()?;
                return Ok(None);
            }
            let header = Header::parse(block).map_err(|reason| ArchiveError::refused(b"", reason))?;
            if !self.extend(&header, &mut extensions)? {
                let records = extensions.records();
                let records = records.map_err(|reason| ArchiveError::refused(b"", reason))?;
                let name = extensions.name(&header, &records);
                let shown = name.as_deref().unwrap_or_default().to_vec();
                let entry = name.and_then(|name| self.entry(&header, (&extensions, &records), &name));
                return match entry {
                    Ok(entry) => Ok(Some(self.mapped(entry, &header, &records)?)),
                    Err(reason) => Err(ArchiveError::refused(&shown, reason)),
                };
            }
        }
    }

    fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = buffer.len().min(self.left.try_into().unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let length = loop {
            match self.input.read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(ArchiveError::reading)?,
            }
        };
        if length == 0 {
            return Err(ArchiveError::refused(b"", Reason::Truncated));
        }
        self.left -= length as u64;
        Ok(length)
    }
}

impl<R: Read> Reader<R> {
    /// Reads many small pieces: a slow input needs a buffer.
    pub fn new(input: R, trust: Trust) -> Self {
        Self {
            input,
            trust,
            left: 0,
            padding: 0,
            global: 0,
        }
    }

    /// Writes the data of `entry`, which was read last, to its file, which is empty: holes stay holes.
    ///
    /// # Errors
    /// The data breaks off, or the file cannot be written.
    pub fn write_data(&mut self, entry: &Entry, file: impl AsFd) -> Result<(), ArchiveError> {
        let piece_bytes = entry.size.min(PIECE_BYTES as u64) as usize;
        fill(file, entry, self, &mut vec![0; piece_bytes])
    }

    fn read_all(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        self.input.read_exact(buffer).map_err(ArchiveError::reading)
    }

    fn block(&mut self) -> Result<Block, ArchiveError> {
        let mut block = [0; BLOCK];
        self.read_all(&mut block)?;
        Ok(block)
    }

    fn skip(&mut self, count: u64) -> Result<(), ArchiveError> {
        let skipped = io::copy(&mut self.input.by_ref().take(count), &mut io::sink()).map_err(ArchiveError::reading)?;
        if skipped < count {
            return Err(ArchiveError::refused(b"", Reason::Truncated));
        }
        Ok(())
    }

    /// After the first block of zeros: a second one, and nothing but zeros after it.
    fn end(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = vec![0; 32 * 1024];
        self.read_all(&mut buffer[..BLOCK])?;
        let mut length = BLOCK;
        while length > 0 {
            if buffer[..length].iter().any(|&byte| byte != 0) {
                return Err(ArchiveError::refused(b"", Reason::Trailing));
            }
            length = self.input.read(&mut buffer).map_err(ArchiveError::reading)?;
        }
        Ok(())
    }

    /// Takes a header that only says more of the next one; `false`: this is the next one.
    fn extend(&mut self, header: &Header, extensions: &mut Extensions) -> Result<bool, ArchiveError> {
        let (place, most) = match header.flag() {
            flag::PAX | flag::PAX_SOLARIS => (&mut extensions.pax, self.most_pax_bytes()),
            flag::GNU_LONG_NAME => (&mut extensions.long_name, MOST_NAME_BYTES),
            flag::GNU_LONG_LINK => (&mut extensions.long_link, MOST_NAME_BYTES),
            flag::PAX_GLOBAL => {
                let records = self.content(header, self.most_pax_bytes())?;
                self.global += 1;
                let harmless = match self.global > MOST_GLOBAL {
                    true => Err(Reason::Malformed("entries all at once")),
                    false => global_is_harmless(&records),
                };
                return harmless
                    .map(|()| true)
                    .map_err(|reason| ArchiveError::refused(b"", reason));
            }
            _ => return Ok(false),
        };
        if place.is_some() {
            return Err(ArchiveError::refused(b"", Reason::Disagreement("name")));
        }
        let content = self.content(header, most)?;
        if header.flag() != flag::PAX && header.flag() != flag::PAX_SOLARIS {
            let end = content.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            *place = Some(content[..end].to_vec());
        } else {
            *place = Some(content);
        }
        Ok(true)
    }

    fn most_pax_bytes(&self) -> u64 {
        match self.trust {
            Trust::Stranger => MOST_PAX_BYTES,
            Trust::Ours => MOST_PAX_BYTES_OF_OURS,
        }
    }

    fn content(&mut self, header: &Header, most: u64) -> Result<Vec<u8>, ArchiveError> {
        let size = header.size().map_err(|reason| ArchiveError::refused(b"", reason))?;
        if size > most {
            return Err(ArchiveError::refused(b"", Reason::NameTooLong));
        }
        let mut content = vec![0; size as usize];
        self.read_all(&mut content)?;
        self.skip(padding(size))?;
        Ok(content)
    }

    fn entry(
        &mut self,
        header: &Header,
        (extensions, records): (&Extensions, &Records<'_>),
        name: &[u8],
    ) -> Result<Entry, Reason> {
        let stored = stored_size(header, records)?;
        let clean = cleaned(name, self.trust.longest_path())?;
        let kind = kind(header.flag(), name.ends_with(b"/"), records)?;
        if kind != Kind::File && stored > 0 {
            return Err(Reason::Malformed("size"));
        }
        if clean.is_empty() && kind != Kind::Directory {
            return Err(Reason::NoName);
        }
        let link = match kind {
            Kind::Symlink => link_target(&extensions.link(header, records)?)?,
            Kind::HardLink => cleaned(&extensions.link(header, records)?, self.trust.longest_path())?,
            _ => Vec::new(),
        };
        let mtime = match records.get(b"mtime", "time")? {
            Some(text) => pax::time(text).ok_or(Reason::Malformed("time"))?,
            None => (header.mtime()?, 0),
        };
        (self.left, self.padding) = (stored, padding(stored));
        Ok(Entry {
            kind,
            link,
            mode: header.mode()?,
            uid: self.owner(records.get(b"uid", "owner")?, header.uid())?,
            gid: self.owner(records.get(b"gid", "group")?, header.gid())?,
            mtime,
            size: stored,
            segments: None,
            attributes: records.attributes()?,
            name: clean,
        })
    }

    /// A stranger may name any number: it is mapped to one that there is.
    fn owner(&self, told: Option<&[u8]>, own: Result<i64, Reason>) -> Result<u64, Reason> {
        let owner = match told {
            Some(text) => pax::decimal(text).unwrap_or(u64::MAX),
            None => u64::try_from(own?).unwrap_or(u64::MAX),
        };
        if self.trust == Trust::Ours && owner >= u64::from(u32::MAX) {
            return Err(Reason::Malformed("owner"));
        }
        Ok(owner)
    }

    /// Reads where the data of a file with holes belongs, which stands before it.
    fn mapped(&mut self, mut entry: Entry, header: &Header, records: &Records<'_>) -> Result<Entry, ArchiveError> {
        let refused = |reason| ArchiveError::refused(&entry.name, reason);
        let (size, segments) = if header.flag() == flag::GNU_SPARSE {
            self.gnu_segments(header)?
        } else if let Some(size) = records.sparse_size().map_err(refused)? {
            let segments = match records.get(b"GNU.sparse.map", "size").map_err(refused)? {
                Some(list) => {
                    let mut told = Told::new();
                    told.push_list(list).map_err(refused)?;
                    told
                }
                None => self.segments_in_data()?,
            };
            (size, segments)
        } else {
            return Ok(entry);
        };
        let segments = segments.finish(size, self.left);
        entry.segments = Some(segments.map_err(|reason| ArchiveError::refused(&entry.name, reason))?);
        entry.size = size;
        Ok(entry)
    }

    fn gnu_segments(&mut self, header: &Header) -> Result<(u64, Told), ArchiveError> {
        let refused = |reason| ArchiveError::refused(&header.name(), reason);
        let (first, size, mut more) = header.gnu_sparse();
        let size = crate::header::number(size).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| refused(Reason::Malformed("size")))?;
        let mut told = Told::new();
        told.push_gnu(first).map_err(refused)?;
        while more {
            let block = self.block()?;
            told.push_gnu(&block[..504]).map_err(refused)?;
            more = block[504] != 0;
        }
        Ok((size, told))
    }

    fn segments_in_data(&mut self) -> Result<Told, ArchiveError> {
        let bad = || ArchiveError::refused(b"", Reason::Malformed("holes"));
        let mut told = Told::new();
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let count = self.number_in_data(&mut block, &mut at)?;
        if count > MOST_READ as u64 {
            return Err(bad());
        }
        for _ in 0..count {
            let offset = self.number_in_data(&mut block, &mut at)?;
            let length = self.number_in_data(&mut block, &mut at)?;
            told.push(offset, length).map_err(|_| bad())?;
        }
        Ok(told)
    }

    /// A line of the map, which takes whole blocks of the data.
    fn number_in_data(&mut self, block: &mut Block, at: &mut usize) -> Result<u64, ArchiveError> {
        let bad = || ArchiveError::refused(b"", Reason::Malformed("holes"));
        let mut text = Vec::new();
        loop {
            if *at == BLOCK {
                self.left = self.left.checked_sub(BLOCK as u64).ok_or_else(bad)?;
                *block = self.block()?;
                *at = 0;
            }
            let byte = block[*at];
            *at += 1;
            match byte {
                b'\n' => return pax::decimal(&text).ok_or_else(bad),
                _ if text.len() < 20 => text.push(byte),
                _ => return Err(bad()),
            }
        }
    }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn kind(flag: u8, has_slash: bool, records: &Records<'_>) -> Result<Kind, Reason> {
    Ok(match flag {
        // Before there was a flag for directories, a slash told them.
        flag::OLD_FILE | flag::FILE if has_slash => Kind::Directory,
        flag::OLD_FILE | flag::FILE | flag::CONTIGUOUS | flag::GNU_SPARSE => Kind::File,
        flag::DIRECTORY => Kind::Directory,
        flag::SYMLINK => Kind::Symlink,
        flag::HARD_LINK => Kind::HardLink,
        flag::FIFO if records.get(SOCKET_KEY, "kind")?.is_some() => Kind::Socket,
        flag::FIFO => Kind::Fifo,
        flag::CHARACTER | flag::BLOCK_DEVICE => Kind::Device,
        other => return Err(Reason::UnknownKind(other.into())),
    })
}

/// Tar knows no sockets. In archives of ours one is a FIFO with this record.
pub(crate) const SOCKET_KEY: &[u8] = b"SKEP.socket";
pub(crate) const ATTRIBUTE_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The size that tells where the next header is.
fn stored_size(header: &Header, records: &Records<'_>) -> Result<u64, Reason> {
    let own = header.size()?;
    let Some(text) = records.get(b"size", "size")? else {
        return Ok(own);
    };
    let told = pax::decimal(text).ok_or(Reason::Malformed("size"))?;
    // A size that the header has no room for stands there as 0, or as the largest that fits.
    let has_no_room = told > LARGEST_SIZE && (own == 0 || own == LARGEST_SIZE);
    if told != own && !has_no_room || told > i64::MAX as u64 {
        return Err(Reason::Disagreement("size"));
    }
    Ok(told)
}

impl Extensions {
    fn records(&self) -> Result<Records<'_>, Reason> {
        pax::parse(self.pax.as_deref().unwrap_or_default()).map(Records)
    }

    fn name(&self, header: &Header, records: &Records<'_>) -> Result<Vec<u8>, Reason> {
        let told = one_of(records.get(b"path", "name")?, self.long_name.as_deref())?;
        // With it `path` is a name that only stands for the file in programs that know no holes.
        if let Some(name) = records.get(b"GNU.sparse.name", "name")? {
            return Ok(one_of(Some(name), self.long_name.as_deref())?.unwrap_or(name).to_vec());
        }
        Ok(told.map_or_else(|| header.name(), <[u8]>::to_vec))
    }

    fn link(&self, header: &Header, records: &Records<'_>) -> Result<Vec<u8>, Reason> {
        let told = one_of(records.get(b"linkpath", "link")?, self.long_link.as_deref())?;
        Ok(told.unwrap_or_else(|| header.link()).to_vec())
    }
}

fn one_of<'a>(pax: Option<&'a [u8]>, gnu: Option<&'a [u8]>) -> Result<Option<&'a [u8]>, Reason> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => Err(Reason::Disagreement("name")),
        _ => Ok(pax.or(gnu)),
    }
}

struct Records<'a>(Vec<pax::Record<'a>>);

impl<'a> Records<'a> {
    /// An empty value is none. Two that differ are refused: one program takes the first, another the last.
    fn get(&self, key: &[u8], what: &'static str) -> Result<Option<&'a [u8]>, Reason> {
        let mut found = self.0.iter().filter(|(of, _)| *of == key).map(|(_, value)| *value);
        let Some(first) = found.next() else { return Ok(None) };
        if found.any(|other| other != first) {
            return Err(Reason::Disagreement(what));
        }
        Ok((!first.is_empty()).then_some(first))
    }

    /// Of a file with holes its size with them.
    fn sparse_size(&self) -> Result<Option<u64>, Reason> {
        let has_list = self.get(b"GNU.sparse.map", "size")?.is_some();
        let version = (
            self.get(b"GNU.sparse.major", "size")?,
            self.get(b"GNU.sparse.minor", "size")?,
        );
        let size = match version {
            (Some(b"1"), Some(b"0")) if !has_list => self.get(b"GNU.sparse.realsize", "size")?,
            (None, None) if has_list => self.get(b"GNU.sparse.size", "size")?,
            (None, None) if !self.0.iter().any(|(key, _)| key.starts_with(b"GNU.sparse.")) => return Ok(None),
            _ => return Err(Reason::Malformed("holes")),
        };
        size.and_then(pax::decimal).map(Some).ok_or(Reason::Malformed("size"))
    }

    fn attributes(&self) -> Result<Vec<Attribute>, Reason> {
        let mut attributes = Vec::new();
        for (key, value) in &self.0 {
            if let Some(name) = key.strip_prefix(ATTRIBUTE_PREFIX) {
                let name = pax::unescaped(name);
                if name.contains(&0) || name.is_empty() || name.len() > 255 {
                    return Err(Reason::Malformed("attributes"));
                }
                attributes.push((name, value.to_vec()));
            }
        }
        Ok(attributes)
    }
}

/// Records for all entries that follow: a comment (as `git archive` writes) is passed over. One that would change an
/// entry is refused, as programs differ in what they make of it.
fn global_is_harmless(records: &[u8]) -> Result<(), Reason> {
    let changes = |key: &[u8]| {
        let known: [&[u8]; 6] = [b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"];
        known.contains(&key) || key.starts_with(b"GNU.sparse.") || key.starts_with(ATTRIBUTE_PREFIX)
    };
    if pax::parse(records)?.iter().any(|(key, _)| changes(key)) {
        return Err(Reason::Malformed("entries all at once"));
    }
    Ok(())
}

impl Entry {
    /// The data of a file as segments, those of one without holes too.
    pub(crate) fn data(&self) -> Vec<Segment> {
        match &self.segments {
            Some(segments) => segments.clone(),
            None => vec![Segment {
                offset: 0,
                length: self.size,
            }],
        }
    }
}
