//! What a create promises: its events, what it keeps, what it undoes, whom it serves.

mod harness;

use std::time::{Duration, Instant};

use futures::StreamExt;
use harness::{LIMIT, World, admin, all, failure, kinds, until};
use serde_json::json;
use skep_core::{AskedLimits, BotChange, Code, CreateRequest, DeleteData, EventBody, Outcome, Requester};
use skep_names::ImageReference;
use skep_runtime::{Runtime, RuntimeError};
use skep_testkit::fake_runtime::{FAKE_IMAGE, FakeLayer, Verb};
use sqlx::Executor;

fn of_image(image: &str) -> CreateRequest {
    CreateRequest {
        image: Some(image.to_owned()),
        ..CreateRequest::default()
    }
}

#[tokio::test]
async fn a_create_tells_its_events_and_the_workspace_answers() {
    let world = World::new().await;
    let bot = world.bot().await;
    let create = world.create(&bot).await;
    let events = all(&create).await;
    assert_eq!(kinds(&events), ["pulling", "creating", "complete"]);
    assert_eq!(events.iter().map(|event| event.id).collect::<Vec<_>>(), [1, 2, 3]);
    let Outcome::Workspace(workspace) = create.outcome().await.unwrap() else {
        panic!("a create ends with a workspace");
    };
    assert_eq!(workspace.container_id, format!("workspace-{bot}"));
    assert_eq!(workspace.image, FAKE_IMAGE);
    assert!(workspace.started && !workspace.data_restored);
    let info = world.skep.workspace_info(&bot).await.unwrap();
    assert!(info.task_running, "{info:?}");
    assert_eq!(info.status.as_str(), "running");
    let metadata = world.skep.bot(&bot).await.unwrap().row.metadata;
    assert_eq!(metadata["workspace"]["image"], FAKE_IMAGE);
    world.write(&bot, "/data/file", "content").await;
    assert_eq!(world.read(&bot, "/data/file").await, "content");
}

#[tokio::test]
async fn a_second_create_keeps_every_byte() {
    let mut world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "first").await;
    let again = all(&world.create(&bot).await).await;
    assert_eq!(kinds(&again), ["pulling", "creating", "complete"]);
    assert_eq!(world.read(&bot, "/data/file").await, "first");
    world.stop(&bot).await.unwrap();
    world.create(&bot).await.outcome().await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "first");
    world.restart_within(LIMIT).await;
    assert_eq!(world.read(&bot, "/data/file").await, "first");
    assert_eq!(world.runtime.faults().calls(Verb::Create), 1);
}

#[tokio::test]
async fn eight_creates_at_once_are_one_work() {
    let world = World::new().await;
    let bot = world.bot().await;
    let creates = futures::future::join_all((0..8).map(|_| world.create(&bot))).await;
    for create in &creates {
        assert_eq!(create.id(), creates[0].id());
        assert_eq!(kinds(&all(create).await), ["pulling", "creating", "complete"]);
        assert!(create.outcome().await.is_ok());
    }
    assert_eq!(world.runtime.faults().calls(Verb::Create), 1);
    assert_eq!(world.runtime.faults().calls(Verb::Start), 1);
    assert_eq!(
        world.skep.operations(&bot, None, 200).await.unwrap().operations.len(),
        1
    );
}

#[tokio::test]
async fn a_create_goes_on_when_its_client_goes_away() {
    let world = World::new().await;
    let bot = world.bot().await;
    let hold = world.runtime.faults().hold(Verb::Start);
    let create = world.create(&bot).await;
    let mut events = create.events(0);
    assert!(matches!(events.next().await.unwrap().body, EventBody::Pulling { .. }));
    let id = create.id().to_owned();
    drop((events, create));
    drop(hold);
    let told = world
        .skep
        .operation_events(&id, 0)
        .await
        .unwrap()
        .collect::<Vec<_>>()
        .await;
    assert_eq!(kinds(&told), ["pulling", "creating", "complete"]);
    // And again from the journal, once it is over.
    let journaled = world
        .skep
        .operation_events(&id, 0)
        .await
        .unwrap()
        .collect::<Vec<_>>()
        .await;
    assert_eq!(journaled, told);
    assert!(world.skep.workspace_info(&bot).await.unwrap().task_running);
}

