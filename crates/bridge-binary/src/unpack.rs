//! Writes the carried programs to where they are used: what workspaces see as `/opt/memoh`, and the host's own.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::{BRIDGE, BRIDGE_FILE, CRUN_WRAPPER, CRUN_WRAPPER_FILE, LAYER_PROGRAM, LAYER_PROGRAM_FILE};

/// Makes `runtime_dir` hold `bridge`, `skep-crun`, `templates/` and `toolkit/bin/`.
///
/// A program is replaced by rename, and only if its bytes differ: a running workspace goes on executing the file it
/// was started from. A repeat changes nothing; after a crash at any point a repeat completes it. What else lies in
/// the directory (templates, tools) is left alone.
///
/// # Errors
/// Those of the file system, with the path in the text.
pub fn unpack(runtime_dir: &Path) -> io::Result<()> {
    // Tenants' mapped users are strangers to these directories, so everybody may enter and read them.
    for directory in [
        runtime_dir.to_path_buf(),
        runtime_dir.join("templates"),
        runtime_dir.join("toolkit/bin"),
    ] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&directory)
            .map_err(|error| named(error, "create", &directory))?;
    }
    write_program(&runtime_dir.join(BRIDGE_FILE), BRIDGE)?;
    write_program(&runtime_dir.join(CRUN_WRAPPER_FILE), CRUN_WRAPPER)
}

/// Makes `directory` hold the program that reads and writes layers, and returns its path. Repeatable, as [`unpack`].
///
/// # Errors
/// Those of the file system, with the path in the text.
pub fn unpack_layer_program(directory: &Path) -> io::Result<PathBuf> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| named(error, "create", directory))?;
    let program = directory.join(LAYER_PROGRAM_FILE);
    write_program(&program, LAYER_PROGRAM)?;
    Ok(program)
}

fn write_program(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::read(path) {
        Ok(present) if present == bytes => return set_executable(path),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(named(error, "read", path)),
    }
    // The process id keeps two servers that start at once from writing into one temporary file.
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let written = write_new(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to tell; a temporary file left behind is overwritten by the next try.
        drop(fs::remove_file(&temporary));
        return Err(named(error, "write", path));
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(0o755))?;
    file.sync_all()
}

fn set_executable(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(|error| named(error, "make executable", path))
}

fn named(error: io::Error, action: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn unpacking_makes_every_part() {
        let directory = tempfile::tempdir().expect("a directory");
        unpack(directory.path()).expect("unpacked");
        assert_eq!(fs::read(directory.path().join("bridge")).expect("the bridge"), BRIDGE);
        assert!(directory.path().join("templates").is_dir());
        assert!(directory.path().join("toolkit/bin").is_dir());
        let wrapper = fs::metadata(directory.path().join("skep-crun")).expect("the wrapper");
        assert_eq!(wrapper.mode() & 0o777, 0o755);
    }

    #[test]
    fn the_layer_program_is_the_hosts_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let programs = directory.path().join("programs");
        let program = unpack_layer_program(&programs).expect("unpacked");
        assert_eq!(fs::read(&program).expect("the program"), LAYER_PROGRAM);
        assert_eq!(fs::metadata(&programs).expect("its directory").mode() & 0o777, 0o700);
    }

    #[test]
    fn a_repeat_leaves_the_file_that_runs() {
        let directory = tempfile::tempdir().expect("a directory");
        unpack(directory.path()).expect("unpacked");
        let before = fs::metadata(directory.path().join("bridge")).expect("the bridge").ino();
        unpack(directory.path()).expect("unpacked again");
        assert_eq!(
            fs::metadata(directory.path().join("bridge")).expect("the bridge").ino(),
            before
        );
    }

    #[test]
    fn an_older_bridge_is_replaced_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("bridge"), b"older").expect("an older one");
        unpack(directory.path()).expect("unpacked");
        assert_eq!(fs::read(directory.path().join("bridge")).expect("the bridge"), BRIDGE);
        let names = fs::read_dir(directory.path()).expect("listed").count();
        assert_eq!(names, 4, "no temporary file stays");
    }

    #[test]
    fn the_programs_are_static_and_small() {
        for program in [BRIDGE, CRUN_WRAPPER, LAYER_PROGRAM] {
            assert_eq!(&program[..4], b"\x7fELF");
            assert!(program.len() < 8 * 1024 * 1024, "{} bytes", program.len());
            assert!(!has_interpreter(program), "a static program names no loader");
        }
    }

    /// Looks for a PT_INTERP (3) entry among the program headers of a 64-bit little-endian ELF file.
    fn has_interpreter(elf: &[u8]) -> bool {
        let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().expect("eight bytes"));
        let half = |at: usize| u16::from_le_bytes(elf[at..at + 2].try_into().expect("two bytes"));
        let (table, size, count) = (word(32) as usize, half(54) as usize, half(56) as usize);
        (0..count).any(|index| elf[table + index * size..][..4] == [3, 0, 0, 0])
    }
}
