//! Several layers made into one that means the same, by hard links: no byte of a file is copied, but of one that has as
//! many links as its file system allows.
//!
//! A layer is a directory as overlayfs writes it: a character device 0:0 hides the name below, a directory with the
//! attribute `trusted.overlay.opaque` hides all of that directory below. The sources are committed and never change,
//! and nobody has the destination mounted; all is done below open directories, and no link is followed.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::upper::{accessed, modified};

const OPAQUE: &CStr = c"trusted.overlay.opaque";
const METACOPY: &CStr = c"trusted.overlay.metacopy";
/// Begins the names of what the host's security modules note: theirs to remove.
const SECURITY: &[u8] = b"security.";
/// Attributes of overlayfs under which a layer cannot be taken apart from those below it.
const BOUND: [&CStr; 2] = [c"trusted.overlay.redirect", METACOPY];
/// The largest list of attributes, and the largest attribute, that Linux has.
const ATTRIBUTE_BYTES: usize = 64 << 10;

/// Makes an empty directory the sum of these layers, the lowest first. It is on the disk when this returns.
///
/// # Errors
/// `Unsupported` for layers that cannot be taken apart; nothing but the destination was touched then.
pub(super) fn merge(layers: &[PathBuf], destination: &Path) -> io::Result<()> {
    let destination = open(destination)?;
    let mut links = Links::new(link);
    for layer in layers {
        links.apply(open(layer)?, destination.try_clone()?)?;
    }
    Ok(rustix::fs::syncfs(&destination)?)
}

type Link = fn(&OwnedFd, &CStr, &OwnedFd) -> rustix::io::Result<()>;

fn link(source: &OwnedFd, name: &CStr, target: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::linkat(source, name, target, name, AtFlags::empty())
}

/// How entries come into the destination.
struct Links {
    link: Link,
    /// Of files that have all the links they can have: the copy, by device and inode.
    copies: HashMap<(u64, u64), OwnedFd>,
}

impl Links {
    fn new(link: Link) -> Self {
        let copies = HashMap::new();
        Self { link, copies }
    }

    /// Puts one layer over what the destination has. Goes down and up by one open directory each, however deep.
    fn apply(&mut self, mut source: OwnedFd, mut target: OwnedFd) -> io::Result<()> {
        let mut open_directories = vec![names_in(&source)?];
        while let Some(names) = open_directories.last_mut() {
            let Some(name) = names.pop() else {
                copy_attributes(&source, &target)?;
                open_directories.pop();
                if !open_directories.is_empty() {
                    (source, target) = (open_at(&source, c"..")?, open_at(&target, c"..")?);
                }
                continue;
            };
            let stat = rustix::fs::statat(&source, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                self.put(&source, &name, &stat, &target)?;
                continue;
            }
            let below = open_at(&source, &name)?;
            make_directory(&below, &target, &name)?;
            open_directories.push(names_in(&below)?);
            (source, target) = (below, open_at(&target, &name)?);
        }
        Ok(())
    }

    /// Anything but a directory takes the place of what is there.
    fn put(&mut self, source: &OwnedFd, name: &CStr, stat: &Stat, target: &OwnedFd) -> io::Result<()> {
        remove(target, name)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            // Made anew: overlayfs itself links all its whiteouts, and there may be as many as a file can have links.
            let hidden = rustix::fs::mknodat(target, name, FileType::CharacterDevice, Mode::empty(), 0);
            return Ok(hidden?);
        }
        if kind == FileType::RegularFile {
            has_its_content(source, name)?;
        }
        match (self.link)(source, name, target) {
            Err(Errno::MLINK) if kind == FileType::RegularFile => self.put_copy(source, name, stat, target),
            linked => Ok(linked?),
        }
    }

    /// All links to a file that can have no more of them are links to one copy.
    fn put_copy(&mut self, source: &OwnedFd, name: &CStr, stat: &Stat, target: &OwnedFd) -> io::Result<()> {
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(copy) = self.copies.get(&inode) {
            match rustix::fs::linkat(copy, c"", target, name, AtFlags::EMPTY_PATH) {
                Err(Errno::MLINK) => {}
                linked => return Ok(linked?),
            }
        }
        self.copies.insert(inode, copy_file(source, name, stat, target)?);
        Ok(())
    }
}

