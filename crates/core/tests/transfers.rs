//! How many transfers are under way at once, and what is refused before one begins.

mod harness;

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use harness::{LIMIT, World, until};
use skep_core::Code;
use skep_core::transfer::{Archive, ArchiveFormat, Changing, Digest, Moment, Piece};
use skep_names::BotId;
use skep_runtime::RuntimeError;
use skep_testkit::fake_runtime::Verb;

/// More than is read before it is taken.
const LARGE_BYTES: usize = 64 << 20;

/// Of a workspace that runs, with much in it.
async fn with_data(world: &World) -> BotId {
    let bot = world.running_bot().await;
    let data = world.runtime.layer_path(&bot).join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("large"), vec![7; LARGE_BYTES]).unwrap();
    bot
}

async fn begin(world: &World, bot: &BotId, moment: Moment) -> skep_core::Result<Archive> {
    let export = world.skep.export_data(bot, moment, Changing::Counted).await?;
    Ok(export.compressed(ArchiveFormat::Tar, Digest::NotTaken))
}

async fn code_of(world: &World, bot: &BotId, moment: Moment) -> Option<Code> {
    begin(world, bot, moment).await.err().map(|error| error.code())
}

async fn until_begun(world: &World, bot: &BotId, moment: Moment) {
    until(|| async {
        begin(world, bot, moment)
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_has_so_many_exports_at_once_and_one_of_one_moment() {
    let world = World::new().await;
    let (bot, other) = (with_data(&world).await, with_data(&world).await);
    let mut first = begin(&world, &bot, Moment::OfAll).await.unwrap();
    assert!(matches!(first.next().await, Some(Ok(Piece::Data(_)))));
    assert_eq!(code_of(&world, &bot, Moment::OfAll).await, Some(Code::RateLimited));
    let mut begun = Vec::new();
    for _ in 0..3 {
        begun.push(begin(&world, &bot, Moment::OfEachFile).await.unwrap());
    }
    assert_eq!(code_of(&world, &bot, Moment::OfEachFile).await, Some(Code::RateLimited));
    drop(begin(&world, &other, Moment::OfAll).await.unwrap());
    drop((first, begun));
    until_begun(&world, &bot, Moment::OfAll).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_is_frozen_no_longer_than_may_be_however_long_that_takes_to_begin() {
    let world = World::with(|settings| settings.freeze_max = Duration::from_millis(50)).await;
    let bot = world.running_bot().await;
    let _held = world.runtime.faults().hold(Verb::ReadData);
    let refused = tokio::time::timeout(LIMIT, code_of(&world, &bot, Moment::OfAll)).await;
    assert_eq!(refused.expect("it is given up"), Some(Code::Conflict));
}

/// Comes when it is sent.
fn slow_archive() -> (
    tokio::sync::mpsc::Sender<skep_core::Result<Bytes>>,
    impl futures::Stream<Item = skep_core::Result<Bytes>>,
) {
    let (sender, pieces) = tokio::sync::mpsc::channel(1);
    (sender, tokio_stream::wrappers::ReceiverStream::new(pieces))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_import_of_a_workspace_is_received_at_a_time() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let empty = || Ok(Bytes::from(vec![0; 1024]));
    let whole = || futures::stream::iter([empty()]);
    let (sender, pieces) = slow_archive();
    let (skep, of) = (world.skep.clone(), bot.clone());
    let first = tokio::spawn(async move { skep.receive_archive(&of, pieces).await });
    sender.send(empty()).await.unwrap();
    // The second one waits until the first has been taken.
    sender.send(Ok(Bytes::new())).await.unwrap();
    let second = world.skep.receive_archive(&bot, whole()).await;
    assert_eq!(second.map(drop).unwrap_err().code(), Code::RateLimited);
    drop(sender);
    drop(first.await.unwrap().unwrap());
    world.skep.receive_archive(&bot, whole()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_could_not_be_put_in_place_is_refused_before_it_is_received() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let kind = RuntimeError::Unsupported {
        backend: "fake",
        what: "changing the layers of a container of another kind".to_owned(),
    };
    world.runtime.faults().fail_next(Verb::ListLayers, kind);
    let archive = futures::stream::once(async { panic!("it is received") });
    let refused = world.skep.receive_archive(&bot, archive).await;
    assert_eq!(refused.map(drop).unwrap_err().code(), Code::Unsupported);
}
