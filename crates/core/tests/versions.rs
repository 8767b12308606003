//! Versions: kept, gone back to, forgotten; what each must hold, after any history and any crash.

mod harness;

use std::time::Duration;

use harness::{LIMIT, World, admin, until};
use skep_core::files::{FileWriter, NewFile, WorkspacePath};
use skep_core::{Code, DeleteData, Outcome, SOURCE_PRE_EXEC, SnapshotItem, TakenSnapshot, WorkspaceStatus};
use skep_names::BotId;
use skep_runtime::{LayerKind, Layers, Runtime, RuntimeError};
use skep_testkit::fake_runtime::Verb;

const FILE: &str = "/data/file";

async fn snapshot(world: &World, bot: &BotId, source: &str) -> skep_core::Result<TakenSnapshot> {
    let handle = world.skep.take_snapshot(bot, ("", source), &admin()).await?;
    match handle.outcome().await? {
        Outcome::Snapshot(taken) => Ok(taken),
        other => panic!("a snapshot that ends with {other:?}"),
    }
}

/// The version that was saved.
async fn roll_back(world: &World, bot: &BotId, version: u64) -> skep_core::Result<u64> {
    match world.skep.roll_back(bot, version, &admin()).await?.outcome().await? {
        Outcome::RolledBack {
            version: to,
            saved_version,
        } => {
            assert_eq!(to, version);
            Ok(saved_version)
        }
        other => panic!("a rollback that ends with {other:?}"),
    }
}

async fn delete(world: &World, bot: &BotId, version: u64) -> skep_core::Result<Outcome> {
    world.skep.delete_version(bot, version, &admin()).await?.outcome().await
}

async fn write(world: &World, bot: &BotId, text: String) {
    let bridge = world.skep.roomy_bridge(bot, None).await.unwrap();
    let path = WorkspacePath::parse(FILE).unwrap();
    let mut writer = FileWriter::begin(&bridge, &path, NewFile::default()).await.unwrap();
    writer.write(text.into()).await.unwrap();
    writer.finish().await.unwrap();
}

async fn versions(world: &World, bot: &BotId) -> Vec<u64> {
    let list = world.skep.snapshots(bot, None).await.unwrap();
    let mut found: Vec<u64> = list.snapshots.iter().filter_map(|item| item.version).collect();
    found.sort_unstable();
    found
}

async fn names(world: &World, bot: &BotId) -> Vec<String> {
    let tree = Layers::list(&world.runtime, bot).await;
    let tree: skep_runtime::LayerTree = tree.unwrap();
    tree.line.into_iter().chain(tree.side).map(|layer| layer.name).collect()
}

#[tokio::test]
async fn a_version_is_kept_listed_and_gone_back_to() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let before = world.skep.workspace_info(&bot).await.unwrap();
    write(&world, &bot, "one".into()).await;
    let taken = snapshot(&world, &bot, " ").await.unwrap();
    assert_eq!((taken.version, taken.source.as_str()), (1, "manual"));
    write(&world, &bot, "two".into()).await;
    assert_eq!(roll_back(&world, &bot, 1).await.unwrap(), 2);
    assert_eq!(world.read(&bot, FILE).await, "one");
    // Nothing was written since: the version that was gone back to holds the present.
    assert_eq!(roll_back(&world, &bot, 2).await.unwrap(), 1);
    assert_eq!(world.read(&bot, FILE).await, "two");
    let after = world.skep.workspace_info(&bot).await.unwrap();
    let shown = |info: skep_core::WorkspaceInfo| (info.status, info.namespace, info.image, info.limits.wanted);
    assert_eq!(shown(before), shown(after));
    let list = world.skep.snapshots(&bot, None).await.unwrap();
    let managed: Vec<&SnapshotItem> = list.snapshots.iter().filter(|item| item.managed).collect();
    assert_eq!(managed[0].name, "Version 1");
    assert_eq!(
        (managed[1].source.as_str(), managed[1].kind),
        ("rollback", LayerKind::Committed)
    );
    let active: Vec<&SnapshotItem> = list.snapshots.iter().filter(|item| !item.managed).collect();
    assert_eq!((active.len(), active[0].source.as_str()), (1, "image_layer"));
    assert_eq!(
        active[0].parent.as_deref(),
        Some(managed[1].runtime_snapshot_name.as_str())
    );
    let events = world.skep.store().lifecycle_events(&bot, 100).await.unwrap();
    for kind in ["snapshot_create", "version_create", "version_rollback"] {
        assert!(events.iter().any(|event| event.event_type == kind), "{kind}");
    }
}

