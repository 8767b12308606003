//! Opening the database, and its two ways in: one writer, several readers.

use std::path::Path;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::error::{Result, StoreError};
use crate::migrations;

/// Readers beside the writer. WAL lets them go on while something is written.
const READERS: u32 = 4;
/// How long a connection waits for another process that holds the database (a backup tool, say).
const BUSY: Duration = Duration::from_secs(5);
/// How long a call waits for a connection of the pool.
const ACQUIRE: Duration = Duration::from_secs(10);

/// The database of one data root; clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Store {
    /// Opens the database file, makes it when it is not there, and runs the migrations it lacks.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for a database of a newer release, which is left as it is.
    pub async fn open(file: &Path) -> Result<Self> {
        const OPERATION: &str = "opening the database";
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE)
            .connect_with(options.clone().create_if_missing(true))
            .await
            .map_err(StoreError::on(OPERATION))?;
        migrations::run(&writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE)
            .connect_with(options.read_only(true))
            .await
            .map_err(StoreError::on(OPERATION))?;
        Ok(Self { writer, readers })
    }

    /// Closes every connection; calls after it fail.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// The database answers a read and can take the writer's lock.
    ///
    /// # Errors
    /// [`StoreError::Failed`] with what it says.
    pub async fn check(&self) -> Result<()> {
        const OPERATION: &str = "checking the database";
        sqlx::query("SELECT 1")
            .execute(&self.readers)
            .await
            .map_err(StoreError::on(OPERATION))?;
        let transaction = self
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(StoreError::on(OPERATION))?;
        transaction.rollback().await.map_err(StoreError::on(OPERATION))
    }

    pub(crate) fn writer(&self) -> &SqlitePool {
        &self.writer
    }

    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.readers
    }
}
