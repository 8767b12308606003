//! The table of containers: what each workspace should be and was last seen to be.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skep_names::BotId;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::time::{from_micros, from_optional_micros, now};

/// What a workspace was last seen to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerStatus {
    /// Made, never started.
    Created,
    /// Its bridge answered.
    Running,
    /// Stopped on request.
    Stopped,
    /// It should run and does not; the reason says why.
    Error,
}

impl ContainerStatus {
    /// `created`, `running`, `stopped` or `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Created, Self::Running, Self::Stopped, Self::Error]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// What a workspace should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Desired {
    Running,
    Stopped,
}

impl Desired {
    /// `running` or `stopped`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }

    /// The state of that name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Stopped]
            .into_iter()
            .find(|desired| desired.as_str() == text)
    }
}

/// Limits as they are kept. Zero: the configured default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsColumn {
    /// Thousandths of a core.
    pub cpu_millicores: u64,
    pub memory_bytes: u64,
    pub pids: u64,
    pub storage_bytes: u64,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRow {
    /// Order of making; a bot's container is the one with the highest.
    pub seq: i64,
    pub bot_id: BotId,
    pub container_id: String,
    pub container_name: String,
    /// Full name of its image.
    pub image: String,
    pub image_digest: Option<String>,
    pub snapshotter: String,
    pub status: ContainerStatus,
    /// Why the status is `error`, or why it was stopped, or is to be, when nobody asked.
    pub reason: Option<String>,
    pub desired: Desired,
    pub namespace: String,
    pub auto_start: bool,
    pub container_path: String,
    pub cdi_devices: Vec<String>,
    /// Environment given at the create. Values are never logged.
    pub env: BTreeMap<String, String>,
    pub limits_wanted: LimitsColumn,
    /// What its task was given when it was last started; `None` when that was never done here.
    pub limits_applied: Option<LimitsColumn>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub last_started_at: Option<DateTime<Utc>>,
    pub last_stopped_at: Option<DateTime<Utc>>,
}

/// A container to be remembered.
#[derive(Debug, Clone)]
pub struct NewContainer {
    pub bot_id: BotId,
    pub container_id: String,
    pub image: String,
    pub image_digest: Option<String>,
    pub snapshotter: String,
    pub status: ContainerStatus,
    pub desired: Desired,
    pub namespace: String,
    pub cdi_devices: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub limits_wanted: LimitsColumn,
    pub limits_applied: Option<LimitsColumn>,
}

const COLUMNS: &str = "seq, bot_id, container_id, container_name, image, image_digest, snapshotter, status, reason, \
                       desired, namespace, auto_start, container_path, cdi_devices, env, limits_wanted, \
                       limits_applied, created_at, updated_at, last_started_at, last_stopped_at";
const READING: &str = "reading a container";

fn json<T: serde::de::DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T> {
    let text: String = row.try_get(column).map_err(StoreError::on(READING))?;
    serde_json::from_str(&text).map_err(|_| StoreError::damaged(READING, format!("{column} that is no such JSON")))
}

fn named<T>(row: &SqliteRow, column: &str, parse: fn(&str) -> Option<T>) -> Result<T> {
    let text: String = row.try_get(column).map_err(StoreError::on(READING))?;
    parse(&text).ok_or_else(|| StoreError::damaged(READING, format!("{column} {text:?}")))
}

/// Text of a value that always has one.
fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| StoreError::damaged("writing a container", error.to_string()))
}