#[tokio::test]
async fn what_cannot_be_is_told() {
    let world = World::new().await;
    let bot = world.bot().await;
    let code = |error: skep_core::Error| error.code();
    assert_eq!(
        snapshot(&world, &bot, "").await.map_err(code),
        Err(Code::ContainerNotFound)
    );
    assert_eq!(
        roll_back(&world, &bot, 1).await.map_err(code),
        Err(Code::ContainerNotFound)
    );
    let listed = world.skep.snapshots(&bot, None).await;
    assert_eq!(listed.map_err(code), Err(Code::ContainerNotFound));
    let bot = world.running_bot().await;
    assert_eq!(
        roll_back(&world, &bot, u64::MAX).await.map_err(code),
        Err(Code::VersionNotFound)
    );
    assert_eq!(delete(&world, &bot, 7).await.map_err(code), Err(Code::VersionNotFound));
    let renamed = world.skep.rename_version(&bot, 7, "x").await;
    assert_eq!(renamed.map_err(code), Err(Code::VersionNotFound));
    let other = world.skep.snapshots(&bot, Some("zfs")).await.unwrap_err();
    assert_eq!(other.to_string(), "snapshotter does not match container snapshotter");
    let long = "x".repeat(300);
    let refused = world.skep.take_snapshot(&bot, (&long, ""), &admin()).await;
    assert_eq!(refused.map(|_| ()).map_err(code), Err(Code::InvalidArgument));
}

#[tokio::test]
async fn a_backend_without_layers_says_so_and_nothing_is_deleted() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    write(&world, &bot, "here".into()).await;
    world.runtime.go_without_layers();
    let told = "snapshots currently not supported on fake backend";
    let refused = [
        snapshot(&world, &bot, "").await.map(drop),
        roll_back(&world, &bot, 1).await.map(drop),
        delete(&world, &bot, 1).await.map(drop),
        world.skep.rename_version(&bot, 1, "x").await.map(drop),
        world.skep.snapshots(&bot, None).await.map(drop),
    ];
    for refused in refused {
        let refused = refused.unwrap_err();
        assert_eq!(
            (refused.code(), refused.to_string().as_str()),
            (Code::Unsupported, told)
        );
    }
    let kept = world.skep.delete_workspace(&bot, DeleteData::Preserve, &admin()).await;
    assert_eq!(kept.map(drop).unwrap_err().code(), Code::Unsupported);
    let archive = futures::stream::iter([Ok(vec![0; 1024].into())]);
    let imported = world.skep.receive_archive(&bot, archive).await;
    assert_eq!(imported.map(drop).unwrap_err().code(), Code::Unsupported);
    assert_eq!(world.read(&bot, FILE).await, "here");
}

#[tokio::test]
async fn a_list_shows_the_layers_of_its_own_bot_alone_and_their_names_tell_no_time() {
    let world = World::new().await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let bot = world.running_bot().await;
        for _ in 0..2 {
            let handle = world.skep.take_snapshot(&bot, ("", ""), &admin()).await.unwrap();
            let operation = handle.id().to_string();
            let Ok(Outcome::Snapshot(taken)) = handle.outcome().await else {
                panic!("no snapshot")
            };
            let named = format!("{}-{operation}-snapshot", taken.container_id);
            assert_eq!(
                taken.runtime_snapshot_name, named,
                "by its operation, so that a repeat finds it"
            );
        }
        seen.push(bot);
    }
    for (bot, other) in [(&seen[0], &seen[1]), (&seen[1], &seen[0])] {
        let list = world.skep.snapshots(bot, None).await.unwrap();
        assert_eq!(list.snapshots.iter().filter(|item| item.managed).count(), 2);
        let of_other = |item: &&SnapshotItem| item.runtime_snapshot_name.contains(other.as_str());
        assert_eq!(list.snapshots.iter().find(of_other), None);
    }
}

#[tokio::test]
async fn a_stopped_workspace_stays_stopped() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    write(&world, &bot, "one".into()).await;
    world.stop(&bot).await.unwrap();
    let starts = world.runtime.faults().calls(Verb::Start);
    assert_eq!(snapshot(&world, &bot, "").await.unwrap().version, 1);
    assert_eq!(roll_back(&world, &bot, 1).await.unwrap(), 1);
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert_eq!((info.status, info.task_running), (WorkspaceStatus::Stopped, false));
    assert_eq!(world.runtime.faults().calls(Verb::Start), starts);
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, FILE).await, "one");
}

