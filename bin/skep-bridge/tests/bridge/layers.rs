//! Files of the lower layer of an overlay, as all are that were there when a version was taken.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use skep_bridge_protocol::workspace::*;

use crate::our_files::Client;
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
