//! The table of bots.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use skep_names::BotId;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::idempotency::{BoundTo, IdempotencyKey, bind};
use crate::time::{from_micros, now};

/// Where a bot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BotStatus {
    /// Its workspace is being set up for the first time.
    Creating,
    /// All is done.
    Ready,
    /// It is being removed.
    Deleting,
}

impl BotStatus {
    /// `creating`, `ready` or `deleting`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Creating, Self::Ready, Self::Deleting]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// One bot.
#[derive(Debug, Clone, PartialEq)]
pub struct BotRow {
    /// Order of making; the newest bot has the highest.
    pub seq: i64,
    pub id: BotId,
    pub owner_user_id: String,
    pub display_name: String,
    pub avatar_url: Option<String>,
    pub timezone: Option<String>,
    pub is_active: bool,
    /// Guests may do what `PUT /bots/{id}/guest` says.
    pub guest_enabled: bool,
    pub status: BotStatus,
    pub metadata: Map<String, Value>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// A bot to be.
#[derive(Debug, Clone)]
pub struct NewBot {
    pub id: BotId,
    pub owner_user_id: String,
    pub display_name: String,
    pub avatar_url: Option<String>,
    pub timezone: Option<String>,
    pub is_active: bool,
    pub status: BotStatus,
    pub metadata: Map<String, Value>,
    /// The key that its request came with.
    pub idempotency: Option<IdempotencyKey>,
}

/// The fields of a bot that its manager may change; `None` leaves one as it is, `Some(None)` empties it.
#[derive(Debug, Clone, Default)]
pub struct BotUpdate {
    pub display_name: Option<String>,
    pub avatar_url: Option<Option<String>>,
    pub timezone: Option<Option<String>>,
    pub is_active: Option<bool>,
    /// Takes the place of the whole object.
    pub metadata: Option<Map<String, Value>>,
}

/// Which bots a listing shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BotVisibility {
    /// Every bot.
    All,
    /// Those of one owner.
    OwnedBy(String),
    /// Those of one user, and those he is a member of.
    SeenBy(String),
    /// Those with one of these ids.
    Among(Vec<String>),
}

/// One page of bots, newest first.
#[derive(Debug, Clone)]
pub struct BotPage {
    pub bots: Vec<BotRow>,
    /// `before` of the next page; `None` at the end.
    pub next_before: Option<i64>,
}

const COLUMNS: &str = "seq, id, owner_user_id, display_name, avatar_url, timezone, is_active, guest_enabled, status, \
                       metadata, created_at, updated_at";

fn read(row: &SqliteRow) -> Result<BotRow> {
    const OPERATION: &str = "reading a bot";
    let column = StoreError::on(OPERATION);
    let id: String = row.try_get("id").map_err(&column)?;
    let status: String = row.try_get("status").map_err(&column)?;
    let metadata: String = row.try_get("metadata").map_err(&column)?;
    Ok(BotRow {
        seq: row.try_get("seq").map_err(&column)?,
        id: id
            .parse()
            .map_err(|_| StoreError::damaged(OPERATION, format!("bot id {id:?}")))?,
        owner_user_id: row.try_get("owner_user_id").map_err(&column)?,
        display_name: row.try_get("display_name").map_err(&column)?,
        avatar_url: row.try_get("avatar_url").map_err(&column)?,
        timezone: row.try_get("timezone").map_err(&column)?,
        is_active: row.try_get("is_active").map_err(&column)?,
        guest_enabled: row.try_get("guest_enabled").map_err(&column)?,
        status: BotStatus::parse(&status)
            .ok_or_else(|| StoreError::damaged(OPERATION, format!("status {status:?}")))?,
        metadata: serde_json::from_str(&metadata)
            .map_err(|_| StoreError::damaged(OPERATION, format!("metadata of bot {id}")))?,
        created_at: from_micros(OPERATION, row.try_get("created_at").map_err(&column)?)?,
        updated_at: from_micros(OPERATION, row.try_get("updated_at").map_err(&column)?)?,
    })
}

impl Store {
    /// Adds a bot.
    ///
    /// # Errors
    /// [`StoreError::Exists`] for an id that is taken.
    pub async fn insert_bot(&self, bot: NewBot) -> Result<BotRow> {
        const OPERATION: &str = "adding a bot";
        let now = now();
        let metadata = Value::Object(bot.metadata.clone()).to_string();
        let failed = StoreError::on(OPERATION);
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        let done = sqlx::query(
            "INSERT INTO bots (id, owner_user_id, display_name, avatar_url, timezone, is_active, status, metadata, \
             created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9)",
        )
        .bind(bot.id.as_str())
        .bind(&bot.owner_user_id)
        .bind(&bot.display_name)
        .bind(&bot.avatar_url)
        .bind(&bot.timezone)
        .bind(bot.is_active)
        .bind(bot.status.as_str())
        .bind(metadata)
        .bind(now.timestamp_micros())
        .execute(&mut *transaction)
        .await
        .map_err(&failed)?;
        if let Some(key) = &bot.idempotency {
            let to = BoundTo::Bot(bot.id.as_str());
            bind(&mut transaction, key, to).await.map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)?;
        Ok(BotRow {
            seq: done.last_insert_rowid(),
            id: bot.id,
            owner_user_id: bot.owner_user_id,
            display_name: bot.display_name,
            avatar_url: bot.avatar_url,
            timezone: bot.timezone,
            is_active: bot.is_active,
            guest_enabled: false,
            status: bot.status,
            metadata: bot.metadata,
            created_at: now,
            updated_at: now,
        })
    }

