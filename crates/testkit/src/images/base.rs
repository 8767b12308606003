//! Images with something in them: busybox, Debian, and random bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::RngExt;

use super::builder::{Image, ImageBuilder, ImageFormat};
use super::layer::{Compression, Layer};

/// What is dear to make is kept here between runs.
const CACHE_DIRECTORY: &str = "/var/cache/skep-test";
const DEBIAN_SUITE: &str = "bookworm";

/// A layer with the host's static busybox, a link for each of its applets, and the usual directories and
/// accounts. Not compressed.
///
/// # Panics
/// When `/bin/busybox` is missing (Debian: busybox-static).
pub fn busybox_layer() -> Layer {
    let program = fs::read("/bin/busybox").expect("/bin/busybox is needed (Debian: busybox-static)");
    let listed = Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .expect("run busybox");
    let applets = String::from_utf8(listed.stdout).expect("names of applets");
    let mut layer = Layer::new();
    for (path, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("var", 0o755),
    ] {
        layer = layer.directory(path, mode);
    }
    layer = layer
        .file("bin/busybox", 0o755, &program)
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n",
        )
        .file("etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n");
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    layer
}

/// A one-layer OCI image with busybox.
pub fn busybox_image() -> Image {
    ImageBuilder::new(ImageFormat::Oci)
        .layer(busybox_layer(), Compression::Gzip)
        .build()
}

/// busybox and `layers` more layers of `bytes` random bytes each, which do not compress.
pub fn random_image(layers: usize, bytes: usize) -> Image {
    let builder = ImageBuilder::new(ImageFormat::Oci).layer(busybox_layer(), Compression::Gzip);
    (0..layers)
        .fold(builder, |builder, number| {
            let mut content = vec![0; bytes];
            rand::rng().fill(&mut content[..]);
            let layer = Layer::new().file(&format!("random-{number}"), 0o644, &content);
            builder.layer(layer, Compression::Gzip)
        })
        .build()
}

/// A Debian image (`minbase` and the host's certificates and package sources), for tests that install packages.
/// The first call takes a minute; its result is kept in `/var/cache/skep-test`.
///
/// # Panics
/// When debootstrap is missing or fails.
pub fn debian_image() -> Image {
    let tar = fs::read(debian_tar()).expect("read the Debian tar");
    ImageBuilder::new(ImageFormat::Oci)
        .layer_tar(tar, Compression::Zstd)
        .build()
}

fn debian_tar() -> PathBuf {
    let cache = Path::new(CACHE_DIRECTORY);
    fs::create_dir_all(cache).expect("make the cache directory");
    let lock = fs::File::create(cache.join("lock")).expect("open the cache's lock");
    lock.lock().expect("lock the cache");
    let tar = cache.join(format!("debian-{DEBIAN_SUITE}-1.tar"));
    if !tar.exists() {
        let work = tempfile::TempDir::with_prefix_in("debian-", cache).expect("make a directory for debootstrap");
        let root = work.path().join("root");
        bootstrap(&root);
        take_over_host_settings(&root);
        let unfinished = work.path().join("tar");
        run(Command::new("tar")
            .args(["--numeric-owner", "--one-file-system", "--sort=name", "-cf"])
            .arg(&unfinished)
            .arg("-C")
            .arg(&root)
            .arg("."));
        fs::rename(&unfinished, &tar).expect("keep the Debian tar");
    }
    tar
}

fn bootstrap(root: &Path) {
    run(Command::new("debootstrap")
        .args([
            "--variant=minbase",
            "--include=ca-certificates,iputils-ping",
            DEBIAN_SUITE,
        ])
        .arg(root)
        .arg(host_mirror()));
    run(Command::new("chroot").arg(root).args(["apt-get", "clean"]));
    // Left by debootstrap's chroot; device nodes are the runtime's to make.
    for directory in ["dev", "proc", "sys", "var/lib/apt/lists", "var/log"] {
        empty(&root.join(directory));
    }
}

/// Where a host reaches its package mirrors through certificates or sources of its own, so must the image.
fn take_over_host_settings(root: &Path) {
    let sources = format!("deb {} {DEBIAN_SUITE} main\n", host_mirror());
    fs::write(root.join("etc/apt/sources.list"), sources).expect("write sources.list");
    let added = Path::new("/usr/local/share/ca-certificates");
    if added.is_dir() {
        let to = root.join("usr/local/share/ca-certificates");
        run(Command::new("cp").arg("-rT").arg(added).arg(&to));
        run(Command::new("chroot").arg(root).arg("update-ca-certificates"));
    }
}

/// Where this host's apt has Debian's packages from.
fn host_mirror() -> String {
    let listed = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
        .output()
        .expect("run apt-get");
    let listed = String::from_utf8(listed.stdout).expect("addresses of package sources");
    let mut addresses = listed.lines().map(|address| address.trim_end_matches('/'));
    let debian = addresses.find(|address| address.ends_with("/debian"));
    debian
        .expect("this host's apt has no source of Debian's packages")
        .to_owned()
}

fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).expect("list a directory") {
        let entry = entry.expect("list a directory");
        let removed = if entry.file_type().expect("type of a file").is_dir() {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        };
        removed.unwrap_or_else(|error| panic!("remove {:?}: {error}", entry.path()));
    }
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debian_image_is_made_once_and_has_a_package_manager() {
        let first = debian_image();
        assert_eq!(first.manifest.digest, debian_image().manifest.digest);
        let mut archive = tar::Archive::new(&first.tars[0][..]);
        let mut paths = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().into_owned());
        assert!(paths.any(|path| path.ends_with("usr/bin/apt-get")));
    }
}