/// With its holes, owner, mode, attributes and times.
fn copy_file(source: &OwnedFd, name: &CStr, stat: &Stat, target: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = rustix::fs::openat(source, name, flags | OFlags::RDONLY, Mode::empty())?;
    let new = flags | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let mut to = File::from(rustix::fs::openat(target, name, new, Mode::RUSR | Mode::WUSR)?);
    let mut from = File::from(from);
    let size = stat.st_size.cast_unsigned();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&from, SeekFrom::Hole(data))?;
        rustix::fs::seek(&from, SeekFrom::Start(data))?;
        rustix::fs::seek(&to, SeekFrom::Start(data))?;
        io::copy(&mut io::Read::take(&mut from, end - data), &mut to)?;
        at = end;
    }
    rustix::fs::ftruncate(&to, size)?;
    let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
    own(&to, stat)?;
    for (name, value) in attributes(&from)? {
        rustix::fs::fsetxattr(&to, &name, &value, XattrFlags::empty())?;
    }
    set_times(&to, stat)?;
    Ok(to)
}

fn own(file: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(file, Some(uid), Some(gid))?;
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode))?)
}

fn set_times(file: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let times = Timestamps {
        last_access: accessed(stat),
        last_modification: modified(stat),
    };
    Ok(rustix::fs::futimens(file, &times)?)
}

/// A layer may have a file's attributes alone, when it was mounted by others: its content is in the layer below, and the
/// link would be an empty file.
fn has_its_content(directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    match rustix::fs::fgetxattr(&file, METACOPY, &mut [0; 64]) {
        Err(Errno::NODATA) => Ok(()),
        Ok(_) | Err(Errno::RANGE) => Err(depends_on_the_one_below()),
        Err(error) => Err(error.into()),
    }
}

fn depends_on_the_one_below() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "a layer depends on the one below it by a redirection",
    )
}

/// A directory joins one that is there; over anything else it hides what is further below.
fn make_directory(source: &OwnedFd, target: &OwnedFd, name: &CStr) -> io::Result<()> {
    if is_opaque(source)? {
        remove(target, name)?;
    }
    let there = match rustix::fs::statat(target, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::NOENT) => None,
        Err(error) => return Err(error.into()),
    };
    match there {
        Some(FileType::Directory) => return Ok(()),
        Some(_) => remove(target, name)?,
        None => {}
    }
    rustix::fs::mkdirat(target, name, Mode::RWXU)?;
    if there.is_some() {
        let made = open_at(target, name)?;
        rustix::fs::fsetxattr(&made, OPAQUE, b"y", XattrFlags::empty())?;
    }
    Ok(())
}

