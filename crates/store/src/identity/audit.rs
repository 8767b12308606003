//! The audit trail: appended to, read, and never changed.

use chrono::{DateTime, Utc};
use sqlx::{QueryBuilder, Row, Sqlite};

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::time::from_micros;

/// A line to be.
#[derive(Debug, Clone)]
pub struct NewAudit {
    pub at: DateTime<Utc>,
    /// Empty when nobody was signed in.
    pub user_id: String,
    pub action: String,
    pub bot_id: Option<String>,
    /// The caller's address.
    pub address: String,
    pub outcome: String,
    pub request_id: String,
}

/// One line.
#[derive(Debug, Clone)]
pub struct AuditRow {
    pub seq: i64,
    pub line: NewAudit,
}

/// Which lines are shown.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    pub bot_id: Option<String>,
    pub user_id: Option<String>,
}

/// One page, newest first.
#[derive(Debug, Clone)]
pub struct AuditPage {
    pub rows: Vec<AuditRow>,
    /// `before` of the next page; `None` at the end.
    pub next_before: Option<i64>,
}

impl Store {
    /// Appends lines, all of them or none.
    pub async fn append_audit(&self, lines: &[NewAudit]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO audit (at, user_id, action, bot_id, address, outcome, request_id) ",
        );
        query.push_values(lines, |mut row, line| {
            row.push_bind(line.at.timestamp_micros())
                .push_bind(&line.user_id)
                .push_bind(&line.action)
                .push_bind(&line.bot_id)
                .push_bind(&line.address)
                .push_bind(&line.outcome)
                .push_bind(&line.request_id);
        });
        query
            .build()
            .execute(self.writer())
            .await
            .map_err(StoreError::on("writing the audit trail"))?;
        Ok(())
    }

    /// One page, newest first: at most `limit`, only lines older than `before`.
    pub async fn audit(&self, filter: &AuditFilter, before: Option<i64>, limit: u32) -> Result<AuditPage> {
        const OPERATION: &str = "reading the audit trail";
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM audit WHERE seq < ");
        query.push_bind(before.unwrap_or(i64::MAX));
        if let Some(bot) = &filter.bot_id {
            query.push(" AND bot_id = ").push_bind(bot);
        }
        if let Some(user) = &filter.user_id {
            query.push(" AND user_id = ").push_bind(user);
        }
        query.push(" ORDER BY seq DESC LIMIT ").push_bind(i64::from(limit) + 1);
        let rows = query
            .build()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on(OPERATION))?;
        let mut rows = rows.iter().map(read).collect::<Result<Vec<_>>>()?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_before = rows.last().filter(|_| more).map(|row| row.seq);
        Ok(AuditPage { rows, next_before })
    }
}

fn read(row: &sqlx::sqlite::SqliteRow) -> Result<AuditRow> {
    const OPERATION: &str = "reading the audit trail";
    let column = StoreError::on(OPERATION);
    Ok(AuditRow {
        seq: row.try_get("seq").map_err(&column)?,
        line: NewAudit {
            at: from_micros(OPERATION, row.try_get("at").map_err(&column)?)?,
            user_id: row.try_get("user_id").map_err(&column)?,
            action: row.try_get("action").map_err(&column)?,
            bot_id: row.try_get("bot_id").map_err(&column)?,
            address: row.try_get("address").map_err(&column)?,
            outcome: row.try_get("outcome").map_err(&column)?,
            request_id: row.try_get("request_id").map_err(&column)?,
        },
    })
}
