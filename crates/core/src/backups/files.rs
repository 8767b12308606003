//! The files of backups: written beside, read back, put in place, moved on, set aside. Everything here blocks.
//!
//! Every step may be repeated after a crash: a rename has happened or not, and a gap in the generations is where the
//! next move begins. A file is never opened for writing once it has its name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps};
use sha2::{Digest, Sha256};
use skep_archive::{ArchiveError, Limits, Source};
use skep_names::BotId;
use skep_runtime::layer_access::Trust;

use super::names::{self, Slot};

/// Only the server's own user reads archives of tenants' data.
const PRIVATE: u32 = 0o600;
const PRIVATE_DIRECTORY: u32 = 0o700;

/// The directory of all backups of a data root.
#[derive(Debug, Clone)]
pub(crate) struct BackupFiles {
    directory: PathBuf,
    /// For what is noted of an archive while it is checked.
    spool: PathBuf,
}

/// What tells one archive from another without reading it: both survive a rename, and a copy that keeps times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) size_bytes: u64,
    /// When it was made, in whole microseconds.
    pub(crate) created_at: DateTime<Utc>,
}

/// One file that is there.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) bot: BotId,
    pub(crate) slot: Slot,
    pub(crate) identity: Identity,
}

/// What a whole archive was found to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
    pub(crate) entries: u64,
    /// Entries that are left out when it is put back, or get another owner or mode.
    pub(crate) altered: u64,
}

