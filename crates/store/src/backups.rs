//! What is known of the archives of `/data` that are kept below the data root; the files are others' work.

use chrono::{DateTime, Utc};
use skep_names::BotId;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::time::from_micros;

/// One archive that was read back whole when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupRow {
    pub bot_id: BotId,
    /// Whole microseconds; the file's own time, too.
    pub created_at: DateTime<Utc>,
    /// Of the file, in hex.
    pub sha256: String,
    pub size_bytes: u64,
    pub entries: u64,
    /// Whose the bot was at that time.
    pub owner_user_id: String,
    /// Nothing wrong has been found with it since.
    pub verified: bool,
}

const READING: &str = "reading backups";

fn read(row: &SqliteRow) -> Result<BackupRow> {
    let column = StoreError::on(READING);
    let bot: String = row.try_get("bot_id").map_err(&column)?;
    let whole = |name: &str| {
        let number: i64 = row.try_get(name).map_err(StoreError::on(READING))?;
        u64::try_from(number).map_err(|_| StoreError::damaged(READING, format!("{name} {number}")))
    };
    Ok(BackupRow {
        bot_id: bot
            .parse()
            .map_err(|_| StoreError::damaged(READING, format!("bot id {bot:?}")))?,
        created_at: from_micros(READING, row.try_get("created_at").map_err(&column)?)?,
        sha256: row.try_get("sha256").map_err(&column)?,
        size_bytes: whole("size_bytes")?,
        entries: whole("entries")?,
        owner_user_id: row.try_get("owner_user_id").map_err(&column)?,
        verified: row.try_get("verified").map_err(&column)?,
    })
}

fn number(operation: &'static str, value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| StoreError::damaged(operation, format!("number {value}")))
}

impl Store {
    /// Keeps what is known of an archive; the same bot and time again take the place of what was there.
    pub async fn put_backup(&self, backup: &BackupRow) -> Result<()> {
        const OPERATION: &str = "keeping a backup";
        sqlx::query(
            "INSERT INTO backups (bot_id, created_at, sha256, size_bytes, entries, owner_user_id, verified) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (bot_id, created_at) DO UPDATE SET \
             sha256 = excluded.sha256, size_bytes = excluded.size_bytes, entries = excluded.entries, \
             owner_user_id = excluded.owner_user_id, verified = excluded.verified",
        )
        .bind(backup.bot_id.as_str())
        .bind(backup.created_at.timestamp_micros())
        .bind(&backup.sha256)
        .bind(number(OPERATION, backup.size_bytes)?)
        .bind(number(OPERATION, backup.entries)?)
        .bind(&backup.owner_user_id)
        .bind(backup.verified)
        .execute(self.writer())
        .await
        .map_err(StoreError::on(OPERATION))?;
        Ok(())
    }

    /// The archives of a bot, newest first, also of one that is gone.
    pub async fn backups(&self, bot: &BotId) -> Result<Vec<BackupRow>> {
        let rows = sqlx::query(
            "SELECT bot_id, created_at, sha256, size_bytes, entries, owner_user_id, verified FROM backups \
             WHERE bot_id = ?1 ORDER BY created_at DESC",
        )
        .bind(bot.as_str())
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::on(READING))?;
        rows.iter().map(read).collect()
    }

    /// Remembers that an archive was found damaged; one that is not known is a success.
    pub async fn mark_backup_damaged(&self, bot: &BotId, created_at: DateTime<Utc>) -> Result<()> {
        sqlx::query("UPDATE backups SET verified = 0 WHERE bot_id = ?1 AND created_at = ?2")
            .bind(bot.as_str())
            .bind(created_at.timestamp_micros())
            .execute(self.writer())
            .await
            .map_err(StoreError::on("remembering that a backup is damaged"))?;
        Ok(())
    }

    /// Forgets an archive that was removed; one that is not known is a success.
    pub async fn forget_backup(&self, bot: &BotId, created_at: DateTime<Utc>) -> Result<()> {
        sqlx::query("DELETE FROM backups WHERE bot_id = ?1 AND created_at = ?2")
            .bind(bot.as_str())
            .bind(created_at.timestamp_micros())
            .execute(self.writer())
            .await
            .map_err(StoreError::on("forgetting a backup"))?;
        Ok(())
    }
}