#[tokio::test]
async fn the_limit_is_told_and_automatic_ones_make_room() {
    let world = World::with(|settings| {
        settings.versions.max = 3;
        settings.versions.keep_automatic = 2;
        settings.versions.keep_rollback = 2;
    })
    .await;
    let bot = world.running_bot().await;
    for number in 1..=3 {
        write(&world, &bot, format!("{number}")).await;
        snapshot(&world, &bot, "nightly").await.unwrap();
    }
    let full = snapshot(&world, &bot, "").await.unwrap_err();
    assert_eq!(full.code(), Code::SnapshotLimit);
    assert_eq!(world.read(&bot, FILE).await, "3", "a refusal changes nothing");
    for _ in 0..4 {
        snapshot(&world, &bot, SOURCE_PRE_EXEC).await.unwrap();
    }
    assert_eq!(versions(&world, &bot).await, [1, 2, 3, 6, 7]);
    for _ in 0..4 {
        write(&world, &bot, "changed".into()).await;
        roll_back(&world, &bot, 1).await.unwrap();
    }
    assert_eq!(versions(&world, &bot).await, [1, 2, 3, 6, 7, 10, 11]);
    // The number of the highest one is not given again, and there is room for one more.
    delete(&world, &bot, 3).await.unwrap();
    assert_eq!(snapshot(&world, &bot, "").await.unwrap().version, 12);
    for (version, text) in [(2, "2"), (1, "1")] {
        roll_back(&world, &bot, version).await.unwrap();
        assert_eq!(world.read(&bot, FILE).await, text);
    }
}

#[tokio::test]
async fn a_delete_of_the_workspace_takes_its_versions_along() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    snapshot(&world, &bot, "").await.unwrap();
    let deleted = world.skep.delete_workspace(&bot, DeleteData::Remove, &admin()).await;
    deleted.unwrap().outcome().await.unwrap();
    assert!(world.runtime.bots_with_layers().await.unwrap().is_empty());
    world.create(&bot).await.outcome().await.unwrap();
    assert_eq!(versions(&world, &bot).await, Vec::<u64>::new());
    assert_eq!(snapshot(&world, &bot, "").await.unwrap().version, 1);
}

#[tokio::test]
async fn a_snapshot_or_a_rollback_that_fails_leaves_the_workspace_as_it_was() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    write(&world, &bot, "kept".into()).await;
    snapshot(&world, &bot, "").await.unwrap();
    for verb in [Verb::Stop, Verb::Commit] {
        write(&world, &bot, format!("before {verb:?}")).await;
        let layers = names(&world, &bot).await;
        let fault = RuntimeError::other("a fault", "told to");
        world.runtime.faults().fail_next(verb, fault);
        assert!(snapshot(&world, &bot, "").await.is_err(), "{verb:?}");
        assert_eq!(world.read(&bot, FILE).await, format!("before {verb:?}"));
        assert_eq!(versions(&world, &bot).await, [1], "{verb:?}");
        assert_eq!(names(&world, &bot).await, layers, "{verb:?}");
    }
    for verb in [Verb::Commit, Verb::Stage, Verb::Swap] {
        write(&world, &bot, format!("before {verb:?}")).await;
        let layers = names(&world, &bot).await.len();
        world
            .runtime
            .faults()
            .fail_next(verb, RuntimeError::other("a fault", "told to"));
        assert!(roll_back(&world, &bot, 1).await.is_err(), "{verb:?}");
        assert_eq!(world.read(&bot, FILE).await, format!("before {verb:?}"));
        assert_eq!(versions(&world, &bot).await, [1], "{verb:?}");
        // A state that was saved stands below the present one until it is merged; nothing else is left.
        assert!(names(&world, &bot).await.len() <= layers + 1, "{verb:?}");
    }
    assert_eq!(roll_back(&world, &bot, 1).await.unwrap(), 2);
    assert_eq!(world.read(&bot, FILE).await, "kept");
}