    /// The bot of that id.
    pub async fn bot(&self, id: &BotId) -> Result<Option<BotRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query
            .push(COLUMNS)
            .push(" FROM bots WHERE id = ")
            .push_bind(id.as_str());
        let row = query
            .build()
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::on("reading a bot"))?;
        row.as_ref().map(read).transpose()
    }

    /// One page of bots, newest first: at most `limit`, only those older than `before`.
    pub async fn bots(&self, visible: &BotVisibility, before: Option<i64>, limit: u32) -> Result<BotPage> {
        let rows = page_statement(COLUMNS, visible, before, limit.saturating_add(1))
            .build()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on("listing bots"))?;
        let mut bots = rows.iter().map(read).collect::<Result<Vec<_>>>()?;
        let more = bots.len() > limit as usize;
        bots.truncate(limit as usize);
        let next_before = bots.last().filter(|_| more).map(|bot| bot.seq);
        Ok(BotPage { bots, next_before })
    }

    /// How long the metadata of each bot on that page is, in bytes, in the page's order.
    pub async fn bots_metadata_bytes(
        &self,
        visible: &BotVisibility,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<i64>> {
        page_statement("octet_length(metadata)", visible, before, limit)
            .build_query_scalar()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on("measuring bots"))
    }

    /// Every bot in one of these states, oldest first.
    pub async fn bots_with_status(&self, status: BotStatus) -> Result<Vec<BotRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query
            .push(COLUMNS)
            .push(" FROM bots WHERE status = ")
            .push_bind(status.as_str());
        query.push(" ORDER BY seq");
        let rows = query
            .build()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on("listing bots by status"))?;
        rows.iter().map(read).collect()
    }

    /// Changes fields of a bot; `None` when there is no such bot.
    pub async fn update_bot(&self, id: &BotId, update: BotUpdate) -> Result<Option<BotRow>> {
        let row = update_statement(id, update)
            .build()
            .fetch_optional(self.writer())
            .await
            .map_err(StoreError::on("changing a bot"))?;
        row.as_ref().map(read).transpose()
    }

    /// Changes metadata by `change` in one transaction, so that two merges never lose each other's fields.
    /// `None` when there is no such bot.
    pub async fn merge_bot_metadata<F>(&self, id: &BotId, change: F) -> Result<Option<BotRow>>
    where
        F: FnOnce(&mut Map<String, Value>) + Send,
    {
        let change = |metadata: &mut Map<String, Value>| {
            change(metadata);
            Ok::<_, StoreError>(())
        };
        self.patch_bot(id, BotUpdate::default(), change).await
    }

    /// Changes fields of a bot, and its metadata by `change`, in one transaction: all of it, or nothing when
    /// `change` refuses. `None` when there is no such bot.
    ///
    /// # Errors
    /// What `change` refuses with, and what the store fails with.
    pub async fn patch_bot<F, E>(
        &self,
        id: &BotId,
        mut update: BotUpdate,
        change: F,
    ) -> std::result::Result<Option<BotRow>, E>
    where
        F: FnOnce(&mut Map<String, Value>) -> std::result::Result<(), E> + Send,
        E: From<StoreError>,
    {
        const OPERATION: &str = "patching a bot";
        let failed = StoreError::on(OPERATION);
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        let text: Option<String> = sqlx::query_scalar("SELECT metadata FROM bots WHERE id = ?1")
            .bind(id.as_str())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(&failed)?;
        let Some(text) = text else {
            return Ok(None);
        };
        let mut metadata: Map<String, Value> =
            serde_json::from_str(&text).map_err(|_| StoreError::damaged(OPERATION, format!("metadata of bot {id}")))?;
        change(&mut metadata)?;
        update.metadata = Some(metadata);
        let row = update_statement(id, update)
            .build()
            .fetch_one(&mut *transaction)
            .await
            .map_err(&failed)?;
        transaction.commit().await.map_err(&failed)?;
        Ok(Some(read(&row)?))
    }

    /// Gives a bot to another user; `None` when there is no such bot.
    pub async fn set_bot_owner(&self, id: &BotId, owner_user_id: &str) -> Result<Option<BotRow>> {
        sqlx::query("UPDATE bots SET owner_user_id = ?1, updated_at = ?2 WHERE id = ?3")
            .bind(owner_user_id)
            .bind(now().timestamp_micros())
            .bind(id.as_str())
            .execute(self.writer())
            .await
            .map_err(StoreError::on("changing a bot's owner"))?;
        self.bot(id).await
    }

    /// Sets whether guests may use a bot; `None` when there is no such bot.
    pub async fn set_bot_guest(&self, id: &BotId, enabled: bool) -> Result<Option<BotRow>> {
        sqlx::query("UPDATE bots SET guest_enabled = ?1, updated_at = ?2 WHERE id = ?3")
            .bind(enabled)
            .bind(now().timestamp_micros())
            .bind(id.as_str())
            .execute(self.writer())
            .await
            .map_err(StoreError::on("changing a bot's guest access"))?;
        self.bot(id).await
    }

    /// Moves a bot from one state to the next; one that is in another state, or gone, stays so.
    pub async fn advance_bot_status(&self, id: &BotId, from: BotStatus, to: BotStatus) -> Result<()> {
        sqlx::query("UPDATE bots SET status = ?1, updated_at = ?2 WHERE id = ?3 AND status = ?4")
            .bind(to.as_str())
            .bind(now().timestamp_micros())
            .bind(id.as_str())
            .bind(from.as_str())
            .execute(self.writer())
            .await
            .map_err(StoreError::on("changing a bot's status"))?;
        Ok(())
    }

    /// Removes a bot with its members, faults and containers; a missing one is a success.
    /// Its operations stay.
    pub async fn delete_bot(&self, id: &BotId) -> Result<()> {
        let failed = StoreError::on("deleting a bot");
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        for statement in [
            "DELETE FROM lifecycle_events WHERE bot_id = ?1",
            "DELETE FROM bots WHERE id = ?1",
        ] {
            sqlx::query(statement)
                .bind(id.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)
    }
}

