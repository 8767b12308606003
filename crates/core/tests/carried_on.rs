//! What a server takes up that the one before it left in the journal.

mod harness;

use std::time::{Duration, Instant};

use futures::StreamExt;
use harness::{LIMIT, World, admin, failure, until};
use serde_json::{Value, json};
use skep_core::RestoreRequest;
use skep_names::BotId;
use skep_store::{BotStatus, EventRow, NewOperation};
use skep_testkit::fake_runtime::{FAKE_IMAGE, Hold, Verb};

/// What a server before this one left in the journal.
async fn left_queued(world: &World, bot: &BotId, request: Value) -> String {
    left_queued_as(world, bot, (request, None)).await
}

/// With the status that its bot went into.
async fn left_queued_as(world: &World, bot: &BotId, (request, bot_status): (Value, Option<BotStatus>)) -> String {
    let id = uuid::Uuid::now_v7().to_string();
    let operation = NewOperation {
        id: id.clone(),
        bot_id: bot.clone(),
        kind: request["kind"].as_str().unwrap().to_owned(),
        request,
        requested_by: None,
        request_id: None,
        bot_status,
        idempotency: None,
    };
    world.skep.store().insert_operation(&operation).await.unwrap();
    id
}

#[tokio::test]
async fn what_was_left_unfinished_before_others_began_is_not_done_by_the_next_server() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    let store = world.skep.store().clone();
    let delete = json!({"kind": "delete"});
    let begun = left_queued(&world, &bot, delete.clone()).await;
    let queued = left_queued(&world, &bot, delete).await;
    store.set_operation_step(&begun, "remove", &json!({})).await.unwrap();
    world.stop(&bot).await.unwrap();
    world.start(&bot).await.unwrap();
    let removals = world.runtime.faults().calls(Verb::Remove);
    world.crash().await;
    for (id, state) in [(begun, "failed"), (queued, "cancelled")] {
        let shown = world.skep.operation(&id).await.unwrap();
        assert_eq!(shown.state.as_str(), state, "{shown:?}");
        assert!(shown.error.unwrap().1.contains("other operations"));
    }
    world.start(&bot).await.unwrap();
    assert_eq!(world.runtime.faults().calls(Verb::Remove), removals);
}

#[tokio::test]
async fn what_is_not_carried_on_ends_as_everything_does() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    let store = world.skep.store().clone();
    let archive = world.root.path().join("imports").join("received");
    std::fs::write(&archive, "an archive").unwrap();
    let import = json!({"kind": "import", "archive": "received", "mode": "merge", "cleared": 0});
    let import = left_queued(&world, &bot, import).await;
    let create = json!({
        "kind": "create", "image": FAKE_IMAGE, "snapshotter": null, "cdi_devices": [], "devices_given": false,
        "limits": null, "env": {}, "of_new_bot": true,
    });
    let create = left_queued_as(&world, &bot, (create, Some(BotStatus::Creating))).await;
    let unreadable = left_queued(&world, &world.running_bot().await, json!({"kind": "another"})).await;
    let told = EventRow {
        id: 3,
        data: json!({"type": "creating"}),
    };
    store.insert_event(&create, &told).await.unwrap();
    world.stop(&bot).await.unwrap();
    world.crash().await;
    assert!(!archive.exists());
    let status = world.skep.store().bot(&bot).await.unwrap().unwrap().status;
    assert_eq!(status, BotStatus::Ready, "reconcile would make the workspace anew");
    let ends = [
        (import, "operation_cancelled"),
        (create, "operation_cancelled"),
        (unreadable, "internal"),
    ];
    for (id, code) in ends {
        let events: Vec<_> = world.skep.operation_events(&id, 3).await.unwrap().collect().await;
        let shown = world.skep.operation(&id).await.unwrap().error.unwrap();
        assert_eq!((shown.0.as_str(), failure(&events)), (code, (code.to_owned(), shown.1)));
    }
}

/// Ten bots, each with a restart that was left and is held at the stop of its workspace; with how many are. `is_away`:
/// the server comes up without its runtime.
async fn ten_restarts(world: &mut World, is_away: bool) -> (Vec<String>, Hold, impl Fn() -> u64 + use<>) {
    let mut bots = Vec::new();
    for _ in 0..10 {
        bots.push(world.running_bot().await);
    }
    world.skep.shut_down(LIMIT).await;
    let mut left = Vec::new();
    for bot in &bots {
        left.push(left_queued(world, bot, json!({"kind": "restart", "grace": null})).await);
    }
    let faults = world.runtime.faults().clone();
    let hold = faults.hold(Verb::Stop);
    let before = faults.calls(Verb::Stop);
    if is_away {
        world.runtime.go_away();
    }
    world.restart_within(LIMIT).await;
    (left, hold, move || faults.calls(Verb::Stop) - before)
}