#[tokio::test]
async fn a_rollback_that_a_crash_cut_off_is_carried_on() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    write(&world, &bot, "one".into()).await;
    snapshot(&world, &bot, "").await.unwrap();
    write(&world, &bot, "two".into()).await;
    let hold = world.runtime.faults().hold(Verb::Swap);
    let handle = world.skep.roll_back(&bot, 1, &admin()).await.unwrap();
    until(|| async {
        match world.runtime.faults().calls(Verb::Swap) {
            0 => Err("not there yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    world.crash().await;
    drop(hold);
    let id = handle.id().to_owned();
    assert!(world.skep.operation_outcome(&id).await.is_ok());
    assert_eq!(world.read(&bot, FILE).await, "one");
    assert_eq!(versions(&world, &bot).await, [1, 2]);
    roll_back(&world, &bot, 2).await.unwrap();
    assert_eq!(world.read(&bot, FILE).await, "two");
}

/// As containerd's end in the middle of a request looks.
fn gone_away() -> RuntimeError {
    RuntimeError::Unavailable {
        runtime: "fake runtime",
        source: None,
    }
}

#[tokio::test]
async fn a_rollback_whose_runtime_goes_away_in_its_middle_is_carried_on_when_it_is_back() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    write(&world, &bot, "one".into()).await;
    snapshot(&world, &bot, "").await.unwrap();
    for (number, verb) in [Verb::Commit, Verb::Stage, Verb::Swap, Verb::Start]
        .into_iter()
        .enumerate()
    {
        write(&world, &bot, format!("before {verb:?}")).await;
        world.runtime.faults().fail_next(verb, gone_away());
        world.runtime.faults().fail_next(verb, gone_away());
        let saved = roll_back(&world, &bot, 1).await.unwrap();
        assert_eq!(saved, number as u64 + 2, "{verb:?}");
        assert_eq!(world.read(&bot, FILE).await, "one", "{verb:?}");
        // What was there before is a version.
        roll_back(&world, &bot, saved).await.unwrap();
        assert_eq!(world.read(&bot, FILE).await, format!("before {verb:?}"));
    }
}

#[tokio::test]
async fn a_rollback_that_is_cancelled_while_the_runtime_is_away_is_undone_when_it_is_back() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    write(&world, &bot, "one".into()).await;
    snapshot(&world, &bot, "").await.unwrap();
    write(&world, &bot, "two".into()).await;
    let layers = names(&world, &bot).await.len();
    let hold = world.runtime.faults().hold(Verb::Stage);
    let handle = world.skep.roll_back(&bot, 1, &admin()).await.unwrap();
    called(&world, Verb::Stage, 1).await;
    world.runtime.go_away();
    drop(hold);
    let (skep, id) = (world.skep.clone(), handle.id().to_owned());
    let cancel = tokio::spawn(async move { skep.cancel_operation(&id).await });
    // It is not said to be over before it is.
    let early = tokio::time::timeout(Duration::from_millis(300), handle.outcome()).await;
    assert!(early.is_err(), "{early:?}");
    world.runtime.come_back();
    assert_eq!(handle.outcome().await.unwrap_err().code(), Code::OperationCancelled);
    cancel.await.unwrap().unwrap();
    assert_eq!(world.read(&bot, FILE).await, "two");
    assert_eq!(versions(&world, &bot).await, [1]);
    // The state that was saved stands below the present one.
    assert!(names(&world, &bot).await.len() <= layers + 1);
}

#[tokio::test]
async fn a_snapshot_that_begins_while_the_runtime_is_away_fails_at_once() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    write(&world, &bot, "one".into()).await;
    world.runtime.go_away();
    let refused = tokio::time::timeout(LIMIT, snapshot(&world, &bot, "")).await;
    let refused = refused.expect("nobody is kept waiting").unwrap_err();
    assert_eq!(refused.code(), Code::RuntimeUnavailable);
    world.runtime.come_back();
    assert_eq!(world.read(&bot, FILE).await, "one");
    assert_eq!(versions(&world, &bot).await, Vec::<u64>::new());
}

