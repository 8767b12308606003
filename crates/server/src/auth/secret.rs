//! Random texts, their digests, and files that only their owner may read.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// What every API key begins with, so that it is told from a token and found in leaked text.
pub const API_KEY_PREFIX: &str = "skep_";

/// 256 random bits as text.
pub(crate) fn random_text() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// A new secret that signs tokens.
pub fn random_secret() -> String {
    random_text()
}

/// A new API key.
pub fn new_api_key() -> String {
    format!("{API_KEY_PREFIX}{}", random_text())
}

/// A new ticket.
pub fn new_ticket() -> String {
    random_text()
}

/// SHA-256 in hex: what is stored of a key or a ticket. They are random, so no salt is needed.
pub fn digest(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Writes one line to a file of mode 0600 that appears whole or not at all, in place of an older one.
///
/// # Errors
/// What the file system says.
pub fn keep_secret_file(path: &Path, line: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}", uuid::Uuid::new_v4()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(line.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| std::fs::File::open(directory)?.sync_all());
    if let Err(error) = written {
        return match std::fs::remove_file(&temporary) {
            Err(left) if left.kind() != io::ErrorKind::NotFound => Err(io::Error::new(
                error.kind(),
                format!("{error}; {} is left behind: {left}", temporary.display()),
            )),
            _ => Err(error),
        };
    }
    Ok(())
}
