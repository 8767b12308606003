//! What the server itself writes on the host leaves its reserve alone, and loses nothing when it is refused.

mod harness;

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use harness::{World, admin, all, archive_of, failure, until};
use skep_core::{Code, CreateRequest, DeleteData, EventBody, OperationHandle, RestoreMode, RestoreRequest};
use skep_names::{BotId, ImageReference, container_id_for};
use skep_runtime::{LayerKind, Layers};
use skep_testkit::fake_runtime::{FakeLayer, Verb};

const RESERVE: u64 = 2048 << 20;
/// With a step above the reserve, so that what is written between two looks does not take it.
const ENOUGH: u64 = RESERVE + (64 << 20);
const TOO_LITTLE: u64 = ENOUGH - 1;

async fn world() -> World {
    World::with(|settings| settings.reserve_bytes = RESERVE).await
}

async fn runs(world: &World, bot: &BotId) -> bool {
    world.skep.workspace_info(bot).await.unwrap().task_running
}

async fn until_called(world: &World, verb: Verb, times: u64) {
    until(|| async {
        match world.runtime.faults().calls(verb) {
            calls if calls >= times => Ok(()),
            calls => Err(format!("{verb:?} was called {calls} times")),
        }
    })
    .await;
}

async fn delete(world: &World, bot: &BotId, data: DeleteData) -> OperationHandle {
    world.skep.delete_workspace(bot, data, &admin()).await.unwrap()
}

