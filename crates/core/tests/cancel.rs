//! What is cancelled does not come to pass, neither at once nor when the server looks again.

mod harness;

use harness::{LIMIT, World, admin, until};
use skep_core::{AskedLimits, CreateRequest, Desired, OperationHandle, WorkspaceStatus};
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
