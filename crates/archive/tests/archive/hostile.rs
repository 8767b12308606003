//! Archives that mean harm, or are broken: refused before anything is written, and harmless if they were unpacked.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use flate2::Compression;
use flate2::write::GzEncoder;
use skep_archive::{ArchiveError, Compressed, Format, Limits, Links, Mode, Reason, Source, Trust, check};

use super::tree::{applied_with, describe};

const LIMITS: Limits = Limits {
    max_bytes: 1 << 30,
    max_entries: 10,
    max_name_bytes: 1000,
    max_ratio: 200,
};

/// One header with its data, as a program that means harm would write it.
fn entry(name: &[u8], flag: u8, link: &[u8], data: &[u8]) -> Vec<u8> {
    with_size(name, flag, link, data, data.len() as u64)
}

fn with_size(name: &[u8], flag: u8, link: &[u8], data: &[u8], size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0006755\0");
    block[108..116].copy_from_slice(b"0300000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[148..156].fill(b' ');
    block[156] = flag;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while length != rest.len() + length.to_string().len() {
            length = rest.len() + length.to_string().len();
        }
        data.extend_from_slice(format!("{length}{rest}").as_bytes());
    }
    entry(b"./PaxHeaders/x", b'x', b"", &data)
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn checked(archive: &[u8]) -> Result<skep_archive::Checked, ArchiveError> {
    let spill = tempfile::tempdir().expect("a directory");
    check(
        Source::open(archive).expect("a source"),
        &LIMITS,
        Trust::Stranger,
        spill.path(),
    )
}

fn reason(archive: &[u8]) -> Reason {
    match checked(archive) {
        Err(ArchiveError::Refused(refusal)) => refusal.reason,
        other => panic!("{other:?}"),
    }
}

fn refused() -> Vec<(&'static str, Vec<Vec<u8>>, Reason)> {
    let file = |name: &[u8]| entry(name, b'0', b"", b"data");
    let link = |name: &[u8], to: &[u8]| entry(name, b'2', to, b"");
    let hard = |name: &[u8], to: &[u8]| entry(name, b'1', to, b"");
    let long_name = |name: &[u8]| entry(b"././@LongLink", b'L', b"", name);
    let x = "x".repeat(300);
    vec![
        ("absolute", vec![file(b"/etc/canary")], Reason::Absolute),
        ("parent", vec![file(b"../canary")], Reason::ParentDirectory),
        ("parent inside", vec![file(b"a/../../canary")], Reason::ParentDirectory),
        (
            "absolute in PAX",
            vec![pax(&[("path", "/etc/canary")]), file(b"x")],
            Reason::Absolute,
        ),
        (
            "absolute in GNU",
            vec![long_name(b"/etc/canary\0"), file(b"x")],
            Reason::Absolute,
        ),
        (
            "through a link",
            vec![link(b"out", b"/etc"), file(b"out/canary")],
            Reason::ThroughLink,
        ),
        (
            "through a later link",
            vec![file(b"out/x"), link(b"out", b"/etc")],
            Reason::ThroughLink,
        ),
        ("through a file", vec![file(b"f"), file(b"f/x")], Reason::ThroughLink),
        ("hard link out", vec![hard(b"got", b"/etc/shadow")], Reason::Absolute),
        (
            "hard link up",
            vec![hard(b"got", b"../etc/shadow")],
            Reason::ParentDirectory,
        ),
        (
            "hard link to nothing",
            vec![hard(b"got", b"canary")],
            Reason::LinkNotInArchive,
        ),
        (
            "hard link through a link",
            vec![link(b"out", b"/etc"), hard(b"got", b"out/shadow")],
            Reason::ThroughLink,
        ),
        (
            "hard link to itself",
            vec![hard(b"got", b"got")],
            Reason::LinkNotInArchive,
        ),
        (
            "hard link to a device",
            vec![entry(b"dev", b'3', b"", b""), hard(b"got", b"dev")],
            Reason::LinkNotInArchive,
        ),
        (
            "directory over a link",
            vec![link(b"out", b"/etc"), entry(b"out/", b'5', b"", b"")],
            Reason::DirectoryOverLink,
        ),
        ("NUL in PAX", vec![pax(&[("path", "a\0b")]), file(b"x")], Reason::Nul),
        ("NUL in GNU", vec![long_name(b"a\0b\0"), file(b"x")], Reason::Nul),
        (
            "long component",
            vec![pax(&[("path", &x)]), file(b"x")],
            Reason::NameTooLong,
        ),
        (
            "long path",
            vec![pax(&[("path", &"x/".repeat(3000))]), file(b"x")],
            Reason::NameTooLong,
        ),
        (
            "names disagree",
            vec![pax(&[("path", "a")]), long_name(b"b\0"), file(b"x")],
            Reason::Disagreement("name"),
        ),
        (
            "names of a file with holes disagree",
            vec![
                pax(&[
                    ("GNU.sparse.major", "1"),
                    ("GNU.sparse.minor", "0"),
                    ("GNU.sparse.name", "a"),
                    ("GNU.sparse.realsize", "0"),
                ]),
                long_name(b"b\0"),
                entry(b"x", b'0', b"", &[b"0\n".to_vec(), vec![0; 510]].concat()),
            ],
            Reason::Disagreement("name"),
        ),
        (
            "two names",
            vec![pax(&[("path", "a"), ("path", "b")]), file(b"x")],
            Reason::Disagreement("name"),
        ),
        (
            "two PAX headers",
            vec![pax(&[("path", "a")]), pax(&[("path", "a")]), file(b"x")],
            Reason::Disagreement("name"),
        ),
        (
            "sizes disagree",
            vec![pax(&[("size", "1024")]), file(b"x")],
            Reason::Disagreement("size"),
        ),
        (
            "size 0 in the header",
            vec![pax(&[("size", "4")]), entry(b"x", b'0', b"", b"")],
            Reason::Disagreement("size"),
        ),
        (
            "a global name",
            vec![
                entry(b"g", b'g', b"", b"10 path=a\n\0\0\0\0"[..10].as_ref()),
                file(b"x"),
            ],
            Reason::Malformed("entries all at once"),
        ),
        (
            "very many global headers",
            (0..1001)
                .map(|_| entry(b"g", b'g', b"", b""))
                .chain([file(b"x")])
                .collect(),
            Reason::Malformed("entries all at once"),
        ),
        (
            "records without a name",
            vec![entry(b"p", b'x', b"", &b"4 =\n".repeat(100)), file(b"x")],
            Reason::Malformed("PAX records"),
        ),
        (
            "very many records",
            vec![entry(b"p", b'x', b"", &b"5 a=\n".repeat(10_001)), file(b"x")],
            Reason::Malformed("PAX records"),
        ),
        (
            "very long records",
            vec![pax(&[("comment", &"c".repeat(1 << 20))]), file(b"x")],
            Reason::NameTooLong,
        ),
        (
            "very long global records",
            vec![entry(b"g", b'g', b"", &vec![b'1'; (1 << 20) + 1]), file(b"x")],
            Reason::NameTooLong,
        ),
        (
            "a directory with data",
            vec![entry(b"d/", b'5', b"", b"data")],
            Reason::Malformed("size"),
        ),
        (
            "a link with data",
            vec![entry(b"l", b'2', b"t", b"data")],
            Reason::Malformed("size"),
        ),
        ("a link to nothing", vec![link(b"l", b"")], Reason::BadLinkTarget),
        ("no name", vec![link(b"./", b"x")], Reason::NoName),
        (
            "an unknown kind",
            vec![entry(b"x", b'M', b"", b"")],
            Reason::UnknownKind('M'),
        ),
        (
            "too many entries",
            (0..11).map(|at| file(format!("f{at}").as_bytes())).collect(),
            Reason::TooManyEntries(10),
        ),
        (
            "too many bytes",
            vec![with_size(b"x", b'0', b"", b"", 2 << 30)],
            Reason::TooManyBytes(1 << 30),
        ),
        (
            "very long names together",
            ["a", "b"]
                .map(|above| vec![pax(&[("path", &format!("{above}/{}x", "x/".repeat(300)))]), file(b"x")])
                .concat(),
            Reason::TooManyNameBytes(1000),
        ),
        (
            "very long names of pipes together",
            ["a", "b"]
                .map(|above| {
                    vec![
                        pax(&[("path", &format!("{above}/{}x", "x/".repeat(300)))]),
                        entry(b"x", b'6', b"", b""),
                    ]
                })
                .concat(),
            Reason::TooManyNameBytes(1000),
        ),
        (
            "very long links together",
            ["a", "b"]
                .map(|name| vec![pax(&[("linkpath", &"x/".repeat(300))]), link(name.as_bytes(), b"x")])
                .concat(),
            Reason::TooManyNameBytes(1000),
        ),
        (
            "a sparse bomb",
            vec![
                pax(&[
                    ("GNU.sparse.major", "1"),
                    ("GNU.sparse.minor", "0"),
                    ("GNU.sparse.name", "x"),
                    ("GNU.sparse.realsize", "9000000000000"),
                ]),
                entry(b"x", b'0', b"", &[b"0\n".to_vec(), vec![0; 510]].concat()),
            ],
            Reason::TooManyBytes(1 << 30),
        ),
        (
            "data beyond its end",
            vec![
                pax(&[
                    ("GNU.sparse.major", "1"),
                    ("GNU.sparse.minor", "0"),
                    ("GNU.sparse.name", "x"),
                    ("GNU.sparse.realsize", "5"),
                ]),
                entry(b"x", b'0', b"", &[b"1\n4\n512\n".to_vec(), vec![0; 1015]].concat()),
            ],
            Reason::Disagreement("size"),
        ),
        (
            "an end in the middle of a name",
            vec![pax(&[("path", "a")])],
            Reason::Truncated,
        ),
    ]
}

#[test]
fn archives_that_mean_harm_are_refused() {
    for (what, entries, expected) in refused() {
        assert_eq!(reason(&archive(&entries)), expected, "{what}");
    }
}

#[test]
fn unpacked_without_a_check_they_write_nothing_outside() {
    for (what, entries, _) in refused() {
        for links in [Links::Refused, Links::ExistingFollowed] {
            let outer = tempfile::tempdir().expect("a directory");
            let root = outer.path().join("root");
            fs::create_dir(&root).expect("a directory");
            fs::create_dir(outer.path().join("etc")).expect("a directory");
            fs::write(outer.path().join("canary"), b"canary").expect("a file");
            let outside = |mut tree: super::tree::Tree| {
                tree.retain(|name, _| !name.starts_with(b"root"));
                tree
            };
            let before = outside(describe(outer.path()));
            // Whether it fails half-way or not at all: only what lies in the root may change.
            drop(applied_with(
                &root,
                &archive(&entries),
                (Mode::Merge, Trust::Stranger, links),
            ));
            assert_eq!(outside(describe(outer.path())), before, "{what}");
        }
    }
    assert!(!std::path::Path::new("/etc/canary").exists());
}

#[test]
fn what_is_there_as_a_link_is_never_written_through() {
    let outer = tempfile::tempdir().expect("a directory");
    let root = outer.path().join("root");
    fs::create_dir(&root).expect("a directory");
    fs::write(outer.path().join("canary"), b"canary").expect("a file");
    for (name, to) in [("file", "../canary"), ("directory", "..")] {
        symlink(to, root.join(name)).expect("a link");
    }
    let unpack =
        |entries: &[Vec<u8>]| applied_with(&root, &archive(entries), (Mode::Merge, Trust::Stranger, Links::Refused));
    unpack(&[entry(b"file", b'0', b"", b"own")]).expect("the link itself is replaced");
    for (entries, expected) in [
        (vec![entry(b"directory/canary", b'0', b"", b"own")], Reason::ThroughLink),
        (vec![entry(b"directory/", b'5', b"", b"")], Reason::DirectoryOverLink),
    ] {
        match unpack(&entries) {
            Err(ArchiveError::Refused(refusal)) => assert_eq!(refusal.reason, expected),
            other => panic!("{other:?}"),
        }
    }
    fs::create_dir_all(root.join("full/of")).expect("a directory");
    match unpack(&[entry(b"full", b'2', b"x", b"")]) {
        Err(ArchiveError::Refused(refusal)) => assert_eq!(refusal.reason, Reason::OverDirectory),
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(outer.path().join("canary")).expect("there"), b"canary");
}

#[test]
fn devices_pipes_setuid_and_foreign_owners_are_left_out_or_cleared_and_counted() {
    let entries = [
        entry(b"null", b'3', b"", b""),
        entry(b"disk", b'4', b"", b""),
        entry(b"pipe", b'6', b"", b""),
        pax(&[
            ("uid", "70000"),
            ("SCHILY.xattr.trusted.overlay.opaque", "y"),
            ("SCHILY.xattr.user.overlay.opaque", "y"),
            ("SCHILY.xattr.user.kept", "v"),
        ]),
        entry(b"file", b'0', b"", b"data"),
    ];
    let found = checked(&archive(&entries)).expect("taken");
    assert_eq!(
        (found.entries, found.skipped, found.remapped, found.cleared),
        (1, 3, 1, 1)
    );
    let root = tempfile::tempdir().expect("a directory");
    let done = applied_with(
        root.path(),
        &archive(&entries),
        (Mode::Merge, Trust::Stranger, Links::Refused),
    );
    let done = done.expect("unpacked");
    assert_eq!((done.entries, done.skipped, done.remapped), (1, 3, 1));
    let tree = describe(root.path());
    let file = &tree[&b"file"[..]];
    assert_eq!((tree.len(), file.mode, file.owner), (2, 0o755, (65_534, 0)));
    assert_eq!(file.attributes.keys().collect::<Vec<_>>(), [&b"user.kept".to_vec()]);
}

#[test]
fn an_archive_that_is_cut_anywhere_is_refused() {
    let whole = archive(&[
        pax(&[("path", "a long name")]),
        entry(b"x", b'0', b"", &[1; 700]),
        entry(b"l", b'2', b"target", b""),
    ]);
    checked(&whole).expect("whole");
    for cut in 0..whole.len() {
        assert_eq!(reason(&whole[..cut]), Reason::Truncated, "cut at {cut}");
    }
    assert_eq!(reason(&[&whole[..], b"more"].concat()), Reason::Trailing);
    assert_eq!(reason(b"<html>not an archive</html>"), Reason::Truncated);
    assert!(matches!(
        reason(&[b'x'; 2048]),
        Reason::Malformed(_) | Reason::Corrupt(_)
    ));
}

#[test]
fn a_check_that_nobody_wants_any_more_ends_wherever_it_is() {
    let whole = archive(&[entry(b"x", b'0', b"", &[1; 200_000]), entry(b"y", b'0', b"", b"")]);
    let spill = tempfile::tempdir().expect("a directory");
    let asked = |most: u32| {
        let looks = std::cell::Cell::new(0);
        let is_wanted = || {
            looks.set(looks.get() + 1);
            looks.get() <= most
        };
        let source = Source::open(&whole[..]).expect("a source");
        let checked = skep_archive::check_while(source, &LIMITS, Trust::Stranger, spill.path(), &is_wanted);
        (looks.get(), checked)
    };
    let (looks, checked) = asked(u32::MAX);
    checked.expect("whole");
    assert!(looks >= 5, "asked {looks} times: while it is read, and for each name");
    for most in 0..looks {
        match asked(most) {
            (_, Err(ArchiveError::Io { source, .. })) => {
                assert_eq!(source.kind(), std::io::ErrorKind::ConnectionAborted);
            }
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_tar_stream_is_no_longer_than_its_limits_let_it_be() {
    // All of it is in headers of names, which are no files.
    let one = [pax(&[("comment", &"c".repeat(1_000_000))]), entry(b"x", b'0', b"", b"")].concat();
    let whole = archive(&vec![one; 90]);
    let limits = Limits {
        max_bytes: 1 << 20,
        max_entries: 100,
        ..LIMITS
    };
    let spill = tempfile::tempdir().expect("a directory");
    let source = Source::open(&whole[..]).expect("a source");
    match check(source, &limits, Trust::Stranger, spill.path()) {
        Err(ArchiveError::Refused(refusal)) => assert_eq!(refusal.reason, Reason::TooManyBytes(1 << 20)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bomb_is_refused_before_it_has_grown() {
    let mut zstd = Compressed::new(Vec::new(), Format::Zstd).expect("a compressor");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    for bomb in [&mut zstd as &mut dyn Write, &mut gzip] {
        let header = with_size(b"x", b'0', b"", b"", 100 << 20);
        bomb.write_all(&header).expect("compressed");
        for _ in 0..100 {
            bomb.write_all(&vec![0; 1 << 20]).expect("compressed");
        }
        bomb.write_all(&[0; 1024]).expect("compressed");
    }
    for bomb in [zstd.finish().expect("finished"), gzip.finish().expect("finished")] {
        assert_eq!(reason(&bomb), Reason::Bomb(200));
        let spill = tempfile::tempdir().expect("a directory");
        let source = Source::open(&bomb[..]).expect("a source");
        let ours = check(source, &Limits::NONE, Trust::Ours, spill.path()).expect("ours may be zeros alone");
        assert_eq!((ours.entries, ours.bytes), (1, 100 << 20));
    }
}
