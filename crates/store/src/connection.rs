//! Opening the database, and its two ways in: one writer, several readers.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
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

/// Mode of the database and its side files.
const PRIVATE: u32 = 0o600;

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
        keep_private(file).map_err(|error| StoreError::on(OPERATION)(sqlx::Error::Io(error)))?;
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

/// Makes the database its owner's alone, an older release's too: it holds hashes of passwords and keys, and the
/// environments of workspaces. SQLite gives its side files the mode of the database; ones that a crash left are
/// changed here.
///
/// A file that exists is never opened: closing it would drop the locks that this process has on it.
fn keep_private(file: &Path) -> io::Result<()> {
    match File::options().write(true).create_new(true).mode(PRIVATE).open(file) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    for side in ["", "-wal", "-shm"] {
        let mut name = file.as_os_str().to_owned();
        name.push(side);
        match std::fs::set_permissions(Path::new(&name), Permissions::from_mode(PRIVATE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
