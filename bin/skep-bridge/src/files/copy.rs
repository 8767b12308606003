//! Copying within the workspace: a file, a link as a link, or a tree.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use super::walk::{Walk, walk};
use super::write::{Commit, Target};

/// Copies `from` to `to`, which is the copy's own name. Modes and links are kept. A file that was there is replaced
/// whole; a tree goes into a directory that was there. Its sockets and devices are left out, as of an archive.
///
/// # Errors
/// `EINVAL` for a tree that would go below itself, `ENXIO` for a socket or device.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if !metadata.is_dir() {
        return copy_one(from, to);
    }
    if fs::canonicalize(nearest_existing(to))?.starts_with(fs::canonicalize(from)?) {
        return Err(Errno::INVAL.into());
    }
    if let Some(parent) = to.parent() {
        super::write::make_parents(parent)?;
    }
    make_copy_of(&metadata, to)?;
    walk(
        from,
        &Walk {
            recursive: true,
            ..Walk::default()
        },
        &mut |item| {
            let relative = Path::new(std::ffi::OsStr::from_bytes(item.relative));
            let (from, to) = (from.join(relative), to.join(relative));
            match fs::symlink_metadata(&from) {
                Ok(metadata) if metadata.is_dir() => make_copy_of(&metadata, &to)?,
                Ok(metadata) if is_left_out(&metadata) => {}
                Ok(_) => copy_one(&from, &to)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            Ok(ControlFlow::Continue(()))
        },
    )
}

/// A directory of the same mode, whatever the umask says; one that was there keeps its own.
fn make_copy_of(metadata: &fs::Metadata, to: &Path) -> io::Result<()> {
    let is_new = matches!(fs::symlink_metadata(to), Err(error) if error.kind() == io::ErrorKind::NotFound);
    let mode = metadata.mode() & 0o7777;
    super::make_directory(to, mode)?;
    if is_new {
        rustix::fs::chmod(to, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// A socket is of whoever listens on it, and a device is not the workspace's to make.
fn is_left_out(metadata: &fs::Metadata) -> bool {
    let kind = FileType::from_raw_mode(metadata.mode());
    matches!(
        kind,
        FileType::Socket | FileType::BlockDevice | FileType::CharacterDevice
    )
}

fn nearest_existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
}

fn copy_one(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    match FileType::from_raw_mode(metadata.mode()) {
        FileType::RegularFile => copy_file(from, to, metadata.mode()),
        FileType::Symlink => {
            // Read first: it may be the very one that gives way.
            let target = fs::read_link(from)?;
            make_room(to)?;
            symlink(target, to)
        }
        FileType::Fifo => {
            let mode = Mode::from_raw_mode(metadata.mode() & 0o7777);
            make_room(to)?;
            rustix::fs::mknodat(CWD, to, FileType::Fifo, mode, 0)?;
            Ok(rustix::fs::chmod(to, mode)?)
        }
        _ => Err(Errno::NXIO.into()),
    }
}

/// For what is no file: its name is free, and the directories above it are there.
fn make_room(to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        super::write::make_parents(parent)?;
    }
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn copy_file(from: &Path, to: &Path, mode: u32) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut new = Target::find(to)?.begin()?;
    io::copy(&mut source, &mut Writing(&mut new))?;
    new.commit(&Commit {
        new_mode: mode & 0o7777,
        set_mode: Some(mode & 0o7777),
    })?;
    Ok(())
}

struct Writing<'a>(&'a mut super::write::NewFile);

impl io::Write for Writing<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
