//! Exports of workspaces that are stopped, which are held still meanwhile.

mod harness;

use std::fs;
use std::time::Duration;

use futures::StreamExt;
use harness::{LIMIT, World, admin, until};
use skep_core::DeleteData;
use skep_core::transfer::{Archive, ArchiveFormat, Changing, Digest, Moment, Piece};
use skep_names::BotId;
use skep_testkit::fake_runtime::Verb;

/// More than is read before it is taken.
const LARGE_BYTES: usize = 64 << 20;

/// An export that has begun of a workspace that is stopped.
async fn begun(world: &World) -> (BotId, Archive) {
    let bot = world.running_bot().await;
    world.stop(&bot).await.unwrap();
    let data = world.runtime.layer_path(&bot).join("data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("large"), vec![7; LARGE_BYTES]).unwrap();
    let export = world.skep.export_data(&bot, Moment::OfEachFile, Changing::Counted);
    let mut archive = export.await.unwrap().compressed(ArchiveFormat::Tar, Digest::NotTaken);
    assert!(matches!(archive.next().await, Some(Ok(Piece::Data(_)))));
    (bot, archive)
}

/// How an archive ends that is read as fast as can be.
async fn end_of(mut archive: Archive) -> skep_core::Result<Piece> {
    let read = async {
        let mut last = archive.next().await.expect("an end");
        while let Some(next) = archive.next().await {
            last = next;
        }
        last
    };
    tokio::time::timeout(LIMIT, read).await.expect("it ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_does_not_wait_for_whoever_takes_an_export() {
    let world = World::new().await;
    let (bot, archive) = begun(&world).await;
    let held = world.runtime.faults().hold(Verb::Remove);
    let deleted = world.skep.delete_workspace(&bot, DeleteData::Remove, &admin()).await;
    until(|| async {
        match world.runtime.faults().calls(Verb::Remove) {
            0 => Err("it is not removed yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let end = end_of(archive).await;
    assert!(end.is_err(), "what is cut off is not whole: {end:?}");
    drop(held);
    deleted.unwrap().outcome().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_one_who_takes_it() {
    let world = World::new().await;
    let (bot, mut archive) = begun(&world).await;
    let starts = world.runtime.faults().calls(Verb::Start);
    let started = world.skep.start_workspace(&bot, &admin()).await.unwrap();
    until(|| async {
        let row = world.skep.store().operation(started.id()).await.unwrap();
        match row.is_some_and(|row| row.step == "start") {
            true => Ok(()),
            false => Err("it has not come to its start yet".to_owned()),
        }
    })
    .await;
    // As long as there is more than is read before it is taken; one that does not wait has time to be seen.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut taken_bytes = 0;
    while taken_bytes < LARGE_BYTES / 2 {
        assert_eq!(world.runtime.faults().calls(Verb::Start), starts, "it did not wait");
        match archive.next().await {
            Some(Ok(Piece::Data(data))) => taken_bytes += data.len(),
            other => panic!("{other:?}"),
        }
    }
    let end = end_of(archive).await;
    assert!(matches!(end, Ok(Piece::End { .. })), "{end:?}");
    started.outcome().await.unwrap();
    assert_eq!(world.runtime.faults().calls(Verb::Start), starts + 1);
}
