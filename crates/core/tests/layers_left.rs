//! Layers that an operation could not let go: what was done is no failure for that, and a later one lets them go.

mod harness;

use harness::{World, admin, archive_of, told_to_fail, until};
use skep_core::{Outcome, RestoreMode, SOURCE_PRE_EXEC, TakenSnapshot};
use skep_names::{BotId, container_id_for};
use skep_runtime::{LayerKind, LayerRecord, Layers, RuntimeError};
use skep_testkit::fake_runtime::Verb;

fn fault() -> RuntimeError {
    RuntimeError::other("a fault", "told to")
}

async fn snapshot(world: &World, bot: &BotId, source: &str) -> skep_core::Result<TakenSnapshot> {
    let handle = world.skep.take_snapshot(bot, ("", source), &admin()).await?;
    match handle.outcome().await? {
        Outcome::Snapshot(taken) => Ok(taken),
        other => panic!("a snapshot that ends with {other:?}"),
    }
}

/// Those of the bot alone.
async fn layers(world: &World, bot: &BotId) -> Vec<LayerRecord> {
    let tree = Layers::list(&world.runtime, bot).await.unwrap();
    let own = container_id_for(bot);
    let mut all: Vec<_> = tree.line.into_iter().chain(tree.side).collect();
    all.retain(|layer| layer.name.starts_with(&own));
    all
}

/// Committed layers that somebody is said to need.
async fn unreleased(world: &World, bot: &BotId) -> Vec<String> {
    let mut all = layers(world, bot).await;
    all.retain(|layer| layer.kind == LayerKind::Committed && !layer.is_released());
    let mut names: Vec<_> = all.into_iter().map(|layer| layer.name).collect();
    names.sort();
    names
}

