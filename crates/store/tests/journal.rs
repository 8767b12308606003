//! The journal, the rows of workspaces and the data root, on a real file.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use skep_names::BotId;
use skep_store::{
    BotStatus, BotVisibility, ContainerStatus, DataRoot, DataRootError, Desired, EventLimits, EventRow,
    IdempotencyBegin, IdempotencyKey, IdempotencyOutcome, LimitsColumn, MemberRole, NewBot, NewContainer, NewOperation,
    OperationEnd, OperationState, Store, StoreError,
};

async fn store(root: &Path) -> Store {
    Store::open(&root.join("skep.db")).await.unwrap()
}

fn key_of_a_post() -> IdempotencyKey {
    IdempotencyKey {
        user_id: "u".to_owned(),
        method: "POST".to_owned(),
        path: "/bots".to_owned(),
        key: "k".to_owned(),
    }
}

fn new_bot(owner: &str) -> NewBot {
    NewBot {
        id: BotId::random(),
        owner_user_id: owner.to_owned(),
        display_name: "b".to_owned(),
        avatar_url: None,
        timezone: None,
        is_active: true,
        status: BotStatus::Ready,
        metadata: Map::new(),
        idempotency: None,
    }
}

async fn bot(store: &Store, owner: &str) -> BotId {
    store.insert_bot(new_bot(owner)).await.unwrap().id
}

fn operation(id: &str, bot: &BotId) -> NewOperation {
    NewOperation {
        id: id.to_owned(),
        bot_id: bot.clone(),
        kind: "create".to_owned(),
        request: json!({ "kind": "create" }),
        requested_by: Some("u".to_owned()),
        request_id: None,
        bot_status: None,
        idempotency: None,
    }
}

#[tokio::test]
async fn what_was_journaled_is_there_after_the_process_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let first = store(root.path()).await;
    let bot = bot(&first, "u").await;
    first.insert_operation(&operation("a", &bot)).await.unwrap();
    first
        .set_operation_step("a", "pull", &json!({ "had_layer": false }))
        .await
        .unwrap();
    let event = EventRow {
        id: 1,
        data: json!({ "type": "creating" }),
    };
    first.insert_event("a", &event).await.unwrap();
    // Not closed: as a killed process leaves it, with everything still in the write-ahead log.
    let second = store(root.path()).await;
    let unfinished = second.unfinished_operations().await.unwrap();
    assert_eq!(unfinished.len(), 1);
    assert_eq!(
        (unfinished[0].step.as_str(), unfinished[0].state),
        ("pull", OperationState::Running)
    );
    assert_eq!(unfinished[0].notes, json!({ "had_layer": false }));
    assert_eq!(second.events("a").await.unwrap(), [event]);
    // A client may have heard of many more than were kept, and comes back with the number of the last one.
    let heard = 500_000;
    let again = second.restart_events("a").await.unwrap();
    assert!(again > heard, "event {again} would never be told");
    assert!(second.restart_events("a").await.unwrap() > again + heard);
    assert!(second.events("a").await.unwrap().is_empty());
}

#[tokio::test]
async fn an_operation_ends_once() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path()).await;
    let bot = bot(&store, "u").await;
    store.insert_operation(&operation("a", &bot)).await.unwrap();
    let good = OperationEnd::Succeeded {
        outcome: Value::from("fine"),
    };
    store.finish_operation("a", &good, None, None).await.unwrap();
    let late = OperationEnd::Cancelled {
        message: "late".to_owned(),
    };
    let event = EventRow { id: 9, data: json!({}) };
    store.finish_operation("a", &late, Some(&event), None).await.unwrap();
    store.set_operation_step("a", "late", &json!({})).await.unwrap();
    let row = store.operation("a").await.unwrap().unwrap();
    assert_eq!((row.state, row.step.as_str()), (OperationState::Succeeded, ""));
    assert_eq!(row.outcome, Some(Value::from("fine")));
    assert!(store.events("a").await.unwrap().is_empty());
    store.delete_bot(&bot).await.unwrap();
    assert!(
        store.operation("a").await.unwrap().is_some(),
        "operations outlive their bot"
    );
    let now = chrono::Utc::now() + chrono::TimeDelta::seconds(1);
    assert_eq!(
        store
            .forget_operations(now, chrono::DateTime::UNIX_EPOCH)
            .await
            .unwrap(),
        1
    );
}

