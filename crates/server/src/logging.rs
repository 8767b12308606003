//! Log lines to standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{LogConfig, LogFormat};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `log.level` is neither a level nor a filter.
    #[error("log.level")]
    Level(#[from] ParseError),
    /// Something in this process logs already.
    #[error("starting the log: {0}")]
    Taken(Box<dyn std::error::Error + Send + Sync>),
}

/// Sends log lines to standard error in the configured form; once per process.
pub fn start_logging(config: &LogConfig) -> Result<(), LoggingError> {
    let filter = EnvFilter::try_new(&config.level)?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(LoggingError::Taken)
}
