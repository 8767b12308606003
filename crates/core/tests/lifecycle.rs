//! Start, stop, delete, deaths, crashes of the server, and a runtime that is away.

mod harness;

use std::time::Duration;

use futures::StreamExt;
use harness::{LIMIT, World, admin, until};
use skep_core::{
    AskedLimits, BotStatus, CheckType, Code, CreateBot, DeleteData, Desired, OperationHandle, WorkspaceStatus,
};
use skep_names::BotId;
use skep_runtime::{Runtime, RuntimeError, TaskState};
use skep_testkit::fake_runtime::{Hold, Verb};

#[tokio::test]
async fn repeated_starts_and_stops_are_accepted() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    for _ in 0..2 {
        world.start(&bot).await.unwrap();
    }
    for _ in 0..2 {
        world.stop(&bot).await.unwrap();
    }
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert_eq!((info.status, info.task_running), (WorkspaceStatus::Stopped, false));
    let row = world.skep.store().container(&bot).await.unwrap().unwrap();
    assert!(row.last_stopped_at.is_some());
    world.start(&bot).await.unwrap();
    assert_eq!(
        world.skep.workspace_info(&bot).await.unwrap().status,
        WorkspaceStatus::Running
    );
}

#[tokio::test]
async fn eight_starts_and_eight_stops_at_once_are_one_work_each() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let stops = futures::future::join_all((0..8).map(|_| world.stop(&bot))).await;
    assert!(stops.iter().all(Result::is_ok), "{stops:?}");
    let before = world.runtime.faults().calls(Verb::Start);
    let starts = futures::future::join_all((0..8).map(|_| world.start(&bot))).await;
    assert!(starts.iter().all(Result::is_ok), "{starts:?}");
    assert_eq!(world.runtime.faults().calls(Verb::Start), before + 1);
}

#[tokio::test]
async fn a_bot_without_a_workspace_has_none() {
    let world = World::new().await;
    let bot = world.bot().await;
    for result in [world.start(&bot).await, world.stop(&bot).await] {
        assert_eq!(result.unwrap_err().code(), Code::ContainerNotFound);
    }
    for bridge in [world.skep.usable_bridge(&bot, None).await, world.started(&bot).await.0] {
        assert_eq!(bridge.err().map(|error| error.code()), Some(Code::ContainerNotFound));
    }
    for data in [DeleteData::Remove, DeleteData::Preserve] {
        let delete = world.skep.delete_workspace(&bot, data, &admin()).await;
        assert!(delete.unwrap().outcome().await.is_ok());
    }
}

#[tokio::test]
async fn stopped_stays_stopped_until_somebody_starts_it() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.stop(&bot).await.unwrap();
    let bridge = world.skep.usable_bridge(&bot, None).await;
    assert_eq!(bridge.err().map(|error| error.code()), Some(Code::WorkspaceStopped));
    let starts = world.runtime.faults().calls(Verb::Start);
    world.restart_within(LIMIT).await;
    // Another bot's create comes after the first comparison has begun, and takes longer than it.
    world.running_bot().await;
    assert_eq!(world.runtime.faults().calls(Verb::Start), starts + 1);
    assert!(!world.skep.workspace_info(&bot).await.unwrap().task_running);
    for begun in [1, 0] {
        let (bridge, starts) = world.started(&bot).await;
        assert!(bridge.is_ok());
        assert_eq!(starts, begun);
    }
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn a_broken_network_is_an_issue_of_one_that_should_run_alone() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let check = CheckType::ContainerTask.as_str();
    world.skep.store().put_fault(&bot, check, "no bridge").await.unwrap();
    assert_eq!(world.skep.bot(&bot).await.unwrap().check_issue_count, 1);
    world.stop(&bot).await.unwrap();
    assert_eq!(world.skep.bot(&bot).await.unwrap().check_issue_count, 0);
}

