//! The embedded migrations, in order. A file that was released is never edited: a new one follows it.

use std::borrow::Cow;

use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator};
use sqlx::{SqlSafeStr, SqlitePool};

use crate::connection::Store;
use crate::error::{Result, StoreError};

/// Number, name, text.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (
        1,
        "bots and workspaces",
        include_str!("../migrations/0001_bots_and_workspaces.sql"),
    ),
    (2, "identity", include_str!("../migrations/0002_identity.sql")),
    (
        3,
        "bots of idempotent requests",
        include_str!("../migrations/0003_idempotent_bots.sql"),
    ),
    (4, "backups", include_str!("../migrations/0004_backups.sql")),
    (5, "versions", include_str!("../migrations/0005_versions.sql")),
    (
        6,
        "idempotency keys by age",
        include_str!("../migrations/0006_idempotency_by_age.sql"),
    ),
    (
        7,
        "passwords end tokens",
        include_str!("../migrations/0007_passwords_end_tokens.sql"),
    ),
];

/// One migration and whether this database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationState {
    /// Its number; migrations run in this order.
    pub version: i64,
    /// What it brings.
    pub description: String,
    /// This database has it.
    pub applied: bool,
}

fn migrator() -> Migrator {
    Migrator::with_migrations(
        MIGRATIONS
            .iter()
            .map(|(version, name, text)| {
                Migration::new(
                    *version,
                    Cow::Borrowed(*name),
                    MigrationType::Simple,
                    text.into_sql_str(),
                    false,
                )
            })
            .collect(),
    )
}

/// Brings the database up to this binary. Each migration is one transaction, so a crash leaves whole ones;
/// that nobody else does it at the same time is the data root's lock.
///
/// # Errors
/// [`StoreError::Newer`] when the database knows a migration that this binary does not.
pub(crate) async fn run(writer: &SqlitePool) -> Result<()> {
    migrator().run(writer).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) | MigrateError::VersionTooNew(version, _) => {
            StoreError::Newer { version }
        }
        other => StoreError::Migrate(other),
    })
}

impl Store {
    /// Every migration of this binary, and whether the database has it.
    pub async fn migrations(&self) -> Result<Vec<MigrationState>> {
        const OPERATION: &str = "reading the applied migrations";
        let mut connection = self.readers().acquire().await.map_err(StoreError::on(OPERATION))?;
        let applied = connection
            .list_applied_migrations("_sqlx_migrations")
            .await
            .map_err(StoreError::Migrate)?;
        Ok(MIGRATIONS
            .iter()
            .map(|(version, name, _)| MigrationState {
                version: *version,
                description: (*name).to_owned(),
                applied: applied.iter().any(|one| one.version == *version),
            })
            .collect())
    }
}