#[tokio::test]
async fn a_place_in_the_order_is_given_once() {
    let root = tempfile::tempdir().unwrap();
    let mut last = 0;
    let bot = bot(&store(root.path()).await, "u").await;
    for id in ["a", "b", "c"] {
        // Each of a server that was started anew, after the ones before were forgotten.
        let store = store(root.path()).await;
        store.insert_operation(&operation(id, &bot)).await.unwrap();
        let seq = store.operation(id).await.unwrap().unwrap().seq;
        assert!(seq > last, "{id} has {seq} after {last}");
        last = seq;
        let done = OperationEnd::Succeeded { outcome: Value::Null };
        store.finish_operation(id, &done, None, None).await.unwrap();
        let now = chrono::Utc::now() + chrono::TimeDelta::seconds(1);
        assert_eq!(store.forget_operations(now, now).await.unwrap(), 1);
        store.close().await;
    }
}

#[tokio::test]
async fn the_newest_row_is_told_by_its_sequence() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path()).await;
    let bot = bot(&store, "u").await;
    for container_id in ["mcp-x", "workspace-x"] {
        let new = NewContainer {
            bot_id: bot.clone(),
            container_id: container_id.to_owned(),
            image: "i".to_owned(),
            image_digest: None,
            snapshotter: "s".to_owned(),
            status: ContainerStatus::Running,
            desired: Desired::Running,
            namespace: "n".to_owned(),
            cdi_devices: vec!["a/b=c".to_owned()],
            env: [("K".to_owned(), "V".to_owned())].into(),
            limits_wanted: LimitsColumn::default(),
            limits_applied: Some(LimitsColumn::default()),
        };
        store.put_container(&new).await.unwrap();
    }
    let row = store.container(&bot).await.unwrap().unwrap();
    assert_eq!(
        (row.container_id.as_str(), row.container_path.as_str()),
        ("workspace-x", "/data")
    );
    assert!(row.last_started_at.is_some() && row.last_stopped_at.is_none());
    store.set_container_stopped(&bot, None).await.unwrap();
    let rows = store.containers().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].status, rows[0].limits_applied),
        (ContainerStatus::Stopped, Some(LimitsColumn::default()))
    );
    assert!(rows[0].last_stopped_at.is_some());
    store.delete_bot(&bot).await.unwrap();
    assert!(store.containers().await.unwrap().is_empty());
    assert!(!store.set_desired(&bot, Desired::Running, None).await.unwrap());
}

#[tokio::test]
async fn bots_are_paged_newest_first_and_shown_to_those_who_may_see_them() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path()).await;
    let mut mine = Vec::new();
    for _ in 0..5 {
        mine.push(bot(&store, "me").await);
    }
    let shared = bot(&store, "other").await;
    bot(&store, "other").await;
    store.put_member(&shared, "me", MemberRole::Viewer).await.unwrap();
    let seen = BotVisibility::SeenBy("me".to_owned());
    let mut got = Vec::new();
    let mut before = None;
    loop {
        let page = store.bots(&seen, before, 2).await.unwrap();
        got.extend(page.bots.into_iter().map(|row| row.id));
        before = page.next_before;
        if before.is_none() {
            break;
        }
    }
    mine.push(shared);
    mine.reverse();
    assert_eq!(got, mine);
    let owned = BotVisibility::OwnedBy("me".to_owned());
    assert_eq!(store.bots(&owned, None, 100).await.unwrap().bots.len(), 5);
    assert_eq!(store.bots(&BotVisibility::All, None, 100).await.unwrap().bots.len(), 7);
}

