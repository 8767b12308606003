//! What trials write into the workspace that is tried on, and must find again.

use sha2::{Digest, Sha256};

/// Of each file: they add up, and all are read after every trial.
pub(crate) const FILE_BYTES: usize = 9_000;

/// Bytes that were written into a workspace.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) name: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
}

impl Written {
    /// What [`archive_of`] puts into an archive of that name.
    pub(crate) fn imported(name: &str) -> Self {
        let content = imported_content(name);
        Self {
            name: format!("data/{}", imported_name(name)),
            digest: digest_of(&content),
            size: content.len() as u64,
        }
    }

    /// Only that is kept when a workspace goes.
    pub(crate) fn is_in_data(&self) -> bool {
        self.name.starts_with("data/")
    }
}

/// An archive with one file that is another one for each name.
pub(crate) fn archive_of(name: &str) -> Vec<u8> {
    let content = imported_content(name);
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    let mut archive = tar::Builder::new(Vec::new());
    archive
        .append_data(&mut header, imported_name(name), content.as_slice())
        .expect("it is written to memory");
    archive.into_inner().expect("it is written to memory")
}

fn imported_name(name: &str) -> String {
    format!("imported-{}", name.replace(' ', "-"))
}

fn imported_content(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(FILE_BYTES).collect()
}

/// SHA-256, in hexadecimal.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