#[tokio::test]
async fn a_pull_shows_every_layer_from_its_start_to_its_end() {
    let world = World::new().await;
    let bot = world.bot().await;
    let image: ImageReference = "registry.test/big:1".parse().unwrap();
    let layer = |size_bytes, milliseconds| FakeLayer {
        size_bytes,
        takes: Duration::from_millis(milliseconds),
    };
    world
        .runtime
        .offer_image(&image, vec![layer(1000, 900), layer(50, 10), layer(7000, 900)]);
    let asked = Instant::now();
    let create = world
        .skep
        .create_workspace(&bot, of_image("registry.test/big:1"), &admin())
        .await
        .unwrap();
    let mut events = create.events(0);
    let mut told = Vec::new();
    while let Some(event) = tokio::time::timeout(LIMIT, events.next()).await.unwrap() {
        told.push((Instant::now(), event));
    }
    let plain: Vec<_> = told.iter().map(|(_, event)| event.clone()).collect();
    assert_eq!(kinds(&plain), ["pulling", "pull_progress", "creating", "complete"]);
    let progress: Vec<_> = told
        .iter()
        .filter_map(|(at, event)| match &event.body {
            EventBody::PullProgress { layers } => Some((*at, layers.clone())),
            _ => None,
        })
        .collect();
    assert!(progress.len() >= 4, "{} events", progress.len());
    for pair in progress.windows(2) {
        for (before, after) in pair[0].1.iter().zip(&pair[1].1) {
            assert_eq!((&before.digest, before.total), (&after.digest, after.total));
            assert!(before.offset <= after.offset, "{before:?} went back to {after:?}");
        }
    }
    // The last one may come at any time; the others keep their distance. It is that of all together: one that is late
    // here comes soon before the next, and none is here before it was told.
    let (gaps, took) = (progress.len() as u32 - 2, progress[progress.len() - 2].0 - asked);
    assert!(took >= gaps * Duration::from_millis(190), "{gaps} gaps within {took:?}");
    // Half of them show it each by itself, and none of those is late.
    let pairs = progress[..progress.len() - 1].windows(2);
    let mut apart: Vec<_> = pairs.map(|pair| pair[1].0 - pair[0].0).collect();
    apart.sort();
    let median = apart[apart.len() / 2].as_millis();
    assert!((190..=600).contains(&median), "{apart:?}");
    let distinct: std::collections::HashSet<_> = progress.iter().map(|(_, layers)| format!("{layers:?}")).collect();
    assert_eq!(distinct.len(), progress.len(), "the same is told twice: {progress:?}");
    let last = &progress.last().unwrap().1;
    assert_eq!(
        last.iter().map(|layer| layer.total).collect::<Vec<_>>(),
        [1000, 50, 7000]
    );
    assert!(
        last.iter()
            .all(|layer| layer.offset == layer.total && layer.phase == "done")
    );
    let id = create.id();
    let journaled = world
        .skep
        .operation_events(id, 0)
        .await
        .unwrap()
        .collect::<Vec<_>>()
        .await;
    assert_eq!(kinds(&journaled), ["pulling", "pull_progress", "creating", "complete"]);
}

#[tokio::test]
async fn the_image_of_a_lost_workspace_is_had_before_it_is_made_and_told_by_a_create_alone() {
    let world = World::new().await;
    let bot = world.bot().await;
    let image: ImageReference = "registry.test/lost:1".parse().unwrap();
    let layer = FakeLayer {
        size_bytes: 1000,
        takes: Duration::ZERO,
    };
    world.runtime.offer_image(&image, vec![layer]);
    let create = world
        .skep
        .create_workspace(&bot, of_image(image.as_str()), &admin())
        .await;
    create.unwrap().outcome().await.unwrap();
    let lose = async || {
        world.stop(&bot).await.unwrap();
        world.runtime.lose(&bot).await.unwrap();
        world.runtime.remove_image(&image).await.unwrap();
    };
    lose().await;
    let refused = RuntimeError::Registry {
        reason: "it is closed".to_owned(),
    };
    world.runtime.faults().fail_next(Verb::Pull, refused);
    let events = all(&world.create(&bot).await).await;
    let (code, message) = failure(&events);
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("image_pull_failed", "image pull failed: it is closed")
    );
    assert_eq!(kinds(&events), ["pulling", "error"]);
    let events = all(&world.create(&bot).await).await;
    assert_eq!(kinds(&events), ["pulling", "pull_progress", "creating", "complete"]);
    lose().await;
    let start = world.skep.start_workspace(&bot, &admin()).await.unwrap();
    assert_eq!(kinds(&all(&start).await), ["step", "complete"]);
}

