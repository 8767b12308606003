//! The server's configuration: every key of the documented sections, from defaults, a TOML file and
//! `SKEP_<SECTION>__<KEY>`, validated before anything is started.

mod bounds;
mod default_file;
mod keys;
mod load;
mod reference;
mod sections;
mod settled;
#[cfg(test)]
mod tests;
mod value;

use std::path::PathBuf;

pub use default_file::default_file;
pub use keys::{KEYS, Key, Kind, REGISTRY_KEYS};
pub use load::{Origin, Setting, Settings};
pub use sections::{
    AdminConfig, AuthConfig, Backend, Config, ContainerdConfig, ExecConfig, ImportConfig, IsolationConfig,
    LimitsConfig, LogConfig, LogFormat, NetworkConfig, NetworkMode, PullPolicy, RegistryConfig, ServerConfig,
    SnapshotsConfig, TerminalConfig, UserNamespaceMode, WorkspaceConfig,
};
pub use value::Value;

/// Why a configuration cannot be used. Each says which key, and where it stands.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading the configuration {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML. The line itself is not shown: a secret may stand on it.
    #[error("{}, line {line}: not valid TOML: {message}", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        message: String,
    },
    /// Nobody knows that key.
    #[error("unknown key {key} ({origin}); did you mean {nearest}?")]
    UnknownKey {
        key: String,
        origin: String,
        nearest: String,
    },
    /// The value does not fit.
    #[error("{key} ({origin}) must be {expected}")]
    Invalid {
        key: String,
        origin: String,
        expected: String,
    },
    /// `[registry]` has something else than hosts in it.
    #[error("registry.{host} must be a table: [registry.\"{host}\"]")]
    RegistryForm { host: String },
    /// A section of the reference's old kind.
    #[error("the [mcp] section of {} is of the old kind that describes workspaces: name it [workspace] (mcp.image is workspace.default_image)", path.display())]
    OldMcp { path: PathBuf },
    /// The reference's file is not as it should be.
    #[error("{reason}")]
    Reference { reason: String },
    /// A key says what this version cannot do.
    #[error("{key} = {value:?} is not supported by this version: {reason}")]
    NotInThisVersion {
        key: &'static str,
        value: String,
        reason: &'static str,
    },
}

impl ConfigError {
    fn unknown(key: &str, origin: &Origin) -> Self {
        Self::UnknownKey {
            key: key.to_owned(),
            origin: origin.to_string(),
            nearest: keys::nearest(key),
        }
    }
}
