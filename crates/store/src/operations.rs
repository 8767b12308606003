//! The journal of operations and their events. A row is durable before its operation's first side effect.

use chrono::{DateTime, Utc};
use serde_json::Value;
use skep_names::BotId;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use crate::bots::BotStatus;
use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::faults::keep_fault;
use crate::idempotency::{BoundTo, IdempotencyKey, bind};
use crate::time::{from_micros, from_optional_micros, now};

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl OperationState {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Nothing more will happen to it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    fn parse(text: &str) -> Option<Self> {
        [
            Self::Queued,
            Self::Running,
            Self::Succeeded,
            Self::Failed,
            Self::Cancelled,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationRow {
    /// Order of coming; the newest has the highest.
    pub seq: i64,
    pub id: String,
    pub bot_id: BotId,
    pub kind: String,
    pub state: OperationState,
    /// The step it is at, or was at when it ended.
    pub step: String,
    /// What was asked for, as the rules wrote it: enough to carry the operation on after a crash.
    pub request: Value,
    /// What the rules noted on the way, as: was there a layer before.
    pub notes: Value,
    /// What it answered, when it succeeded.
    pub outcome: Option<Value>,
    pub requested_by: Option<String>,
    pub request_id: Option<String>,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub started_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// An operation to be.
#[derive(Debug, Clone)]
pub struct NewOperation {
    pub id: String,
    pub bot_id: BotId,
    pub kind: String,
    pub request: Value,
    pub requested_by: Option<String>,
    pub request_id: Option<String>,
    /// The state that its bot goes into with it.
    pub bot_status: Option<BotStatus>,
    /// The key that its request came with.
    pub idempotency: Option<IdempotencyKey>,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq)]
pub enum OperationEnd {
    Succeeded { outcome: Value },
    Failed { code: String, message: String },
    Cancelled { message: String },
}

/// What the end of an operation does to its bot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BotAfter {
    pub bot_id: BotId,
    pub status: BotStatus,
    /// The check that shows what failed.
    pub check_type: &'static str,
    /// The sentence that it shows.
    pub message: String,
}

/// One event of an operation, as the rules wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    /// Counts from 1; a gap is where a passing event was not kept.
    pub id: u64,
    pub data: Value,
}

/// More events than any operation ever told and did not keep, at three a second for days.
const NOT_KEPT: i64 = 1_000_000;
const COLUMNS: &str = "seq, id, bot_id, kind, state, step, request, notes, outcome, requested_by, request_id, \
                       error_code, error_message, started_at, finished_at";
const READING: &str = "reading an operation";

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|_| StoreError::damaged(READING, "JSON that is none"))
}

fn read(row: &SqliteRow) -> Result<OperationRow> {
    let column = StoreError::on(READING);
    let bot_id: String = row.try_get("bot_id").map_err(&column)?;
    let state: String = row.try_get("state").map_err(&column)?;
    let (request, notes): (String, String) = (
        row.try_get("request").map_err(&column)?,
        row.try_get("notes").map_err(&column)?,
    );
    let outcome: Option<String> = row.try_get("outcome").map_err(&column)?;
    Ok(OperationRow {
        seq: row.try_get("seq").map_err(&column)?,
        id: row.try_get("id").map_err(&column)?,
        bot_id: bot_id
            .parse()
            .map_err(|_| StoreError::damaged(READING, format!("bot id {bot_id:?}")))?,
        kind: row.try_get("kind").map_err(&column)?,
        state: OperationState::parse(&state).ok_or_else(|| StoreError::damaged(READING, format!("state {state:?}")))?,
        step: row.try_get("step").map_err(&column)?,
        request: json(&request)?,
        notes: json(&notes)?,
        outcome: outcome.as_deref().map(json).transpose()?,
        requested_by: row.try_get("requested_by").map_err(&column)?,
        request_id: row.try_get("request_id").map_err(&column)?,
        error_code: row.try_get("error_code").map_err(&column)?,
        error_message: row.try_get("error_message").map_err(&column)?,
        started_at: from_micros(READING, row.try_get("started_at").map_err(&column)?)?,
        finished_at: from_optional_micros(READING, row.try_get("finished_at").map_err(&column)?)?,
    })
}

