//! ZIP archives, as another program writes them, and as one that means harm would.

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use skep_archive::{Applied, ApplyOptions, ArchiveError, Links, Mode, Owners, Reason, Trust, apply_zip};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

type Writer = ZipWriter<Cursor<Vec<u8>>>;

fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    write(&mut writer);
    writer.finish().expect("an archive").into_inner()
}

fn file(writer: &mut Writer, name: &str, options: SimpleFileOptions, content: &[u8]) {
    writer.start_file(name, options).expect("an entry");
    writer.write_all(content).expect("its content");
}

fn options(method: CompressionMethod) -> SimpleFileOptions {
    SimpleFileOptions::default().compression_method(method)
}

fn applied(archive: &[u8], root: &Path) -> Result<Applied, ArchiveError> {
    let archive_file = tempfile::tempfile().expect("a file");
    archive_file.write_all_at(archive, 0).expect("written");
    let spill = tempfile::tempdir().expect("a directory");
    let options = ApplyOptions {
        mode: Mode::Merge,
        trust: Trust::Ours,
        owners: Owners::Caller,
        links: Links::ExistingFollowed,
        spill: spill.path(),
    };
    apply_zip(File::open(root).expect("the root").as_fd(), &archive_file, &options)
}

fn reason(archive: &[u8]) -> Reason {
    let root = tempfile::tempdir().expect("a directory");
    match applied(archive, root.path()) {
        Err(ArchiveError::Refused(refusal)) => refusal.reason,
        other => panic!("{other:?}"),
    }
}

/// The same bytes with each of one kind in the place of another, as often as they are there.
fn with(archive: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut changed = archive.to_vec();
    let places: Vec<usize> = archive
        .windows(old.len())
        .enumerate()
        .filter_map(|(at, window)| (window == old).then_some(at))
        .collect();
    assert!(!places.is_empty(), "{old:?} is not in it");
    for at in places {
        changed[at..at + new.len()].copy_from_slice(new);
    }
    changed
}

#[test]
fn files_directories_and_links_come_out_as_they_went_in() {
    let noise: Vec<u8> = (0..300_000_u32).map(|number| (number / 7 % 251) as u8).collect();
    let time = DateTime::from_date_and_time(2024, 2, 29, 12, 34, 56).expect("a time");
    let archive = written(|writer| {
        let deflated = options(CompressionMethod::Deflated).last_modified_time(time);
        writer
            .add_directory("made", deflated.unix_permissions(0o750))
            .expect("a directory");
        file(writer, "made/deflated", deflated.unix_permissions(0o640), &noise);
        file(
            writer,
            "implied/deep/stored",
            options(CompressionMethod::Stored),
            &noise,
        );
        file(writer, "large", deflated.large_file(true), b"with the sizes of ZIP64");
        file(writer, "empty", deflated, b"");
        file(writer, "\u{e9}", deflated, b"a name");
        writer.add_symlink("link", "made/deflated", deflated).expect("a link");
        let comment = writer.set_comment("PK\u{5}\u{6} is what an end begins with");
        comment.expect("a comment");
    });
    let root = tempfile::tempdir().expect("a directory");
    let done = applied(&archive, root.path()).expect("it is unpacked");
    assert_eq!((done.entries, done.skipped), (7, 0));
    let content = |name: &str| fs::read(root.path().join(name)).expect("a file");
    assert!(content("made/deflated") == noise && content("implied/deep/stored") == noise);
    assert_eq!(content("large"), b"with the sizes of ZIP64");
    assert_eq!((content("empty").len(), content("\u{e9}").len()), (0, 6));
    assert_eq!(
        fs::read_link(root.path().join("link")).expect("a link"),
        Path::new("made/deflated")
    );
    let told = fs::metadata(root.path().join("made/deflated")).expect("a file");
    assert_eq!((told.mode() & 0o7777, told.mtime()), (0o640, 1_709_210_096));
    let told = fs::metadata(root.path().join("made")).expect("a directory");
    assert_eq!((told.mode() & 0o7777, told.mtime()), (0o750, 1_709_210_096));
}

#[test]
fn what_python_writes_to_a_pipe_with_the_sizes_after_the_data_is_unpacked() {
    let script = "import sys, zipfile\n\
                  with zipfile.ZipFile(sys.stdout.buffer, 'w', zipfile.ZIP_DEFLATED) as archive:\n\
                  \x20   archive.writestr('a/deflated', 'x' * 100000)\n\
                  \x20   archive.writestr('stored', 'y' * 1000, zipfile.ZIP_STORED)\n";
    let python = Command::new("python3").args(["-c", script]).output().expect("python3");
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let root = tempfile::tempdir().expect("a directory");
    let done = applied(&python.stdout, root.path()).expect("it is unpacked");
    assert_eq!((done.entries, done.bytes), (2, 101_000));
    let content = fs::read_to_string(root.path().join("a/deflated")).expect("a file");
    assert!(content == "x".repeat(100_000));
}