#[tokio::test]
async fn an_image_that_nobody_has_is_told_with_its_stage() {
    let world = World::new().await;
    let bot = world.bot().await;
    let create = world
        .skep
        .create_workspace(&bot, of_image("registry.test/none"), &admin())
        .await
        .unwrap();
    let events = all(&create).await;
    assert_eq!(kinds(&events), ["pulling", "error"]);
    let (code, message) = failure(&events);
    assert_eq!(code, "image_not_found");
    assert_eq!(message, "image pull failed: image registry.test/none:latest not found");
    assert_eq!(create.outcome().await.unwrap_err().code(), Code::ImageNotFound);
    let shown = world.skep.operation(create.id()).await.unwrap();
    assert_eq!(
        (shown.state.as_str(), shown.error.unwrap().0),
        ("failed", Code::ImageNotFound)
    );
    let info = world.skep.workspace_info(&bot).await;
    assert_eq!(info.unwrap_err().code(), Code::ContainerNotFound);
}

#[tokio::test]
async fn a_failed_create_leaves_nothing_and_the_next_one_works() {
    let world = World::new().await;
    let bot = world.bot().await;
    let other = || RuntimeError::other("doing it", std::io::Error::other("broken"));
    let network = RuntimeError::Network {
        reason: "the CNI plugin bridge failed to ADD".to_owned(),
        source: None,
    };
    let started = "container start failed: doing it failed";
    for (verb, error, code, message) in [
        (Verb::Create, other(), "internal", started),
        (Verb::Start, other(), "container_start_failed", started),
        (
            Verb::Start,
            network,
            "network_setup_failed",
            "network setup failed: the CNI plugin bridge failed to ADD",
        ),
    ] {
        world.runtime.faults().fail_next(verb, error);
        let events = all(&world.create(&bot).await).await;
        assert_eq!(failure(&events), (code.to_owned(), message.to_owned()));
        assert!(world.runtime.inspect(&bot).await.unwrap().is_none());
        assert!(world.runtime.bots_with_layers().await.unwrap().is_empty());
        let checks = world.skep.checks(&bot).await.unwrap();
        assert_eq!(checks[0].status.as_str(), "error", "{checks:?}");
        assert_eq!(world.skep.bot(&bot).await.unwrap().check_issue_count, 1);
    }
    world.create(&bot).await.outcome().await.unwrap();
    let bot = world.skep.bot(&bot).await.unwrap();
    assert_eq!((bot.check_state.as_str(), bot.check_issue_count), ("ok", 0));
}