impl Store {
    /// Journals an operation as queued, with its bot's state and the key of its request in one transaction. All are
    /// on the disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::Exists`] for an id that is taken.
    pub async fn insert_operation(&self, operation: &NewOperation) -> Result<()> {
        let failed = StoreError::on("journaling an operation");
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        sqlx::query(
            "INSERT INTO operations (id, bot_id, kind, state, request, requested_by, request_id, started_at) \
             VALUES (?1, ?2, ?3, 'queued', ?4, ?5, ?6, ?7)",
        )
        .bind(&operation.id)
        .bind(operation.bot_id.as_str())
        .bind(&operation.kind)
        .bind(operation.request.to_string())
        .bind(&operation.requested_by)
        .bind(&operation.request_id)
        .bind(now().timestamp_micros())
        .execute(&mut *transaction)
        .await
        .map_err(&failed)?;
        if let Some(status) = operation.bot_status {
            sqlx::query("UPDATE bots SET status = ?1, updated_at = ?2 WHERE id = ?3")
                .bind(status.as_str())
                .bind(now().timestamp_micros())
                .bind(operation.bot_id.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(&failed)?;
        }
        if let Some(key) = &operation.idempotency {
            let to = BoundTo::Operation(&operation.id);
            bind(&mut transaction, key, to).await.map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)
    }

    /// The operation of that id.
    pub async fn operation(&self, id: &str) -> Result<Option<OperationRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query.push(COLUMNS).push(" FROM operations WHERE id = ").push_bind(id);
        let row = query
            .build()
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::on(READING))?;
        row.as_ref().map(read).transpose()
    }

    /// The newest operations of a bot, newest first, at most `limit`.
    pub async fn operations(&self, bot: &BotId, limit: u32) -> Result<Vec<OperationRow>> {
        self.operations_before(bot, None, limit).await
    }

    /// The same of those whose `seq` is lower than `before`.
    pub async fn operations_before(&self, bot: &BotId, before: Option<i64>, limit: u32) -> Result<Vec<OperationRow>> {
        self.newest_operations(bot, None, before, limit).await
    }

    /// The same of those of these kinds.
    pub async fn operations_of_kinds(
        &self,
        bot: &BotId,
        kinds: &[&str],
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<OperationRow>> {
        self.newest_operations(bot, Some(kinds), before, limit).await
    }

    async fn newest_operations(
        &self,
        bot: &BotId,
        kinds: Option<&[&str]>,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<OperationRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query
            .push(COLUMNS)
            .push(" FROM operations WHERE bot_id = ")
            .push_bind(bot.as_str());
        query.push(" AND seq < ").push_bind(before.unwrap_or(i64::MAX));
        if let Some(kinds) = kinds {
            query.push(" AND kind IN (");
            let mut listed = query.separated(", ");
            for kind in kinds {
                listed.push_bind(*kind);
            }
            query.push(")");
        }
        query.push(" ORDER BY seq DESC LIMIT ").push_bind(i64::from(limit));
        let rows = query
            .build()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on("listing operations"))?;
        rows.iter().map(read).collect()
    }

    /// Every operation that has not ended, in the order they came.
    pub async fn unfinished_operations(&self) -> Result<Vec<OperationRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query.push(COLUMNS);
        query.push(" FROM operations WHERE state IN ('queued', 'running') ORDER BY seq");
        let rows = query
            .build()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on("listing unfinished operations"))?;
        rows.iter().map(read).collect()
    }

    /// Whether an operation of that bot that came after `seq` has begun a step.
    pub async fn has_begun_after(&self, bot: &BotId, seq: i64) -> Result<bool> {
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM operations WHERE bot_id = ?1 AND seq > ?2 AND step <> '')")
            .bind(bot.as_str())
            .bind(seq)
            .fetch_one(self.readers())
            .await
            .map_err(StoreError::on("looking for later operations"))
    }

    /// Journals the step an operation begins, with what was noted so far.
    pub async fn set_operation_step(&self, id: &str, step: &str, notes: &Value) -> Result<()> {
        sqlx::query(
            "UPDATE operations SET state = 'running', step = ?1, notes = ?2 \
             WHERE id = ?3 AND state IN ('queued', 'running')",
        )
        .bind(step)
        .bind(notes.to_string())
        .bind(id)
        .execute(self.writer())
        .await
        .map_err(StoreError::on("journaling a step"))?;
        Ok(())
    }

    /// Journals an end together with the last event and what it does to the bot, in one transaction. An operation that
    /// has ended stays as it is, and so does its bot.
    pub async fn finish_operation(
        &self,
        id: &str,
        end: &OperationEnd,
        last_event: Option<&EventRow>,
        bot: Option<&BotAfter>,
    ) -> Result<()> {
        let failed = StoreError::on("journaling the end of an operation");
        let (state, outcome, code, message) = match end {
            OperationEnd::Succeeded { outcome } => (OperationState::Succeeded, Some(outcome.to_string()), None, None),
            OperationEnd::Failed { code, message } => (
                OperationState::Failed,
                None,
                Some(code.as_str()),
                Some(message.as_str()),
            ),
            OperationEnd::Cancelled { message } => (
                OperationState::Cancelled,
                None,
                Some("operation_cancelled"),
                Some(message.as_str()),
            ),
        };
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        let done = sqlx::query(
            "UPDATE operations SET state = ?1, outcome = ?2, error_code = ?3, error_message = ?4, finished_at = ?5 \
             WHERE id = ?6 AND state IN ('queued', 'running')",
        )
        .bind(state.as_str())
        .bind(outcome)
        .bind(code)
        .bind(message)
        .bind(now().timestamp_micros())
        .bind(id)
        .execute(&mut *transaction)
        .await
        .map_err(&failed)?;
        if let Some(event) = last_event.filter(|_| done.rows_affected() > 0) {
            sqlx::query("INSERT OR REPLACE INTO operation_events (operation_id, id, data) VALUES (?1, ?2, ?3)")
                .bind(id)
                .bind(event.id.cast_signed())
                .bind(event.data.to_string())
                .execute(&mut *transaction)
                .await
                .map_err(&failed)?;
        }
        if let Some(after) = bot.filter(|_| done.rows_affected() > 0) {
            // Another removal may have been asked for since.
            let set = "UPDATE bots SET status = ?1, updated_at = ?2 WHERE id = ?3 AND NOT EXISTS \
                       (SELECT 1 FROM operations WHERE bot_id = ?3 AND finished_at IS NULL \
                       AND kind = (SELECT kind FROM operations WHERE id = ?4))";
            sqlx::query(set)
                .bind(after.status.as_str())
                .bind(now().timestamp_micros())
                .bind(after.bot_id.as_str())
                .bind(id)
                .execute(&mut *transaction)
                .await
                .map_err(&failed)?;
            keep_fault(&mut *transaction, &after.bot_id, after.check_type, &after.message)
                .await
                .map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)
    }

    /// Keeps an event of an operation.
    pub async fn insert_event(&self, operation_id: &str, event: &EventRow) -> Result<()> {
        sqlx::query("INSERT OR REPLACE INTO operation_events (operation_id, id, data) VALUES (?1, ?2, ?3)")
            .bind(operation_id)
            .bind(event.id.cast_signed())
            .bind(event.data.to_string())
            .execute(self.writer())
            .await
            .map_err(StoreError::on("journaling an event"))?;
        Ok(())
    }

    /// Forgets the events of an operation that is begun anew; returns the number of the first to come, which no
    /// event of it ever had: passing ones were told and not kept, so more numbers are used up than are seen here.
    pub async fn restart_events(&self, operation_id: &str) -> Result<u64> {
        let failed = StoreError::on("restarting events");
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        let first: i64 = sqlx::query_scalar(
            "UPDATE operations SET events_from = ?2 + MAX(events_from, \
             (SELECT COALESCE(MAX(id), 0) + 1 FROM operation_events WHERE operation_id = ?1)) \
             WHERE id = ?1 RETURNING events_from",
        )
        .bind(operation_id)
        .bind(NOT_KEPT)
        .fetch_one(&mut *transaction)
        .await
        .map_err(&failed)?;
        sqlx::query("DELETE FROM operation_events WHERE operation_id = ?1")
            .bind(operation_id)
            .execute(&mut *transaction)
            .await
            .map_err(&failed)?;
        transaction.commit().await.map_err(&failed)?;
        Ok(first.cast_unsigned())
    }

    /// The kept events of an operation, in their order.
    pub async fn events(&self, operation_id: &str) -> Result<Vec<EventRow>> {
        let column = StoreError::on("reading events");
        let rows = sqlx::query("SELECT id, data FROM operation_events WHERE operation_id = ?1 ORDER BY id")
            .bind(operation_id)
            .fetch_all(self.readers())
            .await
            .map_err(&column)?;
        rows.iter()
            .map(|row| {
                let data: String = row.try_get("data").map_err(&column)?;
                Ok(EventRow {
                    id: row.try_get::<i64, _>("id").map_err(&column)?.cast_unsigned(),
                    data: json(&data)?,
                })
            })
            .collect()
    }

    /// Forgets operations that ended before `without_bot_before` and whose bot is gone, and all that ended
    /// before `any_before`. Returns how many.
    pub async fn forget_operations(&self, without_bot_before: DateTime<Utc>, any_before: DateTime<Utc>) -> Result<u64> {
        let done = sqlx::query(
            "DELETE FROM operations WHERE finished_at IS NOT NULL AND (finished_at < ?1 \
             OR (finished_at < ?2 AND bot_id NOT IN (SELECT id FROM bots)))",
        )
        .bind(any_before.timestamp_micros())
        .bind(without_bot_before.timestamp_micros())
        .execute(self.writer())
        .await
        .map_err(StoreError::on("forgetting old operations"))?;
        Ok(done.rows_affected())
    }
}
