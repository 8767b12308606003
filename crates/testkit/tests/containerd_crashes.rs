//! What is left when the server, a shim or containerd dies, and who clears it away.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use skep_names::BotId;
use skep_runtime::{Limits, Runtime, RuntimeError, RuntimeEvent, TaskState};
use skep_testkit::containerd_rig::{ContainerdRig, RigOptions, instance_spec, until};

const SCRIPT: &str = "trap 'exit 0' TERM; date +%s%N >> /starts; while :; do sleep 1 & wait; done";

async fn rig_with_a_workspace() -> (ContainerdRig, BotId) {
    let rig = ContainerdRig::start_with(RigOptions {
        script: Some(SCRIPT.into()),
        ..Default::default()
    })
    .await;
    let bot = BotId::random();
    rig.runtime().create(&instance_spec(&bot, &rig.image())).await.unwrap();
    rig.runtime().start(&bot, &Limits::default()).await.unwrap();
    until_started(&rig, &bot, 1).await;
    (rig, bot)
}

/// Process 1 writes a line at each of its starts.
async fn until_started(rig: &ContainerdRig, bot: &BotId, times: usize) {
    let file = rig.layer_on_disk(bot).join("starts");
    until("process 1 was started", async || {
        let lines = std::fs::read_to_string(&file).unwrap_or_default().lines().count();
        if lines == times {
            Ok(())
        } else {
            Err(format!("{lines} starts"))
        }
    })
    .await;
}

