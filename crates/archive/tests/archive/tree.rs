//! Trees that are hard to carry, and what can be told of one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use skep_archive::{
    ApplyOptions, ArchiveError, Attributes, Changing, Links, Mode as ApplyMode, Owners, PackOptions, PackReport,
    RootEntry, Special, Trust,
};

/// All that an archive should carry of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) kind: u32,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) size: u64,
    /// The target of a link, or what a file holds.
    pub(crate) content: Vec<u8>,
    /// The first of its names.
    pub(crate) same_as: Vec<u8>,
    pub(crate) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) has_holes: bool,
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Described>;

pub(crate) fn describe(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut first_names = BTreeMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(name) = pending.pop() {
        let path = root.join(OsStr::from_bytes(&name));
        let metadata = fs::symlink_metadata(&path).expect("an entry that is there");
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).expect("a directory") {
                let below = entry.expect("an entry").file_name();
                let slash = if name.is_empty() { &b""[..] } else { b"/" };
                pending.push([&name, slash, below.as_bytes()].concat());
            }
            pending.sort_by(|a, b| b.cmp(a));
        }
        let content = if metadata.is_symlink() {
            fs::read_link(&path).expect("a link").as_os_str().as_bytes().to_vec()
        } else if metadata.is_file() && metadata.size() < 1 << 30 {
            fs::read(&path).expect("a file")
        } else {
            Vec::new()
        };
        let first = first_names
            .entry((metadata.dev(), metadata.ino()))
            .or_insert_with(|| name.clone());
        let described = Described {
            kind: metadata.mode() & 0o170_000,
            mode: if metadata.is_symlink() {
                0
            } else {
                metadata.mode() & 0o7777
            },
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            size: if metadata.is_dir() { 0 } else { metadata.size() },
            content,
            same_as: first.clone(),
            attributes: attributes(&path, &metadata),
            has_holes: metadata.is_file() && metadata.size() > 0 && metadata.blocks() * 512 < metadata.size(),
        };
        tree.insert(name, described);
    }
    tree
}

fn attributes(path: &Path, metadata: &fs::Metadata) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    if metadata.is_file() || metadata.is_dir() {
        let mut names = vec![0; 64 * 1024];
        let length = rustix::fs::listxattr(path, &mut names[..]).expect("names of attributes");
        for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; 64 * 1024];
            let length = rustix::fs::getxattr(path, name, &mut value[..]).expect("an attribute");
            found.insert(name.to_vec(), value[..length].to_vec());
        }
    }
    found
}

/// Without what depends on where a tree lies.
pub(crate) fn assert_same(found: &Tree, expected: &Tree) {
    for (name, described) in expected {
        let shown = String::from_utf8_lossy(name);
        assert_eq!(found.get(name), Some(described), "{shown}");
    }
    let more: Vec<_> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
    assert!(more.is_empty(), "{more:?}");
}

pub(crate) fn open(path: &Path) -> OwnedFd {
    File::open(path).expect("a directory").into()
}

pub(crate) fn pack_options(spill: &Path) -> PackOptions<'_> {
    PackOptions {
        attributes: Attributes::User,
        changing: Changing::Counted,
        root: RootEntry::UnlessEmpty,
        special: Special::LeftOut,
        spill,
    }
}

pub(crate) fn packed(root: &Path) -> (Vec<u8>, PackReport) {
    let spill = tempfile::tempdir().expect("a directory");
    packed_with(root, &pack_options(spill.path())).expect("packed")
}

pub(crate) fn packed_with(root: &Path, options: &PackOptions<'_>) -> Result<(Vec<u8>, PackReport), ArchiveError> {
    let mut archive = Vec::new();
    let report = skep_archive::pack(open(root).as_fd(), options, &mut archive)?;
    Ok((archive, report))
}

pub(crate) fn applied(root: &Path, archive: &[u8], trust: Trust) -> Result<skep_archive::Applied, ArchiveError> {
    applied_with(root, archive, (ApplyMode::Replace, trust, Links::Refused))
}

pub(crate) fn applied_with(
    root: &Path,
    archive: &[u8],
    (mode, trust, links): (ApplyMode, Trust, Links),
) -> Result<skep_archive::Applied, ArchiveError> {
    let spill = tempfile::tempdir().expect("a directory");
    let options = ApplyOptions {
        mode,
        trust,
        owners: Owners::Kept,
        links,
        spill: spill.path(),
    };
    skep_archive::apply(open(root).as_fd(), archive, &options)
}

