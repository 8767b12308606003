//! How registries are reached: what the configuration says about each host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::PullCredentials;

/// All that is configured about registries.
#[derive(Debug, Clone, Default)]
pub struct RegistrySettings {
    /// By `host` or `host:port`, as it stands in image references (`docker.io` for Docker Hub).
    pub hosts: BTreeMap<String, RegistryHost>,
    /// A docker-style `config.json` with `auths`; read anew at every pull. A missing file is fine.
    pub docker_config: Option<PathBuf>,
}

/// What is configured about one registry.
#[derive(Debug, Clone, Default)]
pub struct RegistryHost {
    /// Speak HTTP without TLS.
    pub plain_http: bool,
    /// Certificates (PEM) of authorities to trust for this host beside those that the host's own store has.
    pub ca_file: Option<PathBuf>,
    /// Wins over `config.json`.
    pub credentials: Option<PullCredentials>,
    /// Hosts to try before the registry itself, in order.
    pub mirrors: Vec<String>,
}

impl RegistrySettings {
    /// The `config.json` that docker's own client would read: `$DOCKER_CONFIG/config.json`, else
    /// `$HOME/.docker/config.json`.
    pub fn default_docker_config() -> Option<PathBuf> {
        let directory = std::env::var_os("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")))?;
        Some(directory.join("config.json"))
    }
}