#[tokio::test]
async fn created_is_shown_of_what_was_never_started_alone() {
    let world = World::new().await;
    let bot = world.bot().await;
    let shown = async || {
        let state = world.skep.watch_workspace(&bot).await.unwrap().next().await.unwrap();
        (state.status, state.task_running, state.desired)
    };
    // What is shown while the processes of this operation are made.
    let while_starting = async |operation: OperationHandle, hold: Hold, calls: u64| {
        until(|| async {
            match world.runtime.faults().calls(Verb::Start) {
                begun if begun > calls => Ok(()),
                _ => Err("not begun".to_owned()),
            }
        })
        .await;
        let seen = shown().await;
        drop(hold);
        operation.outcome().await.unwrap();
        seen
    };
    let begin = || {
        (
            world.runtime.faults().hold(Verb::Start),
            world.runtime.faults().calls(Verb::Start),
        )
    };
    let (hold, calls) = begin();
    let create = world.create(&bot).await;
    let (status, running, _) = while_starting(create, hold, calls).await;
    assert_eq!((status, running), (Some(WorkspaceStatus::Created), false));
    let running = (Some(WorkspaceStatus::Running), true, Some(Desired::Running));
    let starting = (Some(WorkspaceStatus::Stopped), false, Some(Desired::Running));
    assert_eq!(shown().await, running);

    world.stop(&bot).await.unwrap();
    let (hold, calls) = begin();
    let start = world.skep.start_workspace(&bot, &admin()).await.unwrap();
    assert_eq!(while_starting(start, hold, calls).await, starting);
    assert_eq!(shown().await, running);

    let (hold, calls) = begin();
    let restart = world.skep.restart_workspace(&bot, None, &admin()).await.unwrap();
    assert_eq!(while_starting(restart, hold, calls).await, starting);
    assert_eq!(shown().await, running);
}

#[tokio::test]
async fn a_workspace_that_dies_is_started_again() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let mut states = world.skep.watch_workspace(&bot).await.unwrap();
    let first = states.next().await.unwrap();
    assert_eq!(
        (first.status, first.task_running),
        (Some(WorkspaceStatus::Running), true)
    );
    assert_eq!(first.desired, Some(Desired::Running));
    assert!(world.runtime.kill_process_one(&bot).unwrap());
    let mut seen = Vec::new();
    loop {
        let state = tokio::time::timeout(LIMIT, states.next()).await.unwrap().unwrap();
        seen.push(state.status);
        if state.status == Some(WorkspaceStatus::Running) {
            break;
        }
    }
    assert!(seen.len() > 1, "its death was not shown: {seen:?}");
    world.until_running(&bot).await;
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn one_that_keeps_dying_is_given_up_after_three_quick_tries() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let starts = world.runtime.faults().calls(Verb::Start);
    world.runtime.replace_process_one(&bot, &["/bin/sh", "-c", "exit 7"]);
    assert!(world.runtime.kill_process_one(&bot).unwrap());
    until(|| async {
        let row = world.skep.store().container(&bot).await.unwrap().unwrap();
        let tries = world.runtime.faults().calls(Verb::Start) - starts;
        match (row.status.as_str(), tries) {
            ("error", 3) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert!(info.reason.is_some() && info.desired == Desired::Running, "{info:?}");
    // Who uses it is told, and has it started no more often than that.
    let tries = world.runtime.faults().calls(Verb::Start);
    let operations = world.operations(&bot).await;
    let (bridge, begun) = world.started(&bot).await;
    let error = bridge.err().unwrap();
    assert_eq!((error.code(), begun), (Code::BridgeUnavailable, 0), "{error}");
    assert!(error.to_string().contains(info.reason.as_deref().unwrap()), "{error}");
    assert_eq!(world.runtime.faults().calls(Verb::Start), tries);
    assert_eq!(
        world.operations(&bot).await,
        operations,
        "nothing was done, nothing is journaled"
    );
    // A person's start begins anew.
    world.runtime.restore_process_one(&bot);
    world.start(&bot).await.unwrap();
    world.until_running(&bot).await;
}

/// Kills its first process and waits until another one runs.
async fn dies_and_is_started_again(world: &World, bot: &BotId) {
    let process = world.runtime.host_pid(bot).unwrap();
    assert!(world.runtime.kill_process_one(bot).unwrap());
    until(|| async {
        match world.runtime.host_pid(bot) {
            Some(other) if other != process => Ok(()),
            other => Err(format!("{process} and then {other:?}")),
        }
    })
    .await;
    world.until_running(bot).await;
}

#[tokio::test]
async fn deaths_count_until_a_workspace_has_run_for_long() {
    // By the default of ten minutes none of these deaths is forgotten, and the fourth is not followed by a start.
    let world = World::new().await;
    let bot = world.running_bot().await;
    for _ in 0..3 {
        dies_and_is_started_again(&world, &bot).await;
    }
    assert!(world.runtime.kill_process_one(&bot).unwrap());
    until(|| async {
        match world.skep.workspace_info(&bot).await {
            Ok(info) if info.status == WorkspaceStatus::Error && !info.task_running => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // Where any time is long enough, each of them is the first.
    let world = World::with(|settings| settings.deaths_cleared_after = Duration::ZERO).await;
    let bot = world.running_bot().await;
    for _ in 0..6 {
        dies_and_is_started_again(&world, &bot).await;
    }
}

#[tokio::test]
async fn those_who_come_while_the_task_is_down_wait_for_it() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let hold = world.runtime.faults().hold(Verb::Start);
    let starts = world.runtime.faults().calls(Verb::Start);
    let restart = world.skep.restart_workspace(&bot, None, &admin()).await.unwrap();
    until(|| async {
        match world.runtime.faults().calls(Verb::Start) > starts {
            true => Ok(()),
            false => Err("not yet started".to_owned()),
        }
    })
    .await;
    let waiting = world.skep.usable_bridge(&bot, None);
    tokio::pin!(waiting);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), &mut waiting)
            .await
            .is_err()
    );
    drop(hold);
    assert!(tokio::time::timeout(LIMIT, waiting).await.unwrap().is_ok());
    restart.outcome().await.unwrap();
}

#[tokio::test]
async fn those_who_come_while_the_task_is_down_are_told_so_after_30_seconds() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let hold = world.runtime.faults().hold(Verb::Start);
    let restart = world.skep.restart_workspace(&bot, None, &admin()).await.unwrap();
    let begun = std::time::Instant::now();
    let refused = world.skep.usable_bridge(&bot, None).await;
    assert_eq!(refused.err().map(|error| error.code()), Some(Code::BridgeUnavailable));
    let waited = begun.elapsed().as_secs_f64();
    assert!((29.9..55.0).contains(&waited), "{waited} s");
    drop(hold);
    restart.outcome().await.unwrap();
}

