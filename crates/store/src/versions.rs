//! The tables of snapshots and their versions.

use chrono::{DateTime, Utc};
use serde_json::json;
use skep_names::BotId;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, Transaction};

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::lifecycle;
use crate::time::{from_micros, now};

/// One version: a snapshot and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    pub container_id: String,
    /// 1, 2, 3 …; never used again.
    pub version: u64,
    pub runtime_snapshot_name: String,
    /// Empty: none.
    pub display_name: String,
    pub snapshotter: String,
    /// `manual`, `pre_exec`, `rollback`, or the caller's own.
    pub source: String,
    pub created_at: DateTime<Utc>,
}

/// A version to be.
#[derive(Debug, Clone)]
pub struct NewVersion {
    pub bot_id: BotId,
    pub container_id: String,
    pub runtime_snapshot_name: String,
    pub display_name: String,
    pub snapshotter: String,
    pub source: String,
}

const READING: &str = "reading a version";
const SELECT: &str = "SELECT v.container_id, v.version, s.runtime_snapshot_name, s.display_name, s.snapshotter, \
                      s.source, v.created_at FROM container_versions v JOIN snapshots s ON s.seq = v.snapshot_seq \
                      WHERE v.container_id = ";

fn select(container_id: &str) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(SELECT);
    query.push_bind(container_id.to_owned());
    query
}

fn read(row: &SqliteRow) -> Result<VersionRow> {
    let column = StoreError::on(READING);
    let version: i64 = row.try_get("version").map_err(&column)?;
    Ok(VersionRow {
        container_id: row.try_get("container_id").map_err(&column)?,
        version: version.cast_unsigned(),
        runtime_snapshot_name: row.try_get("runtime_snapshot_name").map_err(&column)?,
        display_name: row.try_get("display_name").map_err(&column)?,
        snapshotter: row.try_get("snapshotter").map_err(&column)?,
        source: row.try_get("source").map_err(&column)?,
        created_at: from_micros(READING, row.try_get("created_at").map_err(&column)?)?,
    })
}

impl Store {
    /// Keeps a snapshot, gives it the container's next number and writes both down in its history, in one
    /// transaction. One that is kept already is returned as it is.
    ///
    /// # Errors
    /// [`StoreError::Failed`] also when the bot or its container is gone.
    pub async fn record_version(&self, new: &NewVersion) -> Result<VersionRow> {
        let failed = StoreError::on("keeping a version");
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        let mut query = select(&new.container_id);
        query
            .push(" AND s.runtime_snapshot_name = ")
            .push_bind(&new.runtime_snapshot_name);
        let kept = query.build().fetch_optional(&mut *transaction).await.map_err(&failed)?;
        if let Some(kept) = kept {
            return read(&kept);
        }
        let number = next_number(&mut transaction, &new.container_id).await?;
        let at = now();
        let snapshot = sqlx::query(
            "INSERT INTO snapshots (bot_id, container_id, runtime_snapshot_name, display_name, snapshotter, source, \
             created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(new.bot_id.as_str())
        .bind(&new.container_id)
        .bind(&new.runtime_snapshot_name)
        .bind(&new.display_name)
        .bind(&new.snapshotter)
        .bind(&new.source)
        .bind(at.timestamp_micros())
        .execute(&mut *transaction)
        .await
        .map_err(&failed)?;
        sqlx::query(
            "INSERT INTO container_versions (container_id, version, snapshot_seq, created_at) VALUES (?1, ?2, ?3, ?4)",
        )
        .bind(&new.container_id)
        .bind(number)
        .bind(snapshot.last_insert_rowid())
        .bind(at.timestamp_micros())
        .execute(&mut *transaction)
        .await
        .map_err(&failed)?;
        let payload = json!({"version": number, "source": new.source, "snapshot": new.runtime_snapshot_name});
        for event in ["snapshot_create", "version_create"] {
            lifecycle::insert(&mut transaction, (&new.bot_id, &new.container_id), event, &payload).await?;
        }
        transaction.commit().await.map_err(&failed)?;
        Ok(VersionRow {
            container_id: new.container_id.clone(),
            version: number.cast_unsigned(),
            runtime_snapshot_name: new.runtime_snapshot_name.clone(),
            display_name: new.display_name.clone(),
            snapshotter: new.snapshotter.clone(),
            source: new.source.clone(),
            created_at: at,
        })
    }

    /// All versions of a container, the lowest number first.
    pub async fn versions(&self, container_id: &str) -> Result<Vec<VersionRow>> {
        let mut query = select(container_id);
        query.push(" ORDER BY v.version");
        let rows = query
            .build()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on("listing versions"))?;
        rows.iter().map(read).collect()
    }

