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
    let refused = merge(&stack.layers[1..], &stack.directory("merged"), &|| true).unwrap_err();
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
            merge(&stack.layers[first..=last], &merged, &|| true).unwrap();
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
    merge(&stack.layers[1..], &merged, &|| true).unwrap();
    let inode = |path: PathBuf| std::fs::metadata(path).unwrap().ino();
    let of_layer = inode(stack.layers[1].join("file"));
    assert_eq!(inode(merged.join("file")), of_layer);
    assert_eq!(inode(merged.join("other")), of_layer);
}

/// As a file system on which a file has so many links at most.
fn link_to<const MOST: u64>(source: &OwnedFd, name: &CStr, target: &OwnedFd) -> rustix::io::Result<()> {
    let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match stat.st_nlink < MOST {
        true => link(source, name, target),
        false => Err(Errno::MLINK),
    }
}

/// A file of three names and holes, and another one.
fn of_many_names() -> (Stack, PathBuf) {
    let mut stack = Stack::new();
    stack.write(
        "echo begin > file; truncate -s 8M file; echo end >> file; chown 7:8 file; chmod 4751 file; \
         touch -d @1.5 file; ln file second; ln file third; echo other > other",
    );
    let layer = stack.layers[1].clone();
    rustix::fs::setxattr(layer.join("file"), c"user.kept", b"kept", XattrFlags::empty()).unwrap();
    (stack, layer)
}

#[test]
fn a_file_that_cannot_have_a_link_for_each_name_is_copied_once() {
    // Full at the first of its names, or in the middle of them.
    copied_once(link_to::<3>);
    copied_once(link_to::<4>);
    copied_once(link_to::<5>);
}

fn copied_once(link: Link) {
    let (stack, layer) = of_many_names();
    let expected = stack.seen(&stack.layers);
    let merged = stack.directory("merged");
    let mut links = Links::new(link, &|| true);
    links
        .merge(std::slice::from_ref(&layer), &open(&merged).unwrap())
        .unwrap();
    let stat = |place: &Path, name: &str| std::fs::metadata(place.join(name)).unwrap();
    let copy = stat(&merged, "file");
    assert_ne!(copy.ino(), stat(&layer, "file").ino());
    assert_eq!(copy.nlink(), 3, "one copy for all links");
    assert!(copy.blocks() < 100, "holes stay holes: {} blocks", copy.blocks());
    assert_eq!(stat(&merged, "other").ino(), stat(&layer, "other").ino());
    let kept = attributes(&rustix::fs::open(merged.join("third"), OFlags::RDONLY, Mode::empty()).unwrap()).unwrap();
    assert!(kept.contains(&(c"user.kept".to_owned(), b"kept".to_vec())), "{kept:?}");
    assert_eq!(stack.seen(&[stack.layers[0].clone(), merged]), expected);
    assert_eq!(stat(&layer, "file").nlink(), 3, "no link is left behind");
}

#[test]
fn what_has_no_content_and_can_have_no_more_links_is_made_anew() {
    let mut stack = Stack::new();
    stack.write("ln -s nowhere link; mkfifo pipe; chown -h 7:8 link pipe; chmod 4751 pipe; touch -h -d @1.5 link pipe");
    let layer = stack.layers[1].clone();
    let socket = std::os::unix::net::UnixListener::bind(layer.join("socket")).unwrap();
    drop(socket);
    for name in ["link", "pipe", "socket"] {
        let kept = rustix::fs::lsetxattr(layer.join(name), c"trusted.kept", name.as_bytes(), XattrFlags::empty());
        kept.unwrap();
        std::fs::hard_link(layer.join(name), layer.join(format!("{name}-too"))).unwrap();
    }
    let expected = stack.seen(&stack.layers);
    let merged = stack.directory("merged");
    // One of the two names finds room.
    let mut links = Links::new(link_to::<3>, &|| true);
    links
        .merge(std::slice::from_ref(&layer), &open(&merged).unwrap())
        .unwrap();
    for name in ["link", "pipe", "socket"] {
        for name in [name.to_owned(), format!("{name}-too")] {
            let mut value = [0; 16];
            let length = rustix::fs::lgetxattr(merged.join(&name), c"trusted.kept", &mut value).unwrap();
            assert!(name.as_bytes().starts_with(&value[..length]), "{name}");
        }
    }
    assert_eq!(stack.seen(&[stack.layers[0].clone(), merged]), expected);
}

#[test]
fn a_merge_that_nobody_wants_any_more_ends_at_the_next_entry_or_piece() {
    let (stack, layer) = of_many_names();
    let asked = std::cell::Cell::new(0);
    let merged = |name: &str, most: u32| {
        asked.set(0);
        let is_wanted = || {
            asked.set(asked.get() + 1);
            asked.get() <= most
        };
        let mut links = Links::new(link_to::<3>, &is_wanted);
        links.merge(std::slice::from_ref(&layer), &open(&stack.directory(name)).unwrap())
    };
    merged("whole", u32::MAX).unwrap();
    let whole = asked.get();
    // The entries of both rounds, what the first one made, and pieces of the file.
    assert!(whole > 4 + 1 + 4, "asked {whole} times");
    for most in 0..whole {
        let stopped = merged(&format!("to-{most}"), most).unwrap_err();
        assert_eq!((stopped.kind(), asked.get()), (io::ErrorKind::Interrupted, most + 1));
    }
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
    merge(&[layer.clone(), layer], &merged, &|| true).unwrap();
    let whole = open(stack.root.path()).unwrap();
    remove(&whole, c"merged").unwrap();
    remove(&whole, c"deep").unwrap();
    assert!(!stack.root.path().join("deep").exists());
}