fn is_of_the_reserve<T>(outcome: skep_core::Result<T>) {
    let refused = outcome.err().expect("it is refused");
    assert_eq!(refused.code(), Code::DiskFull, "{refused}");
    assert!(refused.to_string().contains("reserve"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_does_not_take_the_reserve() {
    let world = world().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "old").await;
    let requester = admin();
    let spooled = || std::fs::read_dir(world.root.path().join("imports")).unwrap().count();
    world.runtime.set_free_bytes(TOO_LITTLE);
    is_of_the_reserve(
        world
            .skep
            .receive_archive(&bot, archive_of("imported", "imported"))
            .await,
    );
    assert_eq!(spooled(), 0);
    // One that is received while there is space, and put in place when there is none any more.
    world.runtime.set_free_bytes(ENOUGH);
    let received = world
        .skep
        .receive_archive(&bot, archive_of("imported", "imported"))
        .await
        .unwrap();
    world.runtime.set_free_bytes(TOO_LITTLE);
    let begun = world
        .skep
        .import_data(&bot, (received, RestoreMode::Replace), &requester);
    is_of_the_reserve(begun.await.unwrap().outcome().await);
    assert_eq!(spooled(), 0);
    assert_eq!(world.read(&bot, "/data/file").await, "old", "it runs with what it had");
    world.runtime.set_free_bytes(ENOUGH);
    let received = world
        .skep
        .receive_archive(&bot, archive_of("imported", "imported"))
        .await
        .unwrap();
    let begun = world
        .skep
        .import_data(&bot, (received, RestoreMode::Replace), &requester);
    begun.await.unwrap().outcome().await.unwrap();
    assert_eq!(world.read(&bot, "/data/imported").await, "imported");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_does_not_take_the_reserve() {
    let world = world().await;
    let bot = world.running_bot().await;
    world.runtime.set_free_bytes(ENOUGH);
    let runtime = world.runtime.clone();
    // The space goes when all is received, after the last look at it on the way.
    let last = futures::stream::once(async move { runtime.set_free_bytes(TOO_LITTLE) });
    let last = last.filter_map(async |()| None::<skep_core::Result<Bytes>>);
    is_of_the_reserve(
        world
            .skep
            .receive_archive(&bot, archive_of("imported", "imported").chain(last))
            .await,
    );
    let spooled = std::fs::read_dir(world.root.path().join("imports")).unwrap().count();
    assert_eq!(spooled, 0);
    // What was under way for it is over.
    world.runtime.set_free_bytes(ENOUGH);
    world
        .skep
        .receive_archive(&bot, archive_of("imported", "imported"))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_does_not_take_the_reserve_and_what_it_was_writing_goes() {
    let world = World::with(|settings| {
        settings.reserve_bytes = RESERVE;
        settings.versions.merge_over = 3;
    })
    .await;
    world.runtime.set_free_bytes(ENOUGH);
    let bot = world.running_bot().await;
    let snapshot = async || {
        let begun = world.skep.take_snapshot(&bot, ("", ""), &admin()).await;
        begun.unwrap()
    };
    for number in ["1", "2", "3"] {
        world.write(&bot, "/data/file", number).await;
        snapshot().await.outcome().await.unwrap();
    }
    let deleted = world.skep.delete_version(&bot, 2, &admin()).await;
    deleted.unwrap().outcome().await.unwrap();
    let hold = world.runtime.faults().hold(Verb::Merge);
    let before = world.runtime.faults().calls(Verb::Merge);
    let begun = snapshot().await;
    until_called(&world, Verb::Merge, before + 1).await;
    let tree = async || Layers::list(&world.runtime, &bot).await.unwrap();
    let line = tree().await.line;
    let below = line.iter().find(|layer| layer.kind == LayerKind::Committed).unwrap();
    let writing = format!("{}-{}-merged-0-making", container_id_for(&bot), begun.id());
    let staged = Layers::stage(&world.runtime, &bot, &writing, &below.name).await;
    staged.unwrap();
    world.runtime.set_free_bytes(TOO_LITTLE);
    let ended = tokio::time::timeout(Duration::from_secs(60), begun.outcome());
    ended.await.expect("it does not wait for the merge").unwrap();
    let left = tree().await;
    assert!(left.line.len() > line.len(), "the line stays long: {left:?}");
    assert!(left.side.iter().all(|layer| layer.name != writing), "{left:?}");
    drop(hold);
    world.runtime.set_free_bytes(ENOUGH);
    snapshot().await.outcome().await.unwrap();
    assert!(tree().await.line.len() <= left.line.len(), "it is merged now");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_back_does_not_take_the_reserve_and_stays_where_it_is_kept() {
    let world = world().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let deleted = world.skep.delete_workspace(&bot, DeleteData::Preserve, &admin()).await;
    deleted.unwrap().outcome().await.unwrap();
    world.runtime.set_free_bytes(TOO_LITTLE);
    is_of_the_reserve(world.create(&bot).await.outcome().await);
    let aside = CreateRequest {
        restore_data: Some(false),
        ..CreateRequest::default()
    };
    let created = world.skep.create_workspace(&bot, aside, &admin()).await;
    created.unwrap().outcome().await.unwrap();
    let requester = admin();
    let restore = || world.skep.restore_data(&bot, RestoreRequest::default(), &requester);
    is_of_the_reserve(restore().await);
    assert!(runs(&world, &bot).await, "it was stopped for nothing");
    world.runtime.set_free_bytes(ENOUGH);
    restore().await.unwrap().outcome().await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

/// The files of backups, whole and begun.
fn backup_files(world: &World) -> usize {
    let listed = std::fs::read_dir(world.root.path().join("backups"));
    listed.map_or(0, |files| files.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_would_keep_the_data_takes_no_reserve_and_deletes_nothing() {
    let world = world().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "mine").await;
    let stops = world.runtime.faults().calls(Verb::Stop);
    world.runtime.set_free_bytes(TOO_LITTLE);
    is_of_the_reserve(delete(&world, &bot, DeleteData::Preserve).await.outcome().await);
    assert_eq!(world.runtime.faults().calls(Verb::Stop), stops, "stopped for nothing");
    // One that begins while there is space, and writes when there is none any more.
    world.runtime.set_free_bytes(ENOUGH);
    let hold = world.runtime.faults().hold(Verb::ReadData);
    let reads = world.runtime.faults().calls(Verb::ReadData);
    let deleted = delete(&world, &bot, DeleteData::Preserve).await;
    until_called(&world, Verb::ReadData, reads + 1).await;
    world.runtime.set_free_bytes(TOO_LITTLE);
    drop(hold);
    is_of_the_reserve(deleted.outcome().await);
    assert_eq!(backup_files(&world), 0);
    assert_eq!(world.read(&bot, "/data/file").await, "mine", "it runs with what it had");
    world.runtime.set_free_bytes(ENOUGH);
    delete(&world, &bot, DeleteData::Preserve)
        .await
        .outcome()
        .await
        .unwrap();
    assert_eq!(world.skep.backups(&bot).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_whose_data_is_to_be_kept_stays_while_only_the_reserve_is_free() {
    let world = world().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "mine").await;
    world.runtime.set_free_bytes(TOO_LITTLE);
    let deleted = world.skep.delete_bot(&bot, DeleteData::Preserve, &admin()).await;
    is_of_the_reserve(deleted.unwrap().operation.outcome().await);
    assert_eq!(world.read(&bot, "/data/file").await, "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_delete_needs_no_space() {
    let world = world().await;
    let bot = world.running_bot().await;
    world.runtime.set_free_bytes(0);
    delete(&world, &bot, DeleteData::Remove).await.outcome().await.unwrap();
    let deleted = world.skep.delete_bot(&bot, DeleteData::Remove, &admin()).await;
    deleted.unwrap().operation.outcome().await.unwrap();
}

/// Of one layer that is fetched for as long as no test waits.
fn offered_image(world: &World) -> ImageReference {
    let image: ImageReference = "docker.io/library/large:latest".parse().unwrap();
    let layer = FakeLayer {
        size_bytes: 100 << 30,
        takes: Duration::from_secs(60),
    };
    world.runtime.offer_image(&image, vec![layer]);
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_would_take_the_reserve_is_not_fetched() {
    let world = world().await;
    let (bot, image) = (world.bot().await, offered_image(&world));
    let create = async || {
        let request = CreateRequest {
            image: Some(image.to_string()),
            ..CreateRequest::default()
        };
        world.skep.create_workspace(&bot, request, &admin()).await.unwrap()
    };
    let is_refused = async |created: OperationHandle| {
        let (code, message) = failure(&all(&created).await);
        assert_eq!(code, "disk_full", "{message}");
        assert!(
            message.starts_with("image pull failed") && message.contains("reserve"),
            "{message}"
        );
    };
    world.runtime.set_free_bytes(ENOUGH);
    let begun = create().await;
    until_called(&world, Verb::Pull, 1).await;
    world.runtime.set_free_bytes(TOO_LITTLE);
    is_refused(begun).await;
    is_refused(create().await).await;
    assert_eq!(world.runtime.faults().calls(Verb::Pull), 1, "it was not begun again");
    // Nor for an administrator, whose pull is nobody's workspace.
    let pulled = world.skep.pull_image(image.as_str(), &admin()).unwrap();
    let last = futures::StreamExt::collect::<Vec<_>>(pulled).await.pop().unwrap();
    assert!(
        matches!(&last.body, EventBody::Error { code, .. } if code == "disk_full"),
        "{last:?}"
    );
}
