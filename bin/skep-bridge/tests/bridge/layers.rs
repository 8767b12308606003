//! Files of the lower layer of an overlay, as all are that were there when a version was taken.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags, mkdirat, mknodat, openat};
use skep_bridge_protocol::reason;
use skep_bridge_protocol::workspace::*;
use tonic::{Code, Status};

use crate::our_files::{Client, reason_of};
use crate::workspace::{Layout, Workspace};

/// More than any path can name, with the length of each.
const LEVELS: usize = 300;
const LONG_NAME: &str = "a-directory-of-some-length";

/// A workspace with an overlay at `/layered`.
async fn layered(prepare: fn(&Path)) -> (Workspace, Client) {
    let workspace = Workspace::with(Layout {
        prepare,
        ..Layout::default()
    })
    .await;
    let client = workspace.ours().await;
    (workspace, client)
}

/// What that overlay needs; the path of its lower layer.
fn make_layers(root: &Path) -> PathBuf {
    for directory in ["layers/lower", "layers/upper", "layers/work", "layered"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    root.join("layers/lower")
}

/// A path as the processes of the workspace see it, mounts included.
fn seen(workspace: &Workspace, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", workspace.bridge_pid()))
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

fn make_deep_tree(parent: &Path) {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let mut at = openat(CWD, parent, flags, Mode::empty()).expect("opened");
    for _ in 0..LEVELS {
        mkdirat(&at, LONG_NAME, Mode::RWXU).expect("made");
        openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("a file");
        at = openat(&at, LONG_NAME, flags, Mode::empty()).expect("opened");
    }
}

/// A bit of everything that a copy can lose.
fn make_hard_tree(tree: &Path) {
    fs::create_dir_all(tree.join("shared/empty")).expect("directories");
    fs::write(tree.join("one"), "of two names").expect("a file");
    fs::hard_link(tree.join("one"), tree.join("shared/two")).expect("a link");
    symlink("one", tree.join("link")).expect("a link");
    symlink("/nowhere", tree.join("shared/dangling")).expect("a link");
    let sparse = File::create(tree.join("sparse")).expect("a file");
    sparse.set_len(8 << 20).expect("a hole");
    sparse.write_all_at(b"in the middle", 4 << 20).expect("written");
    for (name, kind) in [("pipe", FileType::Fifo), ("socket", FileType::Socket)] {
        mknodat(CWD, tree.join(name), kind, Mode::RWXU, 0).expect("a node");
    }
    for (name, owner, mode) in [
        ("one", 1000, 0o640),
        ("sparse", 0, 0o4755),
        ("shared", 1000, 0o2775),
        ("shared/empty", 0, 0),
        ("pipe", 1000, 0o622),
    ] {
        chown(tree.join(name), Some(owner), Some(50)).expect("owned");
        fs::set_permissions(tree.join(name), Permissions::from_mode(mode)).expect("its mode");
    }
    for (number, name) in (1..).zip(["one", "shared/empty", "shared", ""]) {
        let path = tree.join(name);
        rustix::fs::setxattr(&path, "user.note", name.as_bytes(), XattrFlags::empty()).expect("an attribute");
        let at = UNIX_EPOCH + Duration::new(1_600_000_000, number);
        let times = FileTimes::new().set_modified(at);
        File::open(&path)
            .and_then(|file| file.set_times(times))
            .expect("its time");
    }
}

/// What there is of each name below a directory, itself included, in words.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut told = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(name) = pending.pop() {
        let path = root.join(&name);
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        if metadata.is_dir() {
            pending.extend(names(&path).iter().rev().map(|below| name.join(below)));
        }
        let first = first_names
            .entry(metadata.ino())
            .or_insert_with(|| name.clone())
            .clone();
        let mut note = [0; 64];
        let noted = match metadata.is_file() || metadata.is_dir() {
            true => rustix::fs::getxattr(&path, "user.note", &mut note[..]).unwrap_or(0),
            false => 0,
        };
        let content = metadata.is_file().then(|| fs::read(&path).expect("read"));
        let line = format!(
            "{:o} {}:{} {:?} {:?} first {first:?} holes {} note {:?}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            fs::read_link(&path).ok(),
            content.map(|content| (content.len(), content.iter().map(|&byte| u64::from(byte)).sum::<u64>())),
            metadata.is_file() && metadata.blocks() * 512 < metadata.len(),
            &note[..noted],
        );
        let time = format!(" {}.{}", metadata.mtime(), metadata.mtime_nsec());
        told.insert(name, line + &time);
    }
    told
}

async fn rename(client: &mut Client, from: &str, to: &str) -> Result<(), Status> {
    let request = RenameRequest {
        from: from.into(),
        to: to.into(),
        only_in_place: false,
    };
    client.rename(request).await.map(drop)
}

