//! Trees as tar streams, out of the workspace and into it. The format, and what makes it safe, is `skep-archive`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use skep_archive::{
    Applied, ApplyOptions, ArchiveError, Attributes, Changing, Links, Owners, PackOptions, PackReport, Packer,
    RootEntry, Source, Special, Trust, apply_zip,
};
use skep_bridge_protocol::STREAM_CHUNK_BYTES;
use skep_bridge_protocol::workspace::ArchiveInResult;

use super::change::make_directory;
use super::read::open_regular;
use crate::paths::{DATA_DIRECTORY, split};

const DIRECTORY_MODE: u32 = 0o750;
/// Where what is kept of very many entries goes, in files without a name.
const SPILL_DIRECTORY: &str = "/var/lib/skep";
/// How long the sizes of a tree are added up before it is packed.
const ESTIMATE_WITHIN: Duration = Duration::from_secs(1);

/// Where the bytes go; an error (the caller is gone) ends the packing.
pub(crate) trait Sink: Send {
    fn send(&mut self, data: Bytes) -> io::Result<()>;
}

/// An error, and the path it is about.
type Told<T> = Result<T, (PathBuf, io::Error)>;

fn spill() -> Told<&'static Path> {
    let directory = Path::new(SPILL_DIRECTORY);
    fs::create_dir_all(directory).map_err(|error| (directory.to_path_buf(), error))?;
    Ok(directory)
}

/// Packs one directory with its entries relative to it, one file as one entry, or several paths each below its own
/// last name. Pipes go in, sockets and devices do not.
///
/// # Errors
/// Those of the file system, with the path.
pub(crate) fn pack(paths: &[PathBuf], sink: &mut dyn Sink) -> Told<()> {
    let options = PackOptions {
        attributes: Attributes::User,
        changing: Changing::Counted,
        root: RootEntry::Never,
        special: Special::Pipes,
        spill: spill()?,
    };
    let mut chunks = Chunks::new(sink);
    let mut packer = Packer::new(options, &mut chunks);
    for path in paths {
        add(&mut packer, path, paths.len() > 1)?;
    }
    let first = paths.first().map(PathBuf::as_path).unwrap_or(Path::new("/"));
    packer.finish().map_err(|error| told(first, error))?;
    chunks.flush().map_err(|error| (first.to_path_buf(), error))
}

fn add(packer: &mut Packer<'_>, path: &Path, below_own_name: bool) -> Told<()> {
    let failed = |error: io::Error| (path.to_path_buf(), error);
    let own_name = path.file_name().unwrap_or_default().as_bytes();
    // What was asked for by name is what a link leads to, not the link.
    let real = fs::canonicalize(path).map_err(failed)?;
    if real.metadata().map_err(failed)?.is_dir() {
        let root = open_directory(&real, OFlags::empty()).map_err(|error| failed(error.into()))?;
        let prefix = if below_own_name { own_name } else { b"" };
        return packer.tree(root.as_fd(), prefix).map_err(|error| told(path, error));
    }
    let (parent, name) = split(&real).ok_or_else(|| failed(Errno::NOENT.into()))?;
    let parent = open_directory(parent, OFlags::empty()).map_err(|error| failed(error.into()))?;
    let added = packer.file(parent.as_fd(), name.as_bytes(), own_name);
    added.map_err(|error| told(path, error))
}

fn open_directory(path: &Path, more: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags | more, Mode::empty())
}

fn told(base: &Path, error: ArchiveError) -> (PathBuf, io::Error) {
    match error {
        ArchiveError::Io { path, source, .. } => (base.join(std::ffi::OsStr::from_bytes(&path)), source),
        ArchiveError::Refused(refusal) => (
            base.to_path_buf(),
            io::Error::new(io::ErrorKind::InvalidData, refusal.to_string()),
        ),
        ArchiveError::Changed { ref path, .. } => {
            let path = base.join(std::ffi::OsStr::from_bytes(path));
            (
                path,
                io::Error::new(io::ErrorKind::ResourceBusy, "changed each time it was read"),
            )
        }
    }
}

/// `/data`, open to be exported.
pub(crate) struct Export {
    /// `None`: there is none.
    root: Option<OwnedFd>,
    /// About as many bytes as the archive will have.
    pub(crate) estimate_bytes: u64,
}

