//! Structured logs on standard error.

use std::io::IsTerminal;

use skep_server::config::{LogConfig, LogFormat};
use tracing_subscriber::EnvFilter;

use crate::failure::{Failure, Result};

/// Logs as configured from now on; `level` wins over the configured one.
pub(super) fn start(config: &LogConfig, level: Option<&str>) -> Result<()> {
    let level = level.unwrap_or(&config.level);
    let filter = EnvFilter::try_new(level)
        .map_err(|error| Failure::Usage(format!("log.level {level:?} is no level: {error}")))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    started.map_err(|error| Failure::Failed(format!("cannot log: {error}")))
}