#[tokio::test]
async fn of_two_requests_with_one_key_one_is_the_first() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path()).await;
    let key = key_of_a_post();
    let both = tokio::join!(
        store.begin_idempotent(&key, "body"),
        store.begin_idempotent(&key, "body")
    );
    let both = [both.0.unwrap(), both.1.unwrap()];
    assert_eq!(both.iter().filter(|one| **one == IdempotencyBegin::First).count(), 1);
    let other = store.begin_idempotent(&key, "other").await.unwrap();
    assert_eq!(other, IdempotencyBegin::OtherBody);
    let outcome = IdempotencyOutcome {
        operation_id: Some("o".to_owned()),
        bot_id: None,
        answer: None,
    };
    store.finish_idempotent(&key, &outcome).await.unwrap();
    let repeat = store.begin_idempotent(&key, "body").await.unwrap();
    assert_eq!(repeat, IdempotencyBegin::Repeat(outcome));
    store.release_idempotent(&key).await.unwrap();
    let kept = store.begin_idempotent(&key, "body").await.unwrap();
    assert!(
        matches!(kept, IdempotencyBegin::Repeat(_)),
        "what has an operation is not released"
    );
    // Its request ended with the server that worked on it.
    let cut_off = IdempotencyKey {
        key: "cut off".to_owned(),
        ..key.clone()
    };
    for _ in 0..2 {
        let first = store.begin_idempotent(&cut_off, "body").await.unwrap();
        assert_eq!(first, IdempotencyBegin::First);
        store.release_idempotent_of_before().await.unwrap();
    }
    let kept = store.begin_idempotent(&key, "body").await.unwrap();
    assert!(matches!(kept, IdempotencyBegin::Repeat(_)));
}

#[tokio::test]
async fn a_key_is_remembered_for_a_day() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path()).await;
    let key = key_of_a_post();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(root.path().join("skep.db"));
    let raw = sqlx::SqlitePool::connect_with(options).await.unwrap();
    store.begin_idempotent(&key, "body").await.unwrap();
    for (hours, expected) in [(23, IdempotencyBegin::OtherBody), (2, IdempotencyBegin::First)] {
        let earlier = i64::from(hours) * 3_600_000_000;
        sqlx::query("UPDATE idempotency_keys SET created_at = created_at - ?1")
            .bind(earlier)
            .execute(&raw)
            .await
            .unwrap();
        assert_eq!(
            store.begin_idempotent(&key, "other").await.unwrap(),
            expected,
            "{hours} hours on"
        );
    }
}

#[tokio::test]
async fn the_key_of_a_bot_is_not_released_while_there_is_the_bot() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path()).await;
    let key = key_of_a_post();
    store.begin_idempotent(&key, "body").await.unwrap();
    let new = NewBot {
        idempotency: Some(key.clone()),
        ..new_bot("u")
    };
    let bot = store.insert_bot(new).await.unwrap().id;
    // Its server goes down before the bot's set-up is journaled: the next one carries it on.
    store.release_idempotent(&key).await.unwrap();
    store.release_idempotent_of_before().await.unwrap();
    match store.begin_idempotent(&key, "body").await.unwrap() {
        IdempotencyBegin::Repeat(outcome) => assert_eq!(outcome.bot_id.as_deref(), Some(bot.as_str())),
        other => panic!("a repeat would make a second bot: {other:?}"),
    }
    store.delete_bot(&bot).await.unwrap();
    store.release_idempotent(&key).await.unwrap();
    let again = store.begin_idempotent(&key, "body").await.unwrap();
    assert_eq!(again, IdempotencyBegin::First, "all of it was taken back");
}

#[tokio::test]
async fn old_idempotency_keys_are_found_without_a_look_at_all_of_them() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("skep.db");
    store(root.path()).await.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let raw = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let plan: (i64, i64, i64, String) =
        sqlx::query_as("EXPLAIN QUERY PLAN DELETE FROM idempotency_keys WHERE created_at < 1")
            .fetch_one(&raw)
            .await
            .unwrap();
    raw.close().await;
    assert!(plan.3.starts_with("SEARCH"), "{}", plan.3);
}

#[tokio::test]
async fn a_database_of_a_newer_release_is_refused_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("skep.db");
    store(root.path()).await.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let raw = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'from the future', 1, x'00', 0)",
    )
    .execute(&raw)
    .await
    .unwrap();
    raw.close().await;
    match Store::open(&file).await {
        Err(StoreError::Newer { version: 9999 }) => {}
        other => panic!("it was opened: {other:?}"),
    }
}

