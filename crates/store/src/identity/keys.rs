//! The table of API keys. The key itself is never here, only its SHA-256.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::identity::Scope;
use crate::identity::users::{self, UserRow};
use crate::time::{from_micros, from_optional_micros, now};

/// `last_used_at` is kept to the minute, so that a busy key does not make every read a write.
const USED_MICROS: i64 = 60_000_000;

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeyRow {
    pub id: String,
    pub user_id: String,
    pub name: String,
    pub scope: Scope,
    /// The only bots it is for; `None`: all of its user's.
    pub bots: Option<Vec<String>>,
    pub expires_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A key to be.
#[derive(Clone)]
pub struct NewApiKey {
    pub id: String,
    pub user_id: String,
    pub name: String,
    /// SHA-256 of the key, in hex.
    pub key_sha256: String,
    pub scope: Scope,
    pub bots: Option<Vec<String>>,
    pub expires_at: Option<DateTime<Utc>>,
}

const OPERATION: &str = "reading an API key";

fn read(row: &SqliteRow) -> Result<ApiKeyRow> {
    let column = StoreError::on(OPERATION);
    let scope: String = row.try_get("scope").map_err(&column)?;
    let bots: Option<String> = row.try_get("bots").map_err(&column)?;
    Ok(ApiKeyRow {
        id: row.try_get("id").map_err(&column)?,
        user_id: row.try_get("user_id").map_err(&column)?,
        name: row.try_get("name").map_err(&column)?,
        scope: Scope::parse(&scope).ok_or_else(|| StoreError::damaged(OPERATION, format!("scope {scope:?}")))?,
        bots: bots
            .map(|bots| serde_json::from_str(&bots).map_err(|_| StoreError::damaged(OPERATION, "a list of bots")))
            .transpose()?,
        expires_at: from_optional_micros(OPERATION, row.try_get("expires_at").map_err(&column)?)?,
        created_at: from_micros(OPERATION, row.try_get("created_at").map_err(&column)?)?,
        last_used_at: from_optional_micros(OPERATION, row.try_get("last_used_at").map_err(&column)?)?,
    })
}

const COLUMNS: &str = "id, user_id, name, scope, bots, expires_at, created_at, last_used_at";

impl Store {
    /// Adds a key.
    pub async fn insert_api_key(&self, key: NewApiKey) -> Result<ApiKeyRow> {
        let bots = key
            .bots
            .as_ref()
            .map(|bots| serde_json::Value::from(bots.clone()).to_string());
        let row = sqlx::query(
            "INSERT INTO api_keys (id, user_id, name, key_sha256, scope, bots, expires_at, created_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) RETURNING *",
        )
        .bind(key.id)
        .bind(key.user_id)
        .bind(key.name)
        .bind(key.key_sha256)
        .bind(key.scope.as_str())
        .bind(bots)
        .bind(key.expires_at.map(|at| at.timestamp_micros()))
        .bind(now().timestamp_micros())
        .fetch_one(self.writer())
        .await
        .map_err(StoreError::on("adding an API key"))?;
        read(&row)
    }

    /// The key of that SHA-256 and its user, whether or not they still count.
    pub async fn api_key(&self, key_sha256: &str) -> Result<Option<(ApiKeyRow, UserRow)>> {
        let mut connection = self.readers().acquire().await.map_err(StoreError::on(OPERATION))?;
        let row = sqlx::query("SELECT * FROM api_keys WHERE key_sha256 = ?1")
            .bind(key_sha256)
            .fetch_optional(&mut *connection)
            .await
            .map_err(StoreError::on(OPERATION))?;
        let Some(key) = row.as_ref().map(read).transpose()? else {
            return Ok(None);
        };
        let user = sqlx::query("SELECT * FROM users WHERE id = ?1")
            .bind(&key.user_id)
            .fetch_optional(&mut *connection)
            .await
            .map_err(StoreError::on(OPERATION))?;
        Ok(user.as_ref().map(users::read).transpose()?.map(|user| (key, user)))
    }

    /// A user's keys, newest first.
    pub async fn api_keys(&self, user_id: &str) -> Result<Vec<ApiKeyRow>> {
        let mut query = sqlx::QueryBuilder::<sqlx::Sqlite>::new("SELECT ");
        query
            .push(COLUMNS)
            .push(" FROM api_keys WHERE user_id = ")
            .push_bind(user_id);
        query.push(" ORDER BY seq DESC");
        let rows = query
            .build()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on("listing API keys"))?;
        rows.iter().map(read).collect()
    }

    /// Removes a user's key; says whether it was there.
    pub async fn delete_api_key(&self, user_id: &str, id: &str) -> Result<bool> {
        let done = sqlx::query("DELETE FROM api_keys WHERE user_id = ?1 AND id = ?2")
            .bind(user_id)
            .bind(id)
            .execute(self.writer())
            .await
            .map_err(StoreError::on("removing an API key"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Remembers that a key was used now, to the minute. Of many calls that come together one writes.
    pub async fn note_key_used(&self, key: &ApiKeyRow) -> Result<()> {
        let at = now().timestamp_micros();
        if key
            .last_used_at
            .is_some_and(|last| at - last.timestamp_micros() < USED_MICROS)
        {
            return Ok(());
        }
        sqlx::query("UPDATE api_keys SET last_used_at = ?1 WHERE id = ?2 AND coalesce(last_used_at, 0) <= ?1 - ?3")
            .bind(at)
            .bind(&key.id)
            .bind(USED_MICROS)
            .execute(self.writer())
            .await
            .map_err(StoreError::on("noting the use of an API key"))?;
        Ok(())
    }
}