pub(crate) fn set_time(path: &Path, (seconds, nanos): (i64, i64)) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("a time");
}

pub(crate) fn special(path: &Path, kind: FileType) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), 0).expect("a special file");
}

/// Files with holes, hard links, odd names, strange modes, owners and times, attributes, links that lead nowhere.
pub(crate) fn hard_to_carry(root: &Path) {
    let at = |name: &str| root.join(name);
    let mode = |name: &str, bits| fs::set_permissions(at(name), fs::Permissions::from_mode(bits)).expect("a mode");
    for directory in [
        "empty",
        "venv/bin",
        "venv/lib/python3.11/site-packages",
        "closed",
        "setgid",
        "sticky",
    ] {
        fs::create_dir_all(at(directory)).expect("a directory");
    }
    for (link, target) in [
        ("venv/bin/python", "/usr/bin/python3"),
        ("venv/lib64", "lib"),
        ("dangling", "no/such/file"),
        ("absolute", "/etc/shadow"),
        ("up", "../../../../../../etc"),
        ("odd\nname ü", "odd\ttarget"),
    ] {
        symlink(target, at(link)).expect("a link");
    }
    let long = "l".repeat(200);
    symlink(&long, at("long-target")).expect("a link");
    for (name, content) in [
        ("nothing", &b""[..]),
        ("venv/bin/pip", b"#!/bin/sh\n"),
        ("closed/secret", b"secret"),
        ("-rf", b"an option"),
        (".wh.gone", b"a plain file"),
        (".wh..wh..opq", b"too"),
        ("block", &[7; 512]),
        ("block-and-one", &[7; 513]),
        (long.as_str(), b"a long name"),
    ] {
        fs::write(at(name), content).expect("a file");
    }
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfe not utf-8")), b"x").expect("a file");
    let deep = format!("{0}/{0}/{0}", "d".repeat(100));
    fs::create_dir_all(at(&deep)).expect("a directory");
    fs::write(at(&format!("{deep}/{}", "f".repeat(255))), b"deep").expect("a file");
    fs::hard_link(at("venv/bin/pip"), at("a-first-name")).expect("a link");
    fs::hard_link(at("venv/bin/pip"), at(&format!("{deep}/pip"))).expect("a link");
    sparse(&at("sparse"), 10 << 20, &[(0, b"start"), (5 << 20, b"middle")]).expect("holes");
    sparse(&at("sparse-to-its-end"), 3 << 20, &[((3 << 20) - 3, b"end")]).expect("holes");
    sparse(&at("all-hole"), 32 << 20, &[]).expect("holes");
    for (name, owner) in [
        ("block", (1000, 1000)),
        ("nothing", (65_534, 65_534)),
        ("venv", (1000, 0)),
    ] {
        std::os::unix::fs::chown(at(name), Some(owner.0), Some(owner.1)).expect("an owner");
    }
    std::os::unix::fs::lchown(at("dangling"), Some(1000), Some(65_534)).expect("an owner");
    for (name, value) in [
        ("user.plain", &b"value"[..]),
        ("user.odd=%3D", b"\0\n="),
        ("user.empty", b""),
    ]
    .iter()
    .map(|(name, value)| (*name, *value))
    {
        for of in ["block", "empty"] {
            rustix::fs::setxattr(at(of), name, value, XattrFlags::empty()).expect("an attribute");
        }
    }
    mode("closed/secret", 0);
    mode("closed", 0);
    mode("block", 0o4755);
    mode("setgid", 0o2775);
    mode("sticky", 0o1777);
    for (name, time) in [
        ("nothing", (-1, 500_000_000)),
        ("block", (1_700_000_000, 123_456_789)),
        ("dangling", (-86_400, 1)),
        ("empty", (i64::from(u32::MAX) + 5, 999_999_999)),
        ("venv", (1, 0)),
    ] {
        set_time(&at(name), time);
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o751)).expect("a mode");
}

fn sparse(path: &Path, size: u64, data: &[(u64, &[u8])]) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    for (offset, bytes) in data {
        file.write_all_at(bytes, *offset)?;
    }
    Ok(())
}
