//! A tree as a tar stream: modes, owners, times, symbolic and hard links kept.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use skep_bridge_protocol::STREAM_CHUNK_BYTES;
use tar::{EntryType, Header};

use super::read::open_regular;
use super::walk::{Walk, walk};

/// Where the bytes go; an error (the caller is gone) ends the packing.
pub(crate) trait Sink: Send {
    fn send(&mut self, data: Bytes) -> io::Result<()>;
}

/// Packs one directory with its entries relative to it, one file as one entry, or several paths each below its own
/// last name.
///
/// # Errors
/// Those of the file system, with the path; a file that shrinks while it is read is filled up with zeros, as a tar
/// header cannot be taken back.
pub(crate) fn pack(paths: &[PathBuf], sink: &mut dyn Sink) -> Result<(), (PathBuf, io::Error)> {
    let mut packer = Packer {
        tar: tar::Builder::new(Chunks {
            sink,
            pending: BytesMut::new(),
        }),
        linked: HashMap::new(),
    };
    for path in paths {
        packer.add(path, paths.len() > 1)?;
    }
    let finished = packer.tar.into_inner().and_then(|mut chunks| chunks.flush());
    finished.map_err(|error| (paths.first().cloned().unwrap_or_default(), error))
}

struct Packer<'a> {
    tar: tar::Builder<Chunks<'a>>,
    /// Files of more than one name: the entry that holds the bytes.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Packer<'_> {
    fn add(&mut self, path: &Path, below_own_name: bool) -> Result<(), (PathBuf, io::Error)> {
        let told = |error| (path.to_path_buf(), error);
        let own_name = PathBuf::from(path.file_name().unwrap_or_default());
        let metadata = fs::metadata(path).map_err(told)?;
        if !metadata.is_dir() {
            // What was asked for by name is the file itself, not a link to it.
            let real = fs::canonicalize(path).map_err(told)?;
            return self.entry(&real, &own_name).map_err(told);
        }
        let below = if below_own_name { own_name } else { PathBuf::new() };
        if below_own_name && !below.as_os_str().is_empty() {
            self.directory(&metadata, &below).map_err(told)?;
        }
        let mut at = path.to_path_buf();
        let walked = walk(
            path,
            &Walk {
                recursive: true,
                after: b"",
                collapse_threshold: 0,
            },
            &mut |item| {
                let relative = Path::new(std::ffi::OsStr::from_bytes(item.relative));
                at = path.join(relative);
                match self.entry(&at, &below.join(relative)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => result?,
                }
                Ok(ControlFlow::Continue(()))
            },
        );
        walked.map_err(|error| (at, error))
    }

    fn entry(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return self.directory(&metadata, name);
        }
        if kind.is_socket() {
            // Nothing that tar can hold, and nothing that would be of use elsewhere.
            return Ok(());
        }
        if metadata.nlink() > 1 && kind.is_file() {
            if let Some(first) = self.linked.get(&(metadata.dev(), metadata.ino())) {
                let mut header = header_of(&metadata, EntryType::Link);
                return self.tar.append_link(&mut header, name, first);
            }
            self.linked.insert((metadata.dev(), metadata.ino()), name.to_path_buf());
        }
        if kind.is_symlink() {
            let mut header = header_of(&metadata, EntryType::Symlink);
            return self.tar.append_link(&mut header, name, fs::read_link(path)?);
        }
        if kind.is_file() {
            return self.file(path, name);
        }
        let entry_type = match () {
            () if kind.is_fifo() => EntryType::Fifo,
            () if kind.is_char_device() => EntryType::Char,
            () => EntryType::Block,
        };
        let mut header = header_of(&metadata, entry_type);
        if !kind.is_fifo() {
            header.set_device_major(rustix::fs::major(metadata.rdev()))?;
            header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
        }
        self.tar.append_data(&mut header, name, io::empty())
    }

    fn directory(&mut self, metadata: &fs::Metadata, name: &Path) -> io::Result<()> {
        let mut header = header_of(metadata, EntryType::Directory);
        self.tar.append_data(&mut header, name, io::empty())
    }

    fn file(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let (file, _) = open_regular(path, None)?;
        let metadata = file.metadata()?;
        let mut header = header_of(&metadata, EntryType::Regular);
        header.set_size(metadata.len());
        self.tar.append_data(
            &mut header,
            name,
            Exactly {
                file,
                left: metadata.len(),
            },
        )
    }
}

fn header_of(metadata: &fs::Metadata, entry_type: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    // A time before 1970 has no place in the header.
    header.set_mtime(metadata.mtime().try_into().unwrap_or(0));
    header.set_size(0);
    header
}

/// As many bytes as the header said, whatever happens to the file.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(self.left.try_into().unwrap_or(usize::MAX));
        let mut length = self.file.read(&mut buffer[..most])?;
        if length == 0 && most > 0 {
            buffer[..most].fill(0);
            length = most;
        }
        self.left -= length as u64;
        Ok(length)
    }
}

/// Collects the many small writes of tar into chunks.
struct Chunks<'a> {
    sink: &'a mut dyn Sink,
    pending: BytesMut,
}

impl Write for Chunks<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.pending.capacity() == 0 {
            self.pending.reserve(STREAM_CHUNK_BYTES);
        }
        let length = data.len().min(STREAM_CHUNK_BYTES - self.pending.len());
        self.pending.extend_from_slice(&data[..length]);
        if self.pending.len() == STREAM_CHUNK_BYTES {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = std::mem::take(&mut self.pending);
        if full.is_empty() {
            Ok(())
        } else {
            self.sink.send(full.freeze())
        }
    }
}
