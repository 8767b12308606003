//! The copy of a log that outlives its workspace's end.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, OFlags, unlinkat};

use super::{LIVE_FILES, LOG_BYTES, LogPlaces, open};

/// Adds the live log to the kept copy and takes the live files away, so that a repeat adds nothing. To be called when
/// no process of the workspace is left. The copy is replaced as a whole and is not forced to the disk: after a crash
/// of the host the log may be the earlier one.
///
/// # Errors
/// The copy cannot be written; the live files are then still there.
pub fn keep(places: &LogPlaces) -> io::Result<()> {
    let Some(directory) = open::open_directory(&places.live_directory)? else {
        return Ok(());
    };
    if open::live(&places.live_directory)?.is_empty() {
        return Ok(());
    }
    let text = places.read()?;
    write(&places.kept_file, &text)?;
    for name in LIVE_FILES {
        match unlinkat(&directory, name, AtFlags::empty()) {
            // What is no file was no part of the log either; it goes with its directory.
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes the copy. One that is not there is a success.
///
/// # Errors
/// It is there and cannot be removed.
pub fn forget(places: &LogPlaces) -> io::Result<()> {
    for path in [places.kept_file.clone(), new_name(&places.kept_file)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn new_name(kept: &Path) -> PathBuf {
    kept.with_extension("new")
}

fn write(kept: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = kept.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let new = new_name(kept);
    let written = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&new, kept));
    if written.is_err() {
        // On a full disk half a copy would only be in the way; the first error is the one to tell.
        drop(fs::remove_file(&new));
    }
    written
}

/// Which file the copy is by now: each writing of it makes another.
pub(super) fn identity(kept: &Path) -> io::Result<Option<(u64, u64)>> {
    Ok(open_kept(kept)?.map(|file| file.identity))
}

/// The kept text; empty when there is none.
pub(super) fn read(kept: &Path) -> io::Result<(Option<(u64, u64)>, String)> {
    let Some(file) = open_kept(kept)? else {
        return Ok((None, String::new()));
    };
    Ok((Some(file.identity), super::harmless_text(&file.tail(LOG_BYTES)?)))
}

fn open_kept(kept: &Path) -> io::Result<Option<open::LogFile>> {
    let (Some(parent), Some(name)) = (kept.parent(), kept.file_name().and_then(|name| name.to_str())) else {
        return Ok(None);
    };
    match open::open_directory(parent)? {
        Some(directory) => open::open_below(directory, name),
        None => Ok(None),
    }
}
