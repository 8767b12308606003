//! A directory as an OCI archive: one gzip layer, a configuration, a manifest and an index.
//!
//! The same packages give the same bytes: entries are sorted, and what the build itself wrote carries
//! the time of the newest package file instead of today's.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::Recipe;
use crate::failure::{Failure, Result};

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Anything older was there before this build: packages are not made within the hour.
const OF_THIS_BUILD: Duration = Duration::from_secs(3600);

/// Writes the archive of `root` to `archive`.
///
/// # Errors
/// A file cannot be read, or the disk is full.
pub(super) fn write(root: &Path, archive: &Path, recipe: &Recipe) -> Result<()> {
    write_archive(root, archive, recipe)
        .map_err(|error| Failure::local(format!("cannot write the image to {}", archive.display()), error))
}

fn write_archive(root: &Path, archive: &Path, recipe: &Recipe) -> io::Result<()> {
    let entries = sorted_entries(root)?;
    let newest = newest_package_time(root, &entries)?;
    let layer_file = archive.with_extension("layer");
    let layer = write_layer(root, &entries, newest, &layer_file)?;
    let created = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(newest)).to_string();
    let config = config_of(recipe, &layer, &created).to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(&config), "size": config.len()},
        "layers": [{"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size}],
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": MANIFEST_TYPE,
            "digest": digest_of(&manifest),
            "size": manifest.len(),
            "platform": {"architecture": architecture(), "os": "linux"},
            "annotations": {
                "io.containerd.image.name": recipe.name,
                "org.opencontainers.image.ref.name": recipe.name,
            },
        }],
    });
    let mut tar = Builder::new(BufWriter::new(File::create(archive)?));
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", index.to_string().as_bytes())?;
    append(&mut tar, &blob_path(&digest_of(&config)), &config)?;
    append(&mut tar, &blob_path(&digest_of(&manifest)), &manifest)?;
    let mut header = plain_header(EntryType::Regular, 0o644);
    header.set_size(layer.size);
    tar.append_data(&mut header, blob_path(&layer.digest), File::open(&layer_file)?)?;
    tar.into_inner()?.flush()?;
    fs::remove_file(layer_file)
}

fn config_of(recipe: &Recipe, layer: &Layer, created: &str) -> Value {
    json!({
        "created": created,
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["/bin/bash"],
            "WorkingDir": "/data",
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        "history": [{
            "created": created,
            "created_by": format!("skep images build --from {}:{}", recipe.distribution, recipe.release),
        }],
    })
}

/// The architecture in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct Layer {
    digest: String,
    diff_id: String,
    size: u64,
}

/// Passes bytes on and keeps their digest and number.
struct Digesting<W> {
    inner: W,
    digest: Sha256,
    count: u64,
}

impl<W: Write> Digesting<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            digest: Sha256::new(),
            count: 0,
        }
    }

    fn finish(self) -> (W, String, u64) {
        (
            self.inner,
            format!("sha256:{}", hex::encode(self.digest.finalize())),
            self.count,
        )
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write_layer(root: &Path, entries: &[PathBuf], newest: u64, file: &Path) -> io::Result<Layer> {
    let compressed = Digesting::new(BufWriter::new(File::create(file)?));
    let plain = Digesting::new(GzEncoder::new(compressed, Compression::default()));
    let mut tar = Builder::new(plain);
    let mut seen = HashMap::new();
    for relative in entries {
        append_entry(&mut tar, root, relative, (newest, &mut seen))?;
    }
    let (gzip, diff_id, _) = tar.into_inner()?.finish();
    let (mut file, digest, size) = gzip.finish()?.finish();
    file.flush()?;
    Ok(Layer { digest, diff_id, size })
}

fn append_entry<W: Write>(
    tar: &mut Builder<W>,
    root: &Path,
    relative: &Path,
    (newest, seen): (u64, &mut HashMap<u64, PathBuf>),
) -> io::Result<()> {
    let path = root.join(relative);
    let metadata = fs::symlink_metadata(&path)?;
    let mut header = plain_header(EntryType::Regular, metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0).min(newest));
    if metadata.is_dir() {
        header.set_entry_type(EntryType::Directory);
        return tar.append_data(&mut header, relative, io::empty());
    }
    if metadata.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        return tar.append_link(&mut header, relative, fs::read_link(&path)?);
    }
    if !metadata.is_file() {
        // Sockets and devices are made by the runtime.
        return Ok(());
    }
    if metadata.nlink() > 1
        && let Some(first) = seen.get(&metadata.ino())
    {
        header.set_entry_type(EntryType::Link);
        return tar.append_link(&mut header, relative, first);
    }
    seen.insert(metadata.ino(), relative.to_owned());
    if let Some(capability) = file_capability(&path)? {
        tar.append_pax_extensions([("SCHILY.xattr.security.capability", capability.as_slice())])?;
    }
    header.set_size(metadata.len());
    tar.append_data(&mut header, relative, File::open(&path)?.take(metadata.len()))
}