async fn called(world: &World, verb: Verb, times: u64) {
    until(|| async {
        match world.runtime.faults().calls(verb) {
            calls if calls >= times => Ok(()),
            calls => Err(format!("{verb:?} was called {calls} times")),
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_written_before_a_snapshot_with_a_merge_has_ended_outlives_a_crash() {
    let mut world = World::with(|settings| settings.versions.merge_over = 3).await;
    let bot = world.running_bot().await;
    for number in 1..=3 {
        write(&world, &bot, format!("{number}")).await;
        snapshot(&world, &bot, "").await.unwrap();
    }
    delete(&world, &bot, 2).await.unwrap();
    write(&world, &bot, "4".into()).await;
    let before = world.runtime.faults().calls(Verb::RemoveLayer);
    // The workspace runs again when the layers that were merged are released, one after the other.
    world.runtime.faults().delay(Verb::RemoveLayer, Duration::from_secs(2));
    let handle = world.skep.take_snapshot(&bot, ("", ""), &admin()).await.unwrap();
    called(&world, Verb::RemoveLayer, before + 1).await;
    // By a process of its own: whoever comes by the server waits for the end.
    std::fs::write(world.runtime.layer_path(&bot).join("data/file"), "after").unwrap();
    called(&world, Verb::RemoveLayer, before + 2).await;
    world.crash().await;
    world.runtime.faults().delay(Verb::RemoveLayer, Duration::ZERO);
    assert!(world.skep.operation_outcome(handle.id()).await.is_ok());
    assert_eq!(world.read(&bot, FILE).await, "after");
    assert_eq!(versions(&world, &bot).await, [1, 3, 4]);
    for version in [1, 3, 4] {
        roll_back(&world, &bot, version).await.unwrap();
        assert_eq!(world.read(&bot, FILE).await, version.to_string());
    }
}

#[tokio::test]
async fn a_version_was_made_when_it_was_also_after_a_merge_made_its_layer_anew() {
    let world = World::with(|settings| settings.versions.merge_over = 3).await;
    let bot = world.running_bot().await;
    for number in 1..=3 {
        write(&world, &bot, format!("{number}")).await;
        snapshot(&world, &bot, "").await.unwrap();
    }
    delete(&world, &bot, 2).await.unwrap();
    let managed = async || {
        let list = world.skep.snapshots(&bot, None).await.unwrap();
        let managed = list.snapshots.into_iter().filter(|item| item.managed);
        managed.collect::<Vec<SnapshotItem>>()
    };
    let before = managed().await;
    snapshot(&world, &bot, "").await.unwrap();
    let after = managed().await;
    let is_anew =
        |(one, other): (&SnapshotItem, &SnapshotItem)| one.runtime_snapshot_name != other.runtime_snapshot_name;
    assert!(before.iter().zip(&after).any(is_anew), "what this test is about");
    let shown =
        |items: &[SnapshotItem]| -> Vec<_> { items.iter().map(|item| (item.version, item.created_at)).collect() };
    assert_eq!(shown(&before), shown(&after)[..2]);
    assert_eq!(after[2].version, Some(4), "{after:?}");
    let rows = world.skep.store().versions(&format!("workspace-{bot}")).await.unwrap();
    let rows: Vec<_> = rows.iter().map(|row| (Some(row.version), row.created_at)).collect();
    assert_eq!(shown(&after), rows);
}

#[tokio::test]
async fn a_workspace_is_used_while_layers_below_it_are_merged() {
    let world = World::with(|settings| settings.versions.merge_over = 3).await;
    let bot = world.running_bot().await;
    for number in 1..=3 {
        write(&world, &bot, format!("{number}")).await;
        snapshot(&world, &bot, "").await.unwrap();
    }
    delete(&world, &bot, 2).await.unwrap();
    let (hold, before) = (
        world.runtime.faults().hold(Verb::Merge),
        world.runtime.faults().calls(Verb::Merge),
    );
    let handle = world.skep.take_snapshot(&bot, ("", ""), &admin()).await.unwrap();
    called(&world, Verb::Merge, before + 1).await;
    let written = tokio::time::timeout(LIMIT, write(&world, &bot, "meanwhile".into()));
    written.await.expect("it does not wait for the merge");
    drop(hold);
    handle.outcome().await.unwrap();
    assert_eq!(world.read(&bot, FILE).await, "meanwhile");
}

#[tokio::test]
async fn a_snapshot_that_changed_no_layer_is_rolled_back_at_the_next_start() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    write(&world, &bot, "one".into()).await;
    let stops = world.runtime.faults().calls(Verb::Stop);
    let hold = world.runtime.faults().hold(Verb::Stop);
    let handle = world.skep.take_snapshot(&bot, ("", ""), &admin()).await.unwrap();
    until(|| async {
        match world.runtime.faults().calls(Verb::Stop) {
            calls if calls > stops => Ok(()),
            _ => Err("not there yet".to_owned()),
        }
    })
    .await;
    world.crash().await;
    drop(hold);
    let outcome = world.skep.operation_outcome(handle.id()).await;
    assert_eq!(outcome.unwrap_err().code(), Code::OperationCancelled);
    assert_eq!(world.read(&bot, FILE).await, "one");
    assert_eq!(versions(&world, &bot).await, Vec::<u64>::new());
}

#[tokio::test]
async fn processes_that_a_snapshot_ends_are_told_as_interrupted() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let before = world.skep.uninterrupted(&bot);
    let had_ended = chrono::Utc::now() - chrono::TimeDelta::seconds(1);
    snapshot(&world, &bot, "").await.unwrap();
    assert!(!before.goes_on() && before.has_ended_one_of(chrono::Utc::now()));
    assert!(!before.has_ended_one_of(had_ended));
    let after = world.skep.uninterrupted(&bot);
    delete(&world, &bot, 1).await.unwrap();
    world.stop(&bot).await.unwrap();
    assert!(after.goes_on(), "a stop is no restart");
}

#[tokio::test]
async fn no_connection_to_a_bridge_outlives_a_snapshot_or_a_rollback() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    // It listens on while its workspace is down: nothing but the server ends a connection to it.
    world.runtime.show_only_the_reference(&bot).await.unwrap();
    world.stop(&bot).await.unwrap();
    world.start(&bot).await.unwrap();
    assert_eq!(world.runtime.connections_to_the_reference(&bot), 1);
    let taken = snapshot(&world, &bot, "").await.unwrap();
    world.skep.usable_bridge(&bot, None).await.unwrap();
    assert_eq!(world.runtime.connections_to_the_reference(&bot), 2);
    roll_back(&world, &bot, taken.version).await.unwrap();
    world.skep.usable_bridge(&bot, None).await.unwrap();
    assert_eq!(world.runtime.connections_to_the_reference(&bot), 3);
}

#[tokio::test]
async fn an_orphan_that_gets_no_container_on_its_layer_goes_on_with_its_data_in_a_fresh_one() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    write(&world, &bot, "one".into()).await;
    snapshot(&world, &bot, "").await.unwrap();
    write(&world, &bot, "two".into()).await;
    let before = names(&world, &bot).await;
    world.stop(&bot).await.unwrap();
    let refused = || RuntimeError::other("putting a container on its layer", "told to");

    // Once is no reason to leave a layer.
    world.runtime.forget_container(&bot);
    world.runtime.faults().fail_next(Verb::Create, refused());
    world.start(&bot).await.unwrap();
    assert_eq!(names(&world, &bot).await, before);
    world.stop(&bot).await.unwrap();

    world.runtime.forget_container(&bot);
    for _ in 0..2 {
        world.runtime.faults().fail_next(Verb::Create, refused());
    }
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, FILE).await, "two");
    let after = names(&world, &bot).await;
    assert!(after[0].ends_with("-fresh"), "{after:?}");
    assert!(
        before.iter().all(|layer| after.contains(layer)),
        "{before:?}, then {after:?}"
    );
    let kept = world.skep.backups(&bot).await.unwrap();
    assert_eq!(kept, [], "what is back is not kept besides");
    roll_back(&world, &bot, 1).await.unwrap();
    assert_eq!(world.read(&bot, FILE).await, "one");
    roll_back(&world, &bot, 2).await.unwrap();
    assert_eq!(world.read(&bot, FILE).await, "two");
}

