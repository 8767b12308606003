//! A server without HTTP on a fake runtime with real bridges, and a store in a real file.

#![allow(dead_code)] // Each test binary uses its own part.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Map, Value, json};
use skep_core::bridge::{Bridge, BridgePool};
use skep_core::files::{self, FileWriter, NewFile, WorkspacePath};
use skep_core::{
    Backup, CompletedWorkspace, CreateBot, CreateRequest, DeleteData, EventBody, OperationEvent, OperationHandle,
    Outcome, Parts, Requester, Settings, Skep, Starter, WorkspaceStatus,
};
use skep_names::BotId;
use skep_runtime::Runtime;
use skep_store::{NewOperation, OperationEnd, Store};
use skep_testkit::fake_runtime::{FAKE_IMAGE, FakeRuntime};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

/// How long anything may take, on a busy machine; less than the minute after which a server looks, counts or tries by
/// itself.
pub(crate) const LIMIT: Duration = Duration::from_secs(50);

pub(crate) struct World {
    pub(crate) runtime: FakeRuntime,
    pub(crate) skep: Skep,
    pub(crate) root: tempfile::TempDir,
}

async fn begin(runtime: &FakeRuntime, root: &Path, settings: &Settings) -> Skep {
    let runtime: Arc<FakeRuntime> = Arc::new(runtime.clone());
    Skep::start(Parts {
        store: Store::open(&root.join("skep.db")).await.unwrap(),
        bridges: Arc::new(BridgePool::new(runtime.clone())),
        runtime,
        settings: settings.clone(),
    })
    .await
    .unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let runtime = FakeRuntime::new().unwrap();
        let root = tempfile::tempdir().unwrap();
        let mut settings = Settings::new(root.path().to_owned(), FAKE_IMAGE.parse().unwrap());
        // So that a test sees what it does itself, not what the clock does.
        settings.reconcile_interval = Duration::from_secs(3600);
        settings.stop_grace = Duration::from_secs(2);
        change(&mut settings);
        let skep = begin(&runtime, root.path(), &settings).await;
        Self { runtime, skep, root }
    }

    /// Deletes a workspace and keeps its data.
    pub(crate) async fn preserve(&self, bot: &BotId) -> skep_core::Result<Outcome> {
        let deleted = self.skep.delete_workspace(bot, DeleteData::Preserve, &admin()).await;
        deleted.unwrap().outcome().await
    }

    pub(crate) async fn create_with(&self, bot: &BotId, restore_data: Option<bool>) -> CompletedWorkspace {
        let request = CreateRequest {
            restore_data,
            ..CreateRequest::default()
        };
        let handle = self.skep.create_workspace(bot, request, &admin()).await.unwrap();
        match handle.outcome().await.unwrap() {
            Outcome::Workspace(completed) => completed,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn backups(&self, bot: &BotId) -> Vec<Backup> {
        self.skep.backups(bot).await.unwrap()
    }

    /// Where a backup of that name lies.
    pub(crate) fn file_of(&self, name: &str) -> PathBuf {
        self.root.path().join("backups").join(name)
    }

    /// The store, as another program opens it. What holds it on a busy disk is waited for.
    pub(crate) async fn database(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.root.path().join("skep.db"));
        SqliteConnection::connect_with(&options.busy_timeout(LIMIT))
            .await
            .unwrap()
    }

    /// Waits until a workspace is seen to run.
    pub(crate) async fn until_running(&self, bot: &BotId) {
        until(|| async {
            match self.skep.workspace_info(bot).await {
                Ok(info) if info.task_running && info.status == WorkspaceStatus::Running => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Waits until an operation has succeeded.
    pub(crate) async fn until_succeeded(&self, id: &str) {
        until(|| async {
            match self.skep.operation(id).await.unwrap().state.as_str() {
                "succeeded" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
    }

    /// The server goes down within `limit` and comes up again on the same data root and runtime.
    pub(crate) async fn restart_within(&mut self, limit: Duration) {
        let settings = self.skep.settings().clone();
        self.skep.shut_down(limit).await;
        self.skep.store().close().await;
        self.skep = begin(&self.runtime, self.root.path(), &settings).await;
    }

    /// The server is gone at once, whatever it did.
    pub(crate) async fn crash(&mut self) {
        self.restart_within(Duration::ZERO).await;
    }

    /// A bot without a workspace.
    pub(crate) async fn bot(&self) -> BotId {
        let new = CreateBot {
            owner_user_id: "owner".to_owned(),
            display_name: "a bot".to_owned(),
            metadata: Some(Map::new()),
            ..CreateBot::default()
        };
        self.skep.create_bot(new, &admin()).await.unwrap().0.row.id
    }

    /// A bot whose workspace runs.
    pub(crate) async fn running_bot(&self) -> BotId {
        let bot = self.bot().await;
        self.create(&bot).await.outcome().await.unwrap();
        bot
    }

    pub(crate) async fn create(&self, bot: &BotId) -> OperationHandle {
        self.skep
            .create_workspace(bot, CreateRequest::default(), &admin())
            .await
            .unwrap()
    }

    pub(crate) async fn start(&self, bot: &BotId) -> skep_core::Result<Outcome> {
        self.skep.start_workspace(bot, &admin()).await?.outcome().await
    }

    pub(crate) async fn stop(&self, bot: &BotId) -> skep_core::Result<Outcome> {
        self.skep.stop_workspace(bot, None, &admin()).await?.outcome().await
    }

    /// The bridge for one who has a stopped workspace started first, and how many starts were begun for that.
    pub(crate) async fn started(&self, bot: &BotId) -> (skep_core::Result<Bridge>, u32) {
        let begun = AtomicU32::new(0);
        let starter = Starter {
            requester: admin(),
            begun: Box::new(|_| {
                begun.fetch_add(1, Ordering::Relaxed);
            }),
        };
        let bridge = self.skep.usable_bridge(bot, Some(&starter)).await;
        (bridge, begun.load(Ordering::Relaxed))
    }

    /// How many operations of the bot are in the journal.
    pub(crate) async fn operations(&self, bot: &BotId) -> usize {
        self.skep.store().operations(bot, 10_000).await.unwrap().len()
    }

    /// Puts an operation into the journal that has ended; where it stood and what it had noted, if it came so far.
    pub(crate) async fn journal_ended(
        &self,
        bot: &BotId,
        (kind, end): (&str, OperationEnd),
        step: Option<(&str, Value)>,
    ) -> String {
        let id = uuid::Uuid::now_v7().to_string();
        let operation = NewOperation {
            id: id.clone(),
            bot_id: bot.clone(),
            kind: kind.to_owned(),
            request: json!({ "kind": kind }),
            requested_by: None,
            request_id: None,
            bot_status: None,
            idempotency: None,
        };
        let store = self.skep.store();
        store.insert_operation(&operation).await.unwrap();
        if let Some((step, notes)) = step {
            store.set_operation_step(&id, step, &notes).await.unwrap();
        }
        store.finish_operation(&id, &end, None, None).await.unwrap();
        id
    }

    pub(crate) async fn write(&self, bot: &BotId, path: &str, content: &'static str) {
        let bridge = self.skep.roomy_bridge(bot, None).await.unwrap();
        let path = WorkspacePath::parse(path).unwrap();
        let file = NewFile {
            mode: 0o600,
            ..NewFile::default()
        };
        let mut writer = FileWriter::begin(&bridge, &path, file).await.unwrap();
        writer.write(content.into()).await.unwrap();
        writer.finish().await.unwrap();
    }

    pub(crate) async fn read(&self, bot: &BotId, path: &str) -> String {
        let bridge = self.skep.usable_bridge(bot, None).await.unwrap();
        let path = WorkspacePath::parse(path).unwrap();
        let reader = files::read(&bridge, &path, 0, 0).await.unwrap();
        String::from_utf8(reader.collect(1 << 20).await.unwrap()).unwrap()
    }
}

/// A tar archive of one file, as it comes.
pub(crate) fn archive_of(
    name: &str,
    content: &str,
) -> impl futures::Stream<Item = skep_core::Result<bytes::Bytes>> + use<> {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join(name), content).unwrap();
    let packed = std::process::Command::new("tar")
        .args(["--create", "--directory"])
        .arg(tree.path())
        .arg(name)
        .output();
    futures::stream::iter([Ok(packed.unwrap().stdout.into())])
}

/// How an operation ends that was made to fail.
pub(crate) fn told_to_fail() -> OperationEnd {
    OperationEnd::Failed {
        code: "internal".to_owned(),
        message: "told to".to_owned(),
    }
}

pub(crate) fn admin() -> Requester {
    Requester {
        user_id: Some("owner".to_owned()),
        ..Requester::server()
    }
}

/// All events, within the limit.
pub(crate) async fn all(handle: &OperationHandle) -> Vec<OperationEvent> {
    tokio::time::timeout(LIMIT, handle.events(0).collect()).await.unwrap()
}

/// The events' types in their order, a run of progress shown once.
pub(crate) fn kinds(events: &[OperationEvent]) -> Vec<&'static str> {
    let mut kinds: Vec<_> = events
        .iter()
        .map(|event| match event.body {
            EventBody::Pulling { .. } => "pulling",
            EventBody::PullProgress { .. } => "pull_progress",
            EventBody::Creating => "creating",
            EventBody::Restoring => "restoring",
            EventBody::Complete { .. } => "complete",
            EventBody::Error { .. } => "error",
            EventBody::Step { .. } => "step",
            EventBody::Progress { .. } => "progress",
        })
        .collect();
    kinds.dedup();
    kinds
}

/// Code and message of the last event, which is an error.
pub(crate) fn failure(events: &[OperationEvent]) -> (String, String) {
    match events.last().map(|event| event.body.clone()) {
        Some(EventBody::Error { code, message, .. }) => (code, message),
        other => panic!("the last event is {other:?}"),
    }
}

/// Waits until `holds` says nothing more to complain of.
pub(crate) async fn until<F, W>(mut holds: W)
where
    W: FnMut() -> F,
    F: Future<Output = Result<(), String>>,
{
    let deadline = Instant::now() + LIMIT;
    loop {
        let Err(last) = holds().await else { return };
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {last}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// In their order.
pub(crate) fn names(backups: &[Backup]) -> Vec<&str> {
    backups.iter().map(|backup| backup.name.as_str()).collect()
}

/// Waits until neither container nor layer nor record of the bot is there.
pub(crate) async fn until_nothing_is_left(world: &World, bot: &BotId) {
    until(|| async {
        let instance = world.runtime.inspect(bot).await.map(|found| found.is_some());
        let layers = world
            .runtime
            .bots_with_layers()
            .await
            .map(|layers| layers.contains(bot));
        let row = world.skep.store().container(bot).await.unwrap().is_some();
        match (instance, layers, row) {
            (Ok(false), Ok(false), false) => Ok(()),
            other => Err(format!("container, layer, row: {other:?}")),
        }
    })
    .await;
}
