//! Bridges and tables belong to one data root each: a locked file says to which.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::NetworkError;

/// What is claimed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claimed<'a> {
    /// For messages: `bridge`, `nftables table`.
    pub(super) kind: &'static str,
    /// Begins the file's name.
    pub(super) prefix: &'static str,
    pub(super) name: &'a str,
    /// The configuration key to change when it is taken.
    pub(super) key: &'static str,
}

/// Held as long as this lives; the file stays and goes on naming its data root.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    locked: File,
}

impl Drop for Claim {
    /// Not left to the descriptor's end: a process that is just being started has a copy of it for a moment.
    fn drop(&mut self) {
        if let Err(error) = self.locked.unlock() {
            tracing::warn!(path = %self.path.display(), %error, "a claim could not be unlocked");
        }
    }
}

impl Claim {
    /// Claims for `data_root_id`. A data root whose server does not run keeps what its workspaces still use:
    /// `in_use` is asked with the id the file names.
    pub(super) fn take(
        directory: &Path,
        claimed: Claimed<'_>,
        data_root_id: &str,
        in_use: impl Fn(&str) -> bool,
    ) -> Result<Self, NetworkError> {
        let path = directory.join(format!("{}-{}", claimed.prefix, claimed.name));
        let taking = || format!("claiming {}", path.display());
        let refused = |holder: &str| NetworkError::Claimed {
            kind: claimed.kind,
            name: claimed.name.to_owned(),
            holder: if holder.is_empty() {
                "that is starting".into()
            } else {
                holder.to_owned()
            },
            key: claimed.key,
        };
        std::fs::create_dir_all(directory).map_err(NetworkError::other(taking()))?;
        let (mut file, locked) = lock(&path).map_err(NetworkError::other(taking()))?;
        let mut holder = String::new();
        file.read_to_string(&mut holder)
            .map_err(NetworkError::other(taking()))?;
        let holder = holder.trim();
        if !locked || (!holder.is_empty() && holder != data_root_id && in_use(holder)) {
            return Err(refused(holder));
        }
        let mut write = || -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{data_root_id}")
        };
        write().map_err(NetworkError::other(taking()))?;
        Ok(Self { path, locked: file })
    }

    /// Gives it up for good.
    pub(super) fn remove(&self) -> Result<(), NetworkError> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(NetworkError::other(format!("removing {}", self.path.display()))(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Opens and locks; `false` when another has the lock. A file that was removed in between is none.
fn lock(path: &Path) -> std::io::Result<(File, bool)> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok((file, false)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        match std::fs::metadata(path) {
            Ok(now) if now.ino() == file.metadata()?.ino() => return Ok((file, true)),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: Claimed<'_> = Claimed {
        kind: "bridge",
        prefix: "bridge",
        name: "skep0",
        key: "network.bridge",
    };

    #[test]
    fn a_second_data_root_is_told_the_holder_and_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let held = Claim::take(directory.path(), BRIDGE, "one", |_| false).unwrap();
        let error = Claim::take(directory.path(), BRIDGE, "two", |_| false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("data root one") && error.contains("network.bridge"),
            "{error}"
        );
        drop(held);
        Claim::take(directory.path(), BRIDGE, "two", |_| false).unwrap();
    }

    #[test]
    fn workspaces_keep_the_claim_of_a_server_that_is_down() {
        let directory = tempfile::tempdir().unwrap();
        drop(Claim::take(directory.path(), BRIDGE, "one", |_| false).unwrap());
        assert!(Claim::take(directory.path(), BRIDGE, "two", |holder| holder == "one").is_err());
        Claim::take(directory.path(), BRIDGE, "one", |_| true).unwrap();
    }

    #[test]
    fn a_removed_claim_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let held = Claim::take(directory.path(), BRIDGE, "one", |_| false).unwrap();
        held.remove().unwrap();
        held.remove().unwrap();
        Claim::take(directory.path(), BRIDGE, "two", |_| true).unwrap();
    }
}