    /// The version of that number.
    pub async fn version(&self, container_id: &str, version: u64) -> Result<Option<VersionRow>> {
        let Ok(version) = i64::try_from(version) else {
            return Ok(None);
        };
        let mut query = select(container_id);
        query.push(" AND v.version = ").push_bind(version);
        let row = query
            .build()
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::on(READING))?;
        row.as_ref().map(read).transpose()
    }

    /// Gives a version another display name; `None` when there is no such version.
    pub async fn rename_version(&self, container_id: &str, version: u64, name: &str) -> Result<Option<VersionRow>> {
        let Ok(number) = i64::try_from(version) else {
            return Ok(None);
        };
        sqlx::query(
            "UPDATE snapshots SET display_name = ?1 WHERE seq = \
             (SELECT snapshot_seq FROM container_versions WHERE container_id = ?2 AND version = ?3)",
        )
        .bind(name)
        .bind(container_id)
        .bind(number)
        .execute(self.writer())
        .await
        .map_err(StoreError::on("renaming a version"))?;
        self.version(container_id, version).await
    }

    /// Forgets a version and its snapshot, and writes it down in the history; a missing one is a success.
    pub async fn delete_version(&self, bot: &BotId, container_id: &str, version: u64) -> Result<()> {
        let Ok(number) = i64::try_from(version) else {
            return Ok(());
        };
        let failed = StoreError::on("deleting a version");
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        let gone = sqlx::query(
            "DELETE FROM snapshots WHERE seq = \
             (SELECT snapshot_seq FROM container_versions WHERE container_id = ?1 AND version = ?2)",
        )
        .bind(container_id)
        .bind(number)
        .execute(&mut *transaction)
        .await
        .map_err(&failed)?;
        if gone.rows_affected() > 0 {
            let payload = json!({"version": number});
            lifecycle::insert(&mut transaction, (bot, container_id), "version_delete", &payload).await?;
        }
        transaction.commit().await.map_err(&failed)
    }

    /// Says of snapshots whose layers were made anew under what names they are found now, all in one transaction.
    pub async fn rename_snapshots(&self, container_id: &str, names: &[(String, String)]) -> Result<()> {
        let failed = StoreError::on("renaming snapshots");
        let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        for (old, new) in names {
            sqlx::query(
                "UPDATE snapshots SET runtime_snapshot_name = ?1 WHERE container_id = ?2 AND runtime_snapshot_name = ?3",
            )
            .bind(new)
            .bind(container_id)
            .bind(old)
            .execute(&mut *transaction)
            .await
            .map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)
    }
}

/// Counts up on the container's row; past every number that there is, should the row have been made anew.
async fn next_number(transaction: &mut Transaction<'_, Sqlite>, container_id: &str) -> Result<i64> {
    sqlx::query_scalar(
        "UPDATE containers SET last_version = 1 + MAX(last_version, \
         (SELECT COALESCE(MAX(version), 0) FROM container_versions WHERE container_id = ?1)) \
         WHERE container_id = ?1 RETURNING last_version",
    )
    .bind(container_id)
    .fetch_one(&mut **transaction)
    .await
    .map_err(StoreError::on("numbering a version"))
}
