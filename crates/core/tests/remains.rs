//! What an operation left that failed half-way: never used, never taken for a workspace, finished or refused until then.

mod harness;

use harness::{World, admin, told_to_fail, until, until_nothing_is_left};
use serde_json::{Value, json};
use skep_core::{Code, DeleteData, Outcome};
use skep_names::BotId;
use skep_runtime::{Runtime, RuntimeError};
use skep_store::OperationEnd;
use skep_testkit::fake_runtime::Verb;

fn breaks() -> RuntimeError {
    RuntimeError::Rejected {
        reason: "a disk that breaks".to_owned(),
    }
}

/// When its container is gone and its layers are there.
async fn fail_a_delete_half_way(world: &World, bot: &BotId) {
    world.runtime.faults().fail_next(Verb::RemoveLayers, breaks());
    delete(world, bot).await.unwrap_err();
}

async fn delete(world: &World, bot: &BotId) -> skep_core::Result<Outcome> {
    let delete = world.skep.delete_workspace(bot, DeleteData::Remove, &admin()).await;
    delete.unwrap().outcome().await
}

/// A comparison that finds what is left, and cannot remove it either.
async fn fail_a_comparison(world: &World, bot: &BotId) {
    let operations = world.operations(bot).await;
    world.runtime.faults().fail_next(Verb::RemoveLayers, breaks());
    world.runtime.go_away();
    world.runtime.come_back();
    until(|| async {
        let unfinished = world.skep.store().unfinished_operations().await.unwrap();
        match unfinished.is_empty() && world.operations(bot).await > operations {
            true => Ok(()),
            false => Err(format!("{unfinished:?}")),
        }
    })
    .await;
    assert!(
        world.runtime.has_layer(bot).await.unwrap(),
        "it removed what it could not"
    );
}

/// Operations that have succeeded in no step.
async fn journal(world: &World, bot: &BotId, kind: &str, times: u32) {
    for _ in 0..times {
        let done = OperationEnd::Succeeded { outcome: Value::Null };
        world.journal_ended(bot, (kind, done), None).await;
    }
}

async fn is_refused(world: &World, bot: &BotId) {
    for refused in [world.preserve(bot).await, world.start(bot).await] {
        assert_eq!(refused.unwrap_err().code(), Code::Conflict);
    }
    assert!(world.backups(bot).await.is_empty());
}

#[tokio::test]
async fn what_a_failed_delete_left_whole_is_a_workspace_like_any_other() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.runtime.faults().fail_next(Verb::Remove, breaks());
    let delete = world.skep.delete_workspace(&bot, DeleteData::Remove, &admin()).await;
    delete.unwrap().outcome().await.unwrap_err();
    // No operation shows that it is used.
    world.write(&bot, "/data/file", "later").await;
    world.stop(&bot).await.unwrap();
    world.runtime.forget_container(&bot);
    world.runtime.go_away();
    world.runtime.come_back();
    until(|| async {
        match world.runtime.inspect(&bot).await.unwrap() {
            Some(_) => Ok(()),
            None => Err("no container was put back".to_owned()),
        }
    })
    .await;
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "later");
}

#[tokio::test]
async fn what_a_delete_left_that_failed_half_way_is_never_started() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    fail_a_delete_half_way(&world, &bot).await;
    assert_eq!(world.start(&bot).await.unwrap_err().code(), Code::Conflict);
    world.runtime.go_away();
    world.runtime.come_back();
    until_nothing_is_left(&world, &bot).await;
}

#[tokio::test]
async fn of_what_a_delete_left_that_failed_half_way_nothing_is_made_or_kept() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    fail_a_delete_half_way(&world, &bot).await;
    let created = world.create(&bot).await.outcome().await;
    assert_eq!(created.unwrap_err().code(), Code::Conflict);
    for _ in 0..3 {
        is_refused(&world, &bot).await;
        fail_a_comparison(&world, &bot).await;
    }
    delete(&world, &bot).await.unwrap();
    until_nothing_is_left(&world, &bot).await;
}

#[tokio::test]
async fn a_delete_that_failed_between_two_layers_has_left_no_workspace() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let taken = world.skep.take_snapshot(&bot, ("", "manual"), &admin()).await;
    taken.unwrap().outcome().await.unwrap();
    let calls = world.runtime.faults().calls(Verb::RemoveLayers);
    let hold = world.runtime.faults().hold(Verb::RemoveLayers);
    let delete = world.skep.delete_workspace(&bot, DeleteData::Remove, &admin()).await;
    let until_at = async |layer: u64| {
        until(|| async {
            match world.runtime.faults().calls(Verb::RemoveLayers) - calls {
                at if at == layer => Ok(()),
                at => Err(format!("at layer {at}")),
            }
        })
        .await;
    };
    until_at(1).await;
    let next = world.runtime.faults().hold(Verb::RemoveLayers);
    drop(hold);
    until_at(2).await;
    world.runtime.faults().fail_next(Verb::RemoveLayers, breaks());
    drop(next);
    delete.unwrap().outcome().await.unwrap_err();
    is_refused(&world, &bot).await;
    fail_a_comparison(&world, &bot).await;
    is_refused(&world, &bot).await;
}

#[tokio::test]
async fn a_delete_that_could_not_begin_tells_nothing_of_what_an_earlier_one_left() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    fail_a_delete_half_way(&world, &bot).await;
    world.runtime.go_away();
    let away = delete(&world, &bot).await.unwrap_err();
    assert_eq!(away.code(), Code::RuntimeUnavailable);
    world.runtime.come_back();
    until_nothing_is_left(&world, &bot).await;
}