/// Removes an entry with all below it; none is fine.
fn remove(parent: &OwnedFd, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let mut directory = open_at(parent, name)?;
    let mut open_directories = vec![(name.to_owned(), names_in(&directory)?)];
    while let Some((_, names)) = open_directories.last_mut() {
        if let Some(entry) = names.pop() {
            match rustix::fs::unlinkat(&directory, &entry, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    directory = open_at(&directory, &entry)?;
                    let below = names_in(&directory)?;
                    open_directories.push((entry, below));
                }
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        let Some((empty, _)) = open_directories.pop() else {
            break;
        };
        if open_directories.is_empty() {
            rustix::fs::unlinkat(parent, &empty, AtFlags::REMOVEDIR)?;
        } else {
            directory = open_at(&directory, c"..")?;
            rustix::fs::unlinkat(&directory, &empty, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}

/// Owner, mode, attributes and times of a directory, those of the upper one; what it hides stays hidden.
fn copy_attributes(source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(source)?;
    let opaque = is_opaque(target)?;
    own(target, &stat)?;
    for (name, _) in attributes(target)? {
        if !name.to_bytes().starts_with(SECURITY) {
            rustix::fs::fremovexattr(target, &name)?;
        }
    }
    for (name, value) in attributes(source)? {
        if BOUND.contains(&name.as_c_str()) {
            return Err(depends_on_the_one_below());
        }
        rustix::fs::fsetxattr(target, &name, &value, XattrFlags::empty())?;
    }
    if opaque {
        rustix::fs::fsetxattr(target, OPAQUE, b"y", XattrFlags::empty())?;
    }
    set_times(target, &stat)
}

fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    let mut value = [0; 8];
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA) => Ok(false),
        // Longer than any value it has.
        Err(Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn attributes(directory: &OwnedFd) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut names = vec![0; ATTRIBUTE_BYTES];
    let length = rustix::fs::flistxattr(directory, &mut names)?;
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name).map_err(io::Error::other)?;
        let mut value = vec![0; ATTRIBUTE_BYTES];
        let length = rustix::fs::fgetxattr(directory, &name, &mut value)?;
        value.truncate(length);
        found.push((name, value));
    }
    Ok(found)
}

fn names_in(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if ![&b"."[..], b".."].contains(&name.to_bytes()) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn open(directory: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(directory, DIRECTORY, Mode::empty())?)
}

fn open_at(parent: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?)
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use rustix::mount::{MountFlags, UnmountFlags};

    use super::*;

    /// Layers in a directory of their own that overlayfs can write; unmounted when dropped.
    struct Stack {
        root: tempfile::TempDir,
        layers: Vec<PathBuf>,
    }

    impl Stack {
        fn new() -> Self {
            let root = tempfile::tempdir_in("/var/tmp").unwrap();
            rustix::mount::mount("tmpfs", root.path(), "tmpfs", MountFlags::empty(), None).unwrap();
            std::fs::create_dir(root.path().join("m")).unwrap();
            let mut stack = Self { root, layers: vec![] };
            let image = stack.directory("image");
            stack.layers.push(image);
            stack
        }

        fn directory(&self, name: &str) -> PathBuf {
            let path = self.root.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        }

        /// Runs a shell in a new layer on all there are.
        fn write(&mut self, script: &str) {
            let (upper, work) = (format!("u{}", self.layers.len()), format!("w{}", self.layers.len()));
            let (upper, work) = (self.directory(&upper), self.directory(&work));
            let options = format!("upperdir={},workdir={}", upper.display(), work.display());
            self.mounted(&self.layers, Some(&options), |place| {
                let script = format!("set -e; cd {}; {script}", place.display());
                let output = Command::new("sh").args(["-c", &script]).output().unwrap();
                assert!(
                    output.status.success(),
                    "{script}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            });
            self.layers.push(upper);
        }

        fn mounted<T>(&self, layers: &[PathBuf], more: Option<&str>, look: impl FnOnce(&Path) -> T) -> T {
            let lower: Vec<_> = layers.iter().rev().map(|path| path.display().to_string()).collect();
            let mut options = format!("lowerdir={}", lower.join(":"));
            if lower.len() == 1 && more.is_none() {
                options.push_str(&format!(":{}", lower[0]));
            }
            if let Some(more) = more {
                options.push_str(&format!(",{more}"));
            }
            let place = self.root.path().join("m");
            let options = CString::new(options).unwrap();
            rustix::mount::mount("overlay", &place, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
            let seen = look(&place);
            rustix::mount::unmount(&place, UnmountFlags::DETACH).unwrap();
            seen
        }

        /// What is seen through these layers: kind, mode, owner, size, time, content or target, attributes.
        fn seen(&self, layers: &[PathBuf]) -> BTreeMap<PathBuf, String> {
            self.mounted(layers, None, |place| {
                let mut seen = BTreeMap::new();
                look(place, place, &mut seen);
                seen
            })
        }
    }

    impl Drop for Stack {
        fn drop(&mut self) {
            for place in [self.root.path().join("m"), self.root.path().to_owned()] {
                // The first is mounted only when a test failed.
                if let Err(error) = rustix::mount::unmount(&place, UnmountFlags::DETACH) {
                    eprintln!("{}: {error}", place.display());
                }
            }
        }
    }

    fn look(root: &Path, path: &Path, seen: &mut BTreeMap<PathBuf, String>) {
        let stat = std::fs::symlink_metadata(path).unwrap();
        let mut text = format!("{:o} {}:{} {}", stat.mode(), stat.uid(), stat.gid(), stat.rdev());
        text.push_str(&format!(" {}.{}", stat.mtime(), stat.mtime_nsec()));
        if stat.is_symlink() {
            text.push_str(&format!(" -> {}", std::fs::read_link(path).unwrap().display()));
        } else if stat.is_file() {
            text.push_str(&format!(" {:?}", std::fs::read(path).unwrap()));
        }
        if stat.is_dir() {
            let own = attributes(&open(path).unwrap()).unwrap();
            text.push_str(&format!(" {own:?}"));
            for entry in std::fs::read_dir(path).unwrap() {
                look(root, &entry.unwrap().path(), seen);
            }
        }
        seen.insert(path.strip_prefix(root).unwrap().to_owned(), text);
    }

    const FIRST: &str = "mkdir -p a/b/c d e/f g; echo 1 > a/one; echo 2 > a/b/two; echo 3 > d/three; echo f > e/f/four; \
        ln a/one g/linked; ln -s nowhere g/dangling; mkfifo g/fifo; mknod g/null c 1 3; touch -d @1.5 a/b; \
        chmod 2751 d; chown 7:8 d";
    const SECOND: &str = "rm a/one; rm -r d; mkdir d; echo new > d/new; rm -r e; echo file > e; chmod 700 a; \
        rm g/dangling; mkdir g/dangling; echo in > g/dangling/in; touch -d @9 a/b/two";
    const THIRD: &str = "rm e; mkdir e; echo back > e/back; rm -r a/b; mkdir a/b; echo over > d/new; rm g/fifo; \
        echo plain > g/fifo; mkdir -p deep/er; chmod 1777 .";

    #[test]
    fn a_file_whose_content_is_in_the_layer_below_is_not_taken_for_an_empty_one() {
        let mut stack = Stack::new();
        stack.write("echo content > file");
        stack.write("chmod 600 file");
        let upper = stack.layers.last().unwrap().join("file");
        rustix::fs::setxattr(&upper, METACOPY, b"", XattrFlags::empty()).unwrap();
        let refused = merge(&stack.layers[1..], &stack.directory("merged")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn merged_layers_look_the_same_as_they_did_one_on_the_other() {
        for first in 1..4 {
            let mut stack = Stack::new();
            let image = stack.layers[0].clone();
            for (name, text) in [("d", "below"), ("e", "below")] {
                std::fs::create_dir_all(image.join(name).join("image")).unwrap();
                std::fs::write(image.join(name).join("file"), text).unwrap();
            }
            for script in [FIRST, SECOND, THIRD, "rm -r d; touch a/again"] {
                stack.write(script);
                let kept = open(&stack.layers[stack.layers.len() - 1].join("a")).unwrap();
                rustix::fs::fsetxattr(&kept, c"trusted.kept", script.as_bytes(), XattrFlags::empty()).unwrap();
            }
            let expected = stack.seen(&stack.layers);
            for last in first + 1..=4 {
                let merged = stack.directory(&format!("merged-{first}-{last}"));
                merge(&stack.layers[first..=last], &merged).unwrap();
                let mut layers = stack.layers.clone();
                layers.splice(first..=last, [merged]);
                assert_eq!(stack.seen(&layers), expected, "layers {first} to {last}");
            }
        }
    }

    #[test]
    fn a_file_is_linked_and_never_copied() {
        let mut stack = Stack::new();
        stack.write("echo one > file; ln file other");
        let merged = stack.directory("merged");
        merge(&stack.layers[1..], &merged).unwrap();
        let inode = |path: PathBuf| std::fs::metadata(path).unwrap().ino();
        let of_layer = inode(stack.layers[1].join("file"));
        assert_eq!(inode(merged.join("file")), of_layer);
        assert_eq!(inode(merged.join("other")), of_layer);
    }

    /// As a file system on which a file has two links at most.
    fn link_twice(source: &OwnedFd, name: &CStr, target: &OwnedFd) -> rustix::io::Result<()> {
        let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match stat.st_nlink < 2 {
            true => link(source, name, target),
            false => Err(Errno::MLINK),
        }
    }

    #[test]
    fn a_file_that_can_have_no_more_links_is_copied_once() {
        let mut stack = Stack::new();
        stack.write(
            "echo begin > file; truncate -s 8M file; echo end >> file; chown 7:8 file; chmod 4751 file; \
             touch -d @1.5 file; ln file second; ln file third; echo other > other",
        );
        let layer = stack.layers[1].clone();
        rustix::fs::setxattr(layer.join("file"), c"user.kept", b"kept", XattrFlags::empty()).unwrap();
        let expected = stack.seen(&stack.layers);
        let merged = stack.directory("merged");
        let mut links = Links::new(link_twice);
        links.apply(open(&layer).unwrap(), open(&merged).unwrap()).unwrap();
        let stat = |place: &Path, name: &str| std::fs::metadata(place.join(name)).unwrap();
        let copy = stat(&merged, "file");
        assert_ne!(copy.ino(), stat(&layer, "file").ino());
        assert_eq!(copy.nlink(), 3, "one copy for all links");
        assert!(copy.blocks() < 100, "holes stay holes: {} blocks", copy.blocks());
        assert_eq!(stat(&merged, "other").ino(), stat(&layer, "other").ino());
        let kept = attributes(&rustix::fs::open(merged.join("third"), OFlags::RDONLY, Mode::empty()).unwrap()).unwrap();
        assert!(kept.contains(&(c"user.kept".to_owned(), b"kept".to_vec())), "{kept:?}");
        assert_eq!(stack.seen(&[stack.layers[0].clone(), merged]), expected);
    }

    #[test]
    fn what_security_modules_noted_is_not_removed() {
        let stack = Stack::new();
        let (source, target) = (stack.directory("source"), stack.directory("target"));
        for name in [c"security.kept", c"trusted.gone"] {
            rustix::fs::setxattr(&target, name, b"x", XattrFlags::empty()).unwrap();
        }
        copy_attributes(&open(&source).unwrap(), &open(&target).unwrap()).unwrap();
        let left = attributes(&open(&target).unwrap()).unwrap();
        let names: Vec<_> = left.iter().map(|(name, _)| name.as_c_str()).collect();
        assert!(
            names.contains(&c"security.kept") && !names.contains(&c"trusted.gone"),
            "{names:?}"
        );
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_merged() {
        let stack = Stack::new();
        let layer = stack.directory("deep");
        let mut at = open(&layer).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, c"long-name-of-a-directory", Mode::RWXU).unwrap();
            at = open_at(&at, c"long-name-of-a-directory").unwrap();
        }
        let merged = stack.directory("merged");
        merge(&[layer.clone(), layer], &merged).unwrap();
        let whole = open(stack.root.path()).unwrap();
        remove(&whole, c"merged").unwrap();
        remove(&whole, c"deep").unwrap();
        assert!(!stack.root.path().join("deep").exists());
    }
}
