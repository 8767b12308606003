//! Writing a tar archive: ustar headers, and PAX records for what they have no room for.

use std::io::{self, BufWriter, Write};

use crate::attributes::Attribute;
use crate::header::{self, BLOCK, Fields, LARGEST_ID, LARGEST_SIZE, LONGEST_NAME, flag};
use crate::pax;
use crate::reader::{ATTRIBUTE_PREFIX, SOCKET_KEY};

/// What is said of one entry before its data.
#[derive(Default)]
pub(crate) struct Head<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) flag: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    /// Bytes that follow, with the map of a file with holes.
    pub(crate) stored: u64,
    /// Of a file with holes: its size with them.
    pub(crate) sparse_size: Option<u64>,
    pub(crate) link: &'a [u8],
    pub(crate) is_socket: bool,
    pub(crate) attributes: &'a [Attribute],
}

pub(crate) struct Writer<'a> {
    output: BufWriter<&'a mut dyn Write>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(output: &'a mut dyn Write) -> Self {
        Self {
            output: BufWriter::with_capacity(64 * 1024, output),
        }
    }

    pub(crate) fn head(&mut self, head: &Head<'_>) -> io::Result<()> {
        let records = records(head);
        if !records.is_empty() {
            let name = [b"./PaxHeaders/", last(head.name)].concat();
            let fields = Fields {
                name: &name,
                flag: flag::PAX,
                mode: 0o644,
                size: records.len() as u64,
                ..Fields::default()
            };
            self.output.write_all(&header::build(&fields))?;
            self.output.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let sparse_name = [b"./GNUSparseFile.0/", last(head.name)].concat();
        let fields = Fields {
            name: if head.sparse_size.is_some() {
                &sparse_name
            } else {
                head.name
            },
            flag: head.flag,
            mode: head.mode & 0o7777,
            uid: head.uid.into(),
            gid: head.gid.into(),
            size: head.stored,
            mtime: head.mtime.0.try_into().unwrap_or(0),
            link: head.link,
        };
        self.output.write_all(&header::build(&fields))
    }

    pub(crate) fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.output.write_all(data)
    }

    /// Fills up the last block of `length` bytes of data.
    pub(crate) fn pad(&mut self, length: u64) -> io::Result<()> {
        let padding = length.next_multiple_of(BLOCK as u64) - length;
        self.output.write_all(&[0; BLOCK][..padding as usize])
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()
    }
}

fn last(name: &[u8]) -> &[u8] {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    crate::entry::split(name).1
}

fn records(head: &Head<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| pax::add(&mut records, key, value);
    if let Some(size) = head.sparse_size {
        add(b"GNU.sparse.major", b"1");
        add(b"GNU.sparse.minor", b"0");
        add(b"GNU.sparse.name", head.name);
        add(b"GNU.sparse.realsize", size.to_string().as_bytes());
    } else if head.name.len() > LONGEST_NAME {
        add(b"path", head.name);
    }
    if head.link.len() > LONGEST_NAME {
        add(b"linkpath", head.link);
    }
    if head.stored > LARGEST_SIZE {
        add(b"size", head.stored.to_string().as_bytes());
    }
    for (key, id) in [(b"uid", head.uid), (b"gid", head.gid)] {
        if u64::from(id) > LARGEST_ID {
            add(key, id.to_string().as_bytes());
        }
    }
    let (seconds, nanos) = head.mtime;
    if nanos > 0 || !(0..=LARGEST_SIZE as i64).contains(&seconds) {
        add(b"mtime", pax::time_text(seconds, nanos).as_bytes());
    }
    if head.is_socket {
        add(SOCKET_KEY, b"1");
    }
    for (name, value) in head.attributes {
        add(&[ATTRIBUTE_PREFIX, &pax::escaped(name)].concat(), value);
    }
    records
}
