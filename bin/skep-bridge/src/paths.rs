//! How a path of a request becomes a path of the workspace: absolute ones cleaned, relative ones below `/data`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use tonic::Status;

use crate::failure;

pub(crate) const DATA_DIRECTORY: &str = "/data";

/// Cleans as text, without asking the file system: `.` and doubled slashes go, `..` takes the part before it and
/// stops at the root. A NUL cannot be in a Linux path.
pub(crate) fn resolve(path: &[u8]) -> Result<PathBuf, Status> {
    if path.is_empty() {
        return Err(failure::path_is_required());
    }
    if path.contains(&0) {
        return Err(Status::invalid_argument("path contains a NUL byte"));
    }
    Ok(clean(path))
}

pub(crate) fn resolve_or_data(path: &[u8]) -> Result<PathBuf, Status> {
    if path.is_empty() {
        Ok(PathBuf::from(DATA_DIRECTORY))
    } else {
        resolve(path)
    }
}

fn clean(path: &[u8]) -> PathBuf {
    let mut parts: Vec<&[u8]> = Vec::new();
    let base: &[u8] = if path.starts_with(b"/") { b"" } else { b"data" };
    for part in base.split(|&byte| byte == b'/').chain(path.split(|&byte| byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    let mut cleaned = Vec::with_capacity(path.len() + 6);
    for part in parts {
        cleaned.push(b'/');
        cleaned.extend_from_slice(part);
    }
    if cleaned.is_empty() {
        cleaned.push(b'/');
    }
    PathBuf::from(OsString::from_vec(cleaned))
}

/// The directory and the last name; the root has no last name.
pub(crate) fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    Some((path.parent()?, path.file_name()?))
}

/// The last name as the API shows it: that of `/` is `/`.
pub(crate) fn shown_name(path: &Path) -> Vec<u8> {
    path.file_name()
        .map_or_else(|| b"/".to_vec(), |name| name.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_relative_ones_lie_below_data() {
        for (given, resolved) in [
            ("/", "/"),
            ("/a//b/./c/", "/a/b/c"),
            ("/a/../../b", "/b"),
            ("x/y", "/data/x/y"),
            (".", "/data"),
            ("../etc", "/etc"),
            ("../../../x", "/x"),
        ] {
            assert_eq!(resolve(given.as_bytes()).expect(given), Path::new(resolved), "{given}");
        }
    }

    #[test]
    fn an_empty_path_is_refused() {
        assert_eq!(resolve(b"").expect_err("refused").message(), "path is required");
    }

    #[test]
    fn an_empty_path_to_list_is_data() {
        assert_eq!(resolve_or_data(b"").expect("a path"), Path::new("/data"));
    }
}
