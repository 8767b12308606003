//! Why the store could not answer.

/// The result of every call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Display says what was tried; the cause is the source and may hold SQL, so it is for the log alone.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database does not answer, or is damaged.
    #[error("{operation} failed")]
    Failed {
        operation: &'static str,
        #[source]
        source: sqlx::Error,
    },
    /// There is no space for what would be written.
    #[error("{operation} failed: no space is left for the database")]
    Full {
        operation: &'static str,
        #[source]
        source: sqlx::Error,
    },
    /// What a row belongs to is not there, or not any more.
    #[error("{operation}: what it belongs to is gone")]
    Orphan { operation: &'static str },
    /// A row of that name is there already.
    #[error("{operation}: it exists already")]
    Exists { operation: &'static str },
    /// The database was written by a newer release.
    #[error("the database has migration {version}, which this binary does not know: it was written by a newer release")]
    Newer { version: i64 },
    /// The migrations did not run.
    #[error("migrating the database failed")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A column holds what nobody of ours wrote.
    #[error("{operation}: the database holds {what}, which cannot be read")]
    Damaged { operation: &'static str, what: String },
}

/// SQLite's code for a database, or a disk under it, that cannot grow.
const SQLITE_FULL: &str = "13";

impl StoreError {
    /// Names what was tried; a broken uniqueness becomes [`StoreError::Exists`], a row
    /// whose bot or user is gone [`StoreError::Orphan`], a full disk [`StoreError::Full`].
    pub(crate) fn on(operation: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
        move |source| match &source {
            sqlx::Error::Database(cause) if cause.is_unique_violation() => StoreError::Exists { operation },
            sqlx::Error::Database(cause) if cause.is_foreign_key_violation() => StoreError::Orphan { operation },
            sqlx::Error::Database(cause) if cause.code().is_some_and(|code| code == SQLITE_FULL) => {
                StoreError::Full { operation, source }
            }
            _ => StoreError::Failed { operation, source },
        }
    }

    pub(crate) fn damaged(operation: &'static str, what: impl Into<String>) -> StoreError {
        StoreError::Damaged {
            operation,
            what: what.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[tokio::test]
    async fn a_database_that_cannot_grow_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("skep.db")).await.unwrap();
        // Not under what it has already.
        let limited = sqlx::query("PRAGMA max_page_count = 1").execute(store.writer());
        limited.await.unwrap();
        let long = "x".repeat(1 << 20);
        let refused = store.put_setting("a name", &long).await.unwrap_err();
        assert!(matches!(refused, StoreError::Full { .. }), "{refused:?}");
    }
}