#[test]
fn a_data_root_has_one_owner_and_one_id() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("data");
    let first = DataRoot::claim(&path, "skep serve, process 1").unwrap();
    // Of a server that was killed, the lock can outlive it for a moment.
    let short_lived = first.path().join("lock");
    let held = std::fs::File::open(&short_lived).unwrap();
    drop(first);
    held.lock().unwrap();
    let releases = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(held);
    });
    let first = DataRoot::claim(&path, "skep serve, process 1").unwrap();
    releases.join().unwrap();
    match DataRoot::claim(&path, "skep serve, process 2") {
        Err(DataRootError::Held { holder, .. }) => assert_eq!(holder.description, "skep serve, process 1"),
        other => panic!("it was claimed twice: {other:?}"),
    }
    let id = first.id();
    drop(first);
    assert_eq!(DataRoot::claim(&path, "again").unwrap().id(), id);
    std::fs::write(path.join("id"), "no uuid").unwrap();
    let bad = DataRoot::claim(&path, "again");
    assert!(matches!(bad, Err(DataRootError::BadId { .. })), "{bad:?}");
}

#[tokio::test]
async fn changes_that_a_workspace_can_make_without_end_are_bounded() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path()).await;
    let (bot, other) = (bot(&store, "u").await, bot(&store, "u").await);
    let insert = async |of: &BotId, number: u32, apart| {
        let limits = EventLimits { kept: 3, apart };
        let payload = json!({ "number": number });
        store
            .insert_limited_lifecycle_event(of, ("oom", &payload), limits)
            .await
            .unwrap()
    };
    store
        .insert_lifecycle_event(&bot, "c", "start", &json!({}))
        .await
        .unwrap();
    insert(&other, 0, Duration::ZERO).await;
    for number in 0..10 {
        assert!(insert(&bot, number, Duration::ZERO).await);
    }
    let kept = store.lifecycle_events_of(&bot, "oom", 0, 100).await.unwrap();
    let numbers: Vec<_> = kept.iter().map(|event| event.payload["number"].clone()).collect();
    assert_eq!(numbers, [7, 8, 9], "the newest are kept");
    for _ in 0..5 {
        assert!(!insert(&bot, 10, Duration::from_secs(3600)).await, "too soon");
    }
    // Others, and changes of other kinds, are not touched.
    assert!(!store.lifecycle_events(&other, 100).await.unwrap().is_empty());
    assert_eq!(store.lifecycle_events_of(&bot, "start", 0, 100).await.unwrap().len(), 1);
    assert_eq!(store.lifecycle_events_of(&bot, "oom", 0, 100).await.unwrap().len(), 3);
}

#[tokio::test]
async fn what_happened_to_a_workspace_is_bounded_and_goes_with_its_bot() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path()).await;
    let (bot, other) = (bot(&store, "u").await, bot(&store, "u").await);
    for of in [&bot, &other] {
        let payload = json!({});
        store.insert_lifecycle_event(of, "c", "stop", &payload).await.unwrap();
    }
    for number in 0..260 {
        let payload = json!({ "number": number });
        store
            .insert_lifecycle_event(&bot, "c", "start", &payload)
            .await
            .unwrap();
    }
    let kept = store.lifecycle_events_of(&bot, "start", 0, 1000).await.unwrap();
    assert_eq!((kept.len(), &kept[0].payload["number"]), (256, &json!(4)));
    assert_eq!(store.lifecycle_events_of(&bot, "stop", 0, 9).await.unwrap().len(), 1);
    store.delete_bot(&bot).await.unwrap();
    // Nor is anything written down that comes late.
    let limits = EventLimits {
        kept: 3,
        apart: Duration::ZERO,
    };
    let payload = json!({});
    let late = store.insert_limited_lifecycle_event(&bot, ("exit", &payload), limits);
    assert!(!late.await.unwrap());
    assert_eq!(store.lifecycle_events(&bot, 1000).await.unwrap(), []);
    assert_eq!(store.lifecycle_events(&other, 1000).await.unwrap().len(), 1);
}
