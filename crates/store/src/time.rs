//! Times as the database keeps them: microseconds since 1970 in UTC.

use chrono::{DateTime, Utc};

use crate::error::{Result, StoreError};

/// Now, cut to what the database keeps, so that a row read back equals the row written.
pub(crate) fn now() -> DateTime<Utc> {
    let micros = Utc::now().timestamp_micros();
    DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::UNIX_EPOCH)
}

pub(crate) fn from_micros(operation: &'static str, micros: i64) -> Result<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros).ok_or_else(|| StoreError::damaged(operation, format!("time {micros}")))
}

pub(crate) fn from_optional_micros(operation: &'static str, micros: Option<i64>) -> Result<Option<DateTime<Utc>>> {
    micros.map(|micros| from_micros(operation, micros)).transpose()
}