#[tokio::test]
async fn started_means_that_the_bridge_answered() {
    let world = World::new().await;
    let bot = world.bot().await;
    world.runtime.replace_process_one(&bot, &["/bin/sh", "-c", "exit 3"]);
    let (code, message) = failure(&all(&world.create(&bot).await).await);
    assert_eq!(code, "container_start_failed");
    assert!(message.starts_with("container start failed: "), "{message}");
    assert!(world.runtime.bots_with_layers().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_failed_create_never_removes_a_layer_that_was_there() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "kept").await;
    world.stop(&bot).await.unwrap();
    world.skep.store().delete_containers(&bot).await.unwrap();
    world.runtime.forget_container(&bot);
    let error = RuntimeError::other("starting", std::io::Error::other("broken"));
    world.runtime.faults().fail_next(Verb::Start, error);
    failure(&all(&world.create(&bot).await).await);
    assert_eq!(
        world.runtime.bots_with_layers().await.unwrap(),
        std::slice::from_ref(&bot)
    );
    world.create(&bot).await.outcome().await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_create_recorded_that_failed_after_that_is_kept_when_it_is_deleted() {
    let world = World::new().await;
    let mut store = world.database().await;
    for of_bot in [false, true] {
        let bot = world.running_bot().await;
        world.write(&bot, "/data/first", "of the backup").await;
        world.preserve(&bot).await.unwrap();
        let refuse = "CREATE TRIGGER refused BEFORE INSERT ON lifecycle_events WHEN NEW.event_type = 'create' \
                      BEGIN SELECT RAISE(ABORT, 'told to'); END";
        store.execute(refuse).await.unwrap();
        let create = world.create(&bot).await;
        assert_eq!(create.outcome().await.unwrap_err().code(), Code::StoreUnavailable);
        store.execute("DROP TRIGGER refused").await.unwrap();
        world.until_running(&bot).await;
        assert_eq!(world.read(&bot, "/data/first").await, "of the backup");
        world.write(&bot, "/data/second", "of the workspace").await;
        let deleted = match of_bot {
            false => world.skep.delete_workspace(&bot, DeleteData::Preserve, &admin()).await,
            true => {
                let deleted = world.skep.delete_bot(&bot, DeleteData::Preserve, &admin()).await;
                deleted.map(|deleted| deleted.operation)
            }
        };
        deleted.unwrap().outcome().await.unwrap();
        let mut kept = world.skep.all_backups().await.unwrap();
        kept.retain(|backup| backup.bot_id == bot);
        assert!(
            matches!(&kept[..], [one] if one.entries == Some(2) && one.verified),
            "{kept:?}"
        );
    }
}

#[tokio::test]
async fn another_image_for_a_workspace_is_refused_with_the_way() {
    let world = World::new().await;
    let bot = world.running_bot().await;
    let refused = world
        .skep
        .create_workspace(&bot, of_image("debian:12"), &admin())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::WorkspaceExists);
    assert!(refused.to_string().contains("preserve_data=true"), "{refused}");
    let same = world.skep.create_workspace(&bot, of_image("busybox"), &admin()).await;
    assert!(same.unwrap().outcome().await.is_ok());
}

#[tokio::test]
async fn members_may_have_images_of_the_default_registry_only() {
    let world = World::new().await;
    let bot = world.bot().await;
    let member = Requester {
        user_id: Some("member".to_owned()),
        may_manage: true,
        ..Requester::default()
    };
    let refused = world
        .skep
        .create_workspace(&bot, of_image("ghcr.io/x/y"), &member)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ImageNotAllowed);
    let operator = Requester {
        may_manage: false,
        ..member.clone()
    };
    let refused = world.skep.create_workspace(&bot, of_image("debian"), &operator).await;
    assert_eq!(refused.unwrap_err().code(), Code::ImageNotAllowed);
    let default = world
        .skep
        .create_workspace(&bot, CreateRequest::default(), &operator)
        .await;
    assert!(default.unwrap().outcome().await.is_ok());
}

#[tokio::test]
async fn the_image_that_a_bot_remembers_is_its_owners_wish_whoever_creates() {
    let world = World::new().await;
    let bot = world.bot().await;
    let image: ImageReference = "ghcr.io/x/y:1".parse().unwrap();
    world.runtime.offer_image(&image, Vec::new());
    let metadata = json!({"workspace": {"image": image.as_str()}}).as_object().cloned();
    let change = BotChange {
        metadata,
        ..BotChange::default()
    };
    world.skep.patch_bot(&bot, change, &admin()).await.unwrap();
    let admin = admin();
    let plain = world.skep.create_workspace(&bot, CreateRequest::default(), &admin);
    let refused = plain.await.unwrap_err();
    assert_eq!(refused.code(), Code::ImageNotAllowed);
    assert!(world.runtime.image(&image).await.unwrap().is_none(), "it was pulled");
    // Named by an administrator, it is his wish.
    let named = world.skep.create_workspace(&bot, of_image(image.as_str()), &admin);
    named.await.unwrap().outcome().await.unwrap();
}

