//! What the bridge tells in its log, and what never.

use std::fs;

use skep_bridge_protocol::workspace::{ExecId, StartExecRequest};

use crate::calls::{LIMIT, command, run, until};
use crate::workspace::Workspace;

fn log_of(workspace: &Workspace) -> String {
    fs::read_to_string(workspace.path("run/memoh/bridge.log")).expect("the log")
}

#[tokio::test]
async fn starts_execs_and_the_end_are_told_with_times_and_numbers() {
    let mut workspace = Workspace::start().await;
    let reference = workspace.reference().await;
    run(&reference, command("exit 3")).await;
    let mut ours = workspace.ours().await;
    let request = StartExecRequest {
        exec_id: "of-its-own".into(),
        argv: vec![b"/bin/sleep".to_vec(), b"1000".to_vec()],
        ..StartExecRequest::default()
    };
    let pid = ours.start_exec(request).await.expect("started").into_inner().pid;
    let id = ExecId {
        exec_id: "of-its-own".into(),
    };
    ours.remove_exec(id).await.expect("ended");
    let ended = format!("exec of-its-own ended, pid {pid}, signal 15\n");
    until("the end is told", || log_of(&workspace).contains(&ended)).await;
    let log = log_of(&workspace);
    for part in [
        " started as process 1\n",
        " exec - started, pid ",
        ", exit code 3\n",
        &format!(" exec of-its-own started, pid {pid}\n"),
    ] {
        assert!(log.contains(part), "no {part:?} in {log}");
    }
    for line in log.lines() {
        let (time, rest) = line.split_once(' ').expect("a time");
        assert!(rest.starts_with("skep-bridge: "), "{line}");
        assert!(time.len() == 24 && time.ends_with('Z') && time.contains('T'), "{line}");
    }
    drop((reference, ours));
    workspace.signal_bridge("-TERM");
    workspace.wait_for_end(LIMIT).await;
    let log = log_of(&workspace);
    assert!(log.contains(" told to end\n") && log.ends_with(" ended\n"), "{log}");
}

#[tokio::test]
async fn nothing_of_a_command_its_arguments_or_its_environment_is_told() {
    let workspace = Workspace::start().await;
    let reference = workspace.reference().await;
    let mut first = command("echo s3cret-command; exit 4");
    first.env = vec!["NAME=s3cret-value".into()];
    first.stdin_data = b"s3cret-input"[..].into();
    run(&reference, first).await;
    let mut ours = workspace.ours().await;
    let request = StartExecRequest {
        exec_id: "wrong".into(),
        argv: vec![b"/bin/s3cret-program".to_vec(), b"s3cret-argument".to_vec()],
        ..StartExecRequest::default()
    };
    ours.start_exec(request).await.expect_err("there is no such program");
    until("both are told", || {
        let log = log_of(&workspace);
        log.contains(", exit code 4\n") && log.contains(" exec wrong was not started\n")
    })
    .await;
    assert!(!log_of(&workspace).contains("s3cret"), "{}", log_of(&workspace));
}

#[tokio::test]
async fn a_tenant_who_takes_the_log_away_loses_his_log_alone() {
    let workspace = Workspace::start().await;
    let reference = workspace.reference().await;
    let take = "until rm -rf /run/memoh/bridge.log && mkdir /run/memoh/bridge.log; do :; done";
    assert_eq!(run(&reference, command(take)).await.exit_code, 0);
    for _ in 0..20 {
        assert_eq!(run(&reference, command("echo works")).await.text(), "works\n");
    }
    run(&reference, command("rmdir /run/memoh/bridge.log")).await;
    run(&reference, command("true")).await;
    assert!(
        log_of(&workspace).contains(" lines could not be kept\n"),
        "{}",
        log_of(&workspace)
    );
}
