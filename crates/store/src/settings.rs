//! Settings that the server itself makes and that belong to this data root.

use std::path::Path;

use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use crate::connection::Store;
use crate::error::{Result, StoreError};

const SELECT: &str = "SELECT value FROM data_root_settings WHERE name = ?1";

impl Store {
    /// A setting of a database that may belong to a running server: nothing of it is changed, and it is not made.
    /// `None` also when there is no such database.
    ///
    /// # Errors
    /// [`StoreError::Failed`] for one that this process may not read, or that was never migrated to settings.
    pub async fn setting_in(file: &Path, name: &str) -> Result<Option<String>> {
        let failed = StoreError::on("reading a setting");
        match tokio::fs::metadata(file).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(sqlx::Error::Io(error))),
        }
        let options = SqliteConnectOptions::new().filename(file).read_only(true);
        let mut connection = options.connect().await.map_err(&failed)?;
        sqlx::query_scalar(SELECT)
            .bind(name)
            .fetch_optional(&mut connection)
            .await
            .map_err(failed)
    }

    /// A setting, when it was ever made.
    pub async fn setting(&self, name: &str) -> Result<Option<String>> {
        sqlx::query_scalar(SELECT)
            .bind(name)
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::on("reading a setting"))
    }

    /// Makes or changes a setting.
    pub async fn put_setting(&self, name: &str, value: &str) -> Result<()> {
        sqlx::query(
            "INSERT INTO data_root_settings (name, value) VALUES (?1, ?2) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(name)
        .bind(value)
        .execute(self.writer())
        .await
        .map_err(StoreError::on("writing a setting"))?;
        Ok(())
    }
}
