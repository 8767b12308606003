//! Finds files of an unpacked layer that no workspace can own.
//!
//! A workspace has user and group ids 0 to 65535. Files of other owners show there as `nobody` and can
//! be neither written nor renamed nor removed, which nobody understands unless it is told.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use skep_names::IDS_PER_BOT;

/// What was found in a layer.
#[derive(Debug, PartialEq, Eq)]
struct ForeignIds {
    count: u64,
    example: PathBuf,
}

/// Warns in the log of files with an owner or group of 65,536 or more.
///
/// A directory that cannot be read from here (another mount namespace) is passed over: nothing depends on it.
pub(super) async fn warn_of_foreign_ids(directory: PathBuf, layer: String) {
    let searched = tokio::task::spawn_blocking(move || search(&directory)).await;
    match searched {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(found))) => tracing::warn!(
            layer,
            files = found.count,
            example = %found.example.display(),
            "files of this image belong to user or group ids of 65536 or more: in a workspace they are nobody's and cannot be changed"
        ),
        Ok(Err(error)) => tracing::debug!(layer, %error, "the owners of the layer's files were not looked at"),
        Err(error) => tracing::warn!(layer, %error, "looking at the owners of the layer's files failed"),
    }
}

fn search(directory: &Path) -> std::io::Result<Option<ForeignIds>> {
    let mut found: Option<ForeignIds> = None;
    let mut directories = vec![directory.to_owned()];
    while let Some(current) = directories.pop() {
        for entry in fs::read_dir(&current)? {
            let entry = entry?;
            // Of the entry itself: links are never followed.
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                directories.push(entry.path());
            }
            if metadata.uid() >= IDS_PER_BOT || metadata.gid() >= IDS_PER_BOT {
                let path = entry.path();
                let inside = path.strip_prefix(directory).unwrap_or(&path);
                let first = || ForeignIds {
                    count: 0,
                    example: Path::new("/").join(inside),
                };
                found.get_or_insert_with(first).count += 1;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_foreign_owners_are_found() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("a")).unwrap();
        let file = directory.path().join("a/b");
        fs::write(&file, b"").unwrap();
        assert_eq!(search(directory.path()).unwrap(), None);
        std::os::unix::fs::chown(&file, Some(100_000), None).unwrap();
        let found = search(directory.path()).unwrap().unwrap();
        assert_eq!((found.count, found.example.as_path()), (1, Path::new("/a/b")));
    }
}