#[tokio::test]
async fn whoever_may_create_gets_the_image_that_the_bot_remembers() {
    let world = World::new().await;
    let bot = world.bot().await;
    let image: ImageReference = "debian:12".parse().unwrap();
    world.runtime.offer_image(&image, Vec::new());
    let named = world.skep.create_workspace(&bot, of_image("debian:12"), &admin()).await;
    named.unwrap().outcome().await.unwrap();
    let operator = Requester {
        user_id: Some("operator".to_owned()),
        ..Requester::default()
    };
    let deleted = world.skep.delete_workspace(&bot, DeleteData::Remove, &admin()).await;
    deleted.unwrap().outcome().await.unwrap();
    let refused = world
        .skep
        .create_workspace(&bot, of_image("debian:12"), &operator)
        .await;
    assert_eq!(
        refused.unwrap_err().code(),
        Code::ImageNotAllowed,
        "he names it himself"
    );
    let plain = world.skep.create_workspace(&bot, CreateRequest::default(), &operator);
    plain.await.unwrap().outcome().await.unwrap();
    assert_eq!(world.skep.workspace_info(&bot).await.unwrap().image, image.as_str());
}

#[tokio::test]
async fn nobody_has_a_bot_remember_an_image_that_he_may_not_ask_for() {
    let world = World::new().await;
    let bot = world.bot().await;
    let manager = Requester {
        user_id: Some("manager".to_owned()),
        may_manage: true,
        ..Requester::default()
    };
    let remembering = |image: &str, note: &str| BotChange {
        metadata: json!({"workspace": {"image": image}, "note": note})
            .as_object()
            .cloned(),
        ..BotChange::default()
    };
    let other = || remembering("ghcr.io/x/y:1", "");
    let refused = world.skep.patch_bot(&bot, other(), &manager).await.unwrap_err();
    assert_eq!(refused.code(), Code::ImageNotAllowed);
    let refused = world.skep.replace_bot(&bot, other(), &manager).await.unwrap_err();
    assert_eq!(refused.code(), Code::ImageNotAllowed);
    assert!(world.skep.bot(&bot).await.unwrap().row.metadata.is_empty());
    world
        .skep
        .patch_bot(&bot, remembering("debian:12", ""), &manager)
        .await
        .unwrap();
    // What an administrator has it remember may stay beside what he writes.
    world.skep.patch_bot(&bot, other(), &admin()).await.unwrap();
    let noted = world
        .skep
        .replace_bot(&bot, remembering("ghcr.io/x/y:1", "mine"), &manager)
        .await;
    assert_eq!(noted.unwrap().row.metadata["note"], "mine");
}

#[tokio::test]
async fn limits_of_a_create_are_kept_and_applied() {
    let world = World::new().await;
    let bot = world.bot().await;
    let limits = AskedLimits {
        memory_bytes: Some(64 << 20),
        ..AskedLimits::default()
    };
    let request = CreateRequest {
        limits: Some(limits),
        ..CreateRequest::default()
    };
    let create = world.skep.create_workspace(&bot, request, &admin()).await.unwrap();
    create.outcome().await.unwrap();
    let shown = world.skep.workspace_info(&bot).await.unwrap().limits;
    assert_eq!(shown.wanted.memory_bytes, 64 << 20);
    assert_eq!(shown.wanted.pids, 1024);
    assert_eq!(shown.applied, Some(shown.wanted));
    let more = AskedLimits {
        memory_bytes: Some(128 << 20),
        ..AskedLimits::default()
    };
    let changed = world.skep.set_workspace_limits(&bot, more, &admin()).await.unwrap();
    let Outcome::Limits(report) = changed.outcome().await.unwrap() else {
        panic!("limits end with limits");
    };
    assert_eq!(report.applied.unwrap().memory_bytes, 128 << 20);
    assert_eq!(world.runtime.faults().calls(Verb::ApplyLimits), 1);
}

