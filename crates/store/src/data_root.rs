//! The data root's lock and its id. Only one server may own a data root.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A server that was killed while it started a process can hold its lock a moment longer: that process has a copy of
/// the lock until it runs its own program.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Who holds a data root, as he wrote it down himself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHolder {
    /// One line, as `skep serve, process 1234`; empty when he has not written it yet.
    pub description: String,
}

impl LockHolder {
    /// His process, when the line ends with it.
    pub fn process(&self) -> Option<u32> {
        let (_, number) = self.description.rsplit_once("process ")?;
        number.parse().ok()
    }
}

/// Why a data root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataRootError {
    /// Another server owns it.
    #[error("the data root {} is held by {}", root.display(), holder.description)]
    Held { root: PathBuf, holder: LockHolder },
    /// The id file holds something else than a UUID.
    #[error("{} does not hold a UUID", file.display())]
    BadId { file: PathBuf },
    /// A file or directory could not be made, read or written.
    #[error("{operation} {} failed", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A data root that this process owns until the value is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct DataRoot {
    path: PathBuf,
    id: uuid::Uuid,
    lock: File,
}

impl Drop for DataRoot {
    /// Not left to the descriptor's end: a process that is just being started has a copy of it for a moment.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(path = %self.path.display(), %error, "the data root could not be unlocked");
        }
    }
}

impl DataRoot {
    /// Makes the directory when it is not there (0700), takes its lock, and reads or makes its id.
    /// `holder` is the line that a second server shows.
    ///
    /// # Errors
    /// [`DataRootError::Held`] when another process has it, and still has it after 2 s, for which this blocks.
    pub fn claim(path: &Path, holder: &str) -> Result<Self, DataRootError> {
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| DataRootError::Io {
                operation,
                path,
                source,
            }
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io("making the data root", path))?;
        let path = path.canonicalize().map_err(io("resolving the data root", path))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io("opening", &lock_path))?;
        match lock_within(&lock, PATIENCE) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DataRootError::Held {
                    holder: read_holder(&mut lock).map_err(io("reading", &lock_path))?,
                    root: path,
                });
            }
            Err(TryLockError::Error(error)) => return Err(io("locking", &lock_path)(error)),
        }
        write_holder(&mut lock, holder).map_err(io("writing", &lock_path))?;
        let id = read_or_make_id(&path)?;
        Ok(Self { path, id, lock })
    }

    /// Absolute, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Made at the first claim, the same for ever; marks everything we make on the host.
    pub fn id(&self) -> uuid::Uuid {
        self.id
    }

    /// Where the database lies unless the configuration says otherwise.
    pub fn default_database(&self) -> PathBuf {
        default_database_of(&self.path)
    }
}

/// The database of a data root, unless the configuration names another, also of one that is not claimed.
pub fn default_database_of(data_root: &Path) -> PathBuf {
    data_root.join("skep.db")
}

fn lock_within(lock: &File, limit: Duration) -> Result<(), TryLockError> {
    let deadline = Instant::now() + limit;
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            other => return other,
        }
    }
}

fn read_holder(lock: &mut File) -> std::io::Result<LockHolder> {
    let mut text = String::new();
    lock.take(4096).read_to_string(&mut text)?;
    let description = match text.trim() {
        "" => "another server".to_owned(),
        line => line.to_owned(),
    };
    Ok(LockHolder { description })
}

fn write_holder(lock: &mut File, holder: &str) -> std::io::Result<()> {
    lock.set_len(0)?;
    lock.seek(SeekFrom::Start(0))?;
    writeln!(lock, "{}", holder.replace('\n', " "))
}

/// The id file appears whole or not at all: a crash must not leave an empty one that locks everybody out.
fn read_or_make_id(root: &Path) -> Result<uuid::Uuid, DataRootError> {
    let file = root.join("id");
    let io = |operation| {
        let path = file.clone();
        move |source| DataRootError::Io {
            operation,
            path,
            source,
        }
    };
    match std::fs::read_to_string(&file) {
        Ok(text) => return uuid::Uuid::try_parse(text.trim()).map_err(|_| DataRootError::BadId { file }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("reading")(error)),
    }
    let id = uuid::Uuid::new_v4();
    let temporary = root.join("id.new");
    let write = || {
        let mut handle = File::create(&temporary)?;
        writeln!(handle, "{id}")?;
        handle.sync_all()?;
        std::fs::rename(&temporary, &file)?;
        File::open(root)?.sync_all()
    };
    write().map_err(io("making"))?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_tells_his_process() {
        let process = |line: &str| {
            let description = line.to_owned();
            LockHolder { description }.process()
        };
        assert_eq!(process("skep up, process 1234"), Some(1234));
        assert_eq!(process("a test"), None);
        assert_eq!(process("process of somebody"), None);
    }
}