/// The layers of all versions.
async fn of_versions(world: &World, bot: &BotId) -> Vec<String> {
    let rows = world.skep.store().versions(&container_id_for(bot)).await.unwrap();
    let mut names: Vec<_> = rows.into_iter().map(|row| row.runtime_snapshot_name).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_a_snapshot_left_that_could_not_be_undone_is_released_by_the_next() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    for verb in [Verb::Start, Verb::RemoveLayer] {
        let faults = world.runtime.faults();
        faults.fail_next(verb, RuntimeError::other("a fault", "told to"));
    }
    assert!(snapshot(&world, &bot, "").await.is_err());
    assert_eq!(of_versions(&world, &bot).await, Vec::<String>::new());
    let left = unreleased(&world, &bot).await;
    assert_eq!(left.len(), 1, "what this test is about: {left:?}");
    world.start(&bot).await.unwrap();
    let taken = snapshot(&world, &bot, "").await.unwrap();
    assert_eq!(unreleased(&world, &bot).await, [taken.runtime_snapshot_name]);
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn a_version_is_recorded_or_forgotten_whatever_layer_stays_for_now() {
    let world = World::with(|settings| {
        settings.versions.keep_automatic = 1;
        settings.versions.keep_rollback = 1;
    })
    .await;
    let bot = world.running_bot().await;
    let faults = world.runtime.faults();
    world.write(&bot, "/data/file", "first").await;
    let first = snapshot(&world, &bot, "").await.unwrap().version;
    snapshot(&world, &bot, SOURCE_PRE_EXEC).await.unwrap();
    for kind in ["snapshot", "rollback", "delete"] {
        world.write(&bot, "/data/file", "changed").await;
        if kind == "rollback" {
            world
                .skep
                .roll_back(&bot, first, &admin())
                .await
                .unwrap()
                .outcome()
                .await
                .unwrap();
            world.write(&bot, "/data/file", "changed again").await;
        }
        assert_eq!(
            unreleased(&world, &bot).await,
            of_versions(&world, &bot).await,
            "before a {kind}"
        );
        // When it is let go, and when that is tried again.
        for _ in 0..2 {
            faults.fail_next(Verb::RemoveLayer, fault());
        }
        let ended = match kind {
            "snapshot" => snapshot(&world, &bot, SOURCE_PRE_EXEC).await.map(drop),
            "rollback" => world
                .skep
                .roll_back(&bot, first, &admin())
                .await
                .unwrap()
                .outcome()
                .await
                .map(drop),
            _ => {
                let last = world.skep.store().versions(&container_id_for(&bot)).await.unwrap();
                let last = last.last().unwrap().version;
                world
                    .skep
                    .delete_version(&bot, last, &admin())
                    .await
                    .unwrap()
                    .outcome()
                    .await
                    .map(drop)
            }
        };
        assert!(ended.is_ok(), "{kind}: {ended:?}");
        let left = unreleased(&world, &bot).await.len() - of_versions(&world, &bot).await.len();
        assert_eq!(left, 1, "what this test is about: {kind}");
        snapshot(&world, &bot, "").await.unwrap();
    }
    assert_eq!(unreleased(&world, &bot).await, of_versions(&world, &bot).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_import_left_that_could_not_be_undone_goes_with_the_next() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let import = async |name: &str| {
        let archive = archive_of(name, "imported");
        let received = world.skep.receive_archive(&bot, archive).await.unwrap();
        world
            .skep
            .import_data(&bot, (received, RestoreMode::Merge), &admin())
            .await
            .unwrap()
    };
    let staged = async || {
        let mut all = layers(&world, &bot).await;
        all.retain(LayerRecord::is_staged);
        all
    };
    let faults = world.runtime.faults();
    let hold = faults.hold(Verb::WriteData);
    let failing = import("first").await;
    until(|| async {
        match faults.calls(Verb::WriteData) {
            0 => Err("nothing is written yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    faults.fail_next(Verb::WriteData, fault());
    faults.fail_next(Verb::RemoveLayer, fault());
    drop(hold);
    failing.outcome().await.unwrap_err();
    assert_eq!(staged().await.len(), 1, "what this test is about");
    world.start(&bot).await.unwrap();
    import("second").await.outcome().await.unwrap();
    assert_eq!(staged().await, []);
    assert_eq!(world.read(&bot, "/data/second").await, "imported");
}

#[tokio::test]
async fn only_what_is_nobodys_state_and_of_an_operation_that_failed_is_let_go() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.stop(&bot).await.unwrap();
    let failed = world.journal_ended(&bot, ("import", told_to_fail()), None).await;
    let unknown = uuid::Uuid::now_v7().to_string();
    let runtime = &world.runtime;
    let named = |of: &str, role: &str| format!("{}-{of}-{role}", container_id_for(&bot));
    for of in [&failed, &unknown] {
        let base = named(of, "base");
        runtime.commit(&bot, &base).await.unwrap();
        for role in ["saved", "rebased", "merged-0", "merged-10"] {
            runtime.rebase(&bot, &base, (&base, &named(of, role))).await.unwrap();
        }
        for role in ["change", "back", "rebased-top", "merged-0-making"] {
            runtime.stage(&bot, &named(of, role), &base).await.unwrap();
        }
    }
    let before = layers(&world, &bot).await;
    let taken = snapshot(&world, &bot, "").await.unwrap();
    let after = layers(&world, &bot).await;
    let is_there = |name: &str| after.iter().any(|layer| layer.name == name);
    let (gone, stayed): (Vec<_>, Vec<_>) = before.iter().partition(|layer| !is_there(&layer.name));
    let gone: Vec<&str> = gone.iter().map(|layer| layer.name.as_str()).collect();
    for role in [
        "rebased",
        "merged-0",
        "merged-10",
        "change",
        "back",
        "rebased-top",
        "merged-0-making",
    ] {
        assert!(gone.contains(&named(&failed, role).as_str()), "{role} is left");
    }
    // The one that was active is committed by now.
    assert_eq!(gone.len(), 7 + 1, "{gone:?}");
    let released: Vec<&str> = after
        .iter()
        .filter(|layer| layer.is_released())
        .map(|layer| layer.name.as_str())
        .collect();
    assert_eq!(released, [named(&failed, "base")], "the workspace stands on it");
    assert!(stayed.iter().any(|layer| layer.name == named(&failed, "saved")));
    assert!(is_there(&taken.runtime_snapshot_name));
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}
