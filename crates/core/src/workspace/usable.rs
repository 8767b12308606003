//! What is seen of a workspace from outside: its info, its state as it changes, and its bridge.

use std::io::ErrorKind;
use std::time::Duration;

use chrono::Utc;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use skep_names::{BotId, is_legacy};
use skep_runtime::{Instance, TaskState};
use skep_store::{ContainerRow, ContainerStatus, Desired};

use super::info::{WorkspaceInfo, WorkspaceState, WorkspaceStatus};
use super::limits::{to_column, to_runtime};
use super::request::{Request, WhenStopped};
use super::state::State;
use crate::bridge::Bridge;
use crate::error::{Error, Result};
use crate::operations::LimitsReport;
use crate::requester::Requester;
use crate::skep::Skep;

/// How long files, exec and terminal wait for an operation that has the task down.
const PATIENCE: Duration = Duration::from_secs(30);

impl Skep {
    /// The bridge of a workspace that runs, for files, exec and terminal. Waits up to 30 s while an operation has
    /// the task down; one that should run and does not is brought up first. The runtime is not asked when the
    /// workspace is recorded as running and its bridge answers, so that this works while it is away.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::WorkspaceStopped`] when it should be stopped and `when_stopped` does
    /// not say to start it; [`Error::BridgeUnavailable`].
    pub async fn usable_bridge(&self, bot: &BotId, when_stopped: WhenStopped) -> Result<Bridge> {
        self.wait_within_patience(bot, when_stopped).await?;
        let lost = match self.bridges().bridge(bot).await {
            Ok(bridge) => return Ok(bridge),
            Err(error) if error.is_lost() => Error::from(error),
            Err(error) => return Err(error.into()),
        };
        // Recorded as running, and nobody answers: its end may not have been told yet.
        let operation = self.submit(bot, Request::Recover, &Requester::server()).await?;
        match operation.outcome().await {
            Ok(_) => {}
            Err(Error::RuntimeUnavailable { .. }) => return Err(lost),
            Err(error) => return Err(error),
        }
        self.wait_within_patience(bot, WhenStopped::Refuse).await?;
        Ok(self.bridges().bridge(bot).await?)
    }

    async fn wait_within_patience(&self, bot: &BotId, when_stopped: WhenStopped) -> Result<()> {
        match tokio::time::timeout(PATIENCE, self.wait_for_usable(bot, when_stopped)).await {
            Ok(usable) => usable,
            Err(_) => Err(Error::BridgeUnavailable(
                "container not reachable: an operation is still under way".to_owned(),
            )),
        }
    }

    async fn wait_for_usable(&self, bot: &BotId, when_stopped: WhenStopped) -> Result<()> {
        loop {
            while let Some(hub) = self.lanes().task_down(bot) {
                // Whatever its end, what counts is what is there after it.
                match hub.outcome().await {
                    Ok(_) | Err(_) => tokio::task::yield_now().await,
                }
            }
            let row = self.store().container(bot).await?.ok_or(Error::ContainerNotFound)?;
            let request = match (row.desired, row.status, when_stopped) {
                (Desired::Stopped, _, WhenStopped::Refuse) => return Err(Error::WorkspaceStopped),
                (Desired::Running, ContainerStatus::Running, _) => return Ok(()),
                (Desired::Stopped, _, WhenStopped::Start) => Request::Start,
                (Desired::Running, _, _) => Request::Start,
            };
            let started = self.submit(bot, request, &Requester::server()).await?;
            started.outcome().await?;
        }
    }

    /// All that is known of a bot's workspace; its task is asked of the runtime now.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::RuntimeUnavailable`].
    pub async fn workspace_info(&self, bot: &BotId) -> Result<WorkspaceInfo> {
        let row = self.store().container(bot).await?;
        let instance = self.runtime().inspect(bot).await?;
        match (row, instance) {
            (Some(row), Some(instance)) => self.info_of(row, Some(instance)).await,
            (Some(row), None) => self.info_of(row, None).await,
            (None, Some(instance)) => self.info_without_row(instance).await,
            (None, None) => Err(Error::ContainerNotFound),
        }
    }