#[tokio::test]
async fn a_container_that_is_gone_is_put_back_on_its_own_layer() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.stop(&bot).await.unwrap();
    world.runtime.forget_container(&bot);
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert_eq!((info.status, info.recoverable), (WorkspaceStatus::Missing, Some(true)));
    assert!(!info.task_running);
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn the_next_server_brings_back_what_should_run() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let settings = world.skep.settings().clone();
    world.skep.shut_down(LIMIT).await;
    // The host was restarted meanwhile: no process, and somebody removed the container.
    world.runtime.stop(&bot, Duration::ZERO).await.unwrap();
    world.runtime.forget_container(&bot);
    assert_eq!(settings.data_root, world.root.path());
    world.restart_within(LIMIT).await;
    world.until_running(&bot).await;
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn a_container_without_a_row_is_adopted_as_it_is() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.skep.store().delete_containers(&bot).await.unwrap();
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert_eq!((info.status, info.task_running), (WorkspaceStatus::Unknown, true));
    world.restart_within(LIMIT).await;
    world.until_running(&bot).await;
}

#[tokio::test]
async fn a_container_without_a_row_is_used_before_reconcile_has_seen_it() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let forget = || async { world.skep.store().delete_containers(&bot).await.unwrap() };
    forget().await;
    world.write(&bot, "/data/file", "kept").await;
    forget().await;
    assert!(!world.skep.snapshots(&bot, None).await.unwrap().snapshots.is_empty());
    forget().await;
    let taken = world.skep.take_snapshot(&bot, ("", ""), &admin()).await.unwrap();
    taken.outcome().await.unwrap();
    forget().await;
    let limits = AskedLimits {
        pids: Some(100),
        ..AskedLimits::default()
    };
    let limited = world.skep.set_workspace_limits(&bot, limits, &admin()).await.unwrap();
    limited.outcome().await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert_eq!((info.status, info.task_running), (WorkspaceStatus::Running, true));
}

#[tokio::test]
async fn a_bot_without_a_workspace_gets_none_by_being_used() {
    let world = World::new().await;
    let bot = world.bot().await;
    let used = world.skep.usable_bridge(&bot, None).await.map(drop);
    let listed = world.skep.snapshots(&bot, None).await.map(drop);
    for result in [used, listed] {
        assert_eq!(result.unwrap_err().code(), Code::ContainerNotFound);
    }
}

