//! Data that was kept, put back into a workspace that is there, and backups that others must leave as they are: on the
//! fake runtime, whose layers are read and written by the same program as real ones.

mod harness;

use std::fs;
use std::path::PathBuf;

use harness::{World, admin, archive_of, names, until};
use skep_core::{
    Backup, Code, CreateBot, DeleteData, OperationHandle, Outcome, RestoreMode, RestoreRequest, SOURCE_PRE_EXEC,
};
use skep_names::BotId;
use skep_runtime::{Runtime, RuntimeError};
use skep_store::BackupRow;
use skep_testkit::fake_runtime::{Hold, Verb};
use skep_testkit::trees;

fn broken() -> RuntimeError {
    RuntimeError::other("reading", std::io::Error::other("broken"))
}

async fn restore(world: &World, bot: &BotId, request: RestoreRequest) -> skep_core::Result<Outcome> {
    world.skep.restore_data(bot, request, &admin()).await?.outcome().await
}

/// A bot whose workspace runs with `/data/here`, and whose current backup holds `/data/file`.
async fn with_backup_aside(world: &World) -> BotId {
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.preserve(&bot).await.unwrap();
    world.create_with(&bot, Some(false)).await;
    world.write(&bot, "/data/here", "before").await;
    bot
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_merges_or_replaces_and_takes_the_current_backup() {
    let world = World::new().await;
    let bot = with_backup_aside(&world).await;
    let name = format!("{bot}.tar.gz");
    let by_name = |mode| RestoreRequest {
        name: Some(name.clone()),
        mode,
        ..RestoreRequest::default()
    };
    restore(&world, &bot, by_name(RestoreMode::Merge)).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    assert_eq!(world.read(&bot, "/data/here").await, "before");
    assert_eq!(
        names(&world.backups(&bot).await),
        [name.as_str()],
        "asked for by name, it is kept"
    );
    world.write(&bot, "/data/file", "changed").await;
    let current = RestoreRequest {
        mode: RestoreMode::Replace,
        ..RestoreRequest::default()
    };
    restore(&world, &bot, current.clone()).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    assert!(!world.runtime.layer_path(&bot).join("data/here").exists());
    assert_eq!(world.backups(&bot).await, []);
    let nothing = restore(&world, &bot, current).await.unwrap_err();
    assert_eq!(
        (nothing.code(), nothing.to_string().as_str()),
        (Code::BackupNotFound, "no preserved data found")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_is_found_damaged_is_set_aside_and_never_shown_as_good() {
    let world = World::new().await;
    let bot = with_backup_aside(&world).await;
    world.preserve(&bot).await.unwrap();
    world.create_with(&bot, Some(false)).await;
    world.write(&bot, "/data/here", "now").await;
    let name = format!("{bot}.1.tar.gz");
    let bytes = fs::read(world.file_of(&name)).unwrap();
    fs::write(world.file_of(&name), &bytes[..bytes.len() - 20]).unwrap();
    let asked = |name: &str| RestoreRequest {
        name: Some(name.to_owned()),
        ..RestoreRequest::default()
    };
    let aside = format!("{bot}.tar.gz.corrupt");
    let refused = restore(&world, &bot, asked(&name)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ArchiveRefused);
    assert!(refused.to_string().contains(&aside), "{refused}");
    for _ in 0..2 {
        let listed = world.backups(&bot).await;
        let shown: Vec<_> = listed.iter().map(|one| (one.name.clone(), one.verified)).collect();
        assert_eq!(shown, [(format!("{bot}.tar.gz"), true), (aside.clone(), false)]);
        // Asked for by its new name it is refused as well, and keeps that name.
        let refused = restore(&world, &bot, asked(&aside)).await.unwrap_err();
        assert_eq!(refused.code(), Code::ArchiveRefused);
    }
    assert_eq!(world.read(&bot, "/data/here").await, "now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_meant_by_its_digest_is_that_one_or_none() {
    let world = World::new().await;
    let bot = with_backup_aside(&world).await;
    let meant = world.backups(&bot).await.remove(0);
    let hold = world.runtime.faults().hold(Verb::Remove);
    let deleting = world.skep.delete_workspace(&bot, DeleteData::Preserve, &admin()).await;
    until(|| async {
        match world.backups(&bot).await.len() {
            2 => Ok(()),
            other => Err(format!("{other} backups")),
        }
    })
    .await;
    let by = |sha256: Option<String>| RestoreRequest {
        name: Some(meant.name.clone()),
        sha256,
        mode: RestoreMode::Replace,
    };
    // Its name is another's by now.
    let refused = restore(&world, &bot, by(meant.sha256.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PreconditionFailed);
    let refused = world
        .skep
        .delete_backup(&bot, &meant.name, meant.sha256.as_deref())
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::PreconditionFailed);
    drop(hold);
    deleting.unwrap().outcome().await.unwrap();
    assert_eq!(world.backups(&bot).await.len(), 2, "nothing was removed");
    world.create_with(&bot, Some(false)).await;
    let one = RestoreRequest {
        name: Some(format!("{bot}.1.tar.gz")),
        ..by(meant.sha256.clone())
    };
    restore(&world, &bot, one).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    assert!(!world.runtime.layer_path(&bot).join("data/here").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_leaves_everything_as_it_was() {
    let world = World::new().await;
    let bot = with_backup_aside(&world).await;
    let before = trees::describe(&world.runtime.layer_path(&bot).join("data")).unwrap();
    world.runtime.faults().fail_next(Verb::WriteData, broken());
    restore(&world, &bot, RestoreRequest::default()).await.unwrap_err();
    assert_eq!(
        trees::describe(&world.runtime.layer_path(&bot).join("data")).unwrap(),
        before
    );
    assert!(world.skep.workspace_info(&bot).await.unwrap().task_running);
    assert_eq!(world.backups(&bot).await.len(), 1);
    // A stopped workspace stays stopped, and gets its data all the same.
    world.stop(&bot).await.unwrap();
    restore(&world, &bot, RestoreRequest::default()).await.unwrap();
    assert!(!world.skep.workspace_info(&bot).await.unwrap().task_running);
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    assert_eq!(world.read(&bot, "/data/here").await, "before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_after_which_the_workspace_does_not_start_has_restored() {
    let world = World::new().await;
    let bot = with_backup_aside(&world).await;
    world.runtime.faults().fail_next(Verb::Start, broken());
    restore(&world, &bot, RestoreRequest::default()).await.unwrap();
    assert_eq!(
        world.backups(&bot).await.len(),
        0,
        "what was put back is not kept twice"
    );
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_a_crash_cuts_off_is_carried_on() {
    let mut world = World::new().await;
    let bot = with_backup_aside(&world).await;
    let hold = world.runtime.faults().hold(Verb::WriteData);
    let handle = world
        .skep
        .restore_data(&bot, RestoreRequest::default(), &admin())
        .await
        .unwrap();
    until(|| async {
        match world.runtime.faults().calls(Verb::WriteData) {
            0 => Err("nothing is written yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    drop(handle);
    world.crash().await;
    drop(hold);
    until(|| async {
        match world.backups(&bot).await.len() {
            0 => Ok(()),
            left => Err(format!("{left} backups are left")),
        }
    })
    .await;
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    assert_eq!(world.read(&bot, "/data/here").await, "before");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_restores_make_no_long_line_and_keep_every_version() {
    let world = World::with(|settings| settings.versions.merge_over = 5).await;
    let bot = with_backup_aside(&world).await;
    let taken = world.skep.take_snapshot(&bot, ("", ""), &admin()).await.unwrap();
    taken.outcome().await.unwrap();
    let by_name = RestoreRequest {
        name: Some(format!("{bot}.tar.gz")),
        mode: RestoreMode::Merge,
        ..RestoreRequest::default()
    };
    for round in 0..20 {
        if round % 7 == 6 {
            world.runtime.faults().fail_next(Verb::WriteData, broken());
            restore(&world, &bot, by_name.clone()).await.unwrap_err();
        }
        world.write(&bot, "/data/file", "changed").await;
        restore(&world, &bot, by_name.clone()).await.unwrap();
        assert_eq!(world.read(&bot, "/data/file").await, "kept");
        assert_eq!(world.read(&bot, "/data/here").await, "before");
        let layers = world.skep.snapshots(&bot, None).await.unwrap().snapshots.len();
        assert!(layers <= 5 + 4, "{layers} layers after {} restores", round + 1);
    }
    let back = world.skep.roll_back(&bot, 1, &admin()).await.unwrap();
    back.outcome().await.unwrap();
    assert!(!world.runtime.layer_path(&bot).join("data/file").exists());
    assert_eq!(world.read(&bot, "/data/here").await, "before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_repeated_keeps_a_legacy_directory_once_and_behind_the_workspace() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "of the workspace").await;
    let legacy = world.root.path().join("bots").join(bot.as_str());
    fs::create_dir_all(&legacy).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(legacy.join(name), name).unwrap();
    }
    let away = RuntimeError::Unavailable {
        runtime: "fake runtime",
        source: None,
    };
    world.runtime.faults().fail_next(Verb::Remove, away);
    let deleted = world.skep.delete_bot(&bot, DeleteData::Preserve, &admin()).await;
    deleted.unwrap().operation.outcome().await.unwrap();
    let kept = world.skep.all_backups().await.unwrap();
    let entries: Vec<_> = kept.iter().map(|one| one.entries).collect();
    assert_eq!(entries, [Some(1), Some(3)], "{kept:?}");
}

/// No container can be put on the workspace's layer: its data goes into another one.
async fn begin_anew(world: &World, bot: &BotId) {
    world.stop(bot).await.unwrap();
    world.runtime.forget_container(bot);
    for _ in 0..2 {
        world.runtime.faults().fail_next(Verb::Create, broken());
    }
    world.start(bot).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_that_is_begun_anew_leaves_backups_as_they_are() {
    let world = World::with(|settings| settings.keep_backups = 1).await;
    for is_identical in [false, true] {
        let bot = with_backup_aside(&world).await;
        world.preserve(&bot).await.unwrap();
        world.create_with(&bot, Some(false)).await;
        world.write(&bot, "/data/here", "now").await;
        if is_identical {
            let current = RestoreRequest {
                name: Some(format!("{bot}.tar.gz")),
                mode: RestoreMode::Replace,
                ..RestoreRequest::default()
            };
            restore(&world, &bot, current).await.unwrap();
        }
        let (kept, here) = (world.backups(&bot).await, world.read(&bot, "/data/here").await);
        assert_eq!(kept.len(), 2);
        begin_anew(&world, &bot).await;
        assert_eq!(world.read(&bot, "/data/here").await, here);
        assert_eq!(world.backups(&bot).await, kept, "identical: {is_identical}");
        let files = fs::read_dir(world.root.path().join("backups")).unwrap();
        let of_bot = files.filter(|file| {
            let name = file.as_ref().unwrap().file_name();
            name.to_string_lossy().contains(bot.as_str())
        });
        assert_eq!(of_bot.count(), 2, "the copy is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_cannot_be_read_now_blocks_no_start_and_stays() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.preserve(&bot).await.unwrap();
    let kept = world.backups(&bot).await;
    // Nothing can be read where what is noted of an archive cannot be written.
    let spool = world.root.path().join("spool");
    fs::remove_dir_all(&spool).unwrap();
    fs::write(&spool, "in its place").unwrap();
    let completed = world.create_with(&bot, None).await;
    assert!(completed.started && !completed.data_restored, "{completed:?}");
    assert!(completed.has_preserved_data, "{completed:?}");
    assert!(
        matches!(&completed.warnings[..], [told] if told.contains("cannot be read")),
        "{completed:?}"
    );
    assert_eq!(world.backups(&bot).await, kept);
    // Asked for by itself, it is refused.
    restore(&world, &bot, RestoreRequest::default()).await.unwrap_err();
    fs::remove_file(&spool).unwrap();
    restore(&world, &bot, RestoreRequest::default()).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

/// A backup that another system left, in the place of the current one.
fn leave_backup(world: &World, bot: &BotId, mode: u32) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), "of another system").unwrap();
    fs::set_permissions(tree.path().join("file"), fs::Permissions::from_mode(mode)).unwrap();
    let place = world.file_of(&format!("{bot}.tar.gz"));
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let packed = std::process::Command::new("tar")
        .args(["--create", "--gzip", "--file"])
        .arg(&place)
        .arg("--directory")
        .arg(tree.path())
        .arg("file")
        .status();
    assert!(packed.unwrap().success());
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_which_not_all_comes_back_is_told_and_kept() {
    let world = World::new().await;
    // Nothing of this one is lost.
    let bot = world.bot().await;
    let place = leave_backup(&world, &bot, 0o755);
    let completed = world.create_with(&bot, None).await;
    assert!(
        completed.data_restored && completed.warnings.is_empty(),
        "{completed:?}"
    );
    assert!(!place.exists());
    for asked_for in [false, true] {
        let bot = world.bot().await;
        if asked_for {
            world.create_with(&bot, None).await;
        }
        let place = leave_backup(&world, &bot, 0o4755);
        match asked_for {
            true => drop(restore(&world, &bot, RestoreRequest::default()).await.unwrap()),
            false => {
                let completed = world.create_with(&bot, None).await;
                assert!(completed.data_restored && completed.has_preserved_data, "{completed:?}");
                assert!(
                    matches!(&completed.warnings[..], [told] if told.contains("1 of its entries")),
                    "{completed:?}"
                );
            }
        }
        assert_eq!(world.read(&bot, "/data/file").await, "of another system");
        assert!(place.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_to_a_bot_that_never_was_goes_and_nothing_else_does() {
    let mut world = World::new().await;
    let bot = with_backup_aside(&world).await;
    let kept = world.backups(&bot).await;
    let source = world.file_of(&kept[0].name);
    let mark = |of: &BotId| world.file_of(&format!(".{of}.given"));
    let current = |of: &BotId| world.file_of(&format!("{of}.tar.gz"));
    // The server ends before the bot is there, after it is, and after another archive took the place.
    let (never, there, other) = (BotId::random(), world.bot().await, BotId::random());
    for of in [&never, &there, &other] {
        fs::hard_link(&source, mark(of)).unwrap();
        match of == &other {
            true => fs::write(current(of), "another").map(drop).unwrap(),
            false => fs::hard_link(&source, current(of)).unwrap(),
        }
        let row = BackupRow {
            bot_id: of.clone(),
            created_at: kept[0].created_at,
            sha256: kept[0].sha256.clone().unwrap(),
            size_bytes: kept[0].size_bytes,
            entries: 1,
            owner_user_id: "owner".to_owned(),
            verified: true,
        };
        world.skep.store().put_backup(&row).await.unwrap();
    }
    let (marks, left) = ([&never, &there, &other].map(mark), [current(&there), current(&other)]);
    let gone = current(&never);
    world.crash().await;
    assert!(!gone.exists());
    assert!(left.iter().all(|file| file.exists()));
    assert!(marks.iter().all(|mark| !mark.exists()));
    assert_eq!(world.skep.store().backups(&never).await.unwrap(), []);
    assert_eq!(world.skep.store().backups(&there).await.unwrap().len(), 1);
    assert_eq!(world.backups(&bot).await, kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_bot_gets_the_backup_that_was_looked_at_or_none() {
    let world = World::new().await;
    let bot = with_backup_aside(&world).await;
    let looked_at = world.backups(&bot).await.remove(0);
    world.preserve(&bot).await.unwrap();
    let heir = |backup: Backup| CreateBot {
        owner_user_id: "owner".to_owned(),
        display_name: "heir".to_owned(),
        restore_backup: Some(backup),
        ..CreateBot::default()
    };
    let before = world.skep.all_backups().await.unwrap();
    let refused = world.skep.create_bot(heir(looked_at), &admin()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PreconditionFailed);
    assert_eq!(world.skep.all_backups().await.unwrap(), before);
    let (made, _) = world.skep.create_bot(heir(before[0].clone()), &admin()).await.unwrap();
    let given = world.backups(&made.row.id).await;
    assert_eq!(given[0].sha256, before[0].sha256);
    let files = fs::read_dir(world.root.path().join("backups")).unwrap();
    assert_eq!(files.count(), before.len() + 1, "no mark is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_deleted_takes_no_row_along_of_one_that_is_being_made() {
    let world = World::new().await;
    let bot = with_backup_aside(&world).await;
    let there = world.backups(&bot).await.remove(0);
    let row = |created_at, size_bytes| BackupRow {
        bot_id: bot.clone(),
        created_at,
        sha256: "0".repeat(64),
        size_bytes,
        entries: 1,
        owner_user_id: "owner".to_owned(),
        verified: true,
    };
    // As it is before its file has its name.
    let made = row(there.created_at + chrono::TimeDelta::seconds(1), there.size_bytes + 1);
    world.skep.store().put_backup(&made).await.unwrap();
    world.skep.delete_backup(&bot, &there.name, None).await.unwrap();
    assert_eq!(world.skep.store().backups(&bot).await.unwrap(), [made]);
}

async fn begin(world: &World, bot: &BotId, kind: &str) -> OperationHandle {
    let begun = match kind {
        "snapshot" => world.skep.take_snapshot(bot, ("", SOURCE_PRE_EXEC), &admin()).await,
        "rollback" => world.skep.roll_back(bot, 1, &admin()).await,
        "import" => {
            let archive = archive_of("imported", kind);
            let received = world.skep.receive_archive(bot, archive).await.unwrap();
            let import = (received, RestoreMode::Merge);
            world.skep.import_data(bot, import, &admin()).await
        }
        _ => {
            let by_name = RestoreRequest {
                name: Some(format!("{bot}.tar.gz")),
                ..RestoreRequest::default()
            };
            world.skep.restore_data(bot, by_name, &admin()).await
        }
    };
    begun.unwrap()
}

/// Changes a workspace while its layers cannot be merged.
async fn change(world: &World, bot: &BotId, kind: &str) -> skep_core::Result<Outcome> {
    let faults = world.runtime.faults();
    world.write(bot, "/data/here", "more").await;
    faults.forget();
    faults.fail_next(Verb::Merge, broken());
    begin(world, bot, kind).await.outcome().await
}

/// Its line of layers is as long as to be merged by whatever comes next.
async fn with_long_line() -> (World, BotId) {
    let world = World::with(|settings| {
        settings.versions.merge_over = 8;
        settings.versions.keep_automatic = 1;
    })
    .await;
    let bot = with_backup_aside(&world).await;
    let taken = world.skep.take_snapshot(&bot, ("", ""), &admin()).await.unwrap();
    taken.outcome().await.unwrap();
    let mut rounds = 0;
    while world.runtime.faults().calls(Verb::Merge) == 0 {
        change(&world, &bot, "restore").await.unwrap();
        rounds += 1;
        assert!(rounds < 20, "nothing is ever merged");
    }
    (world, bot)
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_cannot_be_merged_stop_nothing_until_the_line_is_twice_as_long() {
    let (world, bot) = with_long_line().await;
    let faults = world.runtime.faults().clone();
    let change = async |kind: &str| change(&world, &bot, kind).await;
    for kind in ["import", "snapshot", "rollback"] {
        let ended = change(kind).await;
        assert!(ended.is_ok(), "{kind}: {ended:?}");
    }
    let mut longer = 0;
    while change("restore").await.is_ok() {
        longer += 1;
        assert!(longer < 30, "the line has no end");
    }
    // As soon as it can be done, it is.
    faults.forget();
    begin(&world, &bot, "restore").await.outcome().await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    let layers = world.skep.snapshots(&bot, None).await.unwrap().snapshots.len();
    assert!(layers <= 8 + 4, "{layers} layers");
}

/// Lets the calls of a verb go on one by one, until one waits in that step of the operation; `hold` was there before it
/// began, and before it there were so many calls.
async fn held_in(
    world: &World,
    (verb, mut calls, mut hold): (Verb, u64, Hold),
    (operation, step): (&str, &str),
) -> Hold {
    let faults = world.runtime.faults();
    loop {
        until(|| async {
            match faults.calls(verb) > calls {
                true => Ok(()),
                false => Err(format!("{verb:?} is not called in the step {step}")),
            }
        })
        .await;
        let row = world.skep.store().operation(operation).await.unwrap();
        if row.unwrap().step == step {
            return hold;
        }
        calls = faults.calls(verb);
        hold = faults.hold(verb);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_stays_below_a_line_that_stays_long_is_let_go_after_a_crash_too() {
    let (mut world, bot) = with_long_line().await;
    let faults = world.runtime.faults().clone();
    faults.forget();
    let held = |verb| (verb, faults.calls(verb), faults.hold(verb));
    let merging = held(Verb::Merge);
    let operation = begin(&world, &bot, "restore").await.id().to_owned();
    let rebasing = held_in(&world, merging, (&operation, "rebase")).await;
    faults.fail_next(Verb::Merge, broken());
    let removing = held(Verb::RemoveLayer);
    drop(rebasing);
    let letting_go = held_in(&world, removing, (&operation, "let_go")).await;
    world.crash().await;
    drop(letting_go);
    world.until_succeeded(&operation).await;
    let layers = world.runtime.layers().unwrap().list(&bot).await.unwrap();
    let kept = format!("{operation}-kept");
    let mut all = layers.line.iter().chain(&layers.side);
    let kept = all.find(|layer| layer.name.ends_with(&kept));
    assert!(kept.is_some_and(|layer| layer.is_released()), "{layers:?}");
}