/// At most `limit` bots, newest first, only those older than `before`.
fn page_statement(columns: &str, visible: &BotVisibility, before: Option<i64>, limit: u32) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
    query.push(columns).push(" FROM bots WHERE seq < ");
    query.push_bind(before.unwrap_or(i64::MAX));
    match visible {
        BotVisibility::All => {}
        BotVisibility::OwnedBy(user) => {
            query.push(" AND owner_user_id = ").push_bind(user.clone());
        }
        BotVisibility::SeenBy(user) => {
            query.push(" AND (owner_user_id = ").push_bind(user.clone());
            query
                .push(" OR id IN (SELECT bot_id FROM bot_members WHERE user_id = ")
                .push_bind(user.clone());
            query.push("))");
        }
        BotVisibility::Among(ids) => {
            query
                .push(" AND id IN (SELECT value FROM json_each(")
                .push_bind(Value::from(ids.clone()).to_string());
            query.push("))");
        }
    }
    query.push(" ORDER BY seq DESC LIMIT ").push_bind(i64::from(limit));
    query
}

fn update_statement(id: &BotId, update: BotUpdate) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::<Sqlite>::new("UPDATE bots SET updated_at = ");
    query.push_bind(now().timestamp_micros());
    if let Some(name) = update.display_name {
        query.push(", display_name = ").push_bind(name);
    }
    if let Some(avatar) = update.avatar_url {
        query.push(", avatar_url = ").push_bind(avatar);
    }
    if let Some(timezone) = update.timezone {
        query.push(", timezone = ").push_bind(timezone);
    }
    if let Some(active) = update.is_active {
        query.push(", is_active = ").push_bind(active);
    }
    if let Some(metadata) = update.metadata {
        query
            .push(", metadata = ")
            .push_bind(Value::Object(metadata).to_string());
    }
    query.push(" WHERE id = ").push_bind(id.as_str());
    query.push(" RETURNING ").push(COLUMNS);
    query
}
