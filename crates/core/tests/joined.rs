//! What becomes of a create that meets another one, a removal, or what one of these left.

mod harness;

use std::collections::BTreeMap;

use harness::{World, admin, all, failure, until};
use skep_core::{AskedLimits, Code, CreateRequest, DeleteData, Outcome, Requester};
use skep_names::{BotId, ImageReference};
use skep_runtime::RuntimeError;
use skep_testkit::fake_runtime::{FAKE_IMAGE, Hold, Verb};

const OTHER_IMAGE: &str = "registry.test/other:1";

fn of_other_image() -> CreateRequest {
    CreateRequest {
        image: Some(OTHER_IMAGE.to_owned()),
        ..CreateRequest::default()
    }
}

fn with_pids(pids: u64) -> CreateRequest {
    CreateRequest {
        limits: Some(AskedLimits {
            pids: Some(pids),
            ..AskedLimits::default()
        }),
        ..CreateRequest::default()
    }
}

async fn create(world: &World, bot: &BotId, request: CreateRequest) -> skep_core::Result<Outcome> {
    let create = world.skep.create_workspace(bot, request, &admin()).await?;
    create.outcome().await
}

/// A delete that is held while it removes.
async fn held_delete(world: &World, bot: &BotId) -> Hold {
    let before = world.runtime.faults().calls(Verb::Remove);
    let hold = world.runtime.faults().hold(Verb::Remove);
    world
        .skep
        .delete_workspace(bot, DeleteData::Remove, &admin())
        .await
        .unwrap();
    until(|| async {
        match world.runtime.faults().calls(Verb::Remove) > before {
            true => Ok(()),
            false => Err("nothing is removed yet".to_owned()),
        }
    })
    .await;
    hold
}

async fn image_of(world: &World, bot: &BotId) -> String {
    world.skep.workspace_info(bot).await.unwrap().image
}

#[tokio::test]
async fn limits_that_the_create_under_way_does_not_set_are_set_after_it() {
    let world = World::new().await;
    let bot = world.bot().await;
    let hold = world.runtime.faults().hold(Verb::Start);
    let first = world.create(&bot).await;
    let second = world
        .skep
        .create_workspace(&bot, with_pids(200), &admin())
        .await
        .unwrap();
    let same = world
        .skep
        .create_workspace(&bot, with_pids(200), &admin())
        .await
        .unwrap();
    assert_ne!(first.id(), second.id());
    assert_eq!(second.id(), same.id());
    drop(hold);
    first.outcome().await.unwrap();
    second.outcome().await.unwrap();
    let limits = world.skep.workspace_info(&bot).await.unwrap().limits;
    assert_eq!((limits.wanted.pids, limits.applied.unwrap().pids), (200, 200));
    assert_eq!(world.runtime.faults().calls(Verb::Create), 1);
}

#[tokio::test]
async fn another_environment_than_the_workspace_has_is_not_taken_without_a_word() {
    let world = World::new().await;
    let bot = world.bot().await;
    let with_env = |value: &str| CreateRequest {
        env: BTreeMap::from([("KEY".to_owned(), value.to_owned())]),
        ..CreateRequest::default()
    };
    let hold = world.runtime.faults().hold(Verb::Start);
    let first = world
        .skep
        .create_workspace(&bot, with_env("one"), &admin())
        .await
        .unwrap();
    let same = world
        .skep
        .create_workspace(&bot, with_env("one"), &admin())
        .await
        .unwrap();
    assert_eq!(same.id(), first.id());
    let other = world
        .skep
        .create_workspace(&bot, with_env("two"), &admin())
        .await
        .unwrap();
    assert_ne!(other.id(), first.id());
    drop(hold);
    let warnings = |outcome: Outcome| match outcome {
        Outcome::Workspace(made) => made.warnings,
        other => panic!("{other:?}"),
    };
    let none = Vec::<String>::new();
    assert_eq!(warnings(first.outcome().await.unwrap()), none);
    assert!(warnings(other.outcome().await.unwrap())[0].contains("env"));
    let again = create(&world, &bot, with_env("two")).await.unwrap();
    assert!(warnings(again)[0].contains("env"));
    assert_eq!(warnings(create(&world, &bot, with_env("one")).await.unwrap()), none);
    assert_eq!(warnings(world.create(&bot).await.outcome().await.unwrap()), none);
    let row = world.skep.store().container(&bot).await.unwrap().unwrap();
    assert_eq!(row.env, with_env("one").env);
}

