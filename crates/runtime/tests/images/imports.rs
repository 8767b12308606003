//! Archives: every kind that is written in the wild, and hostile ones.

use std::io::Write;

use serde_json::json;
use skep_runtime::{ImageRecord, Result, RuntimeError};
use skep_testkit::images::{Compression, Image, ImageBuilder, ImageFormat, Layer};

use crate::setting::{Setting, named, plain_hosts};

fn image() -> Image {
    image_with(Compression::Zstd)
}

fn image_with(above: Compression) -> Image {
    ImageBuilder::new(ImageFormat::Oci)
        .layer(
            Layer::new().directory("d", 0o755).file("d/a", 0o644, b"a"),
            Compression::Gzip,
        )
        .layer(Layer::new().whiteout("d/a").file("d/b", 0o644, b"b"), above)
        .build()
}

async fn import(setting: &Setting, archive: Vec<u8>, name: Option<&str>) -> Result<Vec<ImageRecord>> {
    let name = name.map(named);
    setting
        .store
        .import(Box::new(std::io::Cursor::new(archive)), name.as_ref())
        .await
}

async fn assert_imported(setting: &Setting, archive: Vec<u8>, name: Option<&str>, expected: &str) {
    let records = import(setting, archive, name).await.unwrap();
    let names: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
    assert_eq!(names, [expected]);
    setting.assert_complete(expected);
    let paths: Vec<String> = setting.tree(expected).await.into_keys().collect();
    assert_eq!(paths, ["d", "d/b"]);
    assert_eq!(setting.count(&["leases", "ls", "-q"]), 0);
    setting.store.remove(&named(expected)).await.unwrap();
    setting.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_archive_is_imported() {
    let setting = Setting::with(plain_hosts(&[])).await;
    let image = image();
    let full = "docker.io/library/thing:1";
    assert_imported(&setting, image.oci_archive(Some("thing:1")), None, full).await;
    assert_imported(
        &setting,
        image.oci_archive(None),
        Some("a.example/b:2"),
        "a.example/b:2",
    )
    .await;
    assert_imported(
        &setting,
        image.oci_archive(Some("latest")),
        Some("a.example/b:2"),
        "a.example/b:2",
    )
    .await;
    assert_imported(&setting, image.docker_archive(&["thing:1"]), None, full).await;
    assert_imported(&setting, image.docker_archive(&[]), Some("thing:1"), full).await;
    assert_imported(&setting, gzip(&image.oci_archive(Some("thing:1"))), None, full).await;
    assert_imported(&setting, zstd(&image.docker_archive(&["thing:1"])), None, full).await;
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_tools_write_is_imported() {
    let setting = Setting::with(plain_hosts(&[])).await;
    // docker's own format, which skopeo writes too, knows no zstd.
    let image = image_with(Compression::Gzip);
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source.tar");
    std::fs::write(&source, image.oci_archive(Some("thing:1"))).unwrap();
    for kind in ["oci-archive", "docker-archive"] {
        let target = directory.path().join(kind);
        let output = std::process::Command::new("skopeo")
            .args(["copy", "--insecure-policy"])
            .arg(format!("oci-archive:{}:thing:1", source.display()))
            .arg(format!("{kind}:{}:docker.io/library/thing:1", target.display()))
            .output()
            .expect("skopeo is needed (Debian: skopeo)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let archive = std::fs::read(&target).unwrap();
        assert_imported(&setting, archive, None, "docker.io/library/thing:1").await;
    }
    // containerd's own export.
    import(&setting, image.oci_archive(Some("thing:1")), None)
        .await
        .unwrap();
    let exported = directory.path().join("exported.tar");
    let archive = exported_whole(&setting, exported.to_str().unwrap(), "docker.io/library/thing:1");
    setting.store.remove(&named("thing:1")).await.unwrap();
    assert_imported(&setting, archive, None, "docker.io/library/thing:1").await;
}

/// The ctr of containerd 2 may end, without an error, before all of its stream is in the file: it is asked again then.
fn exported_whole(setting: &Setting, to: &str, name: &str) -> Vec<u8> {
    for _ in 0..10 {
        setting.ctr(&["images", "export", to, name]);
        let archive = std::fs::read(to).unwrap();
        if archive.ends_with(&[0; 1024]) {
            return archive;
        }
    }
    panic!("ctr exports no whole archive");
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_without_a_name_or_with_too_many_are_refused() {
    let setting = Setting::with(plain_hosts(&[])).await;
    let image = image();
    let two = [image.manifest.descriptor(), image.manifest.descriptor()].map(|mut descriptor| {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": "thing:1"});
        descriptor
    });
    for (archive, name) in [
        (image.oci_archive(None), None),
        (image.oci_archive(Some("latest")), None),
        (image.docker_archive(&[]), None),
        (image.docker_archive(&["UPPER"]), None),
        (image.oci_archive_of(&two), Some("one:1")),
        (image.oci_archive_of(&[]), Some("none:1")),
    ] {
        let refused = import(&setting, archive, name).await;
        assert!(matches!(refused, Err(RuntimeError::Rejected { .. })), "{refused:?}");
    }
    setting.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_are_refused_and_leave_nothing() {
    let setting = Setting::with(plain_hosts(&[])).await;
    let image = image();
    let whole = image.oci_archive(Some("thing:1"));
    let mut flipped = whole.clone();
    // Within the first layer's blob.
    let start = whole
        .windows(16)
        .position(|window| window == &image.layers[0].bytes[..16])
        .unwrap();
    flipped[start + 20] ^= 0xff;
    let other = ImageBuilder::new(ImageFormat::Oci).build();
    let mut lacking = image.clone();
    lacking.layers.pop();
    let ring = Layer::new()
        .file(
            "manifest.json",
            0o644,
            br#"[{"Config":"a.json","RepoTags":["a:1"],"Layers":["x/layer.tar"]}]"#,
        )
        .file("a.json", 0o644, &image.config.bytes)
        .symlink("x/layer.tar", "../y/layer.tar")
        .symlink("y/layer.tar", "../x/layer.tar")
        .into_tar();
    let escaping = Layer::new()
        .file(
            "manifest.json",
            0o644,
            br#"[{"Config":"a.json","RepoTags":["a:1"],"Layers":["x.tar"]}]"#,
        )
        .file("a.json", 0o644, &image.config.bytes)
        .symlink("x.tar", "/etc/passwd")
        .into_tar();
    let broken_layer = Layer::new()
        .file(
            "manifest.json",
            0o644,
            br#"[{"Config":"a.json","RepoTags":["a:1"],"Layers":["x.tar","y.tar"]}]"#,
        )
        .file("a.json", 0o644, &image.config.bytes)
        .file("x.tar", 0o644, b"no tar at all")
        .file("y.tar", 0o644, &[7; 5000])
        .into_tar();
    for (what, archive) in [
        ("empty", Vec::new()),
        ("junk", vec![42; 10_000]),
        (
            "a tar of something else",
            Layer::new().file("etc/passwd", 0o644, b"x").into_tar(),
        ),
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("cut and compressed", gzip(&whole)[..200].to_vec()),
        ("a flipped bit", flipped),
        ("a layer that is lacking", lacking.oci_archive(Some("thing:1"))),
        (
            "a manifest that is lacking",
            other.oci_archive_of(&[named_descriptor(&image)]),
        ),
        ("links in a ring", ring),
        ("a link out of the archive", escaping),
        ("layers that are none", broken_layer),
    ] {
        let refused = import(&setting, archive, None).await;
        assert!(
            matches!(refused, Err(RuntimeError::Rejected { .. })),
            "{what}: {refused:?}"
        );
    }
    setting.assert_nothing_left().await;
}

fn named_descriptor(image: &Image) -> serde_json::Value {
    let mut descriptor = image.manifest.descriptor();
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": "thing:1"});
    descriptor
}
