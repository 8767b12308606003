//! Any bytes as an archive of a stranger: no panic, nothing written outside, and what the check takes can be unpacked,
//! holds what the check said, and can be packed again.
//!
//! The fuzzer (`crates/archive/fuzz`) makes the bytes up; what it found worth keeping is tried again with every test.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use skep_archive::{
    Applied, ApplyOptions, ArchiveError, Attributes, Changing, Checked, Limits, Links, Mode, Owners, PackOptions,
    RootEntry, Source, Special, Trust, apply, check, pack,
};

/// Small, so that a try takes a moment, and so that the limits are met.
const LIMITS: Limits = Limits {
    max_bytes: 4 << 20,
    max_entries: 200,
    max_name_bytes: 100_000,
    max_ratio: 200,
};

/// Of an archive that may be a bomb; one that is taken is shorter.
const MOST_UNPACKED: u64 = 64 << 20;

/// Panics when these bytes do what no archive may do.
pub(crate) fn hold_what_is_promised(data: &[u8]) {
    try_out(data);
    // Nearly every change of a header is found by its checksum: what lies behind that is tried too.
    let right = with_right_checksums(data);
    if right != data {
        try_out(&right);
    }
}

fn with_right_checksums(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    data
}

fn try_out(data: &[u8]) {
    let outer = tempfile::tempdir().expect("a directory");
    let root = outer.path().join("root");
    fs::create_dir(&root).expect("a directory");
    fs::write(outer.path().join("canary"), b"canary").expect("a file");
    let root = File::open(&root).expect("it is there");
    let source = || Source::open(data).expect("memory can be read");
    // As a backup of ours: whatever it says of itself, it is only read.
    drop(check(source(), &LIMITS, Trust::Ours, outer.path()));
    let checked = check(source(), &LIMITS, Trust::Stranger, outer.path());
    let options = ApplyOptions {
        mode: Mode::Replace,
        trust: Trust::Stranger,
        owners: Owners::Caller,
        links: Links::Refused,
        spill: outer.path(),
    };
    // Also what was refused: then it may fail half-way, and may still reach nothing outside.
    let applied = apply(root.as_fd(), source().take(MOST_UNPACKED), &options);
    match (checked, applied) {
        (Err(_), _) => {}
        (Ok(checked), Ok(applied)) => packed_again(&root, (&checked, &applied), outer.path()),
        (Ok(_), Err(error)) if is_of_the_file_system(&error) => {}
        (Ok(_), Err(error)) => panic!("it was checked, and cannot be unpacked: {error:?}"),
    }
    let canary = fs::read(outer.path().join("canary")).expect("the canary");
    assert_eq!(canary, b"canary");
    assert_eq!(fs::read_dir(outer.path()).expect("a directory").count(), 2);
}

/// Each file system has limits of its own for attributes.
fn is_of_the_file_system(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Io { what, .. } if *what == "set the attributes of")
}

fn packed_again(root: &File, (checked, applied): (&Checked, &Applied), spill: &Path) {
    assert_eq!((applied.skipped, applied.remapped), (checked.skipped, checked.remapped));
    let options = PackOptions {
        attributes: Attributes::User,
        changing: Changing::Refused,
        root: RootEntry::UnlessEmpty,
        special: Special::LeftOut,
        spill,
    };
    let mut again = Vec::new();
    let report = pack(root.as_fd(), &options, &mut again).expect("packed");
    // Directories that are told only by what lies in them come on top.
    assert!(report.entries >= checked.entries, "{report:?} of {checked:?}");
    assert_eq!((report.bytes, report.skipped), (checked.bytes, 0));
    let again = Source::open(&again[..]).expect("memory can be read");
    let again = check(again, &Limits::NONE, Trust::Stranger, spill).expect("what we pack is taken");
    assert_eq!((again.entries, again.bytes), (report.entries, report.bytes));
}
