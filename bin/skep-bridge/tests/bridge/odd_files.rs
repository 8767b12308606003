//! Copies and listings of what is no plain file.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use skep_bridge_protocol::workspace::workspace_client::WorkspaceClient;
use skep_bridge_protocol::workspace::*;

use crate::our_execs::{run, shell};
use crate::our_files::list;
use crate::workspace::Workspace;

#[tokio::test]
async fn a_copy_keeps_the_modes_of_directories() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    for (directory, mode) in [("tree", 0o1777), ("tree/group", 0o2775), ("there", 0o700)] {
        fs::create_dir(workspace.path("data").join(directory)).expect("a directory");
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(workspace.path("data").join(directory), mode).expect("a mode");
    }
    for to in ["new", "there"] {
        let request = CopyRequest {
            from: "tree".into(),
            to: to.into(),
        };
        client.copy(request).await.expect("copied");
    }
    let mode = |path: &str| fs::metadata(workspace.path(path)).expect("there").mode() & 0o7777;
    assert_eq!(
        (mode("data/new"), mode("data/new/group"), mode("data/there")),
        (0o1777, 0o2775, 0o700)
    );
}

#[tokio::test]
async fn a_copied_tree_has_no_sockets_and_parents_of_their_own_mode() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let tree = workspace.path("data/tree");
    fs::create_dir(&tree).expect("a directory");
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o1777)).expect("a mode");
    let _listener = std::os::unix::net::UnixListener::bind(tree.join("b-socket")).expect("a socket");
    for name in ["a-file", "c-file"] {
        fs::write(tree.join(name), name).expect("a file");
    }
    let copy = |from: &str, to: &str| CopyRequest {
        from: from.into(),
        to: to.into(),
    };
    client.copy(copy("tree", "new/parents/tree")).await.expect("copied");
    let mode = |path: &str| fs::metadata(workspace.path(path)).expect("there").mode() & 0o7777;
    assert_eq!(
        ["data/new", "data/new/parents", "data/new/parents/tree"].map(mode),
        [0o750, 0o750, 0o1777]
    );
    let copied = workspace.path("data/new/parents/tree");
    let mut names: Vec<_> = fs::read_dir(&copied)
        .expect("there")
        .map(|entry| entry.expect("one").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a-file", "c-file"]);
    client
        .copy(copy("tree/b-socket", "socket"))
        .await
        .expect_err("no copy of a socket alone");
}

#[tokio::test]
async fn a_copied_link_or_pipe_makes_its_parents_and_takes_the_place_of_a_file() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    symlink("nowhere", workspace.path("data/link")).expect("a link");
    run(&mut client, shell("pipe", "mkfifo /data/pipe")).await.expect("ran");
    fs::write(workspace.path("data/old"), b"old").expect("a file");
    for (from, to) in [
        ("link", "a/b/link"),
        ("link", "link"),
        ("pipe", "c/d/pipe"),
        ("pipe", "old"),
    ] {
        let request = CopyRequest {
            from: from.into(),
            to: to.into(),
        };
        client.copy(request).await.expect("copied");
    }
    let itself = fs::read_link(workspace.path("data/link")).expect("still there");
    assert_eq!(itself.to_str(), Some("nowhere"), "copied onto itself");
    let kind = |path: &str| fs::symlink_metadata(workspace.path(path)).expect("there").file_type();
    assert!(kind("data/a/b/link").is_symlink() && kind("data/c/d/pipe").is_fifo() && kind("data/old").is_fifo());
}

#[tokio::test]
async fn a_link_that_cannot_be_read_does_not_hide_what_is_beside_it() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    // Its parent never waits for it, being no shell any more when it ends: a zombie has no program.
    let text = "until grep -q ^sleep /proc/$$/cmdline; do :; done & echo $! > /data/zombie; exec sleep 100";
    client.start_exec(shell("zombie", text)).await.expect("started");
    let text = "until grep -q '^State:.Z' /proc/$(cat /data/zombie)/status; do sleep 0.02; done";
    let waiting = run(&mut client, shell("waiting", text)).await.expect("ran");
    assert_eq!(waiting.exit().exit_code, 0);
    let pid = fs::read_to_string(workspace.path("data/zombie")).expect("its number");
    let request = ListRequest {
        path: format!("/proc/{}", pid.trim()).into(),
        ..ListRequest::default()
    };
    let (entries, _) = list(&mut client, request).await;
    let link = entries.iter().find(|entry| entry.name == b"exe").expect("it is listed");
    assert!(link.link_target.is_empty() && entries.iter().any(|entry| entry.name == b"status"));
}

#[tokio::test]
async fn a_page_of_paths_of_any_length_is_one_that_a_host_takes() {
    const LEVELS: usize = 40;
    const FILES: usize = 600;
    let workspace = Workspace::start().await;
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut deepest = openat(CWD, workspace.path("data"), directory, Mode::empty()).expect("data");
    let long = "d".repeat(250);
    for _ in 0..LEVELS {
        mkdirat(&deepest, &long, Mode::RWXU).expect("a directory");
        deepest = openat(&deepest, &long, directory, Mode::empty()).expect("the directory");
    }
    for number in 0..FILES {
        let name = format!("{number:03}{}", "f".repeat(247));
        let new = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&deepest, name, new, Mode::RUSR).expect("a file");
    }
    // As long messages as a client takes by itself, and the host's too: 4 MiB.
    let mut client = WorkspaceClient::new(workspace.channel().await);
    let request = ListRequest {
        recursive: true,
        ..ListRequest::default()
    };
    let (entries, _) = list(&mut client, request).await;
    assert_eq!(entries.len(), LEVELS + FILES);
    assert!(entries.iter().all(|entry| entry.path.len() < 64 * 1024));
}
