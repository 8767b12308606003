//! Snapshots and their numbers, on a real file.

use serde_json::Map;
use skep_names::{BotId, container_id_for};
use skep_store::{
    BotStatus, ContainerStatus, Desired, LimitsColumn, NewBot, NewContainer, NewVersion, Store, VersionRow,
};

async fn bot_with_container(store: &Store) -> BotId {
    let id = BotId::random();
    let new = NewBot {
        id: id.clone(),
        owner_user_id: "u".to_owned(),
        display_name: "b".to_owned(),
        avatar_url: None,
        timezone: None,
        is_active: true,
        status: BotStatus::Ready,
        metadata: Map::new(),
        idempotency: None,
    };
    store.insert_bot(new).await.unwrap();
    put_container(store, &id).await;
    id
}

async fn put_container(store: &Store, bot: &BotId) {
    let container = NewContainer {
        bot_id: bot.clone(),
        container_id: container_id_for(bot),
        image: "i".to_owned(),
        image_digest: None,
        snapshotter: "s".to_owned(),
        status: ContainerStatus::Running,
        desired: Desired::Running,
        namespace: String::new(),
        cdi_devices: Vec::new(),
        env: Default::default(),
        limits_wanted: LimitsColumn::default(),
        limits_applied: None,
    };
    store.put_container(&container).await.unwrap();
}

async fn record(store: &Store, bot: &BotId, name: &str) -> VersionRow {
    let new = NewVersion {
        bot_id: bot.clone(),
        container_id: container_id_for(bot),
        runtime_snapshot_name: name.to_owned(),
        display_name: String::new(),
        snapshotter: "s".to_owned(),
        source: "manual".to_owned(),
    };
    store.record_version(&new).await.unwrap()
}

#[tokio::test]
async fn a_number_is_never_used_again_while_the_container_lives() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(&root.path().join("skep.db")).await.unwrap();
    let (bot, other) = (bot_with_container(&store).await, bot_with_container(&store).await);
    let container = container_id_for(&bot);
    assert_eq!(record(&store, &bot, "a").await.version, 1);
    assert_eq!(record(&store, &bot, "b").await.version, 2);
    assert_eq!(record(&store, &other, "b").await.version, 1);
    store.delete_version(&bot, &container, 2).await.unwrap();
    store.delete_version(&bot, &container, 2).await.unwrap();
    // A row that is written again, as by a step that is repeated, goes on counting.
    put_container(&store, &bot).await;
    assert_eq!(record(&store, &bot, "c").await.version, 3);
    let numbers = |rows: Vec<VersionRow>| rows.into_iter().map(|row| row.version).collect::<Vec<_>>();
    assert_eq!(numbers(store.versions(&container).await.unwrap()), [1, 3]);
    store.delete_containers(&bot).await.unwrap();
    assert_eq!(numbers(store.versions(&container).await.unwrap()), Vec::<u64>::new());
    assert_eq!(numbers(store.versions(&container_id_for(&other)).await.unwrap()), [1]);
}

#[tokio::test]
async fn a_version_is_recorded_once_and_written_down_in_the_history() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(&root.path().join("skep.db")).await.unwrap();
    let bot = bot_with_container(&store).await;
    let container = container_id_for(&bot);
    let first = record(&store, &bot, "a").await;
    assert_eq!(record(&store, &bot, "a").await, first);
    let named = store.rename_version(&container, 1, "before").await.unwrap().unwrap();
    assert_eq!(named.display_name, "before");
    assert_eq!(store.rename_version(&container, u64::MAX, "x").await.unwrap(), None);
    assert_eq!(store.version(&container, 9).await.unwrap(), None);
    let moved = [("a".to_owned(), "a2".to_owned())];
    store.rename_snapshots(&container, &moved).await.unwrap();
    let found = store.version(&container, 1).await.unwrap().unwrap();
    assert_eq!(
        (found.runtime_snapshot_name.as_str(), found.display_name.as_str()),
        ("a2", "before")
    );
    store.delete_version(&bot, &container, 1).await.unwrap();
    let events = store.lifecycle_events(&bot, 10).await.unwrap();
    let kinds: Vec<&str> = events.iter().rev().map(|event| event.event_type.as_str()).collect();
    assert_eq!(kinds, ["snapshot_create", "version_create", "version_delete"]);
}
