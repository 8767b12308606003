//! Why the store could not answer.

/// The result of every call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Display says what was tried; the cause is the source and may hold SQL, so it is for the log alone.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database does not answer, is full or is damaged.
    #[error("{operation} failed")]
    Failed {
        operation: &'static str,
        #[source]
        source: sqlx::Error,
    },
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

impl StoreError {
    /// Names what was tried; a broken uniqueness becomes [`StoreError::Exists`].
    pub(crate) fn on(operation: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
        move |source| match &source {
            sqlx::Error::Database(cause) if cause.is_unique_violation() => StoreError::Exists { operation },
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