fn read(row: &SqliteRow) -> Result<ContainerRow> {
    let column = StoreError::on(READING);
    let bot_id: String = row.try_get("bot_id").map_err(&column)?;
    let applied: Option<String> = row.try_get("limits_applied").map_err(&column)?;
    Ok(ContainerRow {
        seq: row.try_get("seq").map_err(&column)?,
        bot_id: bot_id
            .parse()
            .map_err(|_| StoreError::damaged(READING, format!("bot id {bot_id:?}")))?,
        container_id: row.try_get("container_id").map_err(&column)?,
        container_name: row.try_get("container_name").map_err(&column)?,
        image: row.try_get("image").map_err(&column)?,
        image_digest: row.try_get("image_digest").map_err(&column)?,
        snapshotter: row.try_get("snapshotter").map_err(&column)?,
        status: named(row, "status", ContainerStatus::parse)?,
        reason: row.try_get("reason").map_err(&column)?,
        desired: named(row, "desired", Desired::parse)?,
        namespace: row.try_get("namespace").map_err(&column)?,
        auto_start: row.try_get("auto_start").map_err(&column)?,
        container_path: row.try_get("container_path").map_err(&column)?,
        cdi_devices: json(row, "cdi_devices")?,
        env: json(row, "env")?,
        limits_wanted: json(row, "limits_wanted")?,
        limits_applied: match applied {
            Some(text) => Some(
                serde_json::from_str(&text)
                    .map_err(|_| StoreError::damaged(READING, "limits_applied that is no JSON"))?,
            ),
            None => None,
        },
        created_at: from_micros(READING, row.try_get("created_at").map_err(&column)?)?,
        updated_at: from_micros(READING, row.try_get("updated_at").map_err(&column)?)?,
        last_started_at: from_optional_micros(READING, row.try_get("last_started_at").map_err(&column)?)?,
        last_stopped_at: from_optional_micros(READING, row.try_get("last_stopped_at").map_err(&column)?)?,
    })
}