impl Export {
    /// # Errors
    /// ENOTDIR when `/data` is no directory, a link included.
    pub(crate) fn begin() -> io::Result<Self> {
        let root = match open_directory(Path::new(DATA_DIRECTORY), OFlags::NOFOLLOW) {
            Ok(root) => Some(root),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let estimate_bytes = match &root {
            Some(root) => skep_archive::estimate(root.as_fd(), Instant::now() + ESTIMATE_WITHIN)?,
            None => 0,
        };
        Ok(Self { root, estimate_bytes })
    }

    /// Packs it as the contract has an export.
    ///
    /// # Errors
    /// As [`pack`].
    pub(crate) fn pack(&self, changing: Changing, sink: &mut dyn Sink) -> Told<PackReport> {
        let options = PackOptions {
            attributes: Attributes::User,
            changing,
            root: RootEntry::UnlessEmpty,
            special: Special::LeftOut,
            spill: spill()?,
        };
        let base = Path::new(DATA_DIRECTORY);
        let mut chunks = Chunks::new(sink);
        let mut packer = Packer::new(options, &mut chunks);
        if let Some(root) = &self.root {
            packer.tree(root.as_fd(), b"").map_err(|error| told(base, error))?;
        }
        let report = packer.finish().map_err(|error| told(base, error))?;
        chunks.flush().map_err(|error| (base.to_path_buf(), error))?;
        Ok(report)
    }
}

/// Unpacks an archive that lies in the workspace as [`unpack`] does: ZIP, or tar as it is or compressed by gzip or zstd,
/// told by its first bytes.
///
/// # Errors
/// With the path of the archive or of the entry. What was unpacked before stays.
pub(crate) fn extract(archive: &Path, directory: &Path) -> Told<ArchiveInResult> {
    let failed = |error: io::Error| (archive.to_path_buf(), error);
    let (file, _) = open_regular(archive, None).map_err(failed)?;
    let mut first = [0; 4];
    let length = file.read_at(&mut first, 0).map_err(failed)?;
    let done = match &first[..length] {
        b"PK\x03\x04" | b"PK\x05\x06" => unpack_by(directory, |root, options| apply_zip(root, &file, options)),
        _ => {
            let source = Source::open(&file).map_err(failed)?;
            unpack(directory, source)
        }
    };
    done.map_err(|(path, error)| match error.kind() {
        // It is not the directory that is refused.
        io::ErrorKind::InvalidData => (archive.to_path_buf(), error),
        _ => (path, error),
    })
}

/// Unpacks into `directory`, which is made if missing. Modes, times and links are kept; the owner is the bridge's own
/// user, as with other tools that copy into a container. Links that were there before are followed.
///
/// # Errors
/// With the path of the entry. What was unpacked before stays.
pub(crate) fn unpack(directory: &Path, input: impl Read) -> Told<ArchiveInResult> {
    unpack_by(directory, |root, options| skep_archive::apply(root, input, options))
}

fn unpack_by(
    directory: &Path,
    apply: impl FnOnce(BorrowedFd<'_>, &ApplyOptions<'_>) -> Result<Applied, ArchiveError>,
) -> Told<ArchiveInResult> {
    let failed = |error: io::Error| (directory.to_path_buf(), error);
    make_directory(directory, DIRECTORY_MODE).map_err(failed)?;
    let root = open_directory(directory, OFlags::empty()).map_err(|error| failed(error.into()))?;
    let options = ApplyOptions {
        mode: skep_archive::Mode::Merge,
        trust: Trust::Ours,
        owners: Owners::Caller,
        links: Links::ExistingFollowed,
        spill: spill()?,
    };
    let done = apply(root.as_fd(), &options).map_err(|error| told(directory, error))?;
    Ok(ArchiveInResult {
        entries: done.entries,
        bytes: done.bytes,
    })
}

/// Collects the many small writes of an archive into chunks.
struct Chunks<'a> {
    sink: &'a mut dyn Sink,
    pending: BytesMut,
}

impl<'a> Chunks<'a> {
    fn new(sink: &'a mut dyn Sink) -> Self {
        Self {
            sink,
            pending: BytesMut::new(),
        }
    }
}

impl Write for Chunks<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.pending.capacity() == 0 {
            self.pending.reserve(STREAM_CHUNK_BYTES);
        }
        let length = data.len().min(STREAM_CHUNK_BYTES - self.pending.len());
        self.pending.extend_from_slice(&data[..length]);
        if self.pending.len() == STREAM_CHUNK_BYTES {
            self.send()?;
        }
        Ok(length)
    }

    /// What is pending goes out with what follows it, or at the end.
    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Chunks<'_> {
    fn send(&mut self) -> io::Result<()> {
        let full = std::mem::take(&mut self.pending);
        if full.is_empty() {
            Ok(())
        } else {
            self.sink.send(full.freeze())
        }
    }
}