#[tokio::test]
async fn a_directory_of_a_lower_layer_is_renamed_with_all_that_is_in_it() {
    let (workspace, mut client) = layered(|root| make_hard_tree(&make_layers(root).join("tree"))).await;
    let top = seen(&workspace, "/layered");
    let before = describe(&top.join("tree"));
    rename(&mut client, "/layered/tree", "/layered/moved")
        .await
        .expect("renamed");
    assert_eq!(names(&top), ["moved"], "nothing stays under another name");
    assert_eq!(describe(&top.join("moved")), before);
    fs::create_dir(top.join("empty")).expect("made");
    rename(&mut client, "/layered/moved", "/layered/empty")
        .await
        .expect("an empty directory is replaced");
    assert_eq!(describe(&top.join("empty")), before);
}

#[tokio::test]
async fn what_may_not_be_copied_is_renamed_in_its_own_layer_alone() {
    let (workspace, mut client) = layered(|root| make_hard_tree(&make_layers(root).join("tree"))).await;
    let top = seen(&workspace, "/layered");
    let before = describe(&top.join("tree"));
    fs::create_dir(top.join("own")).expect("a directory of the upper layer");
    let in_place = |from: &str, to: &str| RenameRequest {
        from: from.into(),
        to: to.into(),
        only_in_place: true,
    };
    let copied = client.rename(in_place("/layered/tree", "/layered/moved")).await;
    let error = copied.expect_err("a copy");
    assert_eq!(
        (error.code(), reason_of(&error)),
        (Code::ResourceExhausted, reason::NO_SPACE)
    );
    client
        .rename(in_place("/layered/own", "/layered/renamed"))
        .await
        .expect("renamed");
    assert_eq!(names(&top), ["renamed", "tree"]);
    assert_eq!(describe(&top.join("tree")), before);
}

#[tokio::test]
async fn what_a_rename_refuses_it_refuses_of_a_lower_layer_too() {
    let (workspace, mut client) = layered(|root| {
        let lower = make_layers(root);
        make_hard_tree(&lower.join("tree"));
        fs::create_dir_all(lower.join("full/of")).expect("made");
        fs::write(lower.join("file"), "x").expect("a file");
    })
    .await;
    let top = seen(&workspace, "/layered");
    let before = describe(&top);
    for (to, code, word) in [
        ("/layered/full", Code::FailedPrecondition, reason::NOT_EMPTY),
        ("/layered/file", Code::FailedPrecondition, reason::NOT_A_DIRECTORY),
        ("/layered/tree/shared/new", Code::InvalidArgument, ""),
        ("/layered/missing/new", Code::NotFound, ""),
        // In another file system.
        ("/small/tree", Code::PermissionDenied, ""),
    ] {
        let error = rename(&mut client, "/layered/tree", to).await.expect_err(to);
        assert_eq!((error.code(), reason_of(&error)), (code, word), "{to}: {error}");
        assert!(error.message().starts_with(to), "{error}");
    }
    assert_eq!(names(&seen(&workspace, "/small")), [""; 0], "no part of the copy stays");
    assert_eq!(describe(&top), before);
}

#[tokio::test]
async fn no_file_comes_to_another_file_system_or_out_of_one_that_makes_it_up() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    fs::write(workspace.path("data/file"), "kept").expect("a file");
    for (from, to) in [("/data/file", "/small/file"), ("/proc/version", "/data/file")] {
        let error = rename(&mut client, from, to).await.expect_err(from);
        assert_eq!(error.code(), Code::PermissionDenied, "{from}: {error}");
    }
    assert_eq!(fs::read(workspace.path("data/file")).expect("read"), b"kept");
    assert_eq!(names(&seen(&workspace, "/small")), [""; 0]);
}

#[tokio::test]
async fn a_tree_deeper_than_any_path_is_renamed_in_a_lower_layer() {
    let (workspace, mut client) = layered(|root| make_deep_tree(&make_layers(root))).await;
    let from = format!("/layered/{LONG_NAME}");
    rename(&mut client, &from, "/layered/moved").await.expect("renamed");
    assert_eq!(names(&seen(&workspace, "/layered")), ["file", "moved"]);
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let mut at = openat(CWD, seen(&workspace, "/layered/moved"), flags, Mode::empty()).expect("opened");
    for _ in 1..LEVELS {
        openat(&at, "file", OFlags::RDONLY, Mode::empty()).expect("its file");
        at = openat(&at, LONG_NAME, flags, Mode::empty()).expect("all levels");
    }
}

#[tokio::test]
async fn a_deep_tree_of_a_lower_layer_is_removed() {
    let (workspace, mut client) = layered(|root| make_deep_tree(&make_layers(root))).await;
    let request = RemoveRequest {
        path: format!("/layered/{LONG_NAME}").into(),
        recursive: true,
    };
    client.remove(request).await.expect("removed");
    assert_eq!(names(&seen(&workspace, "/layered")), ["file"]);
}