impl Store {
    /// Remembers a container; one of the same container id is overwritten, so that a step may be repeated.
    ///
    /// # Errors
    /// [`StoreError::Failed`] also when the bot is gone.
    pub async fn put_container(&self, container: &NewContainer) -> Result<ContainerRow> {
        const OPERATION: &str = "remembering a container";
        let applied = container.limits_applied.as_ref().map(to_json).transpose()?;
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO containers (bot_id, container_id, container_name, image, image_digest, snapshotter, status, \
             desired, namespace, cdi_devices, env, limits_wanted, limits_applied, created_at, updated_at, \
             last_started_at) ",
        );
        let now = now().timestamp_micros();
        let started = (container.status == ContainerStatus::Running).then_some(now);
        let (devices, env) = (to_json(&container.cdi_devices)?, to_json(&container.env)?);
        let wanted = to_json(&container.limits_wanted)?;
        query.push_values(std::iter::once(container), |mut row, container| {
            row.push_bind(container.bot_id.as_str())
                .push_bind(&container.container_id)
                .push_bind(&container.container_id)
                .push_bind(&container.image)
                .push_bind(&container.image_digest)
                .push_bind(&container.snapshotter)
                .push_bind(container.status.as_str())
                .push_bind(container.desired.as_str())
                .push_bind(&container.namespace)
                .push_bind(&devices)
                .push_bind(&env)
                .push_bind(&wanted)
                .push_bind(&applied)
                .push_bind(now)
                .push_bind(now)
                .push_bind(started);
        });
        query.push(
            " ON CONFLICT (container_id) DO UPDATE SET image = excluded.image, image_digest = excluded.image_digest, \
             snapshotter = excluded.snapshotter, status = excluded.status, reason = NULL, desired = excluded.desired, \
             namespace = excluded.namespace, cdi_devices = excluded.cdi_devices, env = excluded.env, \
             limits_wanted = excluded.limits_wanted, limits_applied = excluded.limits_applied, \
             updated_at = excluded.updated_at, \
             last_started_at = COALESCE(excluded.last_started_at, containers.last_started_at) RETURNING ",
        );
        query.push(COLUMNS);
        let row = query
            .build()
            .fetch_one(self.writer())
            .await
            .map_err(StoreError::on(OPERATION))?;
        read(&row)
    }

    /// The newest container of a bot.
    pub async fn container(&self, bot: &BotId) -> Result<Option<ContainerRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query
            .push(COLUMNS)
            .push(" FROM containers WHERE bot_id = ")
            .push_bind(bot.as_str());
        query.push(" ORDER BY seq DESC LIMIT 1");
        let row = query
            .build()
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::on(READING))?;
        row.as_ref().map(read).transpose()
    }

    /// The newest container of each of these bots that has one.
    pub async fn containers_of(&self, bots: &[BotId]) -> Result<Vec<ContainerRow>> {
        if bots.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query
            .push(COLUMNS)
            .push(" FROM containers WHERE seq IN (SELECT MAX(seq) FROM containers WHERE bot_id IN (");
        let mut ids = query.separated(", ");
        for bot in bots {
            ids.push_bind(bot.as_str());
        }
        query.push(") GROUP BY bot_id)");
        let rows = query
            .build()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on("listing containers"))?;
        rows.iter().map(read).collect()
    }

    /// The newest container of every bot that has one.
    pub async fn containers(&self) -> Result<Vec<ContainerRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query.push(COLUMNS);
        query.push(" FROM containers WHERE seq IN (SELECT MAX(seq) FROM containers GROUP BY bot_id) ORDER BY seq");
        let rows = query
            .build()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on("listing containers"))?;
        rows.iter().map(read).collect()
    }

    /// Writes what a bot's workspace should be, and why, when nobody asked for it. Without that, one that does not run
    /// keeps the reason of its status, unless it was to run and is to stop now. False when it has no container.
    pub async fn set_desired(&self, bot: &BotId, desired: Desired, reason: Option<&str>) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE containers SET desired = ?1, updated_at = ?2, \
             reason = CASE WHEN status = 'running' OR (desired = 'running' AND ?1 = 'stopped') THEN ?3 \
             ELSE COALESCE(?3, reason) END \
             WHERE seq = (SELECT MAX(seq) FROM containers WHERE bot_id = ?4)",
        )
        .bind(desired.as_str())
        .bind(now().timestamp_micros())
        .bind(reason)
        .bind(bot.as_str())
        .execute(self.writer())
        .await
        .map_err(StoreError::on("writing a wanted state"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Writes that a workspace runs with these limits.
    pub async fn set_container_running(&self, bot: &BotId, applied: &LimitsColumn) -> Result<()> {
        self.observed(bot, ContainerStatus::Running, None, Some(to_json(applied)?))
            .await
    }

    /// Writes that a workspace is stopped. The limits it had are kept.
    pub async fn set_container_stopped(&self, bot: &BotId, reason: Option<&str>) -> Result<()> {
        self.observed(bot, ContainerStatus::Stopped, reason, None).await
    }

    /// Writes that a workspace should run and does not, and why.
    pub async fn set_container_error(&self, bot: &BotId, reason: &str) -> Result<()> {
        self.observed(bot, ContainerStatus::Error, Some(reason), None).await
    }

    async fn observed(
        &self,
        bot: &BotId,
        status: ContainerStatus,
        reason: Option<&str>,
        applied: Option<String>,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE containers SET status = ?1, reason = ?2, limits_applied = COALESCE(?3, limits_applied), updated_at = ?4, \
             last_started_at = CASE WHEN ?1 = 'running' THEN ?4 ELSE last_started_at END, \
             last_stopped_at = CASE WHEN ?1 = 'stopped' THEN ?4 ELSE last_stopped_at END \
             WHERE seq = (SELECT MAX(seq) FROM containers WHERE bot_id = ?5)",
        )
        .bind(status.as_str())
        .bind(reason)
        .bind(applied)
        .bind(now().timestamp_micros())
        .bind(bot.as_str())
        .execute(self.writer())
        .await
        .map_err(StoreError::on("writing a container's status"))?;
        Ok(())
    }

    /// Writes wanted limits, and what the running task was given.
    pub async fn set_container_limits(
        &self,
        bot: &BotId,
        wanted: &LimitsColumn,
        applied: Option<&LimitsColumn>,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE containers SET limits_wanted = ?1, limits_applied = ?2, updated_at = ?3 \
             WHERE seq = (SELECT MAX(seq) FROM containers WHERE bot_id = ?4)",
        )
        .bind(to_json(wanted)?)
        .bind(applied.map(to_json).transpose()?)
        .bind(now().timestamp_micros())
        .bind(bot.as_str())
        .execute(self.writer())
        .await
        .map_err(StoreError::on("writing a container's limits"))?;
        Ok(())
    }

    /// Forgets the containers of a bot but one, which is the newest from then on.
    pub async fn forget_other_containers(&self, bot: &BotId, container_id: &str) -> Result<()> {
        sqlx::query("DELETE FROM containers WHERE bot_id = ?1 AND container_id <> ?2")
            .bind(bot.as_str())
            .bind(container_id)
            .execute(self.writer())
            .await
            .map_err(StoreError::on("forgetting containers"))?;
        Ok(())
    }

    /// Forgets every container of a bot with its snapshots and versions; none is a success.
    pub async fn delete_containers(&self, bot: &BotId) -> Result<()> {
        let failed = StoreError::on("forgetting a container");
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        for delete in [
            "DELETE FROM snapshots WHERE bot_id = ?1",
            "DELETE FROM containers WHERE bot_id = ?1",
        ] {
            sqlx::query(delete)
                .bind(bot.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)
    }
}
