//! An ended process on disk: its status and the part of its output that was still in memory, in one file beside the
//! segment files. Written once, after the answer; a torn one is dropped at the next start. Whoever is root in the workspace can
//! put anything in its place: what this bridge would not have written is no record.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use skep_bridge_protocol::workspace::ExecStatus;

const FILE: &str = "record";
/// A status holds a command line and its arguments; the kernel takes no longer ones (2 MiB with the environment), and a page
/// of a list, which the host takes up to 4 MiB, may have 1 MiB before it.
const LARGEST_STATUS: u32 = 2560 * 1024;
/// More than a log holds in memory.
const LARGEST_TAIL: u32 = 2 * 1024 * 1024;

/// With this what is no plain file is neither written to through a link nor waited for.
pub(super) const PLAIN_FILE_ONLY: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();

pub(crate) struct Record {
    pub(crate) status: ExecStatus,
    pub(crate) tails: [Bytes; 2],
}

/// Makes a directory and those above it, for the bridge's own user alone.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Returns the bytes that the record takes on disk.
pub(crate) fn write(directory: &Path, status: &ExecStatus, tails: [&[u8]; 2]) -> io::Result<u64> {
    make_directory(directory)?;
    let status = status.encode_to_vec();
    let mut content = Vec::with_capacity(8 + status.len() + tails[0].len() + tails[1].len());
    content.extend_from_slice(&(status.len() as u32).to_le_bytes());
    content.extend_from_slice(&(tails[0].len() as u32).to_le_bytes());
    content.extend_from_slice(&(tails[1].len() as u32).to_le_bytes());
    content.extend_from_slice(&status);
    content.extend_from_slice(tails[0]);
    content.extend_from_slice(tails[1]);
    let path = directory.join(FILE);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(PLAIN_FILE_ONLY)
        .open(path)?;
    file.write_all(&content)?;
    Ok(content.len() as u64)
}

pub(crate) fn exists(directory: &Path) -> bool {
    directory.join(FILE).exists()
}

/// The status alone: what a listing needs.
pub(crate) fn read_status(directory: &Path) -> io::Result<ExecStatus> {
    open(directory).map(|(status, ..)| status)
}

pub(crate) fn read(directory: &Path) -> io::Result<Record> {
    let (status, mut file, lengths) = open(directory)?;
    let mut tails = [Bytes::new(), Bytes::new()];
    for (tail, length) in tails.iter_mut().zip(lengths) {
        let mut data = Vec::new();
        Read::by_ref(&mut file).take(u64::from(length)).read_to_end(&mut data)?;
        if data.len() != length as usize {
            return Err(torn());
        }
        *tail = data.into();
    }
    Ok(Record { status, tails })
}

fn open(directory: &Path) -> io::Result<(ExecStatus, File, [u32; 2])> {
    let mut file = open_stored(&directory.join(FILE))?;
    let mut header = [[0; 4]; 3];
    file.read_exact(header.as_flattened_mut()).map_err(cut_is_torn)?;
    let [length, stdout, stderr] = header.map(u32::from_le_bytes);
    if length > LARGEST_STATUS || stdout > LARGEST_TAIL || stderr > LARGEST_TAIL {
        return Err(torn());
    }
    let mut status = vec![0; length as usize];
    file.read_exact(&mut status).map_err(cut_is_torn)?;
    let status = ExecStatus::decode(status.as_slice()).map_err(|_| torn())?;
    let is_its_own = directory
        .file_name()
        .is_some_and(|name| name == status.exec_id.as_str());
    let has_its_tails = u64::from(stdout) <= status.stdout_bytes && u64::from(stderr) <= status.stderr_bytes;
    if !is_its_own || !has_its_tails {
        return Err(torn());
    }
    Ok((status, file, [stdout, stderr]))
}

/// Opens a file of the store to be read: what is no plain file is neither waited for nor followed.
pub(super) fn open_stored(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP | Errno::NXIO | Errno::NOTDIR) => return Err(torn()),
        Err(error) => return Err(error.into()),
    };
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(torn()),
    }
}

/// Whether what there is was not written by a bridge, or not to its end: it is of no use to anybody.
pub(crate) fn is_torn(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

fn cut_is_torn(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => torn(),
        _ => error,
    }
}

fn torn() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a record that was not written to its end")
}

/// The bytes that the files of one process take on disk.
pub(crate) fn size(directory: &Path) -> io::Result<u64> {
    let mut size = 0_u64;
    for entry in fs::read_dir(directory)? {
        size = size.saturating_add(entry?.metadata()?.len());
    }
    Ok(size)
}
