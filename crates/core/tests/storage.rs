//! The limit of storage and the host's reserve: what is told, what is refused, and who is stopped.

mod harness;

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use harness::{LIMIT, World, admin, until};
use skep_core::bridge::BridgeError;
use skep_core::files::{FileWriter, NewFile, WorkspacePath};
use skep_core::{
    AskedLimits, CheckStatus, CheckType, Code, DeleteData, Desired, WorkspaceInfo, WorkspaceState, WorkspaceStatus,
};
use skep_names::BotId;
use skep_runtime::RuntimeError;
use skep_testkit::fake_runtime::Verb;

const MIB: u64 = 1 << 20;
const RESERVE: u64 = 2048 * MIB;
const STEP: u64 = 64 * MIB;
const DISK_FULL: Option<&str> = Some("disk_full");

async fn world() -> World {
    World::with(|settings| {
        settings.storage_measured_every = Duration::from_millis(50);
        settings.reserve_bytes = RESERVE;
    })
    .await
}

async fn limit(world: &World, bot: &BotId, storage_bytes: u64) {
    let limits = AskedLimits {
        storage_bytes: Some(storage_bytes),
        ..AskedLimits::default()
    };
    let set = world.skep.set_workspace_limits(bot, limits, &admin()).await.unwrap();
    set.outcome().await.unwrap();
}

/// Puts a file of that size into it, past the API.
fn fill(world: &World, bot: &BotId, bytes: u64) {
    let file = world.runtime.layer_path(bot).join("data/big");
    std::fs::write(file, vec![1; usize::try_from(bytes).unwrap()]).unwrap();
}

fn clean_up(world: &World, bot: &BotId) {
    std::fs::remove_file(world.runtime.layer_path(bot).join("data/big")).unwrap();
}

/// Bytes it holds, as they were counted at least once.
async fn held(world: &World, bot: &BotId) -> u64 {
    let measured = async || world.skep.workspace_metrics(bot).await.unwrap().storage;
    until(|| async { measured().await.map(drop).ok_or("not counted".to_owned()) }).await;
    measured().await.unwrap().bytes
}