async fn until_task(rig: &ContainerdRig, bot: &BotId, wanted: impl Fn(TaskState) -> bool) {
    until("the task's state", async || {
        let seen = rig.runtime().inspect(bot).await.map(|found| found.unwrap().task);
        match seen {
            Ok(task) if wanted(task) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Processes with our containerd's address on their command line.
fn shims(rig: &ContainerdRig) -> Vec<i32> {
    let socket = rig.config().socket.to_string_lossy().into_owned();
    let mut shims = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("containerd-shim") && line.contains(&socket) {
            shims.push(entry.file_name().to_string_lossy().parse().unwrap());
        }
    }
    shims
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Whether one of five such calls, all refused, is refused within 2 s: any of them may come when there is other work.
async fn is_unavailable_at_once<T: Debug>(call: impl AsyncFn() -> Result<T, RuntimeError>) -> bool {
    for _ in 0..5 {
        let begun = Instant::now();
        let answer = call().await;
        assert!(matches!(answer, Err(RuntimeError::Unavailable { .. })), "{answer:?}");
        if begun.elapsed() < Duration::from_secs(2) {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn without_containerd_verbs_say_so_at_once_and_bridges_are_still_found() {
    let (mut rig, bot) = rig_with_a_workspace().await;
    let mut events = rig.runtime().events();
    let endpoint = rig.runtime().bridge_endpoint(&bot).unwrap();
    rig.server().kill().unwrap();
    assert!(is_unavailable_at_once(async || rig.runtime().inspect(&bot).await).await);
    assert!(is_unavailable_at_once(async || rig.runtime().stop(&bot, Duration::from_secs(1)).await).await);
    assert_eq!(rig.runtime().bridge_endpoint(&bot).unwrap(), endpoint);
    rig.server().start_again().await.unwrap();
    let next = async |wanted: RuntimeEvent, events: &mut tokio::sync::broadcast::Receiver<RuntimeEvent>| {
        let found = async { while events.recv().await.unwrap() != wanted {} };
        tokio::time::timeout(Duration::from_secs(20), found)
            .await
            .expect("an event")
    };
    next(RuntimeEvent::Disconnected, &mut events).await;
    next(RuntimeEvent::Reconnected, &mut events).await;
    until_task(&rig, &bot, |task| task == TaskState::Running).await;
    until_started(&rig, &bot, 1).await;
    rig.runtime().stop(&bot, Duration::from_secs(5)).await.unwrap();
    rig.runtime().remove(&bot).await.unwrap();
}

#[tokio::test]
async fn a_workspace_whose_shim_died_is_told_and_starts_again() {
    let (rig, bot) = rig_with_a_workspace().await;
    let mut events = rig.runtime().events();
    for shim in shims(&rig) {
        kill(shim);
    }
    let told = async {
        loop {
            if let RuntimeEvent::TaskExited { bot: dead, .. } = events.recv().await.unwrap() {
                return dead;
            }
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), told).await.unwrap(), bot);
    until_task(&rig, &bot, |task| task != TaskState::Running).await;
    rig.runtime().start(&bot, &Limits::default()).await.unwrap();
    until_started(&rig, &bot, 2).await;
    rig.runtime().remove(&bot).await.unwrap();
}

#[tokio::test]
async fn containerd_and_shim_dead_leave_a_whole_layer_and_the_sweep_clears_the_host() {
    let (mut rig, bot) = rig_with_a_workspace().await;
    rig.server().kill().unwrap();
    for shim in shims(&rig) {
        kill(shim);
    }
    rig.server().start_again().await.unwrap();
    until_task(&rig, &bot, |task| task != TaskState::Running).await;
    rig.runtime().sweep().await.unwrap();
    assert_eq!(rig.claims().unwrap().len(), 0);
    assert!(!rig.config().data_root.join("run").join(bot.as_str()).exists());
    rig.runtime().start(&bot, &Limits::default()).await.unwrap();
    until_started(&rig, &bot, 2).await;
    rig.runtime().remove(&bot).await.unwrap();
}

#[tokio::test]
async fn the_next_server_takes_up_what_runs_and_clears_what_the_last_one_left() {
    let (rig, bot) = rig_with_a_workspace().await;
    let run_dir = rig.config().run_root.join(&rig.config().data_root_id);
    let dead = BotId::random();
    // As a server killed between mounting a root and creating its task leaves it, for a live and for a dead bot.
    for left in [&bot, &dead] {
        let place = run_dir.join("root").join(left.as_str());
        std::fs::create_dir_all(&place).unwrap();
        rustix::mount::mount("tmpfs", &place, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    }
    let pin = std::path::PathBuf::from(format!("/run/netns/skep-{dead}"));
    std::fs::write(&pin, "").unwrap();
    rustix::mount::mount_bind("/proc/self/ns/net", &pin).unwrap();
    let next = rig.next_server();
    assert_eq!(
        next.bridge_endpoint(&bot).unwrap(),
        rig.runtime().bridge_endpoint(&bot).unwrap()
    );
    next.sweep().await.unwrap();
    assert!(!pin.exists());
    assert_eq!(std::fs::read_dir(run_dir.join("root")).unwrap().count(), 0);
    let found = next.inspect(&bot).await.unwrap().unwrap();
    assert_eq!(found.task, TaskState::Running);
    assert!(
        found
            .isolation
            .as_ref()
            .is_some_and(|isolation| isolation.user_namespace)
            && found.started_at.is_some()
    );
    assert!(next.start(&bot, &Limits::default()).await.unwrap().already_running);
    next.remove(&bot).await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_and_the_next_one_works() {
    let rig = ContainerdRig::start_with(RigOptions {
        script: Some(SCRIPT.into()),
        ..Default::default()
    })
    .await;
    let bot = BotId::random();
    rig.runtime().create(&instance_spec(&bot, &rig.image())).await.unwrap();
    let before = rig.traces();
    let bridge = rig.config().runtime_dir.join("bridge");
    let away = rig.config().runtime_dir.join("away");
    std::fs::rename(&bridge, &away).unwrap();
    rig.runtime().start(&bot, &Limits::default()).await.unwrap_err();
    assert_eq!(rig.traces(), before);
    std::fs::rename(&away, &bridge).unwrap();
    rig.runtime().start(&bot, &Limits::default()).await.unwrap();
    until_started(&rig, &bot, 1).await;
    rig.runtime().remove(&bot).await.unwrap();
}

/// A signal returns before it has stopped every thread: until then some of them answer.
async fn until_frozen(pid: i32) {
    let threads = std::path::PathBuf::from(format!("/proc/{pid}/task"));
    until("every thread of containerd stands still", async || {
        for thread in std::fs::read_dir(&threads).unwrap() {
            let stat = thread.unwrap().path().join("stat");
            let stat = std::fs::read_to_string(stat).unwrap_or_default();
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            if state.is_some_and(|state| state != 'T') {
                return Err(stat);
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_frozen_containerd_is_unavailable_within_its_limit() {
    let mut rig = ContainerdRig::start().await;
    let pid = rustix::process::Pid::from_raw(rig.server().pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    until_frozen(pid.as_raw_nonzero().get()).await;
    let checks = tokio::time::timeout(Duration::from_secs(30), rig.runtime().checks())
        .await
        .unwrap();
    let runtime = checks.iter().find(|check| check.name == "runtime").unwrap();
    assert_eq!(runtime.status, skep_runtime::CheckStatus::Error, "{runtime:?}");
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    rig.runtime().list().await.unwrap();
}
