//! What the operating system says, as the gRPC status that the contract names: with the path and the reason.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use skep_bridge_protocol::reason;
use tonic::{Code, Status};

/// An error of one request; its text begins with the path it is about.
pub(crate) fn of_path(error: &io::Error, path: &Path) -> Status {
    let (code, word, text) = classify(error);
    with_reason(code, word, format!("{}: {text}", path.display()))
}

/// As [`of_path`], of a file that would not hold still while it was packed.
pub(crate) fn of_packing(error: &io::Error, path: &Path) -> Status {
    match error.kind() {
        io::ErrorKind::ResourceBusy if error.raw_os_error().is_none() => with_reason(
            Code::Aborted,
            Some(reason::CHANGED),
            format!("{}: {error}", path.display()),
        ),
        _ => of_path(error, path),
    }
}

/// Which of two paths an error of work from one to the other is about, which the kernel does not tell.
pub(crate) fn path_at_fault<'a>(error: &io::Error, from: &'a Path, to: &'a Path) -> &'a Path {
    if from.symlink_metadata().is_err() {
        return from;
    }
    let may_write = |path: &Path| {
        let directory = path.parent().unwrap_or(path);
        rustix::fs::access(directory, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
    };
    match Errno::from_io_error(error) {
        // What cannot be read, or be taken away from where it is.
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) if may_write(to) => from,
        Some(Errno::BUSY | Errno::NXIO | Errno::SPIPE | Errno::IO) => from,
        // What is asked for is there: the place where it should go cannot take it.
        _ => to,
    }
}

pub(crate) fn path_is_required() -> Status {
    Status::invalid_argument("path is required")
}

pub(crate) fn refused(word: &'static str, message: impl Into<String>) -> Status {
    with_reason(Code::FailedPrecondition, Some(word), message.into())
}

pub(crate) fn not_started(what: &[u8], why: impl std::fmt::Display) -> Status {
    let what = Path::new(std::ffi::OsStr::from_bytes(what)).display();
    refused(reason::EXEC_NOT_STARTED, format!("{what}: {why}"))
}

/// A worker thread panicked or the bridge is ending: not an answer about the file.
pub(crate) fn worker_gone() -> Status {
    Status::unavailable("the bridge stopped working on this request")
}

pub(crate) fn with_reason(code: Code, word: Option<&'static str>, message: String) -> Status {
    let mut status = Status::new(code, bounded(message));
    if let Some(word) = word {
        status
            .metadata_mut()
            .insert(reason::METADATA_KEY, tonic::metadata::MetadataValue::from_static(word));
    }
    status
}

/// A status travels in an HTTP/2 header, and peers refuse headers beyond 16 KiB: a path may be 4 KiB of bytes that
/// each take three when encoded.
fn bounded(mut message: String) -> String {
    const MOST: usize = 2048;
    if message.len() > MOST {
        let end = (0..=MOST).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

fn classify(error: &io::Error) -> (Code, Option<&'static str>, String) {
    let Some(errno) = Errno::from_io_error(error) else {
        let code = match error.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => Code::InvalidArgument,
            io::ErrorKind::NotFound => Code::NotFound,
            io::ErrorKind::PermissionDenied => Code::PermissionDenied,
            _ => Code::Internal,
        };
        return (code, None, error.to_string());
    };
    let text = io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
    let (code, word) = match errno {
        Errno::NOENT => (Code::NotFound, None),
        Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::XDEV => (Code::PermissionDenied, None),
        Errno::EXIST => (Code::AlreadyExists, None),
        Errno::NOTEMPTY => (Code::FailedPrecondition, Some(reason::NOT_EMPTY)),
        Errno::ISDIR => (Code::FailedPrecondition, Some(reason::IS_A_DIRECTORY)),
        Errno::NOTDIR => (Code::FailedPrecondition, Some(reason::NOT_A_DIRECTORY)),
        Errno::NXIO | Errno::SPIPE => (Code::FailedPrecondition, Some(reason::NOT_A_REGULAR_FILE)),
        Errno::BUSY | Errno::TXTBSY | Errno::MLINK => (Code::FailedPrecondition, None),
        Errno::NAMETOOLONG => (Code::InvalidArgument, Some(reason::NAME_TOO_LONG)),
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => (Code::ResourceExhausted, Some(reason::NO_SPACE)),
        Errno::INVAL | Errno::LOOP | Errno::ILSEQ => (Code::InvalidArgument, None),
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::IO => (Code::Unavailable, None),
        _ => (Code::Internal, None),
    };
    (code, word, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_and_the_reason_are_told() {
        let status = of_path(&Errno::NOENT.into(), Path::new("/data/x"));
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "/data/x: no such file or directory");
    }

    #[test]
    fn of_two_paths_the_one_at_fault_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let (there, missing) = (directory.path().join("there"), directory.path().join("missing"));
        std::fs::write(&there, b"x").expect("written");
        let told = |error: Errno, from, to| path_at_fault(&error.into(), from, to).to_owned();
        assert_eq!(told(Errno::NOENT, &missing, &there), missing);
        let below_missing = missing.join("x");
        assert_eq!(told(Errno::NOENT, &there, &below_missing), below_missing);
        for of_the_place in [
            Errno::NOTEMPTY,
            Errno::NOTDIR,
            Errno::INVAL,
            Errno::NAMETOOLONG,
            Errno::NOSPC,
        ] {
            assert_eq!(told(of_the_place, &there, &missing), missing, "{of_the_place}");
        }
        assert_eq!(told(Errno::PERM, &there, &missing), there);
        assert_eq!(told(Errno::PERM, &there, &below_missing), below_missing);
    }

    #[test]
    fn each_error_of_the_kernel_has_its_code_and_its_reason() {
        for (code, word, errors) in [
            (Code::NotFound, "", &[Errno::NOENT][..]),
            (Code::PermissionDenied, "", &[Errno::ACCESS, Errno::PERM, Errno::ROFS]),
            (Code::AlreadyExists, "", &[Errno::EXIST]),
            (Code::FailedPrecondition, reason::NOT_EMPTY, &[Errno::NOTEMPTY]),
            (Code::FailedPrecondition, reason::IS_A_DIRECTORY, &[Errno::ISDIR]),
            (Code::FailedPrecondition, reason::NOT_A_DIRECTORY, &[Errno::NOTDIR]),
            (
                Code::FailedPrecondition,
                reason::NOT_A_REGULAR_FILE,
                &[Errno::NXIO, Errno::SPIPE],
            ),
            (
                Code::FailedPrecondition,
                "",
                &[Errno::BUSY, Errno::TXTBSY, Errno::MLINK],
            ),
            (Code::InvalidArgument, reason::NAME_TOO_LONG, &[Errno::NAMETOOLONG]),
            (Code::InvalidArgument, "", &[Errno::INVAL, Errno::LOOP, Errno::ILSEQ]),
            (
                Code::ResourceExhausted,
                reason::NO_SPACE,
                &[Errno::NOSPC, Errno::DQUOT, Errno::FBIG],
            ),
            (
                Code::Unavailable,
                "",
                &[Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::IO],
            ),
            (Code::Internal, "", &[Errno::NOSYS]),
        ] {
            for &error in errors {
                let status = of_path(&error.into(), Path::new("/data/x"));
                let told = status.metadata().get(reason::METADATA_KEY);
                assert_eq!(status.code(), code, "{error}");
                assert_eq!(told.map_or("", |told| told.to_str().expect("a word")), word, "{error}");
                assert!(status.message().starts_with("/data/x: "), "{status}");
            }
        }
    }
}