async fn until_begun(begun: impl Fn() -> u64, count: u64) {
    until(|| async {
        match begun() {
            enough if enough >= count => Ok(()),
            few => Err(format!("{few} begun")),
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_left_in_the_journal_is_carried_on_for_eight_bots_at_a_time() {
    let mut world = World::new().await;
    let (left, hold, begun) = ten_restarts(&mut world, false).await;
    until_begun(&begun, 8).await;
    // A ninth would come at once.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(begun(), 8);
    drop(hold);
    for id in &left {
        world.until_succeeded(id).await;
    }
}

#[tokio::test]
async fn the_time_in_which_the_runtime_is_away_does_not_count_as_taking_long() {
    let interval = Duration::from_secs(2);
    let mut world = World::with(|settings| settings.reconcile_interval = interval).await;
    let (left, hold, begun) = ten_restarts(&mut world, true).await;
    tokio::time::sleep(interval * 3 / 2).await;
    let back = Instant::now();
    world.runtime.come_back();
    until_begun(&begun, 8).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = begun();
    // Where this machine stood still, the next ones have begun for good reason.
    assert!(seen == 8 || back.elapsed() >= interval, "{seen}");
    drop(hold);
    for id in &left {
        world.until_succeeded(id).await;
    }
}

#[tokio::test]
async fn what_takes_long_does_not_hold_up_what_was_left_of_other_bots() {
    let mut world = World::with(|settings| settings.reconcile_interval = Duration::from_millis(500)).await;
    let (left, hold, begun) = ten_restarts(&mut world, false).await;
    until_begun(&begun, 10).await;
    drop(hold);
    for id in &left {
        world.until_succeeded(id).await;
    }
}

#[tokio::test]
async fn the_end_of_a_delete_that_failed_removes_no_workspace_that_was_made_meanwhile() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.skep.shut_down(LIMIT).await;
    // As reconcile asks for it when it saw remains, and its turn comes when they are a workspace.
    let request = json!({"kind": "delete", "data": "remove", "only_remains": true});
    let id = left_queued(&world, &bot, request).await;
    world.restart_within(LIMIT).await;
    world.until_succeeded(&id).await;
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_in_place_before_a_crash_needs_its_backup_no_more() {
    for by_name in [true, false] {
        let mut world = World::new().await;
        let bot = world.running_bot().await;
        world.write(&bot, "/data/file", "kept").await;
        world.preserve(&bot).await.unwrap();
        world.create_with(&bot, Some(false)).await;
        let backup = world.backups(&bot).await.remove(0);
        let request = RestoreRequest {
            name: by_name.then(|| backup.name.clone()),
            ..RestoreRequest::default()
        };
        // The workspace is on the new layer when it is started.
        let before = world.runtime.faults().calls(Verb::Swap);
        let hold = world.runtime.faults().hold(Verb::Start);
        let restore = world.skep.restore_data(&bot, request, &admin()).await.unwrap();
        let id = restore.id().to_owned();
        let starts = world.runtime.faults().calls(Verb::Start);
        until(|| async {
            match world.runtime.faults().calls(Verb::Start) > starts {
                true => Ok(()),
                false => Err("it is not started again yet".to_owned()),
            }
        })
        .await;
        assert!(world.runtime.faults().calls(Verb::Swap) > before);
        // It crashed before it could note that.
        let notes = world.skep.store().operation(&id).await.unwrap().unwrap().notes;
        let mut notes = notes.as_object().unwrap().clone();
        notes.remove("changed").unwrap();
        let store = world.skep.store();
        store.set_operation_step(&id, "adopt", &notes.into()).await.unwrap();
        std::fs::remove_file(world.file_of(&backup.name)).unwrap();
        let legacy = world.root.path().join("bots").join(bot.as_str());
        std::fs::create_dir_all(&legacy).unwrap();
        std::fs::write(legacy.join("file"), "never put in").unwrap();
        world.crash().await;
        drop(hold);
        world.until_succeeded(&id).await;
        assert_eq!(world.read(&bot, "/data/file").await, "kept");
        // The backup won over it, or nobody asked for either.
        let superseded = legacy.with_file_name(format!("{bot}.superseded"));
        assert_eq!((legacy.exists(), superseded.exists()), (by_name, !by_name));
    }
}

#[tokio::test]
async fn a_delete_of_remains_that_had_removed_them_forgets_them_too() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    let request = json!({"kind": "delete", "data": "remove", "only_remains": true});
    let id = left_queued(&world, &bot, request).await;
    world
        .skep
        .store()
        .set_operation_step(&id, "remove", &json!({"layers_changed": true}))
        .await
        .unwrap();
    world.runtime.lose(&bot).await.unwrap();
    world.crash().await;
    world.until_succeeded(&id).await;
    assert!(world.skep.store().container(&bot).await.unwrap().is_none());
}
