//! Who may use a bot beside its owner.

use chrono::{DateTime, Utc};
use skep_names::BotId;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::time::{from_micros, now};

/// What a member may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberRole {
    /// Scope `read`.
    Viewer,
    /// Scope `operate`.
    Operator,
    /// Scope `manage`.
    Manager,
}

impl MemberRole {
    /// `viewer`, `operator` or `manager`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Manager => "manager",
        }
    }

    /// The role of that name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::Operator, Self::Manager]
            .into_iter()
            .find(|role| role.as_str() == text)
    }
}

/// One member of a bot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    pub user_id: String,
    pub role: MemberRole,
    pub created_at: DateTime<Utc>,
}

fn read(row: &SqliteRow) -> Result<MemberRow> {
    const OPERATION: &str = "reading a member";
    let column = StoreError::on(OPERATION);
    let role: String = row.try_get("role").map_err(&column)?;
    Ok(MemberRow {
        user_id: row.try_get("user_id").map_err(&column)?,
        role: MemberRole::parse(&role).ok_or_else(|| StoreError::damaged(OPERATION, format!("role {role:?}")))?,
        created_at: from_micros(OPERATION, row.try_get("created_at").map_err(&column)?)?,
    })
}

impl Store {
    /// The members of a bot, in the order they were added.
    pub async fn members(&self, bot: &BotId) -> Result<Vec<MemberRow>> {
        let rows = sqlx::query(
            "SELECT user_id, role, created_at FROM bot_members WHERE bot_id = ?1 ORDER BY created_at, user_id",
        )
        .bind(bot.as_str())
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::on("listing members"))?;
        rows.iter().map(read).collect()
    }

    /// One member of a bot.
    pub async fn member(&self, bot: &BotId, user_id: &str) -> Result<Option<MemberRow>> {
        let row = sqlx::query("SELECT user_id, role, created_at FROM bot_members WHERE bot_id = ?1 AND user_id = ?2")
            .bind(bot.as_str())
            .bind(user_id)
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::on("reading a member"))?;
        row.as_ref().map(read).transpose()
    }

    /// Adds a member or changes his role; the time of his coming stays.
    pub async fn put_member(&self, bot: &BotId, user_id: &str, role: MemberRole) -> Result<MemberRow> {
        let row = sqlx::query(
            "INSERT INTO bot_members (bot_id, user_id, role, created_at) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (bot_id, user_id) DO UPDATE SET role = excluded.role \
             RETURNING user_id, role, created_at",
        )
        .bind(bot.as_str())
        .bind(user_id)
        .bind(role.as_str())
        .bind(now().timestamp_micros())
        .fetch_one(self.writer())
        .await
        .map_err(StoreError::on("adding a member"))?;
        read(&row)
    }

    /// Removes a member; a missing one is a success.
    pub async fn delete_member(&self, bot: &BotId, user_id: &str) -> Result<()> {
        sqlx::query("DELETE FROM bot_members WHERE bot_id = ?1 AND user_id = ?2")
            .bind(bot.as_str())
            .bind(user_id)
            .execute(self.writer())
            .await
            .map_err(StoreError::on("removing a member"))?;
        Ok(())
    }
}
