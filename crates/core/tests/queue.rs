//! What waits for its turn: how much of it, who is refused, who overtakes, and how a cancel ends it at once.

mod harness;

use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use harness::{LIMIT, World, admin, all, failure, until};
use skep_core::{
    AskedLimits, BotStatus, Code, CreateBot, DeleteData, EventBody, OperationEvent, OperationHandle, Patience,
    Requester, Result, WorkspaceStatus,
};
use skep_names::BotId;
use skep_runtime::{Runtime, RuntimeError, TaskState};
use skep_store::{ContainerStatus, NewOperation};
use skep_testkit::fake_runtime::{Hold, Verb};
use sqlx::{Connection, Executor};

fn impatient() -> Requester {
    Requester {
        patience: Patience::Refuse,
        ..admin()
    }
}

/// An end that must come while the operation before it is still held.
async fn at_once<T>(end: impl Future<Output = T>) -> T {
    let end = tokio::time::timeout(LIMIT, end).await;
    end.expect("it waited for its turn")
}

async fn state(world: &World, operation: &OperationHandle) -> String {
    let shown = world.skep.operation(operation.id()).await.unwrap();
    shown.state.as_str().to_owned()
}

/// A restart that is held in its stop: what comes after it waits.
async fn held_restart(world: &World, bot: &BotId) -> (OperationHandle, Hold) {
    let hold = world.runtime.faults().hold(Verb::Stop);
    let first = world.skep.restart_workspace(bot, None, &admin()).await.unwrap();
    until(|| async {
        match state(world, &first).await.as_str() {
            "running" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    (first, hold)
}

async fn stop(world: &World, bot: &BotId) -> Result<OperationHandle> {
    world.skep.stop_workspace(bot, None, &admin()).await
}

#[tokio::test]
async fn a_delete_overtakes_and_cancels_what_is_under_way() {
    let world = World::new().await;
    let bot = world.bot().await;
    let hold = world.runtime.faults().hold(Verb::Start);
    let create = world.create(&bot).await;
    let stop = world.skep.stop_workspace(&bot, None, &admin()).await.unwrap();
    let delete = world
        .skep
        .delete_workspace(&bot, DeleteData::Remove, &impatient())
        .await
        .unwrap();
    drop(hold);
    delete.outcome().await.unwrap();
    for overtaken in [create, stop] {
        let (code, message) = failure(&all(&overtaken).await);
        assert_eq!(code, "operation_cancelled");
        assert!(message.contains(delete.id()), "{message}");
        assert_eq!(
            world.skep.operation(overtaken.id()).await.unwrap().state.as_str(),
            "cancelled"
        );
    }
    assert!(world.runtime.inspect(&bot).await.unwrap().is_none());
    assert!(world.skep.store().container(&bot).await.unwrap().is_none());
    assert!(world.runtime.bots_with_layers().await.unwrap().is_empty());
}

#[tokio::test]
async fn one_that_has_failed_is_not_joined_while_it_is_undone() {
    let world = World::new().await;
    let bot = world.bot().await;
    let broken = RuntimeError::other("making a container", "a fault of the test");
    world.runtime.faults().fail_next(Verb::Start, broken);
    let undoing = world.runtime.faults().hold(Verb::Remove);
    let failing = world.create(&bot).await;
    until(|| async {
        match world.runtime.faults().calls(Verb::Remove) {
            0 => Err("nothing is undone yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let again = world.create(&bot).await;
    assert_ne!(again.id(), failing.id());
    drop(undoing);
    assert!(failing.outcome().await.is_err());
    again.outcome().await.unwrap();
}

#[tokio::test]
async fn the_queue_is_bounded_and_the_impatient_are_refused() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let hold = world.runtime.faults().hold(Verb::Stop);
    let first = world.skep.restart_workspace(&bot, None, &admin()).await.unwrap();
    until(|| async {
        let shown = world.skep.operation(first.id()).await.unwrap();
        match shown.state.as_str() {
            "running" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let refused = world.skep.stop_workspace(&bot, None, &impatient()).await.unwrap_err();
    assert_eq!(refused.code(), Code::OperationInProgress);
    assert!(refused.to_string().contains(first.id()), "{refused}");
    let mut waiting = Vec::new();
    for _ in 0..32 {
        waiting.push(world.skep.restart_workspace(&bot, None, &admin()).await.unwrap());
    }
    let full = world.skep.restart_workspace(&bot, None, &admin()).await.unwrap_err();
    assert_eq!(full.code(), Code::QueueFull);
    let delete = world
        .skep
        .delete_workspace(&bot, DeleteData::Remove, &admin())
        .await
        .unwrap();
    drop(hold);
    delete.outcome().await.unwrap();
    for one in waiting {
        assert_eq!(one.outcome().await.unwrap_err().code(), Code::OperationCancelled);
    }
}

#[tokio::test]
async fn a_cancelled_operation_that_waits_ends_at_once() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let (first, hold) = held_restart(&world, &bot).await;
    let waiting = stop(&world, &bot).await.unwrap();
    let joined = stop(&world, &bot).await.unwrap();
    assert_eq!(joined.id(), waiting.id());
    let cancelled = at_once(world.skep.cancel_operation(waiting.id())).await.unwrap();
    assert_eq!(cancelled.state.as_str(), "cancelled");
    for waiter in [&waiting, &joined] {
        let error = at_once(waiter.outcome()).await.unwrap_err();
        assert_eq!(error.code(), Code::OperationCancelled);
        assert_eq!(failure(&at_once(all(waiter)).await).0, "operation_cancelled");
    }
    // It is not done when its turn comes, and what waits behind it is.
    let behind = world.skep.start_workspace(&bot, &admin()).await.unwrap();
    assert_eq!(state(&world, &first).await, "running");
    drop(hold);
    behind.outcome().await.unwrap();
    first.outcome().await.unwrap();
    assert_eq!(state(&world, &waiting).await, "cancelled");
    assert!(world.skep.workspace_info(&bot).await.unwrap().task_running);
    let again = world.skep.cancel_operation(first.id()).await.unwrap();
    assert_eq!(again.state.as_str(), "succeeded", "one that has ended stays as it is");
}

#[tokio::test]
async fn a_place_in_the_queue_is_free_again_when_its_operation_is_cancelled() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let (first, hold) = held_restart(&world, &bot).await;
    let mut waiting = Vec::new();
    for _ in 0..32 {
        waiting.push(world.skep.restart_workspace(&bot, None, &admin()).await.unwrap());
    }
    let full = world.skep.restart_workspace(&bot, None, &admin()).await.unwrap_err();
    assert_eq!(full.code(), Code::QueueFull);
    at_once(world.skep.cancel_operation(waiting[7].id())).await.unwrap();
    let taken = stop(&world, &bot).await.unwrap();
    for one in waiting.iter().chain([&taken, &first]) {
        at_once(world.skep.cancel_operation(one.id())).await.unwrap();
        assert_eq!(state(&world, one).await, "cancelled");
    }
    drop(hold);
    world.start(&bot).await.unwrap();
}

#[tokio::test]
async fn those_who_wait_are_told_at_once_that_a_delete_overtook_them() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let hold_removal = world.runtime.faults().hold(Verb::Remove);
    let (first, hold) = held_restart(&world, &bot).await;
    let waiting = stop(&world, &bot).await.unwrap();
    let delete = world
        .skep
        .delete_workspace(&bot, DeleteData::Remove, &admin())
        .await
        .unwrap();
    let (code, message) = failure(&at_once(all(&waiting)).await);
    assert_eq!(code, "operation_cancelled");
    assert!(message.contains(delete.id()), "{message}");
    assert_eq!(state(&world, &waiting).await, "cancelled");
    drop(hold);
    let cancelled = first.outcome().await.unwrap_err();
    assert_eq!(cancelled.code(), Code::OperationCancelled);
    drop(hold_removal);
    delete.outcome().await.unwrap();
}

#[tokio::test]
async fn what_a_delete_overtook_is_not_done_by_the_next_server() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    let (first, hold) = held_restart(&world, &bot).await;
    let second = stop(&world, &bot).await.unwrap();
    // The delete is in the journal, and the server ends before it cancels what it overtakes.
    let delete = NewOperation {
        id: "of-before".to_owned(),
        bot_id: bot.clone(),
        kind: "delete".to_owned(),
        request: serde_json::json!({ "kind": "delete" }),
        requested_by: None,
        request_id: None,
        bot_status: None,
        idempotency: None,
    };
    world.skep.store().insert_operation(&delete).await.unwrap();
    let starts = world.runtime.faults().calls(Verb::Start);
    world.crash().await;
    drop(hold);
    let deleted = tokio::time::timeout(LIMIT, world.skep.operation_outcome("of-before")).await;
    deleted.unwrap().unwrap();
    for overtaken in [first, second] {
        assert_eq!(state(&world, &overtaken).await, "cancelled");
    }
    assert_eq!(world.runtime.faults().calls(Verb::Start), starts);
    assert!(world.runtime.inspect(&bot).await.unwrap().is_none());
}

#[tokio::test]
async fn nothing_is_done_after_an_operation_before_its_end_is_journaled() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    let mut another = world.database().await;
    let refuse = "CREATE TRIGGER no_end BEFORE UPDATE ON operations WHEN NEW.finished_at IS NOT NULL \
                  BEGIN SELECT RAISE(ABORT, 'refused'); END";
    another.execute(refuse).await.unwrap();
    let first = stop(&world, &bot).await.unwrap();
    until(|| async {
        match world.runtime.inspect(&bot).await.unwrap().unwrap().task {
            TaskState::None => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let second = world.skep.start_workspace(&bot, &admin()).await.unwrap();
    for _ in 0..2 {
        let told = world.skep.operation_outcome(first.id());
        let told = tokio::time::timeout(Duration::from_millis(300), told).await;
        assert!(told.is_err(), "{told:?}");
        assert_eq!(state(&world, &first).await, "running");
        assert_eq!(state(&world, &second).await, "queued");
        // The next server goes on with the first one.
        world.crash().await;
    }
    another.execute("DROP TRIGGER no_end").await.unwrap();
    another.close().await.unwrap();
    for operation in [&first, &second] {
        let ended = tokio::time::timeout(LIMIT, world.skep.operation_outcome(operation.id())).await;
        ended.unwrap().unwrap();
        assert_eq!(state(&world, operation).await, "succeeded");
    }
    assert!(world.skep.workspace_info(&bot).await.unwrap().task_running);
}

#[tokio::test]
async fn a_new_bot_whose_set_up_is_cancelled_is_ready_and_has_no_workspace() {
    let world = World::new().await;
    let hold = world.runtime.faults().hold(Verb::Create);
    let new = CreateBot {
        owner_user_id: "owner".to_owned(),
        display_name: "b".to_owned(),
        with_workspace: true,
        ..CreateBot::default()
    };
    let (bot, create) = world.skep.create_bot(new, &admin()).await.unwrap();
    let create = create.unwrap();
    at_once(world.skep.cancel_operation(create.id())).await.unwrap();
    drop(hold);
    let bot = bot.row.id;
    assert_eq!(state(&world, &create).await, "cancelled");
    assert_eq!(world.skep.bot(&bot).await.unwrap().row.status, BotStatus::Ready);
    let info = world.skep.workspace_info(&bot).await;
    assert_eq!(info.unwrap_err().code(), Code::ContainerNotFound);
}

#[tokio::test]
async fn what_joins_an_operation_that_cannot_be_journaled_fails_with_it() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let mut another = world.database().await;
    // While another program writes, the journal cannot.
    another.execute("BEGIN IMMEDIATE").await.unwrap();
    let (first, joined) = tokio::join!(stop(&world, &bot), stop(&world, &bot));
    for refused in [first.unwrap_err(), joined.unwrap_err()] {
        assert_eq!(refused.code(), Code::StoreUnavailable, "{refused}");
    }
    another.execute("ROLLBACK").await.unwrap();
    another.close().await.unwrap();
    let kinds: Vec<_> = world.skep.operations(&bot, None, 200).await.unwrap().operations;
    assert!(kinds.iter().all(|operation| operation.kind == "create"), "{kinds:?}");
    stop(&world, &bot).await.unwrap().outcome().await.unwrap();
}

#[tokio::test]
async fn whoever_meets_a_lost_bridge_waits_no_longer_for_what_is_before_its_recovery() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let hold = world.runtime.faults().hold(Verb::ApplyLimits);
    let more = AskedLimits {
        pids: Some(100),
        ..AskedLimits::default()
    };
    let limits = world.skep.set_workspace_limits(&bot, more, &admin()).await.unwrap();
    until(|| async {
        match world.runtime.faults().calls(Verb::ApplyLimits) {
            0 => Err("the limits are not being applied".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let store = world.skep.store();
    let row = async || store.container(&bot).await.unwrap().unwrap();
    world.runtime.kill_process_one(&bot).unwrap();
    until(|| async {
        match row().await.status {
            ContainerStatus::Error => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // As if its end had not been told yet.
    let applied = row().await.limits_wanted;
    store.set_container_running(&bot, &applied).await.unwrap();
    // Until it is noticed that the connection has ended, it is given out.
    let limit = Instant::now() + LIMIT;
    let (refused, waited) = loop {
        let begun = Instant::now();
        match world.skep.usable_bridge(&bot, None).await {
            Ok(_) => assert!(begun < limit, "the bridge is never lost"),
            Err(refused) => break (refused, begun.elapsed().as_secs_f64()),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(refused.code(), Code::BridgeUnavailable);
    assert!((29.9..55.0).contains(&waited), "{waited} s");
    drop(hold);
    limits.outcome().await.unwrap();
}

/// The events with an id over `after` that have been told; there is one at least.
async fn told_so_far(world: &World, id: &str, after: u64) -> Vec<OperationEvent> {
    let mut events = world.skep.operation_events(id, after).await.unwrap();
    let first = tokio::time::timeout(LIMIT, events.next()).await.unwrap();
    let mut told = vec![first.expect("who carries it on tells of it")];
    while let Some(Some(event)) = events.next().now_or_never() {
        told.push(event);
    }
    told
}

#[tokio::test]
async fn over_crashes_the_numbers_of_events_grow_and_none_is_given_twice() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    let faults = world.runtime.faults().clone();
    let (mut hold, mut calls) = (faults.hold(Verb::Stop), faults.calls(Verb::Stop));
    let restart = world.skep.restart_workspace(&bot, None, &admin()).await.unwrap();
    let id = restart.id().to_owned();
    let mut heard: Vec<OperationEvent> = Vec::new();
    // Cut off in its stop, then again and again in its start.
    for (held, next) in [
        (Verb::Stop, Verb::Start),
        (Verb::Start, Verb::Start),
        (Verb::Start, Verb::Start),
    ] {
        until(|| {
            let reached = faults.calls(held) > calls;
            async move { reached.then_some(()).ok_or_else(|| format!("{held:?} was not called")) }
        })
        .await;
        let last = heard.last().map_or(0, |event| event.id);
        heard.extend(told_so_far(&world, &id, last).await);
        let before = std::mem::replace(&mut hold, faults.hold(next));
        calls = faults.calls(next);
        world.crash().await;
        drop(before);
    }
    drop(hold);
    let last = heard.last().unwrap().id;
    let rest = world.skep.operation_events(&id, last).await.unwrap();
    let rest: Vec<_> = tokio::time::timeout(LIMIT, rest.collect()).await.unwrap();
    assert!(
        matches!(rest.last().unwrap().body, EventBody::Complete { .. }),
        "{rest:?}"
    );
    heard.extend(rest.iter().cloned());
    let numbers: Vec<_> = heard.iter().map(|event| event.id).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    // Once it is over the journal tells what its last server told, whomever of its servers a client heard before.
    for _ in 0..2 {
        for after in [0, numbers[0], last] {
            let journal = world.skep.operation_events(&id, after).await.unwrap();
            assert_eq!(journal.collect::<Vec<_>>().await, rest, "after {after}");
        }
        let end = rest.last().unwrap().id;
        let nothing = world.skep.operation_events(&id, end).await.unwrap();
        assert_eq!(nothing.collect::<Vec<_>>().await, []);
        world.restart_within(LIMIT).await;
    }
}

#[tokio::test]
async fn one_that_dies_during_an_operation_beside_its_task_is_started_after_it() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let hold = world.runtime.faults().hold(Verb::ApplyLimits);
    let limits = AskedLimits {
        pids: Some(100),
        ..AskedLimits::default()
    };
    let calls = world.runtime.faults().calls(Verb::ApplyLimits);
    let limits = world.skep.set_workspace_limits(&bot, limits, &admin()).await.unwrap();
    until(|| async {
        match world.runtime.faults().calls(Verb::ApplyLimits) > calls {
            true => Ok(()),
            false => Err("they are not being set".to_owned()),
        }
    })
    .await;
    assert!(world.runtime.kill_process_one(&bot).unwrap());
    until(|| async {
        match world.skep.workspace_info(&bot).await {
            Ok(info) if info.status == WorkspaceStatus::Error => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    drop(hold);
    // Whether limits can be set on one that died is the backend's word.
    match tokio::time::timeout(LIMIT, limits.outcome()).await.unwrap() {
        Ok(_) | Err(_) => {}
    }
    world.until_running(&bot).await;
}

#[tokio::test]
async fn one_that_takes_long_does_not_keep_others_from_being_looked_at() {
    let mut world = World::with(|settings| settings.reconcile_interval = Duration::from_millis(200)).await;
    let (slow, other) = (world.running_bot().await, world.running_bot().await);
    world.stop(&other).await.unwrap();
    world.skep.shut_down(LIMIT).await;
    world.runtime.stop(&slow, Duration::ZERO).await.unwrap();
    let hold = world.runtime.faults().hold(Verb::Start);
    let starts = world.runtime.faults().calls(Verb::Start);
    world.restart_within(LIMIT).await;
    until(|| async {
        match world.runtime.faults().calls(Verb::Start) > starts {
            true => Ok(()),
            false => Err("it is not being started".to_owned()),
        }
    })
    .await;
    world.runtime.forget_container(&other);
    until(|| async {
        match world.runtime.inspect(&other).await.unwrap() {
            Some(_) => Ok(()),
            None => Err("no container was put back".to_owned()),
        }
    })
    .await;
    assert_eq!(
        world.runtime.faults().calls(Verb::Start),
        starts + 1,
        "it is started once"
    );
    drop(hold);
    world.until_running(&slow).await;
}

#[tokio::test]
async fn who_has_a_workspace_started_gets_it_also_after_a_stop_that_waited_before_him() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let (restart, hold) = held_restart(&world, &bot).await;
    let stop = stop(&world, &bot).await.unwrap();
    let used = world.started(&bot);
    let ((bridge, _), ..) = tokio::join!(used, async {
        drop(hold);
        restart.outcome().await.unwrap();
        stop.outcome().await.unwrap();
    });
    assert_eq!(bridge.err().map(|error| error.to_string()), None);
}

/// A removal that fails while the store takes no new state of its bot.
#[tokio::test]
async fn a_removal_is_told_as_failed_together_with_its_bot_being_ready() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let mut store = world.database().await;
    let refuse = "CREATE TRIGGER refuse BEFORE UPDATE OF status ON bots WHEN NEW.status = 'ready' \
                  BEGIN SELECT RAISE(ABORT, 'no'); END";
    store.execute(refuse).await.unwrap();
    let failure = RuntimeError::other("removing a layer", std::io::Error::other("broken"));
    world.runtime.faults().fail_next(Verb::Remove, failure);
    let deleted = world.skep.delete_bot(&bot, DeleteData::Remove, &admin()).await.unwrap();
    // Nothing is told for as long as it would not be true.
    let early = tokio::time::timeout(Duration::from_secs(1), deleted.operation.outcome()).await;
    assert!(early.is_err(), "{early:?}");
    store.execute("DROP TRIGGER refuse").await.unwrap();
    deleted.operation.outcome().await.unwrap_err();
    assert_eq!(world.skep.bot(&bot).await.unwrap().row.status, BotStatus::Ready);
    assert_eq!(world.skep.store().faults(&bot).await.unwrap().len(), 1);
}

#[tokio::test]
async fn who_waited_for_a_snapshot_is_not_told_that_it_interrupted_him() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let (restart, hold) = held_restart(&world, &bot).await;
    let taken = world.skep.take_snapshot(&bot, ("", "manual"), &admin()).await.unwrap();
    let (used, ()) = tokio::join!(world.skep.watched_bridge(&bot, None), async {
        drop(hold);
        restart.outcome().await.unwrap();
        taken.outcome().await.unwrap();
    });
    let (bridge, processes) = used.unwrap();
    assert!(processes.goes_on() || bridge.is_dead(), "its processes run");
}
