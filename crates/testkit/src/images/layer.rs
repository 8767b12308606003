//! One layer of a test image, as a tar of chosen compression.

use std::io::Write;

use flate2::write::GzEncoder;

/// How a layer's blob is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A bare tar.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// A layer under construction. Times are fixed, so that equal content has an equal digest.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    /// An empty layer.
    pub fn new() -> Self {
        Self {
            tar: tar::Builder::new(Vec::new()),
        }
    }

    /// Adds a regular file.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.owned_file(path, mode, (0, 0), content)
    }

    /// Adds a regular file of the owner `(uid, gid)`.
    pub fn owned_file(mut self, path: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        let mut header = header(tar::EntryType::Regular, mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content).expect("add a file");
        self
    }

    /// Adds a directory.
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        let mut header = header(tar::EntryType::Directory, mode);
        self.tar
            .append_data(
                &mut header,
                format!("{}/", path.trim_end_matches('/')),
                std::io::empty(),
            )
            .expect("add a directory");
        self
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(tar::EntryType::Symlink, path, target)
    }

    /// Adds a hard link to a file of this layer.
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(tar::EntryType::Link, path, target)
    }

    fn link(mut self, kind: tar::EntryType, path: &str, target: &str) -> Self {
        let mut header = header(kind, 0o777);
        self.tar.append_link(&mut header, path, target).expect("add a link");
        self
    }

    /// Removes a file or directory of the layers below.
    pub fn whiteout(self, path: &str) -> Self {
        let marker = match path.rsplit_once('/') {
            Some((parent, name)) => format!("{parent}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        self.file(&marker, 0o644, b"")
    }

    /// Hides all that the layers below have in a directory.
    pub fn opaque(self, directory: &str) -> Self {
        let marker = format!("{}/.wh..wh..opq", directory.trim_end_matches('/'));
        self.file(&marker, 0o644, b"")
    }

    /// The bare tar.
    pub fn into_tar(self) -> Vec<u8> {
        self.tar.into_inner().expect("end the tar")
    }
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    header
}

pub(super) fn compress(tar: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Plain => tar.to_vec(),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).expect("gzip to memory");
            encoder.finish().expect("gzip to memory")
        }
        Compression::Zstd => zstd::encode_all(tar, 1).expect("zstd to memory"),
    }
}
