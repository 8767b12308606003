//! What is on disk of ended processes belongs to the workspace's root, who can put anything in its place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use skep_bridge_protocol::workspace::*;
use tokio::time::timeout;
use tonic::Code;

use crate::calls::{LIMIT, until};
use crate::our_execs::{Client, output, run, shell, status};
use crate::workspace::{Layout, Workspace};

type Spoil = fn(&Path);

/// Ended processes, and what is put in the place of the record of each.
const SPOILT: [(&str, Spoil); 5] = [
    ("pipe", be_pipe),
    ("link", be_link),
    ("tails", have_long_tails),
    ("other", be_of_another),
    ("large", have_large_status),
];

fn record_of(workspace: &Workspace, id: &str) -> PathBuf {
    workspace.path("var/lib/skep/exec").join(id).join("record")
}

fn be_pipe(record: &Path) {
    assert!(Command::new("mkfifo").arg(record).status().expect("mkfifo").success());
}

fn be_link(record: &Path) {
    std::os::unix::fs::symlink("../good/record", record).expect("a link");
}

fn have_long_tails(record: &Path) {
    const LENGTH: u32 = 64 << 20;
    let told = ExecStatus {
        stdout_bytes: u64::from(LENGTH),
        ..ended("tails")
    };
    put(record, &told, LENGTH);
    let file = fs::File::options().write(true).open(record).expect("the record");
    file.set_len(u64::from(LENGTH) + 4096).expect("a hole");
}

fn be_of_another(record: &Path) {
    put(record, &ended("good"), 0);
}

fn have_large_status(record: &Path) {
    let told = ExecStatus {
        argv: vec![vec![b'x'; 5 << 20]],
        ..ended("large")
    };
    put(record, &told, 0);
}

fn ended(id: &str) -> ExecStatus {
    ExecStatus {
        exec_id: id.into(),
        exited: true,
        started_unix_nanos: 1,
        finished_unix_nanos: i64::MAX,
        ..ExecStatus::default()
    }
}

fn put(record: &Path, status: &ExecStatus, stdout_tail: u32) {
    let status = status.encode_to_vec();
    let lengths = [status.len() as u32, stdout_tail, 0].map(u32::to_le_bytes);
    fs::write(record, [lengths.as_flattened(), &status].concat()).expect("a record");
}

fn spoil(workspace: &Workspace) {
    for (id, make) in SPOILT {
        let record = record_of(workspace, id);
        fs::create_dir_all(record.parent().expect("its directory")).expect("its directory");
        drop(fs::remove_file(&record));
        make(&record);
    }
}

async fn listed(client: &mut Client) -> Vec<String> {
    let answer = timeout(LIMIT, client.list_execs(Empty {})).await.expect("in time");
    let mut pages = answer.expect("listed").into_inner();
    let mut ids = Vec::new();
    while let Some(page) = timeout(LIMIT, pages.message()).await.expect("in time").expect("a page") {
        ids.extend(page.execs.into_iter().map(|exec| exec.exec_id));
    }
    ids
}

#[tokio::test]
async fn what_no_bridge_wrote_is_known_to_none() {
    let mut workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    for id in SPOILT.map(|(id, _)| id).into_iter().chain(["good"]) {
        run(&mut client, shell(id, "echo hello; exit 5")).await.expect("ran");
        until("it is on disk", || record_of(&workspace, id).exists()).await;
    }
    spoil(&workspace);
    // By its id, by its output and in a list.
    let unknown = timeout(LIMIT, status(&mut client, "pipe")).await.expect("in time");
    assert_eq!(unknown.expect_err("no record").code(), Code::NotFound);
    let request = ExecOutputRequest {
        exec_id: "tails".into(),
        stdout: true,
        ..ExecOutputRequest::default()
    };
    let unknown = timeout(LIMIT, client.exec_output(request)).await.expect("in time");
    assert_eq!(unknown.map(drop).expect_err("no record").code(), Code::NotFound);
    assert_eq!(listed(&mut client).await, ["good"]);
    until("it is gone from disk", || !record_of(&workspace, "large").exists()).await;
    drop(client);
    workspace.signal_bridge("-TERM");
    workspace.wait_for_end(LIMIT).await;
    spoil(&workspace);
    workspace.start_again(Layout::default()).await;
    let mut client = workspace.ours().await;
    assert_eq!(listed(&mut client).await, ["good"]);
    assert_eq!(output(&mut client, "good", 0, true).await.stdout, b"hello\n");
    let unknown = timeout(LIMIT, status(&mut client, "nobody")).await.expect("in time");
    assert_eq!(unknown.expect_err("unknown").code(), Code::NotFound);
}

#[tokio::test]
async fn a_removal_ends_what_a_leader_that_ended_long_ago_left_in_its_group() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let sleepers = || {
        let processes = workspace.processes();
        processes.iter().filter(|(_, name)| name == "sleep").count()
    };
    let left = "sleep 1000 > /dev/null 2>&1 < /dev/null &";
    for id in ["removed", "other"] {
        run(&mut client, shell(id, left)).await.expect("ran");
        until("it is on disk", || record_of(&workspace, id).exists()).await;
    }
    // By now the bridge has let go of both.
    for _ in 0..20 {
        assert_eq!(listed(&mut client).await, ["removed", "other"]);
    }
    assert_eq!(sleepers(), 2);
    let exec_id = "removed".to_owned();
    let removed = timeout(LIMIT, client.remove_exec(ExecId { exec_id })).await;
    removed.expect("in time").expect("removed");
    until("its group is gone", || sleepers() == 1).await;
    assert_eq!(listed(&mut client).await, ["other"]);
}

#[tokio::test]
async fn a_list_of_users_that_is_no_file_is_not_waited_for() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let users = workspace.path("etc/passwd");
    fs::remove_file(&users).expect("removed");
    be_pipe(&users);
    let request = StartExecRequest {
        user: "ann".into(),
        ..shell("by-ann", "true")
    };
    let refused = timeout(LIMIT, client.start_exec(request)).await.expect("in time");
    let refused = refused.expect_err("nobody is known");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("/etc/passwd"), "{refused}");
}