async fn until_info(world: &World, bot: &BotId, wanted: impl Fn(&WorkspaceInfo) -> bool) {
    until(|| async {
        match world.skep.workspace_info(bot).await {
            Ok(info) if wanted(&info) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

fn is_stopped_for_space(info: &WorkspaceInfo) -> bool {
    (info.status, info.task_running, info.desired) == (WorkspaceStatus::Stopped, false, Desired::Stopped)
        && info.reason.as_deref() == DISK_FULL
}

async fn until_stopped_for_space(world: &World, bot: &BotId) {
    until_info(world, bot, is_stopped_for_space).await;
}

/// Waits for so many more calls of a verb.
async fn until_called(world: &World, verb: Verb, times: u64) {
    let before = world.runtime.faults().calls(verb);
    until_called_in_all(world, verb, before + times).await;
}

async fn until_called_in_all(world: &World, verb: Verb, times: u64) {
    until(|| async {
        match world.runtime.faults().calls(verb) {
            calls if calls >= times => Ok(()),
            calls => Err(format!("{verb:?} was called {calls} times")),
        }
    })
    .await;
}

/// Waits until the free space was looked at once more, after what is done now.
async fn looked_at(world: &World) {
    until_called(world, Verb::FreeBytes, 2).await;
}

async fn runs(world: &World, bot: &BotId) -> bool {
    world.skep.workspace_info(bot).await.unwrap().task_running
}

async fn until_state(world: &World, bot: &BotId, wanted: impl Fn(&WorkspaceState) -> bool) {
    let mut states = world.skep.watch_workspace(bot).await.unwrap();
    let mut last = None;
    let found = tokio::time::timeout(LIMIT, async {
        while let Some(state) = states.next().await {
            let is_it = wanted(&state);
            last = Some(state);
            if is_it {
                return;
            }
        }
    });
    assert!(found.await.is_ok() && last.as_ref().is_some_and(&wanted), "{last:?}");
}

/// How adding to it is refused.
async fn refused(world: &World, bot: &BotId) -> Option<Code> {
    let bridge = world.skep.roomy_bridge(bot, None).await;
    bridge.err().map(|error| error.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_over_its_limit_says_so_and_takes_nothing_until_it_is_cleaned_up() {
    let world = world().await;
    let bot = world.running_bot().await;
    let most = held(&world, &bot).await + 4 * MIB;
    limit(&world, &bot, most).await;
    assert_eq!(refused(&world, &bot).await, None);
    fill(&world, &bot, 8 * MIB);
    until_state(&world, &bot, |state| state.storage_over_limit).await;
    until_info(&world, &bot, |info| info.storage_over_limit).await;
    assert_eq!(refused(&world, &bot).await, Some(Code::DiskFull));
    let archive = futures::stream::iter([Ok(Bytes::new())]);
    let received = world.skep.receive_archive(&bot, archive).await;
    assert_eq!(received.err().map(|error| error.code()), Some(Code::DiskFull));
    // What looks and what runs inside goes on.
    assert!(world.skep.usable_bridge(&bot, None).await.is_ok());
    clean_up(&world, &bot);
    until_state(&world, &bot, |state| !state.storage_over_limit).await;
    assert_eq!(refused(&world, &bot).await, None);
    let events = world
        .skep
        .store()
        .lifecycle_events_of(&bot, "storage_over_limit", 0, 9)
        .await;
    assert_eq!(events.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_limit_holds_until_another_is_set_which_holds_at_once() {
    let world = World::with(|settings| settings.default_limits.storage_bytes = 1).await;
    let bot = world.running_bot().await;
    until_info(&world, &bot, |info| info.storage_over_limit).await;
    assert_eq!(refused(&world, &bot).await, Some(Code::DiskFull));
    limit(&world, &bot, 1 << 40).await;
    assert_eq!(refused(&world, &bot).await, None);
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert!(!info.storage_over_limit);
    assert_eq!(info.limits.wanted.storage_bytes, 1 << 40);
    assert_eq!(info.limits.applied.unwrap().storage_bytes, 1 << 40);
    until_state(&world, &bot, |state| !state.storage_over_limit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_server_knows_of_one_over_its_limit_also_while_that_is_stopped() {
    let mut world = world().await;
    let bot = world.running_bot().await;
    limit(&world, &bot, 1).await;
    world.stop(&bot).await.unwrap();
    world.restart_within(LIMIT).await;
    until_info(&world, &bot, |info| info.storage_over_limit && !info.task_running).await;
    // It is no news, and what changed between two servers is.
    limit(&world, &bot, 2).await;
    let events = async |event| {
        world
            .skep
            .store()
            .lifecycle_events_of(&bot, event, 0, 9)
            .await
            .unwrap()
            .len()
    };
    until_state(&world, &bot, |state| state.storage_over_limit).await;
    assert_eq!(events("storage_over_limit").await, 1);
    assert_eq!(events("storage_within_limit").await, 0);
    limit(&world, &bot, 1 << 40).await;
    until_state(&world, &bot, |state| !state.storage_over_limit).await;
    assert_eq!(events("storage_within_limit").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_over_its_limit_is_stopped_when_the_reserve_is_touched() {
    let world = world().await;
    let (quiet, over) = (world.running_bot().await, world.running_bot().await);
    world.runtime.write_on(&quiet, 500 * MIB);
    limit(&world, &over, held(&world, &over).await + MIB).await;
    fill(&world, &over, 4 * MIB);
    world.runtime.set_free_bytes(RESERVE);
    until_info(&world, &over, |info| info.storage_over_limit).await;
    assert!(runs(&world, &over).await, "the reserve is whole");
    world.runtime.set_free_bytes(RESERVE - 1);
    until_stopped_for_space(&world, &over).await;
    until_state(&world, &over, |state| {
        (state.status, state.reason.as_deref()) == (Some(WorkspaceStatus::Stopped), DISK_FULL)
    })
    .await;
    assert!(runs(&world, &quiet).await);
    let stops = world
        .skep
        .store()
        .lifecycle_events_of(&over, "stop", 0, 9)
        .await
        .unwrap();
    assert_eq!(stops[0].payload["reason"], "disk_full");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_stopped_for_space_may_be_started_again_to_clean_up() {
    let world = world().await;
    let bot = world.running_bot().await;
    limit(&world, &bot, held(&world, &bot).await + MIB).await;
    fill(&world, &bot, 4 * MIB);
    world.runtime.set_free_bytes(RESERVE - 1);
    until_stopped_for_space(&world, &bot).await;
    world.start(&bot).await.unwrap();
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert_eq!((info.task_running, info.reason.as_deref()), (true, None));
    looked_at(&world).await;
    // Less than a step.
    world.runtime.set_free_bytes(RESERVE - 1 - STEP / 2);
    looked_at(&world).await;
    assert!(runs(&world, &bot).await);
    world.runtime.set_free_bytes(RESERVE - 1 - STEP);
    until_stopped_for_space(&world, &bot).await;
    world.runtime.set_free_bytes(u64::MAX);
    world.start(&bot).await.unwrap();
    clean_up(&world, &bot);
    until_info(&world, &bot, |info| info.task_running && !info.storage_over_limit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_is_over_a_limit_the_one_that_writes_most_is_stopped() {
    let world = world().await;
    let (most, less) = (world.running_bot().await, world.running_bot().await);
    world.runtime.write_on(&most, 200 * MIB);
    world.runtime.write_on(&less, 20 * MIB);
    world.runtime.set_free_bytes(RESERVE / 2);
    until_stopped_for_space(&world, &most).await;
    assert!(runs(&world, &less).await);
    looked_at(&world).await;
    assert!(runs(&world, &less).await);
    // It goes on filling the disk.
    world.runtime.set_free_bytes(RESERVE / 2 - 2 * STEP);
    until_stopped_for_space(&world, &less).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn growth_counts_like_writing() {
    let world = World::with(|settings| settings.reserve_bytes = RESERVE).await;
    let (grows, writes) = (world.running_bot().await, world.running_bot().await);
    held(&world, &grows).await;
    world.runtime.write_on(&writes, 1);
    fill(&world, &grows, 16 * MIB);
    world.runtime.set_free_bytes(0);
    until_stopped_for_space(&world, &grows).await;
    assert!(runs(&world, &writes).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_the_last_at_once_and_is_quiet_again_is_found() {
    let world = World::with(|settings| settings.reserve_bytes = RESERVE).await;
    let (bursts, neighbour) = (world.running_bot().await, world.running_bot().await);
    world.runtime.write_on(&neighbour, MIB);
    // Near to the reserve: how the disk is now is remembered.
    world.runtime.set_free_bytes(RESERVE + STEP);
    looked_at(&world).await;
    world.runtime.written_in_all(&bursts, 1024 * MIB);
    world.runtime.set_free_bytes(RESERVE / 2);
    until_stopped_for_space(&world, &bursts).await;
    assert!(runs(&world, &neighbour).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_name_any_more_counts_to_the_limit() {
    let world = World::with(|settings| settings.reserve_bytes = RESERVE).await;
    let (hides, writes) = (world.running_bot().await, world.running_bot().await);
    let most = held(&world, &hides).await + 8 * MIB;
    limit(&world, &hides, most).await;
    world.runtime.write_on(&writes, 500 * MIB);
    world.runtime.hold_nameless(&hides, 9 * MIB);
    world.runtime.set_free_bytes(RESERVE - 1);
    until_stopped_for_space(&world, &hides).await;
    assert!(runs(&world, &writes).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_a_byte_count_as_growth() {
    let world = World::with(|settings| settings.reserve_bytes = RESERVE).await;
    let (makes, writes) = (world.running_bot().await, world.running_bot().await);
    let held = held(&world, &makes).await;
    world.runtime.write_on(&writes, 1);
    let data = world.runtime.layer_path(&makes).join("data");
    for number in 0..2000 {
        std::fs::write(data.join(number.to_string()), "").unwrap();
    }
    world.runtime.set_free_bytes(0);
    until_stopped_for_space(&world, &makes).await;
    assert!(runs(&world, &writes).await);
    // What is told of it are the bytes of its files, as ever.
    let now = world.skep.workspace_metrics(&makes).await.unwrap().storage.unwrap();
    assert!(now.bytes < held + MIB, "{held} bytes before, {} now", now.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_stopped_for_what_others_fill_the_disk_with() {
    let world = World::with(|settings| settings.reserve_bytes = RESERVE).await;
    let (quiet, later) = (world.running_bot().await, world.running_bot().await);
    held(&world, &quiet).await;
    held(&world, &later).await;
    world.runtime.set_free_bytes(RESERVE / 2);
    until_called(&world, Verb::StorageHeld, 2).await;
    looked_at(&world).await;
    assert!(runs(&world, &quiet).await && runs(&world, &later).await);
    // What it writes explains next to nothing of what is lost.
    world.runtime.write_on(&later, 1);
    world.runtime.set_free_bytes(RESERVE / 2 - 2 * STEP);
    until_called(&world, Verb::StorageHeld, 2).await;
    looked_at(&world).await;
    assert!(runs(&world, &quiet).await && runs(&world, &later).await);
    world.runtime.write_on(&later, 64 * MIB);
    world.runtime.set_free_bytes(RESERVE / 2 - 4 * STEP);
    until_stopped_for_space(&world, &later).await;
    assert!(runs(&world, &quiet).await);
    let stops = world.skep.store().lifecycle_events_of(&quiet, "stop", 0, 9).await;
    assert_eq!(stops.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_for_space_that_fails_is_tried_again() {
    let world = world().await;
    let bot = world.running_bot().await;
    world.runtime.write_on(&bot, MIB);
    let failure = RuntimeError::other("ending its processes", std::io::Error::other("not now"));
    world.runtime.faults().fail_next(Verb::Stop, failure);
    let stops = world.runtime.faults().calls(Verb::Stop);
    world.runtime.set_free_bytes(RESERVE / 2);
    until_stopped_for_space(&world, &bot).await;
    assert!(world.runtime.faults().calls(Verb::Stop) >= stops + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_for_space_that_lost_its_runtime_keeps_its_reason_until_it_is_done() {
    let world = world().await;
    let bot = world.running_bot().await;
    world.runtime.write_on(&bot, MIB);
    let stops = world.runtime.faults().calls(Verb::Stop);
    let hold = world.runtime.faults().hold(Verb::Stop);
    world.runtime.set_free_bytes(0);
    until_called_in_all(&world, Verb::Stop, stops + 1).await;
    // Nobody stops it for that once more.
    world.runtime.set_free_bytes(u64::MAX);
    world.runtime.go_away();
    drop(hold);
    until(|| async {
        let unfinished = world.skep.store().unfinished_operations().await.unwrap();
        match unfinished.is_empty() {
            true => Ok(()),
            false => Err(format!("{unfinished:?}")),
        }
    })
    .await;
    let row = world.skep.store().container(&bot).await.unwrap().unwrap();
    assert_eq!((row.desired, row.reason.as_deref()), (Desired::Stopped, DISK_FULL));
    world.runtime.come_back();
    until_stopped_for_space(&world, &bot).await;
    world.start(&bot).await.unwrap();
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert_eq!((info.status, info.reason), (WorkspaceStatus::Running, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_for_space_stays_so_and_keeps_its_reason_over_servers_and_snapshots() {
    let mut world = world().await;
    let bot = world.running_bot().await;
    world.runtime.write_on(&bot, MIB);
    world.runtime.set_free_bytes(0);
    until_stopped_for_space(&world, &bot).await;
    world.runtime.set_free_bytes(u64::MAX);
    let is_told = |state: &WorkspaceState| state.reason.as_deref() == DISK_FULL;
    let taken = world.skep.take_snapshot(&bot, ("", "manual"), &admin()).await;
    taken.unwrap().outcome().await.unwrap();
    until_state(&world, &bot, is_told).await;
    world.restart_within(LIMIT).await;
    until_stopped_for_space(&world, &bot).await;
    until_state(&world, &bot, is_told).await;
    let task = async || {
        let checks = world.skep.checks(&bot).await.unwrap();
        let task = checks
            .into_iter()
            .find(|item| item.check_type == CheckType::ContainerTask);
        task.unwrap().status
    };
    assert_eq!(task().await, CheckStatus::Warn);
    let state = async || {
        let bot = world.skep.bot(&bot).await.unwrap();
        (bot.check_state.as_str(), bot.check_issue_count)
    };
    assert_eq!(state().await, ("issue", 1));
    // Who asks for a stop himself is told of no other reason.
    world.stop(&bot).await.unwrap();
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert_eq!((info.status, info.reason), (WorkspaceStatus::Stopped, None));
    assert_eq!(task().await, CheckStatus::Ok);
    assert_eq!(state().await, ("ok", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_reserve_the_disk_is_the_tenants() {
    let world = World::with(|settings| {
        settings.storage_measured_every = Duration::from_millis(50);
        settings.reserve_bytes = 0;
    })
    .await;
    let bot = world.running_bot().await;
    limit(&world, &bot, 1).await;
    world.runtime.write_on(&bot, MIB);
    world.runtime.set_free_bytes(0);
    // Time enough for a look at what is free: there are two in a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(world.runtime.faults().calls(Verb::FreeBytes), 0);
    assert!(runs(&world, &bot).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_crosses_the_limit_on_its_way_is_given_up_and_the_old_file_stays() {
    let world = world().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "old").await;
    limit(&world, &bot, 8 * MIB).await;
    held(&world, &bot).await;
    let bridge = world.skep.roomy_bridge(&bot, None).await.unwrap();
    let path = WorkspacePath::parse("/data/file").unwrap();
    let mut writer = FileWriter::begin(&bridge, &path, NewFile::default()).await.unwrap();
    let (piece, deadline) = (Bytes::from(vec![1; 1 << 20]), std::time::Instant::now() + LIMIT);
    let mut written = 0;
    let refused = loop {
        assert!(std::time::Instant::now() < deadline, "{written} bytes were taken");
        match writer.write(piece.clone()).await {
            Ok(()) => written += MIB,
            Err(refused) => break refused,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(written >= 7 * MIB, "refused within the limit, after {written} bytes");
    assert!(
        matches!(&refused, BridgeError::NoSpace(text) if text.contains("storage limit")),
        "{refused:?}"
    );
    drop(writer);
    assert_eq!(world.read(&bot, "/data/file").await, "old");
    // What was written of it is gone, and the next count finds it so.
    until(|| async {
        match world.skep.roomy_bridge(&bot, None).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
}

/// The stop for space of a workspace, as soon as there is one.
async fn stop_for_space(world: &World, bot: &BotId) -> String {
    let found = async || {
        let operations = world.skep.operations(bot, None, 200).await.unwrap().operations;
        operations.into_iter().find(|one| one.kind == "stop").map(|one| one.id)
    };
    until(|| async { found().await.map(drop).ok_or("nobody stops it".to_owned()) }).await;
    found().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_being_stopped_is_weighed_and_stopped_at_once_in_its_neighbours_place() {
    let world = World::with(|settings| settings.reserve_bytes = RESERVE).await;
    let (writes, neighbour) = (world.running_bot().await, world.running_bot().await);
    world.runtime.write_on(&writes, 500 * MIB);
    world.runtime.write_on(&neighbour, 1);
    // Its processes are asked to end, and do not.
    let hold = world.runtime.faults().hold(Verb::Stop);
    let stops = world.runtime.faults().calls(Verb::Stop);
    let slow = Some(Duration::from_secs(300));
    let slow = world.skep.stop_workspace(&writes, slow, &admin()).await.unwrap();
    until_called_in_all(&world, Verb::Stop, stops + 1).await;
    world.runtime.set_free_bytes(RESERVE / 2);
    until_called_in_all(&world, Verb::Stop, stops + 2).await;
    drop(hold);
    until_stopped_for_space(&world, &writes).await;
    let overtaken = slow.outcome().await.expect_err("it was overtaken");
    assert_eq!(overtaken.code(), Code::OperationCancelled);
    assert!(runs(&world, &neighbour).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_for_space_waits_for_nothing_that_its_owner_has_queued() {
    let world = World::with(|settings| settings.reserve_bytes = RESERVE).await;
    let bot = world.running_bot().await;
    world.runtime.write_on(&bot, 500 * MIB);
    let hold = world.runtime.faults().hold(Verb::Stop);
    let (requester, mut queued) = (admin(), Vec::new());
    let refused = loop {
        let slow = Some(Duration::from_secs(300));
        match world.skep.restart_workspace(&bot, slow, &requester).await {
            Ok(restart) => queued.push(restart),
            Err(refused) => break refused,
        }
        assert!(queued.len() < 40, "there is no end to what can be queued");
    };
    assert_eq!(refused.code(), Code::QueueFull);
    world.runtime.set_free_bytes(RESERVE / 2);
    let stop = stop_for_space(&world, &bot).await;
    for restart in &queued {
        let overtaken = restart.outcome().await.expect_err("it was overtaken");
        assert_eq!(overtaken.code(), Code::OperationCancelled);
        assert!(overtaken.to_string().contains(&stop), "{overtaken}");
    }
    drop(hold);
    until_stopped_for_space(&world, &bot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_for_space_cannot_be_cancelled_and_a_delete_comes_after_it() {
    let world = World::with(|settings| settings.reserve_bytes = RESERVE).await;
    let bot = world.running_bot().await;
    world.runtime.write_on(&bot, MIB);
    let hold = world.runtime.faults().hold(Verb::Stop);
    world.runtime.set_free_bytes(0);
    let stop = stop_for_space(&world, &bot).await;
    let refused = world.skep.cancel_operation(&stop).await.expect_err("it is refused");
    assert_eq!(refused.code(), Code::Conflict, "{refused}");
    let delete = world.skep.delete_workspace(&bot, DeleteData::Remove, &admin()).await;
    let delete = delete.unwrap();
    drop(hold);
    world.skep.operation_outcome(&stop).await.unwrap();
    delete.outcome().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_stopped_does_not_stand_before_the_others() {
    let world = World::with(|settings| settings.reserve_bytes = RESERVE).await;
    let (stuck, other) = (world.running_bot().await, world.running_bot().await);
    world.runtime.write_on(&stuck, 500 * MIB);
    world.runtime.write_on(&other, MIB);
    let failure = RuntimeError::other("ending its processes", std::io::Error::other("not now"));
    world.runtime.faults().fail_next(Verb::Stop, failure);
    let hold = world.runtime.faults().hold(Verb::Stop);
    let stops = world.runtime.faults().calls(Verb::Stop);
    world.runtime.set_free_bytes(RESERVE / 2);
    until_called_in_all(&world, Verb::Stop, stops + 1).await;
    // From here on another one writes most: also for the look after the stop that fails.
    world.runtime.write_on(&stuck, 0);
    drop(hold);
    until_stopped_for_space(&world, &other).await;
}
