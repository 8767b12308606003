//! What is cancelled does not come to pass, neither at once nor when the server looks again.

mod harness;

use std::time::Duration;

use harness::{LIMIT, World, admin, archive_of, until};
use skep_core::{
    AskedLimits, CreateRequest, DeleteData, Desired, OperationHandle, RestoreMode, RestoreRequest, SOURCE_PRE_EXEC,
    WorkspaceStatus,
};
use skep_names::BotId;
use skep_runtime::{Runtime, TaskState};
use skep_testkit::fake_runtime::Verb;

async fn stopped_bot(world: &World) -> BotId {
    let bot = world.running_bot().await;
    world.stop(&bot).await.unwrap();
    bot
}

async fn until_called(world: &World, verb: Verb, before: u64) {
    until(|| async {
        match world.runtime.faults().calls(verb) > before {
            true => Ok(()),
            false => Err(format!("{verb:?} was not called")),
        }
    })
    .await;
}

async fn cancel(world: &World, operation: &OperationHandle) {
    let cancelled = world.skep.cancel_operation(operation.id()).await.unwrap();
    assert_eq!(cancelled.state.as_str(), "cancelled");
}

/// Also for the next server, which looks at once.
async fn is_stopped_for_good(world: &mut World, bot: &BotId) {
    for _ in 0..2 {
        let info = world.skep.workspace_info(bot).await.unwrap();
        assert_eq!(
            (info.status, info.desired),
            (WorkspaceStatus::Stopped, Desired::Stopped)
        );
        assert!(!info.task_running);
        world.restart_within(LIMIT).await;
    }
}

#[tokio::test]
async fn a_cancelled_start_restart_or_create_of_a_stopped_workspace_leaves_it_stopped() {
    let mut world = World::new().await;
    let bot = stopped_bot(&world).await;
    for kind in ["start", "restart", "create"] {
        let before = world.runtime.faults().calls(Verb::Start);
        let hold = world.runtime.faults().hold(Verb::Start);
        let operation = match kind {
            "start" => world.skep.start_workspace(&bot, &admin()).await.unwrap(),
            "restart" => world.skep.restart_workspace(&bot, None, &admin()).await.unwrap(),
            _ => world.create(&bot).await,
        };
        until_called(&world, Verb::Start, before).await;
        cancel(&world, &operation).await;
        drop(hold);
        is_stopped_for_good(&mut world, &bot).await;
    }
}

