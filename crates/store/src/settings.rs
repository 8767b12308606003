//! Settings that the server itself makes and that belong to this data root.

use crate::connection::Store;
use crate::error::{Result, StoreError};

impl Store {
    /// A setting, when it was ever made.
    pub async fn setting(&self, name: &str) -> Result<Option<String>> {
        sqlx::query_scalar("SELECT value FROM data_root_settings WHERE name = ?1")
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
