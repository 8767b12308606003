//! What is wanted against what there is: records without objects, objects without records, and what failed half-way.

mod harness;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use harness::{LIMIT, World, admin, until, until_nothing_is_left};
use skep_core::{
    AskedLimits, Code, CreateRequest, DeleteData, Desired, OperationHandle, WorkspaceState, WorkspaceStatus,
};
use skep_names::{BotId, container_id_for};
use skep_runtime::{CheckStatus, InstanceSpec, Runtime};
use skep_store::{ContainerStatus, EventLimits, NewContainer, NewOperation};
use skep_testkit::fake_runtime::{FAKE_IMAGE, Verb};
use sqlx::Connection;

async fn until_status(world: &World, bot: &BotId, wanted: WorkspaceStatus) {
    until(|| async {
        match world.skep.workspace_info(bot).await {
            Ok(info) if info.status == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_layer_alone_is_a_workspace_that_can_be_started() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    for by_hand in [true, false] {
        world.stop(&bot).await.unwrap();
        world.runtime.forget_container(&bot);
        world.skep.store().delete_containers(&bot).await.unwrap();
        if !by_hand {
            // Nobody knows that it should run, so it is taken in as one that is stopped.
            world.restart_within(LIMIT).await;
            until_status(&world, &bot, WorkspaceStatus::Stopped).await;
        }
        world.start(&bot).await.unwrap();
        assert_eq!(world.read(&bot, "/data/file").await, "kept");
    }
}

#[tokio::test]
async fn what_belongs_to_no_bot_is_told_and_left_alone() {
    let mut world = World::new().await;
    let nobodys = BotId::random();
    let spec = InstanceSpec {
        bot: nobodys.clone(),
        image: FAKE_IMAGE.parse().unwrap(),
        snapshotter: None,
        env: BTreeMap::new(),
        cdi_devices: Vec::new(),
        labels: BTreeMap::new(),
    };
    world.runtime.create(&spec).await.unwrap();
    world.restart_within(LIMIT).await;
    until(|| async {
        let readiness = world.skep.readiness().await;
        assert!(readiness.is_ready(), "{readiness:?}");
        match readiness.checks.iter().find(|check| check.name == "ownerless") {
            Some(check) if check.status == CheckStatus::Warn && check.detail.contains(nobodys.as_str()) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(world.runtime.inspect(&nobodys).await.unwrap().is_some());
}

#[tokio::test]
async fn a_create_that_lost_its_runtime_is_undone_when_it_is_back() {
    let world = World::new().await;
    let bot = world.bot().await;
    let hold = world.runtime.faults().hold(Verb::Start);
    let create = world.create(&bot).await;
    until(|| async {
        match world.runtime.faults().calls(Verb::Start) {
            0 => Err("not yet started".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    world.runtime.go_away();
    drop(hold);
    let error = create.outcome().await.unwrap_err();
    assert_eq!(error.code(), Code::RuntimeUnavailable);
    world.runtime.come_back();
    until_nothing_is_left(&world, &bot).await;
    world.create(&bot).await.outcome().await.unwrap();
}

#[tokio::test]
async fn a_delete_that_lost_its_runtime_leaves_a_workspace_or_nothing() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    // Before anything was removed: all of it is there, and runs.
    world.runtime.go_away();
    let delete = world.skep.delete_workspace(&bot, DeleteData::Remove, &admin()).await;
    assert_eq!(
        delete.unwrap().outcome().await.unwrap_err().code(),
        Code::RuntimeUnavailable
    );
    world.runtime.come_back();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    // In the middle of it: it goes on.
    let delete = lose_the_runtime_in_a_delete(&world, &bot, DeleteData::Remove).await;
    world.runtime.come_back();
    delete.outcome().await.unwrap();
    until_nothing_is_left(&world, &bot).await;
}

/// Once it has begun to remove.
async fn lose_the_runtime_in_a_delete(world: &World, bot: &BotId, data: DeleteData) -> OperationHandle {
    let hold = world.runtime.faults().hold(Verb::Remove);
    let delete = world.skep.delete_workspace(bot, data, &admin()).await.unwrap();
    until(|| async {
        match world.runtime.faults().calls(Verb::Remove) {
            0 => Err("not yet removed".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    world.runtime.go_away();
    drop(hold);
    delete
}

#[tokio::test]
async fn the_image_of_a_workspace_whose_container_is_lost_is_neither_pruned_nor_removed() {
    let world = World::with(|settings| settings.default_image = "docker.io/library/other:1".parse().unwrap()).await;
    let bot = world.bot().await;
    let request = CreateRequest {
        image: Some(FAKE_IMAGE.to_owned()),
        ..CreateRequest::default()
    };
    let created = world.skep.create_workspace(&bot, request, &admin()).await.unwrap();
    created.outcome().await.unwrap();
    world.stop(&bot).await.unwrap();
    world.runtime.forget_container(&bot);
    let listed = world.skep.images().await.unwrap();
    let shown = listed.iter().find(|image| image.name.as_str() == FAKE_IMAGE);
    assert!(shown.is_some_and(|image| image.in_use), "{listed:?}");
    assert!(world.skep.prune_images().await.unwrap().is_empty());
    let refused = world.skep.remove_image(FAKE_IMAGE).await.unwrap_err();
    assert_eq!(refused.code(), Code::Conflict);
    assert!(refused.to_string().contains(bot.as_str()), "{refused}");
    let deleted = world.skep.delete_workspace(&bot, DeleteData::Remove, &admin()).await;
    deleted.unwrap().outcome().await.unwrap();
    assert_eq!(world.skep.prune_images().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_delete_that_lost_its_runtime_after_its_data_was_kept_is_finished() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    let delete = lose_the_runtime_in_a_delete(&world, &bot, DeleteData::Preserve).await;
    world.runtime.come_back();
    delete.outcome().await.unwrap();
    until_nothing_is_left(&world, &bot).await;
    world.create(&bot).await.outcome().await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn a_start_that_lost_its_runtime_is_done_when_it_is_back() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.stop(&bot).await.unwrap();
    world.runtime.go_away();
    assert_eq!(world.start(&bot).await.unwrap_err().code(), Code::RuntimeUnavailable);
    world.runtime.come_back();
    until_status(&world, &bot, WorkspaceStatus::Running).await;
}

#[tokio::test]
async fn a_record_of_a_container_that_is_gone_is_corrected_to_the_one_there_is() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    for stopped in [false, true] {
        if stopped {
            world.stop(&bot).await.unwrap();
        }
        let row = world.skep.store().container(&bot).await.unwrap().unwrap();
        let gone = NewContainer {
            bot_id: bot.clone(),
            container_id: format!("mcp-{bot}"),
            image: row.image,
            image_digest: row.image_digest,
            snapshotter: row.snapshotter,
            status: if stopped {
                ContainerStatus::Stopped
            } else {
                ContainerStatus::Running
            },
            desired: row.desired,
            namespace: row.namespace,
            cdi_devices: row.cdi_devices,
            env: BTreeMap::from([("KEPT".to_owned(), "yes".to_owned())]),
            limits_wanted: row.limits_wanted,
            limits_applied: None,
        };
        world.skep.store().put_container(&gone).await.unwrap();
        world.restart_within(LIMIT).await;
        until(|| async {
            let row = world.skep.store().container(&bot).await.unwrap().unwrap();
            match row.container_id == container_id_for(&bot) && row.env.contains_key("KEPT") {
                true => Ok(()),
                false => Err(format!("{row:?}")),
            }
        })
        .await;
        let desired = if stopped { Desired::Stopped } else { Desired::Running };
        assert_eq!(world.skep.workspace_info(&bot).await.unwrap().desired, desired);
    }
}

#[tokio::test]
async fn eight_workspaces_are_brought_back_at_a_time() {
    let mut world = World::new().await;
    let mut bots = Vec::new();
    for _ in 0..10 {
        bots.push(world.running_bot().await);
    }
    world.skep.shut_down(LIMIT).await;
    for bot in &bots {
        world.runtime.stop(bot, Duration::ZERO).await.unwrap();
    }
    let hold = world.runtime.faults().hold(Verb::Start);
    let before = world.runtime.faults().calls(Verb::Start);
    world.restart_within(LIMIT).await;
    let faults = world.runtime.faults().clone();
    let begun = || faults.calls(Verb::Start) - before;
    until(|| async {
        if begun() >= 8 {
            Ok(())
        } else {
            Err(format!("{} begun", begun()))
        }
    })
    .await;
    // A ninth would come at once.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(begun(), 8);
    drop(hold);
    for bot in &bots {
        until_status(&world, bot, WorkspaceStatus::Running).await;
    }
}

#[tokio::test]
async fn data_that_is_kept_elsewhere_is_never_replaced_by_an_empty_workspace() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    let backups = world.root.path().join("backups");
    std::fs::create_dir_all(&backups).unwrap();
    let backup = backups.join(format!("{bot}.tar.gz"));
    std::fs::write(&backup, "an archive").unwrap();
    world.runtime.lose(&bot).await.unwrap();
    let creates = world.runtime.faults().calls(Verb::Create);
    world.restart_within(LIMIT).await;
    until_status(&world, &bot, WorkspaceStatus::Missing).await;
    let operations = world.operations(&bot).await;
    let bridge = world.skep.usable_bridge(&bot, None).await;
    assert_eq!(bridge.err().map(|error| error.code()), Some(Code::BridgeUnavailable));
    assert_eq!(world.operations(&bot).await, operations, "nothing could be recovered");
    assert_eq!(world.runtime.faults().calls(Verb::Create), creates);
    // Without it there is nothing to lose.
    std::fs::remove_file(&backup).unwrap();
    world.restart_within(LIMIT).await;
    until_status(&world, &bot, WorkspaceStatus::Running).await;
}

#[tokio::test]
async fn a_server_that_is_told_to_end_does_not_wait_for_a_runtime_that_is_away() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.stop(&bot).await.unwrap();
    let hold = world.runtime.faults().hold(Verb::Start);
    let starts = world.runtime.faults().calls(Verb::Start);
    let start = world.skep.start_workspace(&bot, &admin()).await.unwrap();
    until(|| async {
        match world.runtime.faults().calls(Verb::Start) > starts {
            true => Ok(()),
            false => Err("not yet started".to_owned()),
        }
    })
    .await;
    world.runtime.go_away();
    let begun = std::time::Instant::now();
    world.skep.shut_down(Duration::from_secs(30)).await;
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(start.outcome().await.unwrap_err().code(), Code::RuntimeUnavailable);
    drop(hold);
    // It is in the journal, and waits there for the runtime; ending again does not wait with it.
    world.restart_within(LIMIT).await;
    let begun = std::time::Instant::now();
    world.restart_within(Duration::from_secs(30)).await;
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    world.runtime.come_back();
    until_status(&world, &bot, WorkspaceStatus::Running).await;
}

#[tokio::test]
async fn kills_for_want_of_memory_are_written_down_once_a_second() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let written = async || {
        world
            .skep
            .store()
            .lifecycle_events_of(&bot, "oom", 0, 1000)
            .await
            .unwrap()
    };
    until(|| async {
        world.runtime.tell_out_of_memory(&bot);
        match written().await.len() {
            3.. => Ok(()),
            fewer => Err(format!("{fewer} rows")),
        }
    })
    .await;
    for pair in written().await.windows(2) {
        let apart = pair[1].created_at - pair[0].created_at;
        assert!(apart >= chrono::TimeDelta::seconds(1), "{apart} apart");
    }
}

#[tokio::test]
async fn the_last_256_kills_of_a_bot_are_kept() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let many = EventLimits {
        kept: 1000,
        apart: Duration::ZERO,
    };
    let store = world.skep.store();
    for number in 0..300 {
        let payload = serde_json::json!({ "number": number });
        let event = ("oom", &payload);
        assert!(store.insert_limited_lifecycle_event(&bot, event, many).await.unwrap());
    }
    let last = store.lifecycle_events_of(&bot, "oom", 0, 1000).await.unwrap();
    let last = last.last().unwrap().seq;
    until(|| async {
        world.runtime.tell_out_of_memory(&bot);
        let rows = store.lifecycle_events_of(&bot, "oom", 0, 1000).await.unwrap();
        match rows.last() {
            Some(row) if row.seq > last => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let kept = store.lifecycle_events_of(&bot, "oom", 0, 1000).await.unwrap();
    assert_eq!(kept.len(), 256);
    // The oldest went.
    assert_eq!(kept[0].payload["number"], 300 - 255);
}

#[tokio::test]
async fn kills_and_refused_processes_are_events_of_a_state_that_is_as_it_was() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let mut states = world.skep.watch_workspace(&bot).await.unwrap();
    let first = states.next().await.unwrap();
    assert_eq!((first.status, &first.reason), (Some(WorkspaceStatus::Running), &None));
    let mut told = async |reason: &str| {
        let state = tokio::time::timeout(LIMIT, states.next()).await.unwrap().unwrap();
        let expected = WorkspaceState {
            reason: Some(reason.to_owned()),
            at: state.at,
            ..first.clone()
        };
        assert_eq!(state, expected);
    };
    world.runtime.tell_out_of_memory(&bot);
    told("oom_killed").await;
    world.runtime.set_refused_processes(&bot, 3);
    told("pids_exhausted").await;
    // Who comes later is told what is, not what was.
    let mut later = world.skep.watch_workspace(&bot).await.unwrap();
    assert_eq!(later.next().await.unwrap(), first);
}

#[tokio::test]
async fn a_stop_of_what_is_missing_records_the_wish() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.runtime.stop(&bot, Duration::ZERO).await.unwrap();
    world.runtime.forget_container(&bot);
    world.stop(&bot).await.unwrap();
    let starts = world.runtime.faults().calls(Verb::Start);
    for _ in 0..2 {
        let info = world.skep.workspace_info(&bot).await.unwrap();
        assert_eq!(
            (info.status, info.desired),
            (WorkspaceStatus::Missing, Desired::Stopped)
        );
        world.restart_within(LIMIT).await;
    }
    assert_eq!(
        world.runtime.faults().calls(Verb::Start),
        starts,
        "it was started unasked"
    );
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn refused_processes_are_written_down_when_there_are_more_of_them_or_it_is_another_run() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.runtime.set_refused_processes(&bot, 3);
    until_refusals(&world, &bot, &[3]).await;
    // The next server knows what was told before.
    world.restart_within(LIMIT).await;
    until_status(&world, &bot, WorkspaceStatus::Running).await;
    world.runtime.set_refused_processes(&bot, 5);
    until_refusals(&world, &bot, &[3, 5]).await;
    world.runtime.set_refused_processes(&bot, 1);
    until_refusals(&world, &bot, &[3, 5, 1]).await;
    let log = world.skep.workspace_log(&bot, None).await.unwrap();
    let line = " kernel: a process was not started: as many run as may\n";
    assert_eq!(log.matches(line).count(), 3, "{log}");
}

async fn until_refusals(world: &World, bot: &BotId, wanted: &[u64]) {
    until(|| async {
        let rows = world
            .skep
            .store()
            .lifecycle_events_of(bot, "pids", 0, 100)
            .await
            .unwrap();
        let told: Vec<_> = rows.iter().filter_map(|row| row.payload["refused"].as_u64()).collect();
        match told == wanted {
            true => Ok(()),
            false => Err(format!("{told:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_workspace_whose_network_is_broken_runs_on_and_is_shown_as_that_until_it_is_whole() {
    let world = World::with(|settings| settings.reconcile_interval = Duration::from_millis(20)).await;
    let bot = world.running_bot().await;
    let until_shown = async |wanted: (&str, Option<&str>, u32)| {
        until(|| async {
            let checks = world.skep.checks(&bot).await.unwrap();
            let task = checks.iter().find(|one| one.check_type.as_str() == "container.task");
            let task = task.expect("a check of the task");
            let issues = world.skep.bot(&bot).await.unwrap().check_issue_count;
            match (task.status.as_str(), task.detail.as_deref(), issues) {
                shown if shown == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    };
    until_shown(("ok", None, 0)).await;
    let starts = world.runtime.faults().calls(Verb::Start);
    world.runtime.set_broken_network(&bot, Some("veth1 is gone"));
    until_shown(("error", Some("veth1 is gone"), 1)).await;
    assert!(world.skep.workspace_info(&bot).await.unwrap().task_running);
    assert_eq!(
        world.runtime.faults().calls(Verb::Start),
        starts,
        "nobody asked for that"
    );
    world.runtime.set_broken_network(&bot, None);
    until_shown(("ok", None, 0)).await;
}

/// What an operation that is not done yet keeps a new server from comparing is looked at by who asks first.
#[tokio::test]
async fn the_first_state_that_a_new_server_tells_is_the_true_one_also_while_the_workspace_is_worked_on() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    let hold = world.runtime.faults().hold(Verb::ApplyLimits);
    let calls = world.runtime.faults().calls(Verb::ApplyLimits);
    let limits = AskedLimits {
        pids: Some(100),
        ..AskedLimits::default()
    };
    world.skep.set_workspace_limits(&bot, limits, &admin()).await.unwrap();
    let until_held = async |world: &World, times: u64| {
        until(|| async {
            match world.runtime.faults().calls(Verb::ApplyLimits) - calls >= times {
                true => Ok(()),
                false => Err("limits are not being applied".to_owned()),
            }
        })
        .await;
    };
    until_held(&world, 1).await;
    world.crash().await;
    until_held(&world, 2).await;
    let mut states = world.skep.watch_workspace(&bot).await.unwrap();
    let first = states.next().await.unwrap();
    assert_eq!(
        (first.status, first.task_running, first.desired),
        (Some(WorkspaceStatus::Running), true, Some(Desired::Running))
    );
    drop(hold);
}

#[tokio::test]
async fn operations_are_forgotten_seven_days_after_their_end_when_their_bot_is_gone() {
    let mut world = World::new().await;
    let (gone, there) = (world.running_bot().await, world.running_bot().await);
    let deleted = world
        .skep
        .delete_bot(&gone, DeleteData::Remove, &admin())
        .await
        .unwrap();
    deleted.operation.outcome().await.unwrap();
    let kept = async |world: &World| (world.operations(&gone).await, world.operations(&there).await);
    let all = kept(&world).await;
    assert!(all.0 > 0 && all.1 > 0, "{all:?}");
    for (days, left) in [(6, all), (8, (0, all.1)), (89, (0, all.1)), (91, (0, 0))] {
        let marker = NewOperation {
            id: format!("{days} days"),
            bot_id: BotId::random(),
            kind: "stop".to_owned(),
            request: serde_json::json!({}),
            requested_by: None,
            request_id: None,
            bot_status: None,
            idempotency: None,
        };
        world.skep.store().insert_operation(&marker).await.unwrap();
        let mut store = world.database().await;
        for (days, only) in [(days, ""), (91, marker.id.as_str())] {
            let ended = (chrono::Utc::now() - chrono::TimeDelta::days(days)).timestamp_micros();
            let aged = "UPDATE operations SET state = 'succeeded', finished_at = ?1 WHERE ?2 IN ('', id)";
            let aged = sqlx::query(aged).bind(ended).bind(only);
            aged.execute(&mut store).await.unwrap();
        }
        store.close().await.unwrap();
        world.restart_within(LIMIT).await;
        // It goes in the same comparison as the others.
        until(|| async {
            match world.skep.store().operation(&marker.id).await.unwrap() {
                None => Ok(()),
                Some(marker) => Err(format!("{marker:?}")),
            }
        })
        .await;
        assert_eq!(kept(&world).await, left, "after {days} days");
    }
}