#[tokio::test]
async fn what_a_cancelled_start_has_started_ends() {
    let mut world = World::new().await;
    let bot = stopped_bot(&world).await;
    world
        .runtime
        .replace_process_one(&bot, &["/bin/sh", "-c", "exec sleep 1000"]);
    let start = world.skep.start_workspace(&bot, &admin()).await.unwrap();
    until(|| async {
        match world.runtime.inspect(&bot).await.unwrap().unwrap().task {
            TaskState::Running => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    cancel(&world, &start).await;
    assert_eq!(
        world.runtime.inspect(&bot).await.unwrap().unwrap().task,
        TaskState::None
    );
    is_stopped_for_good(&mut world, &bot).await;
}

#[tokio::test]
async fn after_a_cancelled_stop_or_restart_what_ran_runs_again_soon() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    for kind in ["stop", "restart"] {
        // The stop is held, or its processes are down and the start that follows is.
        for verb in [Verb::Stop, Verb::Start] {
            if (kind, verb) == ("stop", Verb::Start) {
                continue;
            }
            let before = world.runtime.faults().calls(verb);
            let hold = world.runtime.faults().hold(verb);
            let operation = match kind {
                "stop" => world.skep.stop_workspace(&bot, None, &admin()).await.unwrap(),
                _ => world.skep.restart_workspace(&bot, None, &admin()).await.unwrap(),
            };
            until_called(&world, verb, before).await;
            cancel(&world, &operation).await;
            drop(hold);
            until(|| async {
                let info = world.skep.workspace_info(&bot).await.unwrap();
                match (info.status, info.desired, info.task_running) {
                    (WorkspaceStatus::Running, Desired::Running, true) => Ok(()),
                    other => Err(format!("after a cancelled {kind} held in {verb:?} there is {other:?}")),
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn limits_that_came_to_nothing_are_not_wanted() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let asked = |memory_bytes| AskedLimits {
        memory_bytes: Some(memory_bytes),
        ..AskedLimits::default()
    };
    let set = world
        .skep
        .set_workspace_limits(&bot, asked(64 << 20), &admin())
        .await
        .unwrap();
    set.outcome().await.unwrap();
    let busy = skep_runtime::RuntimeError::other("applying limits", std::io::Error::other("busy"));
    world.runtime.faults().fail_next(Verb::ApplyLimits, busy);
    let failed = world
        .skep
        .set_workspace_limits(&bot, asked(32 << 20), &admin())
        .await
        .unwrap();
    failed.outcome().await.unwrap_err();
    let limits = world.skep.workspace_info(&bot).await.unwrap().limits;
    assert_eq!(limits.wanted.memory_bytes, 64 << 20);
    assert_eq!(limits.applied.unwrap().memory_bytes, 64 << 20);
    // And those of a create that is cancelled.
    world.stop(&bot).await.unwrap();
    let before = world.runtime.faults().calls(Verb::Start);
    let hold = world.runtime.faults().hold(Verb::Start);
    let request = CreateRequest {
        limits: Some(asked(32 << 20)),
        ..CreateRequest::default()
    };
    let create = world.skep.create_workspace(&bot, request, &admin()).await.unwrap();
    until_called(&world, Verb::Start, before).await;
    cancel(&world, &create).await;
    drop(hold);
    let limits = world.skep.workspace_info(&bot).await.unwrap().limits;
    assert_eq!(limits.wanted.memory_bytes, 64 << 20);
}

/// A workspace that keeps one automatic version: it has that one and version 1, and a backup is kept aside.
async fn with_versions_and_a_backup(world: &World) -> BotId {
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let deleted = world.skep.delete_workspace(&bot, DeleteData::Preserve, &admin()).await;
    deleted.unwrap().outcome().await.unwrap();
    let aside = CreateRequest {
        restore_data: Some(false),
        ..CreateRequest::default()
    };
    let created = world.skep.create_workspace(&bot, aside, &admin()).await.unwrap();
    created.outcome().await.unwrap();
    for source in ["", SOURCE_PRE_EXEC] {
        world.write(&bot, "/data/file", "before").await;
        let taken = world.skep.take_snapshot(&bot, ("", source), &admin()).await.unwrap();
        taken.outcome().await.unwrap();
    }
    bot
}

async fn begin(world: &World, bot: &BotId, kind: &str) -> OperationHandle {
    let begun = match kind {
        "snapshot" => world.skep.take_snapshot(bot, ("", SOURCE_PRE_EXEC), &admin()).await,
        "snapshot_delete" => world.skep.delete_version(bot, 1, &admin()).await,
        "rollback" => world.skep.roll_back(bot, 1, &admin()).await,
        "import" => {
            let archive = archive_of("imported", "imported");
            let received = world.skep.receive_archive(bot, archive).await.unwrap();
            let import = (received, RestoreMode::Merge);
            world.skep.import_data(bot, import, &admin()).await
        }
        _ => world.skep.restore_data(bot, RestoreRequest::default(), &admin()).await,
    };
    begun.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_of_what_is_in_place_comes_too_late() {
    let mut world = World::with(|settings| settings.versions.keep_automatic = 1).await;
    let bot = with_versions_and_a_backup(&world).await;
    // The verb that follows when the change is in place.
    for (kind, verb) in [
        ("snapshot", Verb::RemoveLayer),
        ("rollback", Verb::Start),
        ("import", Verb::Start),
        ("restore", Verb::Start),
        ("snapshot_delete", Verb::RemoveLayer),
    ] {
        // The next server does not call off either what this one had settled.
        for crashes in [false, true] {
            if crashes && ["restore", "snapshot_delete"].contains(&kind) {
                continue;
            }
            let before = world.runtime.faults().calls(verb);
            let hold = world.runtime.faults().hold(verb);
            let operation = begin(&world, &bot, kind).await;
            until_called(&world, verb, before).await;
            if crashes {
                world.crash().await;
            }
            let cancelling = world.skep.cancel_operation(operation.id());
            let mut cancelling = std::pin::pin!(cancelling);
            let early = tokio::time::timeout(Duration::from_millis(200), &mut cancelling).await;
            assert!(early.is_err(), "{kind}: {early:?}");
            drop(hold);
            let ended = cancelling.await.unwrap();
            assert_eq!(ended.state.as_str(), "succeeded", "{kind}: {ended:?}");
        }
    }
    let left = world.skep.snapshots(&bot, None).await.unwrap().snapshots;
    assert!(left.iter().all(|one| one.version != Some(1)), "{left:?}");
}
