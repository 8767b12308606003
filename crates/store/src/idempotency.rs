//! Requests that carry an `Idempotency-Key`: the same key within a day gives the same outcome.

use std::time::Duration;

use sqlx::Row;

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::time::now;

/// How long a key is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

/// What a key belongs to: the same word of another user, method or path is another key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    pub user_id: String,
    pub method: String,
    /// Path as the caller wrote it, without `/api`.
    pub path: String,
    pub key: String,
}

/// What was remembered of the first request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyOutcome {
    /// The operation it started.
    pub operation_id: Option<String>,
    /// The bot it made.
    pub bot_id: Option<String>,
    /// Its answer, once there is one: status and body.
    pub answer: Option<(u16, String)>,
}

/// What a request with a key has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdempotencyBegin {
    /// The first of its key: do the work, then tell [`Store::finish_idempotent`].
    First,
    /// It was done, or is being done (nothing of an outcome yet), by an earlier request.
    Repeat(IdempotencyOutcome),
    /// The key was used with another body.
    OtherBody,
}

impl Store {
    /// Claims a key for a request whose body has this SHA-256 (hex). Of two at once one is the first.
    pub async fn begin_idempotent(&self, key: &IdempotencyKey, body_sha256: &str) -> Result<IdempotencyBegin> {
        let failed = StoreError::on("claiming an idempotency key");
        let now = now().timestamp_micros();
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        sqlx::query("DELETE FROM idempotency_keys WHERE created_at < ?1")
            .bind(now - i64::try_from(REMEMBERED.as_micros()).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await
            .map_err(&failed)?;
        let row = sqlx::query(
            "SELECT body_sha256, operation_id, bot_id, status, response FROM idempotency_keys \
             WHERE user_id = ?1 AND method = ?2 AND path = ?3 AND key = ?4",
        )
        .bind(&key.user_id)
        .bind(&key.method)
        .bind(&key.path)
        .bind(&key.key)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(&failed)?;
        if let Some(row) = row {
            let body: String = row.try_get("body_sha256").map_err(&failed)?;
            if body != body_sha256 {
                return Ok(IdempotencyBegin::OtherBody);
            }
            let status: Option<u16> = row.try_get("status").map_err(&failed)?;
            let response: Option<String> = row.try_get("response").map_err(&failed)?;
            return Ok(IdempotencyBegin::Repeat(IdempotencyOutcome {
                operation_id: row.try_get("operation_id").map_err(&failed)?,
                bot_id: row.try_get("bot_id").map_err(&failed)?,
                answer: status.zip(response),
            }));
        }
        sqlx::query(
            "INSERT INTO idempotency_keys (user_id, method, path, key, body_sha256, created_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .bind(&key.user_id)
        .bind(&key.method)
        .bind(&key.path)
        .bind(&key.key)
        .bind(body_sha256)
        .bind(now)
        .execute(&mut *transaction)
        .await
        .map_err(&failed)?;
        transaction.commit().await.map_err(&failed)?;
        Ok(IdempotencyBegin::First)
    }

    /// Forgets the claims whose requests ended with the server before this one and had begun nothing: nobody works on
    /// them, and a repeat would wait for their outcome in vain.
    pub async fn release_idempotent_of_before(&self) -> Result<()> {
        sqlx::query("DELETE FROM idempotency_keys WHERE operation_id IS NULL AND bot_id IS NULL AND status IS NULL")
            .execute(self.writer())
            .await
            .map_err(StoreError::on("releasing idempotency keys"))?;
        Ok(())
    }

    /// Remembers the operation, the answer, or both; what was remembered before stays where `outcome` has nothing.
    pub async fn finish_idempotent(&self, key: &IdempotencyKey, outcome: &IdempotencyOutcome) -> Result<()> {
        let (status, response) = outcome.answer.clone().unzip();
        sqlx::query(
            "UPDATE idempotency_keys SET operation_id = COALESCE(?1, operation_id), status = COALESCE(?2, status), \
             response = COALESCE(?3, response) WHERE user_id = ?4 AND method = ?5 AND path = ?6 AND key = ?7",
        )
        .bind(&outcome.operation_id)
        .bind(status)
        .bind(response)
        .bind(&key.user_id)
        .bind(&key.method)
        .bind(&key.path)
        .bind(&key.key)
        .execute(self.writer())
        .await
        .map_err(StoreError::on("remembering an idempotent outcome"))?;
        Ok(())
    }

    /// Gives a key back, when the work behind it was refused before it began, or all of it was taken back. One that
    /// is bound to a bot that is there, or to an operation, stays: its work is carried on, and is not begun twice.
    pub async fn release_idempotent(&self, key: &IdempotencyKey) -> Result<()> {
        sqlx::query(
            "DELETE FROM idempotency_keys WHERE user_id = ?1 AND method = ?2 AND path = ?3 AND key = ?4 \
             AND operation_id IS NULL AND status IS NULL \
             AND (bot_id IS NULL OR bot_id NOT IN (SELECT id FROM bots))",
        )
        .bind(&key.user_id)
        .bind(&key.method)
        .bind(&key.path)
        .bind(&key.key)
        .execute(self.writer())
        .await
        .map_err(StoreError::on("releasing an idempotency key"))?;
        Ok(())
    }
}

/// What a key is bound to, in the transaction that makes it: a crash never leaves the one without the other.
pub(crate) enum BoundTo<'a> {
    Operation(&'a str),
    Bot(&'a str),
}

pub(crate) async fn bind(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    key: &IdempotencyKey,
    to: BoundTo<'_>,
) -> std::result::Result<(), sqlx::Error> {
    let (statement, id) = match to {
        BoundTo::Operation(id) => (
            "UPDATE idempotency_keys SET operation_id = ?1 \
             WHERE user_id = ?2 AND method = ?3 AND path = ?4 AND key = ?5",
            id,
        ),
        BoundTo::Bot(id) => (
            "UPDATE idempotency_keys SET bot_id = ?1 WHERE user_id = ?2 AND method = ?3 AND path = ?4 AND key = ?5",
            id,
        ),
    };
    sqlx::query(statement)
        .bind(id)
        .bind(&key.user_id)
        .bind(&key.method)
        .bind(&key.path)
        .bind(&key.key)
        .execute(&mut **transaction)
        .await
        .map(drop)
}
