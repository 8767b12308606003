//! Data that is kept when a workspace is deleted, and put back by a create: on the fake runtime, whose layers are read and
//! written by the same program as real ones.

mod harness;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use harness::{LIMIT, World, admin, all, failure, kinds, names, until};
use skep_core::{Code, CreateBot, DeleteData, Outcome, RestoreMode, RestoreRequest, WorkspaceStatus};
use skep_names::BotId;
use skep_runtime::{Runtime, RuntimeError};
use skep_store::NewContainer;
use skep_testkit::fake_runtime::Verb;
use skep_testkit::trees;

fn legacy(world: &World, bot: &BotId) -> PathBuf {
    world.root.path().join("bots").join(bot.as_str())
}

fn broken() -> RuntimeError {
    RuntimeError::other("reading", std::io::Error::other("broken"))
}

#[tokio::test(flavor = "multi_thread")]
async fn preserved_data_is_put_back_by_the_next_create() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.preserve(&bot).await.unwrap();
    assert!(world.runtime.inspect(&bot).await.unwrap().is_none());
    assert_eq!(world.runtime.bots_with_layers().await.unwrap(), []);

    let kept = world.backups(&bot).await;
    let name = format!("{bot}.tar.gz");
    assert_eq!(names(&kept), [name.as_str()]);
    assert!(kept[0].verified && kept[0].entries == Some(1), "{kept:?}");
    let metadata = fs::metadata(world.file_of(&name)).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert_eq!(metadata.len(), kept[0].size_bytes);

    let events = all(&world.create(&bot).await).await;
    assert_eq!(kinds(&events), ["pulling", "creating", "restoring", "complete"]);
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    assert_eq!(world.backups(&bot).await, []);
    assert!(!world.skep.workspace_info(&bot).await.unwrap().has_preserved_data);
    assert!(!world.file_of(&name).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_is_hard_to_carry_comes_back_equal_in_everything() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let data = world.runtime.layer_path(&bot).join("data");
    fs::create_dir_all(&data).unwrap();
    trees::make_hard_tree(&data).unwrap();
    let before = trees::describe(&data).unwrap();
    world.preserve(&bot).await.unwrap();
    assert!(!data.exists());
    let completed = world.create_with(&bot, Some(true)).await;
    assert!(completed.data_restored && !completed.has_preserved_data);
    let after = trees::describe(&data).unwrap();
    for (name, was) in &before {
        assert_eq!(after.get(name), Some(was), "{}", String::from_utf8_lossy(name));
    }
    assert_eq!(after.len(), before.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_told_so_keeps_preserved_data_aside() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.preserve(&bot).await.unwrap();
    let completed = world.create_with(&bot, Some(false)).await;
    assert!(!completed.data_restored && completed.has_preserved_data);
    assert_eq!(world.backups(&bot).await.len(), 1);
    // Nor does a later create touch what the workspace holds by then.
    world.write(&bot, "/data/file", "new").await;
    let again = world.create_with(&bot, Some(true)).await;
    assert!(!again.data_restored && again.has_preserved_data);
    assert_eq!(world.read(&bot, "/data/file").await, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_backup_deletes_nothing_and_what_ran_runs_again() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "here").await;
    world.runtime.faults().fail_next(Verb::ReadData, broken());
    assert_eq!(world.preserve(&bot).await.unwrap_err().code(), Code::Internal);
    assert_eq!(world.read(&bot, "/data/file").await, "here");
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert!(info.task_running && info.status == WorkspaceStatus::Running, "{info:?}");

    world.runtime.faults().fail_next(Verb::ReadData, broken());
    let deleted = world
        .skep
        .delete_bot(&bot, DeleteData::Preserve, &admin())
        .await
        .unwrap();
    deleted.operation.outcome().await.unwrap_err();
    let shown = world.skep.bot(&bot).await.unwrap();
    assert_eq!(shown.row.status.as_str(), "ready");
    let checks = world.skep.checks(&bot).await.unwrap();
    let check = checks
        .iter()
        .find(|one| one.check_type.as_str() == "bot.delete")
        .unwrap();
    assert_eq!(check.status.as_str(), "error", "{check:?}");
    assert_eq!(world.read(&bot, "/data/file").await, "here");
    assert_eq!(world.backups(&bot).await, []);

    // One that was stopped stays so.
    world.stop(&bot).await.unwrap();
    world.runtime.faults().fail_next(Verb::ReadData, broken());
    world.preserve(&bot).await.unwrap_err();
    assert!(!world.skep.workspace_info(&bot).await.unwrap().task_running);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_in_a_snapshotter_that_is_not_looked_into_is_not_taken_for_none() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let row = world.skep.store().container(&bot).await.unwrap().unwrap();
    let elsewhere = NewContainer {
        bot_id: bot.clone(),
        container_id: row.container_id,
        image: row.image,
        image_digest: row.image_digest,
        snapshotter: "elsewhere".to_owned(),
        status: row.status,
        desired: row.desired,
        namespace: row.namespace,
        cdi_devices: row.cdi_devices,
        env: row.env,
        limits_wanted: row.limits_wanted,
        limits_applied: None,
    };
    world.skep.store().put_container(&elsewhere).await.unwrap();
    world.runtime.lose(&bot).await.unwrap();
    let refused = world.preserve(&bot).await.unwrap_err();
    assert_eq!(refused.code(), Code::Conflict);
    assert!(refused.to_string().contains("elsewhere"), "{refused}");
    assert!(world.skep.store().container(&bot).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn older_backups_are_kept_as_generations() {
    let world = World::with(|settings| settings.keep_backups = 2).await;
    let bot = world.bot().await;
    for content in ["a", "bb", "ccc", "dddd"] {
        world.create_with(&bot, Some(false)).await;
        world.write(&bot, "/data/file", content).await;
        world.preserve(&bot).await.unwrap();
    }
    let kept = world.backups(&bot).await;
    let expected = [
        format!("{bot}.tar.gz"),
        format!("{bot}.1.tar.gz"),
        format!("{bot}.2.tar.gz"),
    ];
    assert_eq!(names(&kept), expected);
    assert!(kept.iter().all(|one| one.verified));
    assert!(kept[0].created_at > kept[1].created_at && kept[1].created_at > kept[2].created_at);
    assert_eq!(world.skep.store().backups(&bot).await.unwrap().len(), 3);
    world.create_with(&bot, None).await;
    assert_eq!(world.read(&bot, "/data/file").await, "dddd");
    // Generations are reached by name only.
    assert_eq!(names(&world.backups(&bot).await), expected[1..]);
    assert!(!world.skep.workspace_info(&bot).await.unwrap().has_preserved_data);
    world.skep.delete_backup(&bot, &expected[1], None).await.unwrap();
    let gone = world.skep.delete_backup(&bot, &expected[1], None).await.unwrap_err();
    assert_eq!(gone.code(), Code::BackupNotFound);
    assert_eq!(world.skep.store().backups(&bot).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_set_aside_told_and_blocks_no_start() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.preserve(&bot).await.unwrap();
    let name = format!("{bot}.tar.gz");
    let mut bytes = fs::read(world.file_of(&name)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(world.file_of(&name), &bytes).unwrap();

    let completed = world.create_with(&bot, None).await;
    assert!(!completed.data_restored && !completed.has_preserved_data);
    let aside = format!("{bot}.tar.gz.corrupt");
    assert!(completed.warnings[0].contains(&aside), "{completed:?}");
    assert_eq!(fs::read(world.file_of(&aside)).unwrap(), bytes);
    let listed = world.backups(&bot).await;
    assert_eq!((names(&listed), listed[0].verified), (vec![aside.as_str()], false));
    let checks = world.skep.checks(&bot).await.unwrap();
    assert_eq!(checks[0].status.as_str(), "warn", "{:?}", checks[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_damaged_backup_the_one_before_it_is_put_back_by_its_name_only() {
    let flipped = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    };
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 20].to_vec();
    let emptied = |_: Vec<u8>| Vec::<u8>::new();
    let damages: [&dyn Fn(Vec<u8>) -> Vec<u8>; 3] = [&flipped, &cut, &emptied];
    for damage in damages {
        let mut world = World::new().await;
        let bot = world.bot().await;
        for content in ["older", "newer"] {
            world.create_with(&bot, Some(false)).await;
            world.write(&bot, "/data/file", content).await;
            world.preserve(&bot).await.unwrap();
        }
        let (newest, older) = (format!("{bot}.tar.gz"), format!("{bot}.1.tar.gz"));
        let aside = format!("{bot}.tar.gz.corrupt");
        let kept = fs::read(world.file_of(&older)).unwrap();
        let damaged = damage(fs::read(world.file_of(&newest)).unwrap());
        fs::write(world.file_of(&newest), &damaged).unwrap();

        let completed = world.create_with(&bot, None).await;
        assert!(completed.started && !completed.data_restored, "{completed:?}");
        assert!(!completed.has_preserved_data, "{completed:?}");
        assert!(
            matches!(&completed.warnings[..], [told] if told.contains(&aside)),
            "{completed:?}"
        );
        // The next server leaves it where it is too.
        for _ in 0..2 {
            let checks = world.skep.checks(&bot).await.unwrap();
            let told = checks.iter().find(|one| one.check_type.as_str() == "container.init");
            let told = told.unwrap();
            assert_eq!(told.status.as_str(), "warn", "{told:?}");
            assert!(told.detail.as_ref().unwrap().contains(&aside), "{told:?}");
            assert!(!world.runtime.layer_path(&bot).join("data/file").exists());
            let listed = world.backups(&bot).await;
            let shown: Vec<_> = listed.iter().map(|one| (one.name.clone(), one.verified)).collect();
            assert_eq!(shown, [(older.clone(), true), (aside.clone(), false)]);
            assert_eq!(fs::read(world.file_of(&older)).unwrap(), kept);
            assert_eq!(fs::read(world.file_of(&aside)).unwrap(), damaged);
            world.restart_within(LIMIT).await;
        }
        assert!(!world.create_with(&bot, Some(true)).await.data_restored);
        let by_name = RestoreRequest {
            name: Some(older.clone()),
            ..RestoreRequest::default()
        };
        let restore = world.skep.restore_data(&bot, by_name, &admin()).await.unwrap();
        restore.outcome().await.unwrap();
        assert_eq!(world.read(&bot, "/data/file").await, "older");
        assert_eq!(fs::read(world.file_of(&older)).unwrap(), kept);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_container_vanished_is_kept_too_and_nothing_is_a_success() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.stop(&bot).await.unwrap();
    world.runtime.forget_container(&bot);
    world.preserve(&bot).await.unwrap();
    assert_eq!(world.backups(&bot).await.len(), 1);
    assert_eq!(world.runtime.bots_with_layers().await.unwrap(), []);
    world.preserve(&bot).await.unwrap();
    assert_eq!(world.backups(&bot).await.len(), 1);
    world.create_with(&bot, None).await;
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_directory_is_imported_once_with_all_it_holds() {
    let world = World::new().await;
    let bot = world.bot().await;
    let directory = legacy(&world, &bot);
    fs::create_dir_all(&directory).unwrap();
    trees::make_hard_tree(&directory).unwrap();
    let before = trees::describe(&directory).unwrap();
    let completed = world.create_with(&bot, None).await;
    assert!(completed.data_restored && !completed.has_preserved_data);
    let data = world.runtime.layer_path(&bot).join("data");
    assert_eq!(trees::describe(&data).unwrap(), before);
    let migrated = directory.with_extension("migrated");
    assert!(!directory.exists());
    assert_eq!(trees::describe(&migrated).unwrap(), before);
    // Only the removal of the bot takes it away.
    let deleted = world.skep.delete_bot(&bot, DeleteData::Remove, &admin()).await.unwrap();
    deleted.operation.outcome().await.unwrap();
    assert!(!migrated.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_wins_over_a_legacy_directory() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "newer").await;
    world.preserve(&bot).await.unwrap();
    fs::create_dir_all(legacy(&world, &bot)).unwrap();
    fs::write(legacy(&world, &bot).join("file"), "older").unwrap();
    let completed = world.create_with(&bot, None).await;
    assert!(completed.data_restored && !completed.has_preserved_data);
    assert_eq!(world.read(&bot, "/data/file").await, "newer");
    // It was never in the workspace: a removal that keeps the data keeps it, and one that does not takes it.
    let superseded = legacy(&world, &bot).with_extension("superseded").join("file");
    assert_eq!(fs::read_to_string(&superseded).unwrap(), "older");
    let deleted = world
        .skep
        .delete_bot(&bot, DeleteData::Preserve, &admin())
        .await
        .unwrap();
    deleted.operation.outcome().await.unwrap();
    assert_eq!(fs::read_to_string(&superseded).unwrap(), "older");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_of_the_bot_takes_a_superseded_legacy_directory_too() {
    let world = World::new().await;
    let bot = world.bot().await;
    let superseded = legacy(&world, &bot).with_extension("superseded");
    fs::create_dir_all(&superseded).unwrap();
    let deleted = world.skep.delete_bot(&bot, DeleteData::Remove, &admin()).await.unwrap();
    deleted.operation.outcome().await.unwrap();
    assert!(!superseded.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_whose_layer_is_gone_stays_missing_until_a_create_decides() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let handle = world
        .skep
        .delete_workspace(&bot, DeleteData::Preserve, &admin())
        .await
        .unwrap();
    handle.outcome().await.unwrap();
    world.create_with(&bot, Some(false)).await;
    // Somebody removes container and layer behind the server's back.
    world.runtime.lose(&bot).await.unwrap();
    world.crash().await;
    until(|| async {
        let info = world
            .skep
            .workspace_info(&bot)
            .await
            .map_err(|error| error.to_string())?;
        match (info.status, info.recoverable) {
            (WorkspaceStatus::Missing, Some(false)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    until(|| async {
        match world.skep.bot(&bot).await {
            Ok(bot) if (bot.check_state.as_str(), bot.check_issue_count) == ("issue", 1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(world.start(&bot).await.unwrap_err().code(), Code::Conflict);
    assert_eq!(world.runtime.bots_with_layers().await.unwrap(), []);
    let completed = world.create_with(&bot, None).await;
    assert!(completed.data_restored);
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_in_the_place_of_a_lost_layer_while_anything_of_the_bot_is_kept() {
    let world = World::with(|settings| settings.reconcile_interval = Duration::from_millis(20)).await;
    let bot = world.bot().await;
    for content in ["older", "newer"] {
        world.create_with(&bot, Some(false)).await;
        world.write(&bot, "/data/file", content).await;
        world.preserve(&bot).await.unwrap();
    }
    world.create_with(&bot, None).await;
    let generation = format!("{bot}.1.tar.gz");
    assert_eq!(names(&world.backups(&bot).await), [generation.as_str()]);
    let aside = world.file_of(&format!("{bot}.tar.gz.corrupt"));
    let migrated = legacy(&world, &bot).with_extension("migrated");
    for kept in [world.file_of(&generation), aside, migrated] {
        match kept.extension() {
            Some(ending) if ending == "migrated" => fs::create_dir_all(&kept).unwrap(),
            Some(ending) if ending == "corrupt" => fs::write(&kept, "half an archive").unwrap(),
            _ => {}
        }
        world.runtime.lose(&bot).await.unwrap();
        // The last of them begins after two have ended.
        let compared = world.runtime.faults().calls(Verb::Sweep) + 3;
        until(|| async {
            match world.runtime.faults().calls(Verb::Sweep) {
                calls if calls >= compared => Ok(()),
                calls => Err(format!("{calls} of {compared} comparisons")),
            }
        })
        .await;
        let info = world.skep.workspace_info(&bot).await.unwrap();
        assert_eq!(
            (info.status, info.recoverable),
            (WorkspaceStatus::Missing, Some(false)),
            "{kept:?}"
        );
        assert_eq!(world.start(&bot).await.unwrap_err().code(), Code::Conflict, "{kept:?}");
        assert_eq!(world.runtime.bots_with_layers().await.unwrap(), [], "{kept:?}");
        // A create decides: what is older than the last is put back by its name only.
        let completed = world.create_with(&bot, None).await;
        assert!(completed.started && !completed.data_restored, "{completed:?}");
        match kept.is_dir() {
            true => fs::remove_dir_all(&kept).unwrap(),
            false => fs::remove_file(&kept).unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_outlives_its_bot_and_is_given_to_a_new_one() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let deleted = world
        .skep
        .delete_bot(&bot, DeleteData::Preserve, &admin())
        .await
        .unwrap();
    deleted.operation.outcome().await.unwrap();
    let left = world.skep.all_backups().await.unwrap();
    assert_eq!(names(&left), [format!("{bot}.tar.gz")]);
    assert_eq!(left[0].owner_user_id.as_deref(), Some("owner"));
    let backup = world.skep.backup_of_any(&left[0].name).await.unwrap();
    let new = CreateBot {
        owner_user_id: "owner".to_owned(),
        display_name: "heir".to_owned(),
        restore_backup: Some(backup),
        with_workspace: true,
        ..CreateBot::default()
    };
    let (heir, operation) = world.skep.create_bot(new, &admin()).await.unwrap();
    operation.unwrap().outcome().await.unwrap();
    assert_eq!(world.read(&heir.row.id, "/data/file").await, "kept");
    assert_eq!(world.skep.all_backups().await.unwrap(), left, "it stays what it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_place_of_data_is_refused_and_followed_nowhere() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("canary"), "untouched").unwrap();
    let neighbour = world.running_bot().await;
    world.write(&neighbour, "/data/secret", "theirs").await;
    let data = world.runtime.layer_path(&bot).join("data");
    for target in [
        PathBuf::from("/"),
        PathBuf::from("/etc"),
        outside.path().to_owned(),
        world.runtime.layer_path(&neighbour).join("data"),
    ] {
        match fs::symlink_metadata(&data) {
            Ok(there) if there.is_dir() => fs::remove_dir_all(&data).unwrap(),
            Ok(_) => fs::remove_file(&data).unwrap(),
            Err(_) => {}
        }
        symlink(&target, &data).unwrap();
        let error = world.preserve(&bot).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert_eq!(error.to_string(), "/data is not a directory");
        assert_eq!(world.backups(&bot).await, []);
    }
    assert_eq!(fs::read_to_string(outside.path().join("canary")).unwrap(), "untouched");
    assert_eq!(world.read(&neighbour, "/data/secret").await, "theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_data_is_a_link_gets_nothing_put_back_outside() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.preserve(&bot).await.unwrap();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), world.runtime.image_path().join("data")).unwrap();
    let (_, message) = failure(&all(&world.create(&bot).await).await);
    assert!(message.starts_with("restore preserved data failed: "), "{message}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(world.backups(&bot).await.len(), 1, "what was kept is kept");
    assert_eq!(world.runtime.bots_with_layers().await.unwrap(), []);
    fs::remove_file(world.runtime.image_path().join("data")).unwrap();
    world.create_with(&bot, None).await;
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_cuts_off_is_carried_on() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let hold = world.runtime.faults().hold(Verb::ReadData);
    let delete = world
        .skep
        .delete_workspace(&bot, DeleteData::Preserve, &admin())
        .await
        .unwrap();
    until(|| async {
        match world.runtime.faults().calls(Verb::ReadData) {
            0 => Err("nothing is read yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    drop(delete);
    // What a crash in the middle of writing leaves.
    fs::create_dir_all(world.root.path().join("backups")).unwrap();
    let partial = world.root.path().join("backups").join(format!(".{bot}.partial"));
    fs::write(&partial, "half an archive").unwrap();
    world.crash().await;
    drop(hold);
    until(|| async {
        let kept = world.backups(&bot).await;
        let there = world.runtime.inspect(&bot).await.map_err(|error| error.to_string())?;
        match (kept.len(), there) {
            (1, None) if kept[0].verified => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(!partial.exists());
    world.create_with(&bot, None).await;
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_restore_undoes_the_create_and_keeps_the_backup() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.preserve(&bot).await.unwrap();
    world.runtime.faults().fail_next(Verb::WriteData, broken());
    let (code, message) = failure(&all(&world.create(&bot).await).await);
    assert_eq!(code, "internal");
    assert!(message.starts_with("restore preserved data failed: "), "{message}");
    assert_eq!(world.runtime.bots_with_layers().await.unwrap(), []);
    assert_eq!(world.backups(&bot).await.len(), 1);
    world.create_with(&bot, None).await;
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_name_of_a_pipe_is_left_out_of_a_backup_that_is_not_known_and_of_an_import() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let data = world.runtime.layer_path(&bot).join("data");
    let made = std::process::Command::new("mkfifo").arg(data.join("pipe")).status();
    assert!(made.unwrap().success());
    fs::hard_link(data.join("pipe"), data.join("pipe too")).unwrap();
    world.preserve(&bot).await.unwrap();
    let kept = world.backups(&bot).await.remove(0);
    let archive = fs::read(world.file_of(&kept.name)).unwrap();

    let other = world.running_bot().await;
    let pieces = futures::stream::iter([Ok(archive.into())]);
    let received = world.skep.receive_archive(&other, pieces).await.unwrap();
    let requester = admin();
    let import = world
        .skep
        .import_data(&other, (received, RestoreMode::Merge), &requester);
    match import.await.unwrap().outcome().await.unwrap() {
        Outcome::Imported(imported) => assert_eq!((imported.entries, imported.skipped), (1, 2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.read(&other, "/data/file").await, "kept");

    let forgotten = world.skep.store().forget_backup(&bot, kept.created_at).await;
    forgotten.unwrap();
    let completed = world.create_with(&bot, None).await;
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    assert!(!data.join("pipe").exists() && !data.join("pipe too").exists());
    assert!(
        world.file_of(&kept.name).exists(),
        "what was left out is there still: {completed:?}"
    );
}
