//! The info of one workspace, or of many: what the store has, and what the runtime has now.

use std::collections::{HashMap, HashSet};

use chrono::Utc;
use skep_names::{BotId, is_legacy};
use skep_runtime::{Instance, TaskState};
use skep_store::{ContainerRow, Desired};

use super::info::{WorkspaceInfo, WorkspaceStatus};
use super::limits::{in_force, to_column, to_runtime};
use crate::error::{Error, Result};
use crate::operations::LimitsReport;
use crate::skep::Skep;

/// What is asked once for all workspaces that are shown.
struct Around {
    preserved: HashSet<BotId>,
    /// Bots with a layer; asked only when a container is missing.
    layers: HashSet<BotId>,
}

impl Skep {
    /// All that is known of a bot's workspace; its task is asked of the runtime now.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::RuntimeUnavailable`].
    pub async fn workspace_info(&self, bot: &BotId) -> Result<WorkspaceInfo> {
        let row = self.store().container(bot).await?;
        let instance = self.runtime().inspect(bot).await?;
        let around = self.around(std::slice::from_ref(bot), row.is_some() && instance.is_none());
        let around = around.await?;
        self.info(bot, (row, instance), &around)
            .await?
            .ok_or(Error::ContainerNotFound)
    }

    /// The same of many, asked about at once. A bot that has no workspace is not in it.
    ///
    /// # Errors
    /// [`Error::RuntimeUnavailable`].
    pub async fn workspace_infos(&self, bots: &[BotId]) -> Result<HashMap<BotId, WorkspaceInfo>> {
        let rows = self.store().containers_of(bots).await?;
        let mut rows: HashMap<BotId, ContainerRow> = rows.into_iter().map(|row| (row.bot_id.clone(), row)).collect();
        let mut instances = self.runtime().inspect_all(bots).await?;
        let is_one_missing = rows.keys().any(|bot| !instances.contains_key(bot));
        let around = self.around(bots, is_one_missing).await?;
        let mut infos = HashMap::with_capacity(bots.len());
        for bot in bots {
            let known = (rows.remove(bot), instances.remove(bot));
            if let Some(info) = self.info(bot, known, &around).await? {
                infos.insert(bot.clone(), info);
            }
        }
        Ok(infos)
    }

    async fn around(&self, bots: &[BotId], is_one_missing: bool) -> Result<Around> {
        Ok(Around {
            preserved: self.preserved_among(bots).await?,
            layers: match is_one_missing {
                true => self.runtime().bots_with_layers().await?.into_iter().collect(),
                false => HashSet::new(),
            },
        })
    }

    async fn info(
        &self,
        bot: &BotId,
        known: (Option<ContainerRow>, Option<Instance>),
        around: &Around,
    ) -> Result<Option<WorkspaceInfo>> {
        let is_running = |instance: &Instance| instance.task == TaskState::Running;
        let ip = match known.1.as_ref().is_some_and(is_running) {
            true => self.runtime().address(bot).await?,
            false => None,
        };
        let info = match known {
            (Some(row), instance) => self.info_of(row, instance, around),
            (None, Some(instance)) => self.info_without_row(instance, around),
            (None, None) => return Ok(None),
        };
        Ok(Some(WorkspaceInfo { ip, ..info }))
    }

    /// Without its address.
    fn info_of(&self, row: ContainerRow, instance: Option<Instance>, around: &Around) -> WorkspaceInfo {
        let bot = &row.bot_id;
        let storage_over_limit = self.storage_over_by(&row) > 0;
        let task_running = instance.as_ref().is_some_and(|one| one.task == TaskState::Running);
        let recoverable = match instance {
            Some(_) => None,
            None => Some(around.layers.contains(bot)),
        };
        let running = instance.as_ref().filter(|_| task_running);
        let wanted = self.settings().effective_limits(&to_runtime(&row.limits_wanted));
        WorkspaceInfo {
            status: match (&instance, row.status) {
                (None, _) => WorkspaceStatus::Missing,
                (Some(_), status) => status.into(),
            },
            reason: row.reason,
            task_running,
            has_preserved_data: around.preserved.contains(bot),
            legacy: is_legacy(&row.container_id),
            recoverable,
            limits: LimitsReport {
                wanted: to_column(&wanted),
                applied: row.limits_applied.map(|applied| in_force(applied, &wanted)),
            },
            storage_over_limit,
            isolation: instance.as_ref().and_then(|one| one.isolation.clone()),
            ip: None,
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
        }
    }

    /// Without its address.
    fn info_without_row(&self, instance: Instance, around: &Around) -> WorkspaceInfo {
        let task_running = instance.task == TaskState::Running;
        WorkspaceInfo {
            status: WorkspaceStatus::Unknown,
            reason: None,
            task_running,
            has_preserved_data: around.preserved.contains(&instance.bot),
            legacy: is_legacy(&instance.container_id),
            recoverable: None,
            limits: LimitsReport {
                wanted: to_column(&self.settings().default_limits),
                applied: None,
            },
            storage_over_limit: self.holds_beyond(&instance.bot, self.settings().default_limits.storage_bytes) > 0,
            isolation: instance.isolation.clone(),
            ip: None,
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
        }
    }
}
