//! GNU tar reads what we write, and we read what it writes.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use skep_archive::{Limits, Source, Trust, check};

use super::tree::{Tree, applied, assert_same, describe, hard_to_carry, packed};

fn tar(arguments: &[&str], directory: &Path, input: &[u8]) -> Vec<u8> {
    let mut tar = Command::new("tar")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tar is installed");
    let mut stdin = tar.stdin.take().expect("a pipe");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        tar.wait_with_output().expect("tar ends")
    });
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.is_empty(), "tar {arguments:?}: {told}");
    output.stdout
}

fn without_times_of_directories(mut tree: Tree) -> Tree {
    for described in tree.values_mut().filter(|described| described.kind == 0o040_000) {
        described.mtime = (0, 0);
    }
    tree
}

#[test]
fn gnu_tar_unpacks_what_we_pack() {
    let [from, to] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    hard_to_carry(from.path());
    let (archive, _) = packed(from.path());
    let arguments = [
        "--extract",
        "--preserve-permissions",
        "--xattrs",
        "--numeric-owner",
        "--warning=no-timestamp",
    ];
    tar(&arguments, to.path(), &archive);
    let found = without_times_of_directories(describe(to.path()));
    assert_same(&found, &without_times_of_directories(describe(from.path())));
}

#[test]
fn we_unpack_what_gnu_tar_packs() {
    for format in [
        &["--format=posix"][..],
        &["--format=posix", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
    ] {
        let [from, to, spill] = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
        hard_to_carry(from.path());
        let keeps_all = format[0] == "--format=posix";
        let mut arguments = [&["--create", "--numeric-owner"], format].concat();
        if keeps_all {
            arguments.push("--xattrs");
        }
        arguments.push(".");
        let archive = tar(&arguments, from.path(), b"");
        let source = Source::open(archive.as_slice()).expect("a source");
        let checked = check(source, &Limits::NONE, Trust::Ours, spill.path()).expect("taken");
        assert_eq!(checked.entries as usize, describe(from.path()).len() - 1, "{format:?}");
        applied(to.path(), &archive, Trust::Ours).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        let comparable = |mut tree: Tree| {
            for described in tree.values_mut() {
                described.has_holes &= format.contains(&"--sparse");
                if !keeps_all {
                    described.mtime.1 = 0;
                    described.attributes.clear();
                }
            }
            tree
        };
        assert_same(&comparable(describe(to.path())), &comparable(describe(from.path())));
    }
}