#[test]
fn an_archive_without_entries_is_one() {
    let root = tempfile::tempdir().expect("a directory");
    assert_eq!(
        applied(&written(|_| {}), root.path()).expect("unpacked"),
        Applied::default()
    );
}

#[test]
fn names_that_lead_out_and_what_goes_through_a_link_of_the_archive_is_refused() {
    let plain = options(CompressionMethod::Stored);
    let named = written(|writer| file(writer, "aa/name", plain, b"x"));
    assert_eq!(reason(&with(&named, b"aa/name", b"../name")), Reason::ParentDirectory);
    assert_eq!(reason(&with(&named, b"aa/name", b"/a/name")), Reason::Absolute);
    assert_eq!(reason(&with(&named, b"aa/name", b"aa\0name")), Reason::Nul);

    let outside = tempfile::tempdir().expect("a directory");
    let through = written(|writer| {
        let to = outside.path().to_str().expect("UTF-8");
        writer.add_symlink("link", to, plain).expect("a link");
        file(writer, "link/file", plain, b"x");
    });
    assert_eq!(reason(&through), Reason::ThroughLink);
    assert_eq!(fs::read_dir(outside.path()).expect("a directory").count(), 0);

    // A link in the place of a file is replaced and not written through.
    let root = tempfile::tempdir().expect("a directory");
    symlink(outside.path().join("target"), root.path().join("file")).expect("a link");
    let archive = written(|writer| file(writer, "file", plain, b"x"));
    applied(&archive, root.path()).expect("unpacked");
    assert_eq!(fs::read_dir(outside.path()).expect("a directory").count(), 0);
}

#[test]
fn what_is_broken_or_disagrees_with_itself_is_refused() {
    let archive = written(|writer| {
        let deflated = options(CompressionMethod::Deflated);
        file(writer, "name", deflated, b"some content, some content");
    });
    let directory_at = archive
        .windows(4)
        .rposition(|window| window == b"PK\x01\x02")
        .expect("one");
    let changed = |at: usize, byte: u8| {
        let mut changed = archive.clone();
        changed[at] = byte;
        changed
    };
    assert_eq!(reason(&archive[..archive.len() - 1]), Reason::Truncated);
    assert_eq!(reason(&[&archive[..], b"x"].concat()), Reason::Truncated);
    assert_eq!(reason(b"PK\x03\x04"), Reason::Truncated);
    assert_eq!(reason(&[b"x", &archive[..]].concat()), Reason::Malformed("directory"));
    assert_eq!(reason(&changed(30, b'N')), Reason::Disagreement("name"));
    assert_eq!(reason(&changed(8, 0)), Reason::Disagreement("compression"));
    let mut unknown = changed(8, 99);
    unknown[directory_at + 10] = 99;
    assert_eq!(reason(&unknown), Reason::UnknownCompression(99));
    let sizes = directory_at + 24;
    assert_eq!(reason(&changed(sizes, 25)), Reason::Disagreement("size"));
    assert_eq!(reason(&changed(sizes, 27)), Reason::Truncated);
    assert!(matches!(
        reason(&changed(directory_at + 16, archive[directory_at + 16] ^ 1)),
        Reason::Corrupt(_)
    ));
    let mut encrypted = changed(6, archive[6] | 1);
    encrypted[directory_at + 8] |= 1;
    assert_eq!(reason(&encrypted), Reason::Encrypted);
}

#[test]
fn no_byte_that_is_cut_or_changed_leads_astray() {
    let archive = written(|writer| {
        file(writer, "a/b", options(CompressionMethod::Deflated), &[b'x'; 3000]);
        file(writer, "c", options(CompressionMethod::Stored), b"yy");
    });
    for at in 0..archive.len() {
        for bit in [1, 0x80] {
            let mut changed = archive.clone();
            changed[at] ^= bit;
            let root = tempfile::tempdir().expect("a directory");
            // Refused, or unpacked below the root: it neither panics nor goes on for ever.
            if let Err(ArchiveError::Io { path, source, .. }) = applied(&changed, root.path()) {
                panic!("byte {at}: {path:?}: {source}");
            }
        }
        assert!(
            applied(&archive[..at], tempfile::tempdir().expect("one").path()).is_err(),
            "cut at {at}"
        );
    }
}