#[tokio::test]
async fn the_environment_of_a_container_without_a_row_is_its_owners_still() {
    let mut world = World::with(|settings| {
        settings.workspace_env.insert("OF".to_owned(), "the server".to_owned());
    })
    .await;
    let bot = world.bot().await;
    let request = skep_core::CreateRequest {
        env: std::collections::BTreeMap::from([("KEY".to_owned(), "value".to_owned())]),
        ..Default::default()
    };
    let create = world
        .skep
        .create_workspace(&bot, request.clone(), &admin())
        .await
        .unwrap();
    create.outcome().await.unwrap();
    world.skep.store().delete_containers(&bot).await.unwrap();
    world.restart_within(LIMIT).await;
    world.until_running(&bot).await;
    let row = world.skep.store().container(&bot).await.unwrap().unwrap();
    assert_eq!(row.env, request.env);
    // And a create that says the same finds the same.
    world.skep.store().delete_containers(&bot).await.unwrap();
    let again = world.skep.create_workspace(&bot, request, &admin()).await.unwrap();
    again.outcome().await.unwrap();
}

#[tokio::test]
async fn while_the_runtime_is_away_nothing_is_made_anew_and_bridges_work() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let creates = world.runtime.faults().calls(Verb::Create);
    world.runtime.go_away();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    let info = world.skep.workspace_info(&bot).await;
    assert_eq!(info.unwrap_err().code(), Code::RuntimeUnavailable);
    assert_eq!(world.start(&bot).await.unwrap_err().code(), Code::RuntimeUnavailable);
    assert!(!world.skep.readiness().await.is_ready());
    assert_eq!(world.skep.bot(&bot).await.unwrap().row.status, BotStatus::Ready);
    let checks = world.skep.checks(&bot).await.unwrap();
    let task = checks
        .iter()
        .find(|check| check.check_type.as_str() == "container.task");
    assert_eq!(task.unwrap().status.as_str(), "unknown");
    world.runtime.come_back();
    world.until_running(&bot).await;
    assert_eq!(world.runtime.faults().calls(Verb::Create), creates);
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn work_that_a_crash_cut_off_waits_for_the_runtime() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    let hold = world.runtime.faults().hold(Verb::Remove);
    let delete = world
        .skep
        .delete_workspace(&bot, DeleteData::Remove, &admin())
        .await
        .unwrap();
    let faults = world.runtime.faults().clone();
    until(|| {
        let reached = faults.calls(Verb::Remove) > 0;
        async move { reached.then_some(()).ok_or_else(|| "not reached".to_owned()) }
    })
    .await;
    world.runtime.go_away();
    world.crash().await;
    drop(hold);
    assert_eq!(world.skep.operation(delete.id()).await.unwrap().finished_at, None);
    world.runtime.come_back();
    assert!(
        tokio::time::timeout(LIMIT, world.skep.operation_outcome(delete.id()))
            .await
            .unwrap()
            .is_ok()
    );
    assert!(world.runtime.bots_with_layers().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_new_bot_becomes_ready_and_a_deleted_one_leaves_nothing() {
    let world = World::new().await;
    let new = CreateBot {
        owner_user_id: "owner".to_owned(),
        display_name: "b".to_owned(),
        with_workspace: true,
        ..CreateBot::default()
    };
    let (bot, create) = world.skep.create_bot(new.clone(), &admin()).await.unwrap();
    assert_eq!(bot.row.status, BotStatus::Creating);
    create.unwrap().outcome().await.unwrap();
    let id = bot.row.id;
    assert_eq!(world.skep.bot(&id).await.unwrap().row.status, BotStatus::Ready);
    let checks = world.skep.checks(&id).await.unwrap();
    assert!(checks.iter().all(|check| check.status.as_str() == "ok"), "{checks:?}");

    let hold = world.runtime.faults().hold(Verb::Remove);
    let deleted = world.skep.delete_bot(&id, DeleteData::Remove, &admin()).await.unwrap();
    assert_eq!(world.skep.bot(&id).await.unwrap().row.status, BotStatus::Deleting);
    let again = world.skep.delete_bot(&id, DeleteData::Remove, &admin()).await.unwrap();
    assert_eq!(again.operation.id(), deleted.operation.id());
    let create = world
        .skep
        .create_workspace(&id, skep_core::CreateRequest::default(), &admin())
        .await;
    assert_eq!(create.unwrap_err().code(), Code::OperationInProgress);
    drop(hold);
    deleted.operation.outcome().await.unwrap();
    assert_eq!(world.skep.bot(&id).await.unwrap_err().code(), Code::BotNotFound);
    assert!(world.runtime.bots_with_layers().await.unwrap().is_empty());
    assert_eq!(world.skep.operations(&id, None, 200).await.unwrap().operations.len(), 2);

    let error = RuntimeError::other("starting", std::io::Error::other("broken"));
    world.runtime.faults().fail_next(Verb::Start, error);
    let (bot, create) = world.skep.create_bot(new, &admin()).await.unwrap();
    assert!(create.unwrap().outcome().await.is_err());
    let bot = world.skep.bot(&bot.row.id).await.unwrap();
    assert_eq!((bot.row.status, bot.check_state.as_str()), (BotStatus::Ready, "issue"));
}

#[tokio::test]
async fn a_removal_that_fails_gives_the_bot_back_and_says_why() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let error = RuntimeError::other("removing a layer", std::io::Error::other("busy"));
    world.runtime.faults().fail_next(Verb::Remove, error);
    let deleted = world.skep.delete_bot(&bot, DeleteData::Remove, &admin()).await.unwrap();
    assert!(deleted.operation.outcome().await.is_err());
    assert_eq!(world.skep.bot(&bot).await.unwrap().row.status, BotStatus::Ready);
    let checks = world.skep.checks(&bot).await.unwrap();
    let removal = checks
        .iter()
        .find(|check| check.check_type.as_str() == "bot.delete")
        .unwrap();
    assert_eq!(removal.detail.as_deref(), Some("removing a layer failed"));
    let again = world.skep.delete_bot(&bot, DeleteData::Remove, &admin()).await.unwrap();
    again.operation.outcome().await.unwrap();
}

