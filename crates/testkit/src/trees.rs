//! A tree that is hard to carry, and all that can be told of a tree, for comparing one with another.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// Length of the sparse file.
const SPARSE_BYTES: u64 = 64 << 20;

/// What there is of each name below a root, the root itself as an empty name, in words.
pub type Tree = BTreeMap<Vec<u8>, String>;

/// Makes, below a directory that exists, a bit of everything: links that dangle, are absolute and lead to
/// directories, hard links, a sparse file, empty files and directories, odd names, modes 0000 and setuid, owners 0,
/// 1000 and 65534, times of a nanosecond, attributes, an access list, a FIFO of two names and a socket. As root.
///
/// # Errors
/// Those of the file system.
pub fn make_hard_tree(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root.join("venv/lib/python"))?;
    fs::write(root.join("venv/lib/python/site.py"), "import this\n")?;
    symlink("lib", root.join("venv/lib64"))?;
    symlink("/usr/bin/python3", root.join("venv/python"))?;
    symlink("/nowhere/at all", root.join("dangling"))?;
    symlink("/etc", root.join("link-to-etc"))?;
    symlink("/etc/shadow", root.join("link-to-shadow"))?;
    fs::write(root.join("one"), "shared")?;
    fs::hard_link(root.join("one"), root.join("venv/two"))?;
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(SPARSE_BYTES)?;
    sparse.write_all_at(b"in the middle", SPARSE_BYTES / 2)?;
    fs::write(root.join("empty"), "")?;
    fs::create_dir(root.join("empty-directory"))?;
    for name in [
        " leading",
        "new\nline",
        "-rf",
        "ünïcode",
        ".wh.file",
        "quote'\"",
        &"n".repeat(255),
    ] {
        fs::write(root.join(name), name)?;
    }
    let raw = std::ffi::OsStr::from_bytes(b"not-\xff-text");
    fs::write(root.join(raw), "raw")?;
    modes_and_owners(root)?;
    let fifo = root.join("pipe");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o622), 0)?;
    fs::hard_link(&fifo, root.join("pipe of two names"))?;
    rustix::fs::mknodat(
        CWD,
        root.join("socket"),
        FileType::Socket,
        Mode::from_raw_mode(0o755),
        0,
    )?;
    let attributed = root.join("attributed");
    fs::write(&attributed, "with more")?;
    rustix::fs::setxattr(&attributed, "user.note", b"kept\0whole", XattrFlags::empty())?;
    rustix::fs::setxattr(
        root.join("empty-directory"),
        "user.of",
        b"a directory",
        XattrFlags::empty(),
    )?;
    access_list(root)?;
    times(root)
}

/// A directory where one more user may write, in all that will be made in it too; what is there has no list.
fn access_list(root: &Path) -> io::Result<()> {
    let directory = root.join("with-a-list");
    fs::create_dir(&directory)?;
    fs::create_dir(directory.join("directory"))?;
    fs::write(directory.join("file"), "without a list")?;
    // Owner, user 1000, group, mask and others, as the kernel has them: a tag, what it may, an id.
    let entries: [(u16, u16, u32); 5] = [
        (1, 7, u32::MAX),
        (2, 6, 1000),
        (4, 5, u32::MAX),
        (16, 7, u32::MAX),
        (32, 5, u32::MAX),
    ];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, may, id) in entries {
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&may.to_le_bytes());
        list.extend_from_slice(&id.to_le_bytes());
    }
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        rustix::fs::setxattr(&directory, name, &list, XattrFlags::empty())?;
    }
    Ok(())
}

fn modes_and_owners(root: &Path) -> io::Result<()> {
    for (name, mode, owner) in [
        ("closed", 0o000, 1000),
        ("setuid", 0o4755, 0),
        ("setgid", 0o2755, 1000),
        ("of-nobody", 0o600, 65534),
    ] {
        let path = root.join(name);
        fs::write(&path, name)?;
        chown(&path, Some(owner), Some(owner))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    let shared = root.join("setgid-directory");
    fs::create_dir(&shared)?;
    chown(&shared, Some(0), Some(50))?;
    fs::set_permissions(&shared, Permissions::from_mode(0o2775))?;
    let locked = root.join("locked");
    fs::create_dir(&locked)?;
    fs::write(locked.join("inside"), "seen by root alone")?;
    fs::set_permissions(&locked, Permissions::from_mode(0o000))?;
    lchown(root.join("dangling"), Some(1000), Some(1000))
}

/// Different for each name, and odd in its nanoseconds; from the leaves up, since a directory changes with them.
fn times(root: &Path) -> io::Result<()> {
    let mut names: Vec<Vec<u8>> = describe(root)?.into_keys().collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    for (index, name) in (1_i64..).zip(&names) {
        let at = Timespec {
            tv_sec: 1_600_000_000 + index * 1000,
            tv_nsec: 123_456_789 + index,
        };
        let both = Timestamps {
            last_access: at,
            last_modification: at,
        };
        let path = root.join(std::ffi::OsStr::from_bytes(name));
        rustix::fs::utimensat(CWD, &path, &both, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// All that can be told of a tree without changing it.
///
/// # Errors
/// Those of the file system.
pub fn describe(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut first_names: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(name) = pending.pop() {
        let path = root.join(std::ffi::OsStr::from_bytes(&name));
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                let below = entry?.file_name();
                let slash = if name.is_empty() { &b""[..] } else { b"/" };
                pending.push([&name, slash, below.as_bytes()].concat());
            }
            pending.sort_by(|one, other| other.cmp(one));
        }
        let identity = (metadata.dev(), metadata.ino());
        let first = first_names.entry(identity).or_insert_with(|| name.clone()).clone();
        tree.insert(name, in_words(&path, &metadata, &first)?);
    }
    Ok(tree)
}

fn in_words(path: &Path, metadata: &fs::Metadata, first_name: &[u8]) -> io::Result<String> {
    let content = match metadata {
        link if link.is_symlink() => format!("{:?}", fs::read_link(path)?),
        file if file.is_file() => format!("{} bytes {:x}", file.len(), sum(path)?),
        _ => String::new(),
    };
    let holes = metadata.is_file() && metadata.blocks() * 512 < metadata.len();
    Ok(format!(
        "{:o} {}:{} {}.{:09} {content} first {:?} holes {holes} {:?}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        String::from_utf8_lossy(first_name),
        attributes(path, metadata)?,
    ))
}

/// FNV-1a: enough to tell two contents apart.
fn sum(path: &Path) -> io::Result<u64> {
    let content = fs::read(path)?;
    let add = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    Ok(content.iter().fold(0xcbf2_9ce4_8422_2325, add))
}

fn attributes(path: &Path, metadata: &fs::Metadata) -> io::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    if !metadata.is_file() && !metadata.is_dir() {
        return Ok(found);
    }
    let mut names = vec![0; 64 * 1024];
    let length = rustix::fs::listxattr(path, &mut names[..])?;
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 * 1024];
        let length = rustix::fs::getxattr(path, name, &mut value[..])?;
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        found.insert(shown(name), shown(&value[..length]));
    }
    Ok(found)
}
