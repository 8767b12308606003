//! Reads a tar as a stream, with bounded memory, whatever it claims of itself.
//!
//! Names are only ever keys here: nothing of an archive is written under the name it has.

use std::io::{Error, ErrorKind};

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use crate::{ImageArchive, Result, RuntimeError};

const BLOCK: usize = 512;
/// Long names and extended headers: a few paths, no more.
const EXTENSION_LIMIT: u64 = 64 << 10;
const ENTRY_LIMIT: u64 = 200_000;
/// Far above any image, far below what would fill a disk by compression alone.
const BYTE_LIMIT: u64 = 256 << 30;

type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// A tar being read.
pub(super) struct Archive {
    reader: Reader,
    /// Of the entry that was begun last: content and padding not yet read.
    content: u64,
    padding: u64,
    entries: u64,
    bytes: u64,
}

/// One entry; its content is read with [`Archive::read`].
pub(super) struct Entry {
    /// Without `./` in front.
    pub(super) path: String,
    pub(super) kind: Kind,
    pub(super) size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    /// A link; where it leads, as it stands in the archive.
    Symlink(String),
    /// A second name of a file of the archive.
    HardLink(String),
    /// Directories and whatever else.
    Other,
}

/// What extended headers say of the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Archive {
    /// Finds out how the archive is compressed and begins to read it.
    pub(super) async fn open(archive: ImageArchive) -> Result<Self> {
        let mut buffered = BufReader::with_capacity(256 << 10, archive);
        let start = buffered.fill_buf().await.map_err(not_read)?;
        let reader: Reader = if start.starts_with(&[0x1f, 0x8b]) {
            let mut decoder = GzipDecoder::new(buffered);
            decoder.multiple_members(true);
            Box::new(decoder)
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let mut decoder = ZstdDecoder::new(buffered);
            decoder.multiple_members(true);
            Box::new(decoder)
        } else {
            Box::new(buffered)
        };
        Ok(Self {
            reader,
            content: 0,
            padding: 0,
            entries: 0,
            bytes: 0,
        })
    }

    /// The next entry; what is left of the one before is passed over. `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.pass_over().await?;
            let Some(header) = self.header().await? else {
                return Ok(None);
            };
            self.entries += 1;
            if self.entries > ENTRY_LIMIT {
                return Err(rejected("it has too many entries"));
            }
            let size = header
                .entry_size()
                .map_err(|_| rejected("an entry has no proper size"))?;
            let kind = header.entry_type();
            let extension = kind.is_gnu_longname()
                || kind.is_gnu_longlink()
                || kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions();
            let size = if extension {
                size
            } else {
                extensions.size.unwrap_or(size)
            };
            self.begin(size)?;
            if kind.is_pax_global_extensions() {
                continue;
            }
            if !extension {
                return entry(&header, extensions, size).map(Some);
            }
            let text = self.read_small(EXTENSION_LIMIT).await?;
            if kind.is_gnu_longname() {
                extensions.path = Some(name(&text)?);
            } else if kind.is_gnu_longlink() {
                extensions.link = Some(name(&text)?);
            } else {
                read_pax(&text, &mut extensions)?;
            }
        }
    }

    /// Reads more of the entry's content, at most `limit` bytes; empty at its end.
    pub(super) async fn read(&mut self, limit: usize) -> Result<Vec<u8>> {
        let wanted = self.content.min(limit as u64) as usize;
        let mut data = vec![0; wanted];
        self.reader.read_exact(&mut data).await.map_err(not_read)?;
        self.content -= wanted as u64;
        Ok(data)
    }

    /// Reads all of the entry's content, which must not be longer than `limit` bytes.
    pub(super) async fn read_small(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.content > limit {
            return Err(rejected(&format!(
                "a file of it that must be small has more than {limit} bytes"
            )));
        }
        self.read(limit as usize).await
    }

    fn begin(&mut self, size: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > BYTE_LIMIT {
            return Err(rejected("it is too large"));
        }
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    async fn pass_over(&mut self) -> Result<()> {
        while self.content > 0 {
            self.read(256 << 10).await?;
        }
        let mut padding = vec![0; self.padding as usize];
        self.reader.read_exact(&mut padding).await.map_err(not_read)?;
        self.padding = 0;
        Ok(())
    }

    async fn header(&mut self) -> Result<Option<tar::Header>> {
        let mut header = tar::Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]).await.map_err(not_read)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(rejected("it ends in the middle")),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The checksum's own eight bytes count as spaces.
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(place, byte)| u32::from(if (148..156).contains(&place) { b' ' } else { *byte }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(rejected("it is not a tar archive, or it is damaged"));
        }
        Ok(Some(header))
    }
}