    async fn info_of(&self, row: ContainerRow, instance: Option<Instance>) -> Result<WorkspaceInfo> {
        let bot = &row.bot_id;
        let task_running = instance.as_ref().is_some_and(|one| one.task == TaskState::Running);
        let recoverable = match instance {
            Some(_) => None,
            None => Some(self.runtime().bots_with_layers().await?.contains(bot)),
        };
        let running = instance.as_ref().filter(|_| task_running);
        let wanted = self.settings().effective_limits(&to_runtime(&row.limits_wanted));
        Ok(WorkspaceInfo {
            status: match (&instance, row.status) {
                (None, _) => WorkspaceStatus::Missing,
                (Some(_), status) => status.into(),
            },
            reason: row.reason,
            task_running,
            has_preserved_data: self.has_preserved_data(bot).await?,
            legacy: is_legacy(&row.container_id),
            recoverable,
            limits: LimitsReport {
                wanted: to_column(&wanted),
                applied: row.limits_applied,
            },
            isolation: instance.as_ref().and_then(|one| one.isolation.clone()),
            ip: match running {
                Some(_) => self.runtime().address(bot).await?,
                None => None,
            },
            uptime_seconds: running
                .and_then(|one| one.started_at)
                .and_then(|started| u64::try_from((Utc::now() - started).num_seconds()).ok()),
            container_id: row.container_id,
            image: row.image,
            image_digest: row.image_digest,
            namespace: row.namespace,
            snapshotter: row.snapshotter,
            container_path: row.container_path,
            cdi_devices: row.cdi_devices,
            desired: row.desired,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }

    async fn info_without_row(&self, instance: Instance) -> Result<WorkspaceInfo> {
        let task_running = instance.task == TaskState::Running;
        Ok(WorkspaceInfo {
            status: WorkspaceStatus::Unknown,
            reason: None,
            task_running,
            has_preserved_data: self.has_preserved_data(&instance.bot).await?,
            legacy: is_legacy(&instance.container_id),
            recoverable: None,
            limits: LimitsReport {
                wanted: to_column(&self.settings().default_limits),
                applied: None,
            },
            isolation: instance.isolation.clone(),
            ip: match task_running {
                true => self.runtime().address(&instance.bot).await?,
                false => None,
            },
            uptime_seconds: None,
            container_id: instance.container_id,
            image: instance.image,
            image_digest: instance.image_digest,
            namespace: instance.namespace,
            snapshotter: instance.snapshotter,
            container_path: skep_names::DATA_DIRECTORY_INSIDE.to_owned(),
            cdi_devices: instance.cdi_devices,
            desired: match task_running {
                true => Desired::Running,
                false => Desired::Stopped,
            },
            created_at: instance.created_at,
            updated_at: instance.updated_at,
        })
    }

    /// The state of a workspace: the present one first, then every change, until the bot or the server is gone.
    ///
    /// # Errors
    /// [`Error::BotNotFound`].
    pub async fn watch_workspace(&self, bot: &BotId) -> Result<BoxStream<'static, WorkspaceState>> {
        self.store().bot(bot).await?.ok_or(Error::BotNotFound)?;
        self.refresh(bot).await?;
        let changes = self.observations().watch(bot);
        let first = changes.borrow().clone();
        let stop = self.going_down().clone();
        let rest = stream::unfold(changes, |mut changes| async move {
            changes.changed().await.ok()?;
            let state = changes.borrow_and_update().clone();
            Some((state, changes))
        });
        let until = async move { stop.cancelled().await }.boxed();
        Ok(stream::once(async move { first }).chain(rest).take_until(until).boxed())
    }

    /// What is known of a workspace that nobody looked at since the server started.
    async fn refresh(&self, bot: &BotId) -> Result<()> {
        if self.lanes().is_busy(bot) || self.observations().is_running(bot) {
            return Ok(());
        }
        let Some(row) = self.store().container(bot).await? else {
            return Ok(());
        };
        let state = match (self.runtime().inspect(bot).await, row.status) {
            (Ok(None), _) => State::Missing,
            (Ok(Some(instance)), _) if instance.task == TaskState::Running => State::Running,
            (Err(_), ContainerStatus::Running) => State::Running,
            (_, ContainerStatus::Error) => State::Down {
                why: row.reason.unwrap_or_else(|| "it ended".to_owned()),
            },
            _ => State::Stopped,
        };
        self.observations().seen(bot, state, row.desired);
        Ok(())
    }

    /// Data of the bot is kept outside of its layer: a backup, or a legacy directory that was not migrated.
    pub(crate) async fn has_preserved_data(&self, bot: &BotId) -> Result<bool> {
        let root = &self.settings().data_root;
        let backup = root.join("backups").join(format!("{bot}.tar.gz"));
        let legacy = root.join("bots").join(bot.as_str());
        for path in [backup, legacy] {
            match tokio::fs::symlink_metadata(&path).await {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::internal("looking for preserved data", error)),
            }
        }
        Ok(false)
    }
}