#[tokio::test]
async fn what_only_looked_or_shows_no_workspace_hides_no_half_removal_however_often_it_came() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    fail_a_delete_half_way(&world, &bot).await;
    journal(&world, &bot, "recover", 1).await;
    is_refused(&world, &bot).await;
    for kind in ["stop", "limits"] {
        journal(&world, &bot, kind, 200).await;
        is_refused(&world, &bot).await;
    }
    delete(&world, &bot).await.unwrap();
    until_nothing_is_left(&world, &bot).await;
}

#[tokio::test]
async fn data_that_was_kept_is_kept_whatever_else_failed_to_remove_the_rest() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.runtime.faults().fail_next(Verb::RemoveLayers, breaks());
    world.preserve(&bot).await.unwrap_err();
    fail_a_comparison(&world, &bot).await;
    world.preserve(&bot).await.unwrap();
    until_nothing_is_left(&world, &bot).await;
    assert_eq!(world.backups(&bot).await.len(), 1);
    world.create(&bot).await.outcome().await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

/// The restore of a create fails, and its undo.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_create_left_that_could_not_be_undone_is_never_taken_for_a_workspace() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let kept = world.skep.delete_workspace(&bot, DeleteData::Preserve, &admin()).await;
    kept.unwrap().outcome().await.unwrap();
    for verb in [Verb::WriteData, Verb::Remove] {
        let broken = RuntimeError::other("writing", std::io::Error::other("broken"));
        world.runtime.faults().fail_next(verb, broken);
    }
    world.create(&bot).await.outcome().await.unwrap_err();
    // Nor after a removal that could not begin.
    world.runtime.go_away();
    delete(&world, &bot).await.unwrap_err();
    world.runtime.come_back();
    until_nothing_is_left(&world, &bot).await;
    let made = world.create(&bot).await.outcome().await.unwrap();
    assert!(matches!(made, Outcome::Workspace(made) if made.data_restored));
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn where_a_delete_has_left_nothing_at_all_nothing_is_to_be_kept() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    fail_a_delete_half_way(&world, &bot).await;
    is_refused(&world, &bot).await;
    world.runtime.lose(&bot).await.unwrap();
    world.preserve(&bot).await.unwrap();
    assert!(world.backups(&bot).await.is_empty());
}

/// Whatever became of the step that tells so after a delete that failed.
#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_a_container_there_is_a_whole_workspace() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let begun = json!({"layers_changed": true});
    world
        .journal_ended(&bot, ("delete", told_to_fail()), Some(("remove", begun)))
        .await;
    world.write(&bot, "/data/file", "kept").await;
    world.preserve(&bot).await.unwrap();
    assert_eq!(world.backups(&bot).await.len(), 1);
}

/// There was nothing to keep: what a removal left that failed is not data that is not whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_keeps_the_data_of_no_workspace_can_be_repeated_whenever_it_failed() {
    let world = World::new().await;
    let bot = world.bot().await;
    let broken = || RuntimeError::other("removing", std::io::Error::other("broken"));
    let legacy = world.root.path().join("bots").join(bot.as_str());
    std::fs::create_dir_all(&legacy).unwrap();
    std::fs::write(legacy.join("file"), "kept").unwrap();
    for fails in [true, true, true, false] {
        if fails {
            world.runtime.faults().fail_next(Verb::Remove, broken());
        }
        let deleted = world
            .skep
            .delete_bot(&bot, DeleteData::Preserve, &admin())
            .await
            .unwrap();
        let refused = deleted.operation.outcome().await.err().map(|error| error.code());
        assert_eq!(refused, fails.then_some(Code::Internal));
        assert_eq!(world.backups(&bot).await.len(), 1);
        assert_eq!(legacy.exists(), fails);
    }
    assert!(world.skep.bot(&bot).await.is_err());
}

/// What the removal did that failed is not done once more, unless the directory has changed since.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_after_one_that_failed_keeps_a_legacy_directory_once_and_behind_the_workspace() {
    // While its container is there, a workspace is kept once more, and is the newest again.
    let tries: [(Verb, bool, &[u64]); 4] = [
        (Verb::RemoveLayers, false, &[1, 3]),
        (Verb::RemoveLayers, true, &[1, 4, 3]),
        (Verb::Remove, false, &[1, 3]),
        (Verb::Remove, true, &[1, 4, 1, 3]),
    ];
    for (failing, is_changed, expected) in tries {
        let world = World::new().await;
        let bot = world.running_bot().await;
        world.write(&bot, "/data/file", "of the workspace").await;
        let legacy = world.root.path().join("bots").join(bot.as_str());
        std::fs::create_dir_all(&legacy).unwrap();
        for name in ["a", "b", "c"] {
            std::fs::write(legacy.join(name), name).unwrap();
        }
        let remove = async || {
            let deleted = world.skep.delete_bot(&bot, DeleteData::Preserve, &admin()).await;
            deleted.unwrap().operation.outcome().await
        };
        world.runtime.faults().fail_next(failing, breaks());
        remove().await.unwrap_err();
        if is_changed {
            std::fs::write(legacy.join("d"), "d").unwrap();
        }
        remove().await.unwrap();
        let kept = world.skep.all_backups().await.unwrap();
        let entries: Vec<u64> = kept.iter().filter_map(|one| one.entries).collect();
        assert_eq!(entries, expected, "{failing:?}: {kept:?}");
    }
}