#[tokio::test]
async fn a_create_that_a_crash_cut_off_is_finished_by_the_next_server() {
    let mut world = World::new().await;
    let bot = world.bot().await;
    for verb in [Verb::Create, Verb::Start] {
        let hold = world.runtime.faults().hold(verb);
        let calls = world.runtime.faults().calls(verb);
        let create = world.create(&bot).await;
        let faults = world.runtime.faults().clone();
        until(|| {
            let reached = faults.calls(verb) > calls;
            async move { reached.then_some(()).ok_or_else(|| format!("{verb:?} was not called")) }
        })
        .await;
        world.crash().await;
        drop(hold);
        let told = world.skep.operation_events(create.id(), 0).await.unwrap();
        let told = tokio::time::timeout(LIMIT, told.collect::<Vec<_>>()).await.unwrap();
        assert_eq!(kinds(&told), ["pulling", "creating", "complete"], "cut off in {verb:?}");
        assert!(told[0].id > 1, "its numbers were given before");
        assert_eq!(
            world.skep.operation(create.id()).await.unwrap().state.as_str(),
            "succeeded"
        );
        assert!(world.skep.workspace_info(&bot).await.unwrap().task_running);
        let delete = world
            .skep
            .delete_workspace(&bot, skep_core::DeleteData::Remove, &admin())
            .await
            .unwrap();
        delete.outcome().await.unwrap();
    }
}

#[tokio::test]
async fn a_cancelled_create_is_undone() {
    let world = World::new().await;
    let bot = world.bot().await;
    let hold = world.runtime.faults().hold(Verb::Start);
    let create = world.create(&bot).await;
    let cancelled = world.skep.cancel_operation(create.id()).await.unwrap();
    assert_eq!(cancelled.state.as_str(), "cancelled");
    drop(hold);
    assert_eq!(failure(&all(&create).await).0, "operation_cancelled");
    assert!(world.runtime.bots_with_layers().await.unwrap().is_empty());
    world.create(&bot).await.outcome().await.unwrap();
}

#[tokio::test]
async fn the_pull_policy_says_whether_a_registry_is_asked() {
    use skep_core::ImagePullPolicy::{Always, IfNotPresent, Never};
    let elsewhere: ImageReference = "registry.test/elsewhere:1".parse().unwrap();
    for (policy, image, pulls, refused) in [
        (IfNotPresent, FAKE_IMAGE, 0, None),
        (IfNotPresent, elsewhere.as_str(), 1, None),
        (Always, FAKE_IMAGE, 1, None),
        (Never, FAKE_IMAGE, 0, None),
        (Never, elsewhere.as_str(), 0, Some("image_not_found")),
    ] {
        let world = World::with(|settings| settings.image_pull_policy = policy).await;
        world.runtime.offer_image(&elsewhere, Vec::new());
        let bot = world.bot().await;
        let create = world
            .skep
            .create_workspace(&bot, of_image(image), &admin())
            .await
            .unwrap();
        let events = all(&create).await;
        assert_eq!(world.runtime.faults().calls(Verb::Pull), pulls, "{policy:?} {image}");
        match refused {
            None => assert_eq!(kinds(&events).last(), Some(&"complete"), "{policy:?} {image}"),
            Some(code) => assert_eq!(failure(&events).0, code, "{policy:?} {image}"),
        }
    }
}

/// What is asked about all workspaces costs more the more there are.
#[tokio::test]
async fn no_verb_of_one_workspace_asks_for_all() {
    let world = World::new().await;
    let asked = || [Verb::List, Verb::BotsWithLayers].map(|verb| world.runtime.faults().calls(verb));
    // The comparison that a server begins with does, and then none comes for long.
    until(|| async {
        match asked() {
            [list, layers] if list > 0 && layers > 0 => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
    let before = asked();
    let bot = world.running_bot().await;
    world.write(&bot, "/data/file", "content").await;
    world.stop(&bot).await.unwrap();
    world.start(&bot).await.unwrap();
    world.skep.workspace_info(&bot).await.unwrap();
    let deleted = world.skep.delete_workspace(&bot, DeleteData::Remove, &admin()).await;
    deleted.unwrap().outcome().await.unwrap();
    assert_eq!(asked(), before);
}
