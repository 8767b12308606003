//! Verbs do what they say, once, however often they are asked.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_names::{BotId, container_id_for};
use skep_runtime::{InstanceSpec, RuntimeError, RuntimeEvent, TaskState};
use tokio::time::Instant;

use super::{CASE_LIMIT, CASE_LIMITS, Subject, Workspace};
use crate::containerd_rig::{instance_spec, until};

/// A repeat of what is done is a success.
pub async fn verbs_may_be_repeated(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    assert!(
        runtime
            .start(&workspace.bot, &CASE_LIMITS)
            .await
            .unwrap()
            .already_running
    );
    assert_eq!(workspace.output("echo still here").await, "still here");
    for _ in 0..2 {
        workspace.stop().await;
        runtime.sweep().await.unwrap();
    }
    assert!(!workspace.start().await.already_running);
    for _ in 0..2 {
        workspace.remove().await;
    }
    workspace.stop().await;
}

/// A bot that has nothing.
pub async fn what_is_missing_is_told_as_missing(subject: &dyn Subject) {
    let (runtime, bot) = (subject.runtime(), BotId::random());
    assert!(runtime.inspect(&bot).await.unwrap().is_none());
    let is_missing = |error: RuntimeError| matches!(error, RuntimeError::NotFound { .. });
    assert!(is_missing(runtime.start(&bot, &CASE_LIMITS).await.unwrap_err()));
    assert!(is_missing(runtime.usage(&bot).await.unwrap_err()));
    assert!(is_missing(runtime.apply_limits(&bot, &CASE_LIMITS).await.unwrap_err()));
    assert!(is_missing(runtime.bridge_endpoint(&bot).unwrap_err()));
    assert_eq!(runtime.address(&bot).await.unwrap(), None);
    runtime.stop(&bot, Duration::ZERO).await.unwrap();
    runtime.remove(&bot).await.unwrap();
}

/// For a record that is lost: neither the image's variables nor everybody's.
pub async fn what_was_given_to_its_processes_is_told(subject: &dyn Subject) {
    let (runtime, workspace) = (subject.runtime(), Workspace::new(subject));
    assert!(runtime.given_environment(&workspace.bot).await.unwrap().is_empty());
    let given = BTreeMap::from([
        ("GIVEN".to_owned(), "a=b".to_owned()),
        ("LANG".to_owned(), "xx".to_owned()),
    ]);
    let spec = InstanceSpec {
        env: given.clone(),
        ..instance_spec(&workspace.bot, &subject.image())
    };
    runtime.create(&spec).await.unwrap();
    assert_eq!(runtime.given_environment(&workspace.bot).await.unwrap(), given);
    workspace.start().await;
    assert_eq!(runtime.given_environment(&workspace.bot).await.unwrap(), given);
    workspace.remove().await;
}

/// `list`, `inspect` and the task's state agree with what was done.
pub async fn a_list_tells_the_truth(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let (running, stopped) = (Workspace::running(subject).await, Workspace::new(subject));
    stopped.create().await;
    let mut listed: Vec<_> = runtime
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|one| (one.bot, one.task))
        .collect();
    let mut expected = vec![
        (running.bot.clone(), TaskState::Running),
        (stopped.bot.clone(), TaskState::None),
    ];
    listed.sort_by(|one, other| one.0.cmp(&other.0));
    expected.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(listed, expected);
    let one = runtime.inspect(&running.bot).await.unwrap().unwrap();
    assert_eq!(one.container_id, container_id_for(&running.bot));
    assert_eq!(
        (one.image.as_str(), one.task),
        (subject.image().as_str(), TaskState::Running)
    );
    assert!(one.started_at.is_some());
    let mut layers = runtime.bots_with_layers().await.unwrap();
    layers.sort();
    assert_eq!(layers, expected.iter().map(|one| one.0.clone()).collect::<Vec<_>>());
    running.remove().await;
    stopped.remove().await;
    assert!(runtime.list().await.unwrap().is_empty());
}

/// Asked for together, also right after something was done to one of them.
pub async fn many_are_told_as_each_is(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let (running, other) = (Workspace::running(subject).await, Workspace::new(subject));
    let nobody = BotId::random();
    let bots = [running.bot.clone(), other.bot.clone(), nobody];
    let as_each_is = async |after: &str, expected: [Option<TaskState>; 2]| {
        let many = runtime.inspect_all(&bots).await.unwrap();
        for bot in &bots {
            let one = runtime.inspect(bot).await.unwrap();
            assert_eq!(many.get(bot), one.as_ref(), "after {after}");
        }
        let tasks = [&running.bot, &other.bot].map(|bot| many.get(bot).map(|one| one.task));
        assert_eq!(tasks, expected, "after {after}");
    };
    let (runs, is_made) = (Some(TaskState::Running), Some(TaskState::None));
    as_each_is("nothing", [runs, None]).await;
    as_each_is("the same question", [runs, None]).await;
    other.create().await;
    as_each_is("a create", [runs, is_made]).await;
    other.start().await;
    as_each_is("a start", [runs, runs]).await;
    running.stop().await;
    as_each_is("a stop", [is_made, runs]).await;
    other.remove().await;
    as_each_is("a removal", [is_made, None]).await;
    running.remove().await;
    as_each_is("all was removed", [None, None]).await;
}

