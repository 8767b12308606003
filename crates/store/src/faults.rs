//! Failures of work in the background, kept until they are mended, so that the checks can show them.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use skep_names::BotId;
use sqlx::{Row, SqliteExecutor};

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::time::{from_micros, now};

/// One kept failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRow {
    /// The check that shows it, as `container.init`.
    pub check_type: String,
    /// The sentence a person reads.
    pub message: String,
    pub at: DateTime<Utc>,
}

/// How much is known to be wrong with a bot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KnownIssues {
    /// Its kept failures, those of the task aside.
    pub faults: u32,
    /// Its workspace should run and could not be kept running or its network does not work, or it was stopped when nobody
    /// asked for it.
    pub is_task_wrong: bool,
}

/// As [`Store::put_fault`], within a transaction.
pub(crate) async fn keep_fault(
    writer: impl SqliteExecutor<'_>,
    bot: &BotId,
    check_type: &str,
    message: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO bot_faults (bot_id, check_type, message, at) \
         SELECT id, ?2, ?3, ?4 FROM bots WHERE id = ?1 \
         ON CONFLICT (bot_id, check_type) DO UPDATE SET message = excluded.message, at = excluded.at",
    )
    .bind(bot.as_str())
    .bind(check_type)
    .bind(message)
    .bind(now().timestamp_micros())
    .execute(writer)
    .await
    .map(drop)
}

impl Store {
    /// Keeps a failure in the place of the one before it of the same check. A bot that is gone keeps none.
    pub async fn put_fault(&self, bot: &BotId, check_type: &str, message: &str) -> Result<()> {
        keep_fault(self.writer(), bot, check_type, message)
            .await
            .map_err(StoreError::on("keeping a failure"))
    }

    /// Forgets a failure that was mended; none is a success.
    pub async fn clear_fault(&self, bot: &BotId, check_type: &str) -> Result<()> {
        sqlx::query("DELETE FROM bot_faults WHERE bot_id = ?1 AND check_type = ?2")
            .bind(bot.as_str())
            .bind(check_type)
            .execute(self.writer())
            .await
            .map_err(StoreError::on("forgetting a failure"))?;
        Ok(())
    }

    /// The bots with a kept failure of this check, and its sentence.
    pub async fn faults_of_all(&self, check_type: &str) -> Result<HashMap<BotId, String>> {
        const OPERATION: &str = "reading failures";
        let column = StoreError::on(OPERATION);
        let rows = sqlx::query("SELECT bot_id, message FROM bot_faults WHERE check_type = ?1")
            .bind(check_type)
            .fetch_all(self.readers())
            .await
            .map_err(&column)?;
        rows.iter()
            .map(|row| {
                let bot: String = row.try_get("bot_id").map_err(&column)?;
                let bot = bot
                    .parse()
                    .map_err(|_| StoreError::damaged(OPERATION, "the id of a bot"))?;
                Ok((bot, row.try_get("message").map_err(&column)?))
            })
            .collect()
    }

    /// The kept failures of a bot.
    pub async fn faults(&self, bot: &BotId) -> Result<Vec<FaultRow>> {
        const OPERATION: &str = "reading failures";
        let column = StoreError::on(OPERATION);
        let rows = sqlx::query("SELECT check_type, message, at FROM bot_faults WHERE bot_id = ?1 ORDER BY check_type")
            .bind(bot.as_str())
            .fetch_all(self.readers())
            .await
            .map_err(&column)?;
        rows.iter()
            .map(|row| {
                Ok(FaultRow {
                    check_type: row.try_get("check_type").map_err(&column)?,
                    message: row.try_get("message").map_err(&column)?,
                    at: from_micros(OPERATION, row.try_get("at").map_err(&column)?)?,
                })
            })
            .collect()
    }

    /// What is known to be wrong with every bot of which something is.
    pub async fn known_issues(&self) -> Result<HashMap<String, KnownIssues>> {
        let column = StoreError::on("counting failures");
        let rows = sqlx::query(
            "SELECT bot_id, SUM(fault) AS faults, SUM(task) > 0 AS is_task_wrong FROM \
             (SELECT bot_id, 1 AS fault, 0 AS task FROM bot_faults WHERE check_type <> 'container.task' UNION ALL \
             SELECT containers.bot_id, 0, 1 FROM containers LEFT JOIN bot_faults \
             ON bot_faults.bot_id = containers.bot_id AND check_type = 'container.task' \
             WHERE (desired = 'running' AND (status = 'error' OR check_type IS NOT NULL)) \
             OR (desired = 'stopped' AND containers.reason IS NOT NULL)) GROUP BY bot_id",
        )
        .fetch_all(self.readers())
        .await
        .map_err(&column)?;
        rows.iter()
            .map(|row| {
                Ok((
                    row.try_get("bot_id").map_err(&column)?,
                    KnownIssues {
                        faults: row.try_get("faults").map_err(&column)?,
                        is_task_wrong: row.try_get("is_task_wrong").map_err(&column)?,
                    },
                ))
            })
            .collect()
    }
}