/// Why a file is no archive that can be put back.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// The disk or the system failed: nothing is known of the archive.
    Failed(io::Error),
    /// It is damaged; the sentence says how.
    Damaged(String),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl BackupFiles {
    pub(crate) fn below(data_root: &Path) -> Self {
        Self {
            directory: data_root.join("backups"),
            spool: data_root.join("spool"),
        }
    }

    pub(crate) fn path(&self, bot: &BotId, slot: Slot) -> PathBuf {
        self.directory.join(slot.file_name(bot))
    }

    /// All files there are, of one bot or of all, in the order of bots and slots.
    pub(crate) fn list(&self, of: Option<&BotId>) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for name in self.names()? {
            let Some((bot, slot)) = Slot::parse(&name) else {
                continue;
            };
            if of.is_some_and(|of| *of != bot) {
                continue;
            }
            if let Some(identity) = self.identity(&bot, slot)? {
                found.push(Found { bot, slot, identity });
            }
        }
        found.sort_by(|one, other| (&one.bot, one.slot).cmp(&(&other.bot, other.slot)));
        Ok(found)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    /// `None`: there is no such file.
    pub(crate) fn identity(&self, bot: &BotId, slot: Slot) -> io::Result<Option<Identity>> {
        match std::fs::symlink_metadata(self.path(bot, slot)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(identity_of(&metadata))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a file that is there, for a download or to put it back.
    pub(crate) fn open(&self, bot: &BotId, slot: Slot) -> io::Result<File> {
        open_regular(&self.path(bot, slot))
    }

    /// Begins an archive beside those that are there.
    pub(crate) fn begin(&self, bot: &BotId) -> io::Result<Partial> {
        make_private_directory(&self.directory)?;
        let path = self.directory.join(names::partial(bot));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .custom_flags(strict_flags())
            .open(&path)?;
        Ok(Partial {
            path,
            file,
            digest: Sha256::new(),
            length: 0,
        })
    }

    /// Reads an archive to its end, as it is on the disk.
    pub(crate) fn verify(&self, path: &Path, trust: Trust) -> Result<Content, Unreadable> {
        make_private_directory(&self.spool)?;
        let file = open_regular(path)?;
        // What the kernel still holds says nothing of the disk.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(io::Error::from)?;
        let mut hashed = Hashed {
            input: file,
            digest: Sha256::new(),
            length: 0,
        };
        let source = Source::open(&mut hashed)?;
        let trust = match trust {
            Trust::Ours => skep_archive::Trust::Ours,
            Trust::Strangers => skep_archive::Trust::Stranger,
        };
        let checked = skep_archive::check(source, &Limits::NONE, trust, &self.spool);
        let checked = checked.map_err(|error| match error {
            ArchiveError::Io { source, .. } => Unreadable::Failed(source),
            refused => Unreadable::Damaged(refused.to_string()),
        })?;
        io::copy(&mut hashed, &mut io::sink())?;
        Ok(Content {
            sha256: hex::encode(hashed.digest.finalize()),
            size_bytes: hashed.length,
            entries: checked.entries,
            altered: checked.skipped + checked.remapped + checked.cleared,
        })
    }

    /// The digest alone, in hex.
    pub(crate) fn digest(&self, bot: &BotId, slot: Slot) -> io::Result<String> {
        let mut hashed = Hashed {
            input: self.open(bot, slot)?,
            digest: Sha256::new(),
            length: 0,
        };
        io::copy(&mut hashed, &mut io::sink())?;
        Ok(hex::encode(hashed.digest.finalize()))
    }

    /// Makes the current archive generation 1, the one before generation 2, and so on. It stays the current one too,
    /// under both names, until the next takes that place: at no moment is there none.
    pub(crate) fn keep_as_generation(&self, bot: &BotId) -> io::Result<()> {
        let Some(current) = self.inode(bot, Slot::Current)? else {
            return Ok(());
        };
        if self.inode(bot, Slot::Generation(1))? == Some(current) {
            return Ok(());
        }
        self.free_first_generation(bot)?;
        std::fs::hard_link(self.path(bot, Slot::Current), self.path(bot, Slot::Generation(1)))?;
        self.flush()
    }

    /// Generation 1 becomes generation 2, and so on up to the first that there is none of.
    fn free_first_generation(&self, bot: &BotId) -> io::Result<()> {
        let mut free = 1;
        while self.identity(bot, Slot::Generation(free))?.is_some() {
            free += 1;
        }
        for number in (1..free).rev() {
            self.rename(bot, Slot::Generation(number), Slot::Generation(number + 1))?;
        }
        Ok(())
    }

    fn inode(&self, bot: &BotId, slot: Slot) -> io::Result<Option<u64>> {
        match std::fs::symlink_metadata(self.path(bot, slot)) {
            Ok(metadata) => Ok(Some(metadata.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes generations beyond the number that is kept.
    pub(crate) fn drop_old(&self, bot: &BotId, keep: u64) -> io::Result<()> {
        for found in self.list(Some(bot))? {
            if matches!(found.slot, Slot::Generation(number) if u64::from(number) > keep) {
                self.remove(bot, found.slot)?;
            }
        }
        Ok(())
    }

    /// Gives a file that does not verify a name that says so.
    pub(crate) fn set_aside(&self, bot: &BotId, slot: Slot) -> io::Result<Slot> {
        let mut number = 1;
        while self.path(bot, Slot::SetAside(number)).symlink_metadata().is_ok() {
            number += 1;
        }
        self.rename(bot, slot, Slot::SetAside(number))?;
        self.flush()?;
        Ok(Slot::SetAside(number))
    }

    /// Gives a bot that is not there yet the same archive, as its current one, if it is still the one that somebody
    /// looked at; `false`: another one has its name by now, or none. Marked until [`Self::confirm_given`].
    pub(crate) fn give(&self, from: (&BotId, Slot), looked_at: Identity, to: &BotId) -> io::Result<bool> {
        let _still = self.hold_still()?;
        if self.identity(from.0, from.1)? != Some(looked_at) {
            return Ok(false);
        }
        let mark = self.directory.join(names::given(to));
        std::fs::hard_link(self.path(from.0, from.1), &mark)?;
        self.flush()?;
        std::fs::hard_link(&mark, self.path(to, Slot::Current))?;
        self.flush()?;
        Ok(true)
    }

    /// The bot is there.
    pub(crate) fn confirm_given(&self, bot: &BotId) -> io::Result<()> {
        match std::fs::remove_file(self.directory.join(names::given(bot))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.flush(),
        }
    }

    /// The bot never was: what it was given goes, and nothing else.
    pub(crate) fn take_given_back(&self, bot: &BotId) -> io::Result<()> {
        let given = match std::fs::symlink_metadata(self.directory.join(names::given(bot))) {
            Ok(metadata) => metadata.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.inode(bot, Slot::Current)? == Some(given) {
            self.remove(bot, Slot::Current)?;
        }
        self.confirm_given(bot)
    }

    /// The bots whose mark is there.
    pub(crate) fn given(&self) -> io::Result<Vec<BotId>> {
        Ok(self
            .names()?
            .iter()
            .filter_map(|name| names::parse_given(name))
            .collect())
    }

    /// Removes the file that is there if it is still the one that somebody looked at; `false`: another one has its name
    /// by now, or none.
    pub(crate) fn remove_that(&self, bot: &BotId, slot: Slot, looked_at: Identity) -> io::Result<bool> {
        let _still = self.hold_still()?;
        match self.identity(bot, slot)? {
            Some(present) if present == looked_at => self.remove(bot, slot).map(|()| true),
            Some(_) | None => Ok(false),
        }
    }

    /// Until this is dropped, no other archive is put in place, so that each keeps its name. Short: for renames.
    fn hold_still(&self) -> io::Result<File> {
        make_private_directory(&self.directory)?;
        let directory = File::open(&self.directory)?;
        rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(directory)
    }

    /// A file that is gone is a success.
    pub(crate) fn remove(&self, bot: &BotId, slot: Slot) -> io::Result<()> {
        match std::fs::remove_file(self.path(bot, slot)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.flush(),
        }
    }

    /// Sets the time by which a file is known.
    pub(crate) fn set_time(&self, bot: &BotId, slot: Slot, created_at: DateTime<Utc>) -> io::Result<()> {
        let path = self.path(bot, slot);
        Ok(rustix::fs::utimensat(
            CWD,
            &path,
            &times(created_at),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    /// Removes what a crash left of archives that were being written. Only before any is begun.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        for name in self.names()?.iter().filter(|name| names::is_partial(name)) {
            std::fs::remove_file(self.directory.join(name))?;
        }
        Ok(())
    }

    /// Never over a file that is there.
    fn rename(&self, bot: &BotId, from: Slot, to: Slot) -> io::Result<()> {
        let (from, to) = (self.path(bot, from), self.path(bot, to));
        Ok(rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)?)
    }

    /// Renames and removals are on the disk.
    fn flush(&self) -> io::Result<()> {
        match File::open(&self.directory) {
            Ok(directory) => directory.sync_all(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// An archive that is being written. Dropped before it is in place, it is removed.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    digest: Sha256,
    length: u64,
}

impl Partial {
    pub(crate) fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.digest.update(chunk);
        self.length += chunk.len() as u64;
        Ok(())
    }

    /// Puts it on the disk with its time, reads it back and compares.
    pub(crate) fn finish(&mut self, files: &BackupFiles, created_at: DateTime<Utc>) -> Result<Content, Unreadable> {
        rustix::fs::futimens(&self.file, &times(created_at)).map_err(io::Error::from)?;
        self.file.sync_all()?;
        let content = files.verify(&self.path, Trust::Ours)?;
        let written = (hex::encode(self.digest.clone().finalize()), self.length);
        if (content.sha256.as_str(), content.size_bytes) != (written.0.as_str(), written.1) {
            return Err(Unreadable::Damaged(
                "what was read back is not what was written".to_owned(),
            ));
        }
        Ok(content)
    }

    /// Opens it for reading, from its start.
    pub(crate) fn reopen(&self) -> io::Result<File> {
        open_regular(&self.path)
    }

    /// Makes it the current archive; the one before is kept as a generation.
    pub(crate) fn put_in_place(self, files: &BackupFiles, bot: &BotId) -> io::Result<()> {
        let _still = files.hold_still()?;
        files.keep_as_generation(bot)?;
        std::fs::rename(&self.path, files.path(bot, Slot::Current))?;
        files.flush()
    }

    /// Makes it generation 1, where there is a current one.
    pub(crate) fn put_behind(self, files: &BackupFiles, bot: &BotId) -> io::Result<()> {
        let _still = files.hold_still()?;
        let slot = match files.inode(bot, Slot::Current)? {
            Some(_) => {
                files.free_first_generation(bot)?;
                Slot::Generation(1)
            }
            None => Slot::Current,
        };
        std::fs::rename(&self.path, files.path(bot, slot))?;
        files.flush()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // In place, it has another name by now.
        match std::fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "an unfinished backup could not be removed"),
        }
    }
}

/// A reader that knows what passed through it.
struct Hashed {
    input: File,
    digest: Sha256,
    length: u64,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.digest.update(&buffer[..length]);
        self.length += length as u64;
        Ok(length)
    }
}

fn identity_of(metadata: &std::fs::Metadata) -> Identity {
    let micros = metadata.mtime().saturating_mul(1_000_000) + metadata.mtime_nsec() / 1000;
    Identity {
        size_bytes: metadata.len(),
        created_at: DateTime::from_timestamp_micros(micros).unwrap_or_default(),
    }
}

fn times(at: DateTime<Utc>) -> Timestamps {
    let at = Timespec {
        tv_sec: at.timestamp(),
        tv_nsec: i64::from(at.timestamp_subsec_micros()) * 1000,
    };
    Timestamps {
        last_access: at,
        last_modification: at,
    }
}

fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(strict_flags()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

/// A link, or a pipe that nobody writes to, is nothing of ours.
fn strict_flags() -> i32 {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    flags.bits().cast_signed()
}

fn make_private_directory(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIRECTORY)
        .create(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(files: &BackupFiles, bot: &BotId, content: &[u8]) -> Identity {
        let mut partial = files.begin(bot).unwrap();
        partial.write(content).unwrap();
        partial.put_in_place(files, bot).unwrap();
        files.identity(bot, Slot::Current).unwrap().unwrap()
    }

    fn read(files: &BackupFiles, bot: &BotId, slot: Slot) -> Vec<u8> {
        std::fs::read(files.path(bot, slot)).unwrap()
    }

    #[test]
    fn one_that_is_given_up_takes_nothing_from_the_next() {
        let root = tempfile::tempdir().unwrap();
        let files = BackupFiles::below(root.path());
        let bot = BotId::random();
        let given_up = files.begin(&bot).unwrap();
        let mut next = files.begin(&bot).unwrap();
        next.write(b"first half, ").unwrap();
        drop(given_up);
        next.write(b"second half").unwrap();
        next.put_in_place(&files, &bot).unwrap();
        assert_eq!(read(&files, &bot, Slot::Current), b"first half, second half");
        assert_eq!(files.list(None).unwrap().len(), 1);
        assert_eq!(files.names().unwrap().len(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_removal_that_meets_a_new_backup_removes_no_other() {
        let root = tempfile::tempdir().unwrap();
        let files = BackupFiles::below(root.path());
        let bot = BotId::random();
        let looked_at = kept(&files, &bot, b"old");
        kept(&files, &bot, b"newer");
        assert!(!files.remove_that(&bot, Slot::Current, looked_at).unwrap());
        assert_eq!(read(&files, &bot, Slot::Current), b"newer");
        assert_eq!(read(&files, &bot, Slot::Generation(1)), b"old");
        assert!(files.remove_that(&bot, Slot::Generation(1), looked_at).unwrap());
        assert!(!files.remove_that(&bot, Slot::Generation(1), looked_at).unwrap());
        assert_eq!(files.list(None).unwrap().len(), 1);
    }
}