/// The event, the state and the next start.
pub async fn process_one_that_dies_is_told_and_started_again(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let mut events = runtime.events();
    // Process 1 of a pid namespace cannot be killed from inside: the host does it.
    let group = host_processes(subject, &workspace).await;
    rustix::process::kill_process(group, rustix::process::Signal::KILL).unwrap();
    let end = Instant::now() + CASE_LIMIT;
    loop {
        let event = tokio::time::timeout_at(end, events.recv())
            .await
            .expect("an event of its end")
            .unwrap();
        if let RuntimeEvent::TaskExited { bot, exit_status } = event {
            assert_eq!((&bot, exit_status), (&workspace.bot, 137));
            break;
        }
    }
    let seen = runtime.inspect(&workspace.bot).await.unwrap().unwrap().task;
    assert_ne!(seen, TaskState::Running);
    assert!(!workspace.start().await.already_running);
    workspace.remove().await;
}

/// The host's id of process 1: the one that listens on the bridge's socket.
async fn host_processes(subject: &dyn Subject, workspace: &Workspace<'_>) -> rustix::process::Pid {
    let endpoint = subject.runtime().bridge_endpoint(&workspace.bot).unwrap();
    let skep_runtime::BridgeEndpoint::Unix {
        directory, file_name, ..
    } = endpoint
    else {
        panic!("{endpoint:?} is not a socket");
    };
    let directory = std::fs::File::open(directory).unwrap();
    let path = format!(
        "/proc/self/fd/{}/{file_name}",
        std::os::fd::AsRawFd::as_raw_fd(&directory)
    );
    let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    rustix::net::sockopt::socket_peercred(&stream).unwrap().pid
}

/// A process that ignores SIGTERM does not outlive the grace.
pub async fn a_stubborn_process_is_killed_after_the_grace(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    let mark = format!("/stubborn-{}", workspace.bot);
    workspace
        .output(&format!(
            "(trap '' TERM INT HUP; touch {mark}; while :; do sleep 0.1; done) >/dev/null 2>&1 & \
             while ! test -e {mark}; do sleep 0.01; done"
        ))
        .await;
    let begun = std::time::Instant::now();
    let grace = Duration::from_secs(1);
    subject.runtime().stop(&workspace.bot, grace).await.unwrap();
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(900),
        "it was not given its grace: {took:?}"
    );
    assert!(took < Duration::from_secs(30), "{took:?}");
    let task = subject.runtime().inspect(&workspace.bot).await.unwrap().unwrap().task;
    assert_eq!(task, TaskState::None);
    workspace.remove().await;
}

/// Also those that left their group and session.
pub async fn a_stop_ends_every_process(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    // A name of its own in the process table.
    let mark = format!(
        "{}",
        u32::from_ne_bytes(workspace.bot.as_str().as_bytes()[..4].try_into().unwrap()) / 2
    );
    workspace
        .output(&format!(
            "setsid sleep {mark} >/dev/null 2>&1 </dev/null & sleep {mark} >/dev/null 2>&1 & true"
        ))
        .await;
    until("both sleeps run", async || match processes_with(&mark) {
        2 => Ok(()),
        other => Err(format!("{other} processes")),
    })
    .await;
    workspace.stop().await;
    assert_eq!(processes_with(&mark), 0);
    workspace.remove().await;
}

/// Processes of the host with exactly this word on their command line.
fn processes_with(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap();
    let lines = entries.filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    let has_word = |line: &Vec<u8>| {
        let mut words = line.split(|byte| *byte == 0);
        words.any(|one| one == word.as_bytes()) && line.starts_with(b"sleep")
    };
    lines.filter(has_word).count()
}

/// One work, eight good answers.
pub async fn eight_starts_at_once_are_one(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::new(subject);
    workspace.create().await;
    let starts = (0..8).map(|_| runtime.start(&workspace.bot, &CASE_LIMITS));
    let started = futures::future::try_join_all(starts).await.unwrap();
    assert_eq!(started.iter().filter(|one| !one.already_running).count(), 1);
    workspace.remove().await;
}

/// The suite compares traces around every case; this one adds a failed start between.
pub async fn a_removed_workspace_leaves_nothing(subject: &dyn Subject) {
    let before = subject.traces();
    for _ in 0..3 {
        let workspace = Workspace::running(subject).await;
        assert_ne!(
            subject.traces(),
            before,
            "the traces of a running workspace are not seen"
        );
        workspace.stop().await;
        workspace.remove().await;
        assert_eq!(subject.traces(), before);
    }
}

/// No layer, no container.
pub async fn an_image_that_is_not_there_is_told_and_leaves_nothing(subject: &dyn Subject) {
    let missing = "registry.invalid/nothing:1".parse().unwrap();
    let spec = crate::containerd_rig::instance_spec(&BotId::random(), &missing);
    let refused = subject.runtime().create(&spec).await;
    assert!(
        matches!(refused, Err(RuntimeError::ImageNotFound { .. })),
        "{refused:?}"
    );
}
