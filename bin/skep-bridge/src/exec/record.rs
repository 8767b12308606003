//! An ended process on disk: its status and the part of its output that was still in memory, in one file beside the
//! segment files. Written once, after the answer; a torn one is dropped at the next start.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use skep_bridge_protocol::workspace::ExecStatus;

const FILE: &str = "record";
/// A status holds a command line and its arguments; the kernel takes no longer ones (2 MiB with the environment).
const LARGEST_STATUS: u32 = 8 * 1024 * 1024;

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
    let mut file = File::open(directory.join(FILE))?;
    let mut header = [[0; 4]; 3];
    file.read_exact(header.as_flattened_mut())?;
    let [length, stdout, stderr] = header.map(u32::from_le_bytes);
    if length > LARGEST_STATUS {
        return Err(torn());
    }
    let mut status = vec![0; length as usize];
    file.read_exact(&mut status)?;
    let status = ExecStatus::decode(status.as_slice()).map_err(|_| torn())?;
    Ok((status, file, [stdout, stderr]))
}

fn torn() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a record that was not written to its end")
}

/// The bytes that the files of one process take on disk.
pub(crate) fn size(directory: &Path) -> io::Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(directory)? {
        size += entry?.metadata()?.len();
    }
    Ok(size)
}