#[tokio::test]
async fn bots_that_a_crash_left_half_made_or_half_gone_are_carried_on() {
    let mut world = World::new().await;
    let creating = world.bot().await;
    let deleting = world.running_bot().await;
    let store = world.skep.store();
    for (bot, status) in [(&creating, BotStatus::Creating), (&deleting, BotStatus::Deleting)] {
        store.advance_bot_status(bot, BotStatus::Ready, status).await.unwrap();
    }
    world.crash().await;
    until(|| async {
        let made = world.skep.bot(&creating).await.unwrap().row.status;
        let gone = world.skep.bot(&deleting).await.err().map(|error| error.code());
        match (made, gone) {
            (BotStatus::Ready, Some(Code::BotNotFound)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    world.until_running(&creating).await;
}

#[tokio::test]
async fn a_connection_to_a_bridge_is_shared_and_outlives_no_stop_and_start() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    // It listens on while its workspace is stopped: nothing but the server ends a connection to it.
    world.runtime.show_only_the_reference(&bot).await.unwrap();
    for starts in 1..=3 {
        world.stop(&bot).await.unwrap();
        world.start(&bot).await.unwrap();
        for _ in 0..4 {
            let bridge = world.skep.usable_bridge(&bot, None).await.unwrap();
            assert!(!bridge.is_dead());
        }
        assert_eq!(world.runtime.connections_to_the_reference(&bot), starts);
    }
}

#[tokio::test]
async fn a_start_that_fails_ends_nothing_that_ran_before_it() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/marker", "before").await;
    let began = world.runtime.inspect(&bot).await.unwrap().unwrap().started_at;
    let no_network = || RuntimeError::other("checking the network", std::io::Error::other("skep0 is down"));
    world.runtime.faults().fail_next(Verb::Start, no_network());
    world.start(&bot).await.unwrap_err();
    world.runtime.faults().fail_next(Verb::Start, no_network());
    world.create(&bot).await.outcome().await.unwrap_err();
    let instance = world.runtime.inspect(&bot).await.unwrap().unwrap();
    assert_eq!((instance.task, instance.started_at), (TaskState::Running, began));
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert_eq!(info.status, WorkspaceStatus::Running);
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, "/data/marker").await, "before");
}
