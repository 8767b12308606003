//! What happened to workspaces, one row per change, oldest first.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use skep_names::{BotId, container_id_for};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::time::{from_micros, now};

/// One change of a workspace.
#[derive(Debug, Clone, PartialEq)]
pub struct LifecycleEventRow {
    pub seq: i64,
    pub container_id: String,
    /// `create`, `start`, `stop`, `exit`, …
    pub event_type: String,
    pub payload: Value,
    pub created_at: DateTime<Utc>,
}

/// How many changes of a kind are kept where whoever is in the workspace can make them without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLimits {
    /// So many of the newest.
    pub kept: u32,
    /// One that comes sooner after the one before it is not written.
    pub apart: Duration,
}

/// So many changes of a kind are kept of a bot.
const KEPT: u32 = 256;

impl Store {
    /// Writes down a change of a workspace, within limits for the changes of its kind of this bot. Says whether it was
    /// written; of a bot that is gone, none is.
    pub async fn insert_limited_lifecycle_event(
        &self,
        bot: &BotId,
        (event_type, payload): (&str, &Value),
        limits: EventLimits,
    ) -> Result<bool> {
        let failed = StoreError::on("writing a lifecycle event within limits");
        let now = now().timestamp_micros();
        let apart = i64::try_from(limits.apart.as_micros()).unwrap_or(i64::MAX);
        let mut transaction = self.writer().begin().await.map_err(&failed)?;
        // A clock that was put back must not silence what comes.
        let written = sqlx::query(
            "INSERT INTO lifecycle_events (bot_id, container_id, event_type, payload, created_at) \
             SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM bots WHERE id = ?1) AND NOT EXISTS (SELECT 1 FROM lifecycle_events \
             WHERE bot_id = ?1 AND event_type = ?3 AND created_at <= ?5 AND created_at > ?5 - ?6)",
        )
        .bind(bot.as_str())
        .bind(container_id_for(bot))
        .bind(event_type)
        .bind(payload.to_string())
        .bind(now)
        .bind(apart)
        .execute(&mut *transaction)
        .await
        .map_err(&failed)?;
        drop_old(&mut transaction, bot, event_type, limits.kept).await?;
        transaction.commit().await.map_err(&failed)?;
        Ok(written.rows_affected() > 0)
    }

    /// Writes down a change of a workspace. Of each kind the newest 256 of a bot are kept.
    pub async fn insert_lifecycle_event(
        &self,
        bot: &BotId,
        container_id: &str,
        event_type: &str,
        payload: &Value,
    ) -> Result<()> {
        let failed = StoreError::on("writing a lifecycle event");
        let mut transaction = self.writer().begin().await.map_err(&failed)?;
        insert(&mut transaction, (bot, container_id), event_type, payload).await?;
        transaction.commit().await.map_err(&failed)
    }

    /// Changes of one kind that came after `after_seq`, oldest first: of those the newest `limit`.
    pub async fn lifecycle_events_of(
        &self,
        bot: &BotId,
        event_type: &str,
        after_seq: i64,
        limit: u32,
    ) -> Result<Vec<LifecycleEventRow>> {
        const OPERATION: &str = "reading lifecycle events of a kind";
        let rows = sqlx::query(
            "SELECT seq, container_id, event_type, payload, created_at FROM lifecycle_events WHERE bot_id = ?1 \
             AND seq > ?2 AND event_type = ?3 ORDER BY seq DESC LIMIT ?4",
        )
        .bind(bot.as_str())
        .bind(after_seq)
        .bind(event_type)
        .bind(i64::from(limit))
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::on(OPERATION))?;
        rows.iter().rev().map(|row| read(OPERATION, row)).collect()
    }

    /// The newest changes of a bot's workspace, newest first, at most `limit`.
    pub async fn lifecycle_events(&self, bot: &BotId, limit: u32) -> Result<Vec<LifecycleEventRow>> {
        const OPERATION: &str = "reading lifecycle events";
        let rows = sqlx::query(
            "SELECT seq, container_id, event_type, payload, created_at FROM lifecycle_events WHERE bot_id = ?1 \
             ORDER BY seq DESC LIMIT ?2",
        )
        .bind(bot.as_str())
        .bind(i64::from(limit))
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::on(OPERATION))?;
        rows.iter().map(|row| read(OPERATION, row)).collect()
    }
}

/// Writes down a change, and forgets the oldest of its kind beyond [`KEPT`].
pub(crate) async fn insert(
    transaction: &mut Transaction<'_, Sqlite>,
    (bot, container_id): (&BotId, &str),
    event_type: &str,
    payload: &Value,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO lifecycle_events (bot_id, container_id, event_type, payload, created_at) \
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )
    .bind(bot.as_str())
    .bind(container_id)
    .bind(event_type)
    .bind(payload.to_string())
    .bind(now().timestamp_micros())
    .execute(&mut **transaction)
    .await
    .map_err(StoreError::on("writing a lifecycle event"))?;
    drop_old(transaction, bot, event_type, KEPT).await
}

async fn drop_old(transaction: &mut Transaction<'_, Sqlite>, bot: &BotId, event_type: &str, kept: u32) -> Result<()> {
    sqlx::query(
        "DELETE FROM lifecycle_events WHERE bot_id = ?1 AND event_type = ?2 AND seq <= (SELECT seq \
         FROM lifecycle_events WHERE bot_id = ?1 AND event_type = ?2 ORDER BY seq DESC LIMIT 1 OFFSET ?3)",
    )
    .bind(bot.as_str())
    .bind(event_type)
    .bind(i64::from(kept))
    .execute(&mut **transaction)
    .await
    .map_err(StoreError::on("forgetting lifecycle events"))?;
    Ok(())
}

fn read(operation: &'static str, row: &SqliteRow) -> Result<LifecycleEventRow> {
    let column = StoreError::on(operation);
    let payload: String = row.try_get("payload").map_err(&column)?;
    Ok(LifecycleEventRow {
        seq: row.try_get("seq").map_err(&column)?,
        container_id: row.try_get("container_id").map_err(&column)?,
        event_type: row.try_get("event_type").map_err(&column)?,
        payload: serde_json::from_str(&payload)
            .map_err(|_| StoreError::damaged(operation, "a payload that is no JSON"))?,
        created_at: from_micros(operation, row.try_get("created_at").map_err(&column)?)?,
    })
}