#[tokio::test]
async fn an_orphan_that_gets_no_container_at_all_keeps_its_layer() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    write(&world, &bot, "kept".into()).await;
    world.stop(&bot).await.unwrap();
    for verb in [Verb::ReadData, Verb::Stage, Verb::WriteData] {
        world.runtime.forget_container(&bot);
        for _ in 0..2 {
            let refused = RuntimeError::other("putting a container on its layer", "told to");
            world.runtime.faults().fail_next(Verb::Create, refused);
        }
        world
            .runtime
            .faults()
            .fail_next(verb, RuntimeError::other("a step", "told to"));
        let copies = world.runtime.faults().calls(Verb::ReadData);
        assert!(world.start(&bot).await.is_err(), "{verb:?}");
        if verb == Verb::Stage {
            let copied = world.runtime.faults().calls(Verb::ReadData) - copies;
            assert_eq!(copied, 0, "all of the data is copied for nothing");
        }
        world.start(&bot).await.unwrap();
        assert_eq!(world.read(&bot, FILE).await, "kept", "{verb:?}");
        let left = names(&world, &bot).await;
        assert!(
            !left.iter().any(|layer| layer.ends_with("-fresh")),
            "{verb:?}: {left:?}"
        );
        world.stop(&bot).await.unwrap();
    }
}