fn entry(header: &tar::Header, extensions: Extensions, size: u64) -> Result<Entry> {
    let path = match extensions.path {
        Some(path) => path,
        None => name(&header.path_bytes())?,
    };
    let link = match (extensions.link, header.link_name_bytes()) {
        (Some(link), _) => link,
        (None, Some(link)) => name(&link)?,
        (None, None) => String::new(),
    };
    let kind = header.entry_type();
    let kind = if kind.is_file() || kind.is_contiguous() {
        Kind::File
    } else if kind.is_symlink() {
        Kind::Symlink(link)
    } else if kind.is_hard_link() {
        Kind::HardLink(without_dot(link))
    } else {
        Kind::Other
    };
    Ok(Entry {
        path: without_dot(path),
        kind,
        size,
    })
}

fn without_dot(path: String) -> String {
    path.strip_prefix("./").map(str::to_owned).unwrap_or(path)
}

fn name(bytes: &[u8]) -> Result<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| rejected("a name in it is not UTF-8"))?;
    Ok(text.to_owned())
}

/// `<length> <key>=<value>\n`, the length counting itself.
fn read_pax(text: &[u8], extensions: &mut Extensions) -> Result<()> {
    let bad = || rejected("an extended header of it is damaged");
    let mut rest = text;
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length = std::str::from_utf8(&rest[..space])
            .ok()
            .and_then(|text| text.parse::<usize>().ok());
        let length = length
            .filter(|length| (space + 2..=rest.len()).contains(length))
            .ok_or_else(bad)?;
        let record = &rest[space + 1..length - 1];
        rest = &rest[length..];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        let value = &record[equals + 1..];
        match &record[..equals] {
            b"path" => extensions.path = Some(name(value)?),
            b"linkpath" => extensions.link = Some(name(value)?),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                extensions.size = Some(size.ok_or_else(bad)?);
            }
            _ => {}
        }
    }
    Ok(())
}

fn not_read(error: Error) -> RuntimeError {
    match error.kind() {
        ErrorKind::UnexpectedEof => rejected("it ends in the middle"),
        // What decoders say of damaged data.
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::Other => rejected(&error.to_string()),
        _ => RuntimeError::other("read the image archive", error),
    }
}

pub(super) fn rejected(reason: &str) -> RuntimeError {
    RuntimeError::Rejected {
        reason: format!("the image archive cannot be imported: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn paths(bytes: Vec<u8>) -> Result<Vec<(String, u64, Kind)>> {
        let mut archive = Archive::open(Box::new(std::io::Cursor::new(bytes))).await?;
        let mut found = Vec::new();
        while let Some(entry) = archive.next().await? {
            found.push((entry.path, entry.size, entry.kind));
        }
        Ok(found)
    }

    fn tar_with(path: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, path, content).unwrap();
        builder.into_inner().unwrap()
    }

    #[tokio::test]
    async fn long_names_and_extended_headers_are_read() {
        let long = format!("blobs/{}", "x".repeat(300));
        let found = paths(tar_with(&long, b"abc")).await.unwrap();
        assert_eq!(found, [(long, 3, Kind::File)]);

        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("path", &b"./the/name"[..])]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_path("other").unwrap();
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        let found = paths(builder.into_inner().unwrap()).await.unwrap();
        assert_eq!(found[0].0, "the/name");
    }

    #[tokio::test]
    async fn damaged_archives_are_rejected() {
        let whole = tar_with("a", &[7; 2000]);
        let mut wrong_sum = whole.clone();
        wrong_sum[0] ^= 1;
        for bad in [
            b"junk".to_vec(),
            vec![1; 4096],
            whole[..1000].to_vec(),
            wrong_sum,
            vec![0x1f, 0x8b, 8, 0, 1, 2, 3],
            vec![0x28, 0xb5, 0x2f, 0xfd, 9, 9, 9],
        ] {
            let refused = paths(bad.clone()).await;
            assert!(
                matches!(refused, Err(RuntimeError::Rejected { .. })),
                "{bad:?}: {refused:?}"
            );
        }
    }

    #[tokio::test]
    async fn an_extended_header_cannot_claim_memory() {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(1 << 40);
        header.set_cksum();
        let refused = paths(header.as_bytes().to_vec()).await;
        assert!(matches!(refused, Err(RuntimeError::Rejected { .. })), "{refused:?}");
    }
}
