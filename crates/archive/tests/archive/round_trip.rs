//! What is packed and unpacked again is what it was.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::FileType;
use skep_archive::{
    Attributes, Compressed, Format, Limits, Links, Mode, PackOptions, RootEntry, Source, Special, Trust, check,
};
use std::io::Write;

use super::tree::{
    applied, applied_with, assert_same, describe, hard_to_carry, pack_options, packed, packed_with, set_time, special,
};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// One more user may write: owner, user 1000, group, mask and others, as the kernel has them.
fn access_list() -> Vec<u8> {
    let entry = |tag: u16, may: u16, id: u32| [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat();
    let entries = [
        (1, 7, u32::MAX),
        (2, 6, 1000),
        (4, 5, u32::MAX),
        (16, 7, u32::MAX),
        (32, 5, u32::MAX),
    ];
    let entries = entries.map(|(tag, may, id)| entry(tag, may, id)).concat();
    [&2_u32.to_le_bytes()[..], &entries].concat()
}

#[test]
fn a_tree_that_is_hard_to_carry_comes_back_as_it_was() {
    let (from, to, spill) = (directory(), directory(), directory());
    hard_to_carry(from.path());
    special(&from.path().join("pipe"), FileType::Fifo);
    special(&from.path().join("socket"), FileType::Socket);
    for name in ["pipe", "socket"] {
        fs::hard_link(from.path().join(name), from.path().join(format!("{name} too"))).expect("a link");
    }
    // What lies in it already has no list.
    for which in ["access", "default"] {
        let name = format!("system.posix_acl_{which}");
        let set = rustix::fs::setxattr(
            from.path().join("venv/lib"),
            name,
            &access_list(),
            rustix::fs::XattrFlags::empty(),
        );
        set.expect("an access list");
    }
    rustix::fs::setxattr(
        from.path().join("block-and-one"),
        "security.capability",
        &[1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        rustix::fs::XattrFlags::empty(),
    )
    .expect("a capability");
    let options = PackOptions {
        attributes: Attributes::Tenant,
        special: Special::All,
        root: RootEntry::Always,
        ..pack_options(spill.path())
    };
    let (archive, report) = packed_with(from.path(), &options).expect("packed");
    assert_eq!((report.skipped, report.changed), (0, 0));
    assert!(archive.len() < 1 << 20, "holes take no room: {}", archive.len());
    let expected = describe(from.path());
    assert_eq!(report.entries as usize, expected.len() - 1);
    let done = applied(to.path(), &archive, Trust::Ours).expect("unpacked");
    assert_eq!((done.entries, done.bytes), (report.entries, report.bytes));
    assert_same(&describe(to.path()), &expected);
}

#[test]
fn an_export_leaves_out_pipes_and_sockets_and_an_import_clears_setuid() {
    let (from, to) = (directory(), directory());
    hard_to_carry(from.path());
    let mut expected = describe(from.path());
    special(&from.path().join("pipe"), FileType::Fifo);
    special(&from.path().join("socket"), FileType::Socket);
    let root_time = fs::metadata(from.path()).expect("there");
    let (archive, report) = packed(from.path());
    assert_eq!((report.entries as usize, report.skipped), (expected.len() - 1, 2));
    let spill = directory();
    let source = Source::open(archive.as_slice()).expect("a source");
    let limits = Limits {
        max_bytes: 2 << 30,
        max_entries: 1000,
        max_name_bytes: 1 << 20,
        max_ratio: 200,
    };
    let checked = check(source, &limits, Trust::Stranger, spill.path()).expect("taken");
    assert_eq!((checked.entries, checked.bytes), (report.entries, report.bytes));
    assert_eq!((checked.skipped, checked.remapped, checked.cleared), (0, 0, 2));
    applied(to.path(), &archive, Trust::Stranger).expect("unpacked");
    for (name, mode) in [("block", 0o755), ("setgid", 0o775)] {
        expected.get_mut(name.as_bytes()).expect("there").mode = mode;
    }
    expected.get_mut(&b""[..]).expect("there").mtime = (
        std::os::unix::fs::MetadataExt::mtime(&root_time),
        std::os::unix::fs::MetadataExt::mtime_nsec(&root_time),
    );
    assert_same(&describe(to.path()), &expected);
}

/// A file, and a pipe and a socket of several names.
fn with_several_names(root: &Path) {
    fs::write(root.join("file"), b"new").expect("a file");
    special(&root.join("pipe"), FileType::Fifo);
    special(&root.join("socket"), FileType::Socket);
    for (name, another) in [("pipe", "a pipe too"), ("pipe", "pipe too"), ("socket", "socket too")] {
        fs::hard_link(root.join(name), root.join(another)).expect("a link");
    }
}

#[test]
fn every_name_of_a_pipe_or_socket_is_left_out_of_what_a_stranger_sends() {
    let (from, to, spill) = (directory(), directory(), directory());
    with_several_names(from.path());
    let options = PackOptions {
        special: Special::All,
        ..pack_options(spill.path())
    };
    let (archive, _) = packed_with(from.path(), &options).expect("packed");
    let source = Source::open(archive.as_slice()).expect("a source");
    let checked = check(source, &Limits::NONE, Trust::Stranger, spill.path()).expect("taken");
    assert_eq!((checked.entries, checked.bytes, checked.skipped), (1, 3, 5));
    // What has the names stays, and is not linked to.
    for name in ["a pipe too", "pipe too"] {
        fs::write(to.path().join(name), b"old").expect("a file");
    }
    let merged = applied_with(to.path(), &archive, (Mode::Merge, Trust::Stranger, Links::Refused));
    let done = merged.expect("unpacked");
    assert_eq!((done.entries, done.bytes, done.skipped), (1, 3, 5));
    let found = describe(to.path());
    let contents: Vec<_> = found.iter().map(|(name, one)| (&name[..], &one.content[..])).collect();
    let expected: [(&[u8], &[u8]); 4] = [
        (b"", b""),
        (b"a pipe too", b"old"),
        (b"file", b"new"),
        (b"pipe too", b"old"),
    ];
    assert_eq!(contents, expected);
    assert!(found.iter().all(|(name, one)| *name == one.same_as));
}

#[test]
fn what_others_read_has_each_name_of_a_pipe_as_a_pipe() {
    let (from, to, spill) = (directory(), directory(), directory());
    with_several_names(from.path());
    let options = PackOptions {
        special: Special::Pipes,
        ..pack_options(spill.path())
    };
    let (archive, report) = packed_with(from.path(), &options).expect("packed");
    assert_eq!((report.entries, report.skipped), (4, 2));
    applied(to.path(), &archive, Trust::Ours).expect("unpacked");
    for (name, one) in describe(to.path()).iter().filter(|(name, _)| name.ends_with(b"too")) {
        assert_eq!((one.kind, &one.same_as), (0o010_000, name));
    }
    assert_eq!(describe(to.path()).len(), 5);
}

#[test]
fn nothing_is_an_archive_without_entries() {
    let (from, to) = (directory(), directory());
    let (archive, report) = packed(from.path());
    assert_eq!((archive.as_slice(), report.entries), (&[0; 1024][..], 0));
    fs::write(to.path().join("old"), b"x").expect("a file");
    applied(to.path(), &archive, Trust::Stranger).expect("unpacked");
    assert_eq!(describe(to.path()).len(), 1);
}

#[test]
fn a_merge_keeps_what_the_archive_does_not_have() {
    let (from, to) = (directory(), directory());
    fs::create_dir_all(from.path().join("both/new")).expect("a directory");
    fs::write(from.path().join("both/file"), b"new").expect("a file");
    fs::set_permissions(from.path(), fs::Permissions::from_mode(0o700)).expect("a mode");
    fs::create_dir_all(to.path().join("both/old")).expect("a directory");
    symlink("/etc/shadow", to.path().join("both/file")).expect("a link");
    fs::write(to.path().join("kept"), b"kept").expect("a file");
    fs::set_permissions(to.path(), fs::Permissions::from_mode(0o711)).expect("a mode");
    let (archive, _) = packed(from.path());
    applied_with(to.path(), &archive, (Mode::Merge, Trust::Stranger, Links::Refused)).expect("unpacked");
    let found = describe(to.path());
    let names: Vec<_> = found
        .keys()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    assert_eq!(names, ["", "both", "both/file", "both/new", "both/old", "kept"]);
    assert_eq!(found[&b"both/file"[..]].content, b"new");
    assert_eq!(found[&b""[..]].mode, 0o711, "the root's own");
}

#[test]
fn a_tree_deeper_than_a_process_may_have_files_open_is_packed_unpacked_and_removed() {
    let (from, to) = (directory(), directory());
    let mut at: std::os::fd::OwnedFd = fs::File::open(from.path()).expect("open").into();
    for _ in 0..1500 {
        rustix::fs::mkdirat(&at, "deeper", rustix::fs::Mode::RWXU).expect("made");
        at = rustix::fs::openat(&at, "deeper", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).expect("open");
        for name in ["a", "z"] {
            let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
            rustix::fs::openat(&at, name, flags, rustix::fs::Mode::RWXU).expect("a file");
        }
    }
    let (archive, report) = packed(from.path());
    assert_eq!((report.entries, report.changed), (4500, 0));
    let done = applied(to.path(), &archive, Trust::Ours).expect("unpacked");
    assert_eq!(done.entries, 4500);
    let (again, _) = packed(to.path());
    assert_eq!(again.len(), archive.len());
    let (nothing, _) = packed(directory().path());
    for root in [from.path(), to.path()] {
        applied(root, &nothing, Trust::Ours).expect("emptied");
        assert_eq!(fs::read_dir(root).expect("listed").count(), 0);
    }
}

#[test]
fn every_format_is_recognised_and_whole_or_refused() {
    let (from, spill) = (directory(), directory());
    hard_to_carry(from.path());
    let (archive, report) = packed(from.path());
    for format in [Format::Tar, Format::Gzip, Format::Zstd] {
        let mut compressed = Compressed::new(Vec::new(), format).expect("a compressor");
        compressed.write_all(&archive).expect("compressed");
        let sent = compressed.finish().expect("finished");
        assert_eq!(Format::of(&sent), format);
        let checked = |bytes: &[u8]| {
            check(
                Source::open(bytes).expect("a source"),
                &Limits::NONE,
                Trust::Ours,
                spill.path(),
            )
        };
        assert_eq!(checked(&sent).expect("taken").entries, report.entries);
        for cut in [0, 1, 3, 10, sent.len() / 2, sent.len() - 1] {
            assert!(checked(&sent[..cut]).is_err(), "{format:?} cut at {cut}");
        }
        let longer = [&sent[..], b"garbage"].concat();
        assert!(checked(&longer).is_err(), "{format:?} with something after its end");
    }
}

#[derive(Debug, Clone)]
enum Made {
    Directory,
    File(Vec<u8>, u64),
    Link(String),
    Again(usize),
}

/// Name, what it is, mode, time.
type Step = (Vec<u8>, Made, u32, (i64, i64));

fn made() -> impl Strategy<Value = Vec<Step>> {
    let part = prop_oneof![
        proptest::collection::vec(1_u8..=255, 1..20),
        Just(vec![b'x'; 255]),
        Just(b"same".to_vec()),
        Just(b"a".to_vec()),
    ];
    let part = part.prop_map(|part| {
        part.into_iter()
            .map(|byte| if byte == b'/' { b'_' } else { byte })
            .collect()
    });
    let part = part.prop_filter("a name", |part: &Vec<u8>| part != b"." && part != b"..");
    let name = proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join(&b'/'));
    let what = prop_oneof![
        Just(Made::Directory),
        (proptest::collection::vec(any::<u8>(), 0..2000), 0_u64..3_000_000)
            .prop_map(|(data, hole)| Made::File(data, hole)),
        "[a-z/.]{1,150}".prop_map(Made::Link),
        (0_usize..10).prop_map(Made::Again),
    ];
    let time = (-(1_i64 << 31)..1 << 34, 0_i64..1_000_000_000);
    proptest::collection::vec((name, what, 0_u32..0o10000, time), 0..30)
}

fn make(root: &Path, steps: &[Step]) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::FileExt;
    let mut files = Vec::new();
    let mut times = Vec::new();
    for (name, what, mode, time) in steps {
        let path = root.join(std::ffi::OsStr::from_bytes(name));
        let above = path.parent().expect("a parent");
        if fs::create_dir_all(above).is_err() || path.symlink_metadata().is_ok() {
            continue;
        }
        match what {
            Made::Directory => fs::create_dir(&path).expect("a directory"),
            Made::File(data, hole) => {
                let file = fs::File::create(&path).expect("a file");
                file.write_all_at(data, *hole).expect("written");
                file.set_len(hole + data.len() as u64 + hole % 3 * 10_000).expect("cut");
                files.push(path.clone());
            }
            Made::Link(target) => symlink(target, &path).expect("a link"),
            Made::Again(which) => match files.get(*which) {
                Some(file) => fs::hard_link(file, &path).expect("a link"),
                None => continue,
            },
        }
        if !path.is_symlink() {
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("a mode");
        }
        times.push((path, *time));
    }
    for (path, time) in times.iter().rev() {
        set_time(path, *time);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back_as_it_was(steps in made()) {
        let (from, to, spill) = (directory(), directory(), directory());
        make(from.path(), &steps);
        let options = PackOptions { root: RootEntry::Always, ..pack_options(spill.path()) };
        let (archive, report) = packed_with(from.path(), &options).expect("packed");
        let source = Source::open(archive.as_slice()).expect("a source");
        let checked = check(source, &Limits::NONE, Trust::Ours, spill.path()).expect("taken");
        prop_assert_eq!((checked.entries, checked.bytes), (report.entries, report.bytes));
        applied(to.path(), &archive, Trust::Ours).expect("unpacked");
        assert_same(&describe(to.path()), &describe(from.path()));
    }
}