/// What a program may do beyond its user, such as ping; part of the package's meaning.
fn file_capability(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut value = [0_u8; 64];
    match rustix::fs::lgetxattr(path, "security.capability", &mut value[..]) {
        Ok(length) => Ok(Some(value[..length].to_vec())),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// All paths, parents first, each directory by name. `/dev` stays empty: the runtime fills it.
fn sorted_entries(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        if directory == Path::new("dev") {
            continue;
        }
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let relative = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(relative.clone());
            }
            entries.push(relative);
        }
    }
    entries.sort();
    Ok(entries)
}

/// Seconds since 1970 of the newest file that a package brought.
fn newest_package_time(root: &Path, entries: &[PathBuf]) -> io::Result<u64> {
    let before = SystemTime::now() - OF_THIS_BUILD;
    let limit = before.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut newest = 0;
    for relative in entries {
        let metadata = fs::symlink_metadata(root.join(relative))?;
        let modified = u64::try_from(metadata.mtime()).unwrap_or(0);
        if metadata.is_file() && modified < limit {
            newest = newest.max(modified);
        }
    }
    Ok(newest)
}

fn plain_header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header.set_mtime(0);
    header
}

fn append<W: Write>(tar: &mut Builder<W>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = plain_header(EntryType::Regular, 0o644);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, name, bytes)
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            distribution: "debian".into(),
            release: "x".into(),
            name: "skep.local/debian:x".into(),
            packages: vec![],
            mirror: None,
        }
    }

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(root.join("dev")).unwrap();
        fs::write(root.join("etc/motd"), "hello").unwrap();
        fs::hard_link(root.join("etc/motd"), root.join("etc/other")).unwrap();
        symlink("motd", root.join("etc/link")).unwrap();
        fs::write(root.join("dev/null"), "not a device").unwrap();
        directory
    }

    fn blobs(archive: &Path) -> HashMap<String, Vec<u8>> {
        let mut blobs = HashMap::new();
        for entry in tar::Archive::new(File::open(archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            blobs.insert(name, bytes);
        }
        blobs
    }

    #[test]
    fn every_digest_of_the_archive_is_that_of_its_bytes() {
        let directory = tree();
        let archive = directory.path().join("image.tar");
        write_archive(&directory.path().join("root"), &archive, &recipe()).unwrap();
        let blobs = blobs(&archive);
        let index: Value = serde_json::from_slice(&blobs["index.json"]).unwrap();
        let manifest_digest = index["manifests"][0]["digest"].as_str().unwrap();
        let manifest: Value = serde_json::from_slice(&blobs[&blob_path(manifest_digest)]).unwrap();
        let layer_digest = manifest["layers"][0]["digest"].as_str().unwrap();
        let config_digest = manifest["config"]["digest"].as_str().unwrap();
        for digest in [manifest_digest, layer_digest, config_digest] {
            assert_eq!(digest_of(&blobs[&blob_path(digest)]), digest);
        }
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&blobs[&blob_path(layer_digest)][..])
            .read_to_end(&mut plain)
            .unwrap();
        let config: Value = serde_json::from_slice(&blobs[&blob_path(config_digest)]).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest_of(&plain));
        let mut tar = tar::Archive::new(&plain[..]);
        let kinds: HashMap<String, EntryType> = tar
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.path().unwrap().to_string_lossy().into_owned(),
                    entry.header().entry_type(),
                )
            })
            .collect();
        assert_eq!(kinds["etc/other"], EntryType::Link);
        assert_eq!(kinds["etc/link"], EntryType::Symlink);
        assert!(!kinds.contains_key("dev/null"));
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let directory = tree();
        let root = directory.path().join("root");
        let (first, second) = (directory.path().join("1.tar"), directory.path().join("2.tar"));
        write_archive(&root, &first, &recipe()).unwrap();
        write_archive(&root, &second, &recipe()).unwrap();
        assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
    }
}