#[tokio::test]
async fn data_that_is_being_put_back_cannot_be_kept_aside() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let aside = CreateRequest {
        restore_data: Some(false),
        ..CreateRequest::default()
    };
    let delete = world
        .skep
        .delete_workspace(&bot, DeleteData::Preserve, &admin())
        .await
        .unwrap();
    delete.outcome().await.unwrap();
    let hold = world.runtime.faults().hold(Verb::Start);
    let first = world.create(&bot).await;
    let refused = create(&world, &bot, aside.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::WorkspaceExists);
    drop(hold);
    first.outcome().await.unwrap();
    // Nothing is kept any more: there is nothing to be said about it.
    create(&world, &bot, aside).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn limits_that_are_not_said_stay() {
    let world = World::new().await;
    let bot = world.bot().await;
    let asked = |cpu, memory| AskedLimits {
        cpu_millicores: cpu,
        memory_bytes: memory,
        ..AskedLimits::default()
    };
    create(&world, &bot, with_pids(300)).await.unwrap();
    let (cpu, memory) = futures::future::join(
        world.skep.set_workspace_limits(&bot, asked(Some(500), None), &admin()),
        world
            .skep
            .set_workspace_limits(&bot, asked(None, Some(64 << 20)), &admin()),
    )
    .await;
    cpu.unwrap().outcome().await.unwrap();
    memory.unwrap().outcome().await.unwrap();
    create(&world, &bot, with_pids(400)).await.unwrap();
    let limits = world.skep.workspace_info(&bot).await.unwrap().limits;
    let wanted = limits.wanted;
    assert_eq!(
        (wanted.cpu_millicores, wanted.memory_bytes, wanted.pids),
        (500, 64 << 20, 400)
    );
    assert_eq!(limits.applied, Some(wanted));
}

#[tokio::test]
async fn a_create_beside_a_delete_is_for_another_workspace() {
    let world = World::new().await;
    world.runtime.offer_image(&OTHER_IMAGE.parse().unwrap(), Vec::new());
    let bot = world.running_bot().await;
    let hold = held_delete(&world, &bot).await;
    let other = world
        .skep
        .create_workspace(&bot, of_other_image(), &admin())
        .await
        .unwrap();
    drop(hold);
    other.outcome().await.unwrap();
    assert_eq!(image_of(&world, &bot).await, OTHER_IMAGE);
    // Now one that its requester would not be allowed to have.
    let member = Requester {
        user_id: Some("member".to_owned()),
        ..Requester::default()
    };
    let kept = world
        .skep
        .create_workspace(&bot, CreateRequest::default(), &member)
        .await
        .unwrap();
    kept.outcome().await.unwrap();
    let hold = held_delete(&world, &bot).await;
    let refused = world
        .skep
        .create_workspace(&bot, CreateRequest::default(), &member)
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::ImageNotAllowed);
    drop(hold);
}

#[tokio::test]
async fn a_create_behind_a_delete_that_fails_changes_nothing() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let broken = RuntimeError::other("removing", std::io::Error::other("broken"));
    world.runtime.faults().fail_next(Verb::Remove, broken);
    let hold = held_delete(&world, &bot).await;
    let other = world
        .skep
        .create_workspace(&bot, of_other_image(), &admin())
        .await
        .unwrap();
    drop(hold);
    assert_eq!(failure(&all(&other).await).0, "workspace_exists");
    assert_eq!(image_of(&world, &bot).await, FAKE_IMAGE);
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    assert!(world.skep.workspace_info(&bot).await.unwrap().task_running);
}

#[tokio::test]
async fn of_a_layer_alone_no_workspace_of_another_image_is_made() {
    let world = World::new().await;
    let other: ImageReference = OTHER_IMAGE.parse().unwrap();
    world.runtime.offer_image(&other, Vec::new());
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.stop(&bot).await.unwrap();
    world.skep.store().delete_containers(&bot).await.unwrap();
    world.runtime.forget_container(&bot);
    let refused = world
        .skep
        .create_workspace(&bot, of_other_image(), &admin())
        .await
        .unwrap();
    assert_eq!(failure(&all(&refused).await).0, "workspace_exists");
    assert_eq!(world.runtime.faults().calls(Verb::Pull), 0);
    assert!(!world.skep.workspace_info(&bot).await.unwrap().task_running);
    let Outcome::Workspace(kept) = create(&world, &bot, CreateRequest::default()).await.unwrap() else {
        panic!("a create ends with a workspace");
    };
    assert_eq!(kept.image, FAKE_IMAGE);
    assert_eq!(image_of(&world, &bot).await, FAKE_IMAGE);
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}
