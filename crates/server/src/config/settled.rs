//! Makes the sections of the configuration of settings, and refuses what cannot be.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use skep_runtime::network::AllowEntry;

use crate::config::bounds;
use crate::config::load::{RegistrySettings, Settings};
use crate::config::sections::{
    AdminConfig, AuthConfig, Backend, Config, ContainerdConfig, ExecConfig, ImportConfig, IsolationConfig,
    LimitsConfig, LogConfig, LogFormat, NetworkConfig, NetworkMode, PullPolicy, RegistryConfig, ServerConfig,
    SnapshotsConfig, TerminalConfig, UserNamespaceMode, WorkspaceConfig,
};
use crate::config::value::Value;
use crate::config::{ConfigError, Kind, Origin};

impl Config {
    /// Makes types of settings.
    ///
    /// # Errors
    /// The first value that cannot be, or that this version cannot do.
    pub fn settle(settings: &Settings) -> Result<Self, ConfigError> {
        let reader = Reader(settings);
        refuse_what_comes_later(&reader)?;
        bounds::refuse_what_cannot_work(&reader)?;
        Ok(Self {
            log: log(&reader),
            server: server(&reader)?,
            admin: AdminConfig {
                username: reader.text("admin", "username"),
                password: reader.optional("admin", "password"),
                email: reader.optional("admin", "email"),
            },
            auth: AuthConfig {
                jwt_secret: reader.optional("auth", "jwt_secret"),
                jwt_expires_in: reader.duration("auth", "jwt_expires_in"),
                query_token: reader.flag("auth", "query_token"),
            },
            workspace: workspace(&reader)?,
            containerd: containerd(&reader),
            registries: settings
                .registries
                .iter()
                .map(|(host, keys)| (host.clone(), registry(keys)))
                .collect(),
            limits: limits(&reader),
            snapshots: SnapshotsConfig {
                max: reader.number("snapshots", "max"),
                keep_automatic: reader.number("snapshots", "keep_automatic"),
                keep_rollback: reader.number("snapshots", "keep_rollback"),
                merge_over: reader.number("snapshots", "merge_over"),
                keep_backups: reader.number("backups", "keep"),
            },
            import: ImportConfig {
                freeze_max: reader.duration("export", "freeze_max"),
                max_bytes: reader.number("import", "max_bytes"),
                max_entries: reader.number("import", "max_entries"),
                max_ratio: reader.number("import", "max_ratio"),
            },
            images_allow: reader.list("images", "allow"),
            gpu_allow: reader.list("gpu", "allow"),
            gpu_spec_dirs: reader.list("gpu", "spec_dirs").into_iter().map(PathBuf::from).collect(),
            isolation: isolation(&reader),
            network: network(&reader)?,
            exec: ExecConfig {
                log_bytes: reader.number("exec", "log_bytes"),
                keep: reader.duration("exec", "keep"),
                max_timeout: reader.duration("exec", "max_timeout"),
            },
            terminal: TerminalConfig {
                idle_timeout: reader.duration("terminal", "idle_timeout"),
                session_keep: reader.duration("terminal", "session_keep"),
            },
            timezone: settings.timezone.clone(),
        })
    }

    /// Where the database file lies.
    pub fn database_file(&self) -> PathBuf {
        self.workspace.data_root.join("skep.db")
    }
}

/// What may be shown of a URL: one with `@` holds a user and a password.
fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) if rest.contains('@') => format!("{scheme}://…"),
        _ => url.to_owned(),
    }
}

/// A key that is set and cannot be honoured is an error: never silently less than was asked for.
fn refuse_what_comes_later(reader: &Reader<'_>) -> Result<(), ConfigError> {
    let later = |key, value: String, reason| Err(ConfigError::NotInThisVersion { key, value, reason });
    let url = reader.text("database", "url");
    if url.starts_with("postgres") {
        return later(
            "database.url",
            "postgres://…".to_owned(),
            "it keeps its data in SQLite only ([postgres] of the reference's file means the same; SKEP_DATABASE__URL= \
             with nothing behind it sets that aside)",
        );
    }
    if !url.is_empty() && url != "sqlite://<data_root>/skep.db" {
        let shown = without_credentials(&url);
        return later("database.url", shown, "the database is <data_root>/skep.db");
    }
    if !reader.text("server", "metrics_addr").is_empty() {
        return later(
            "server.metrics_addr",
            reader.text("server", "metrics_addr"),
            "it has no metrics listener",
        );
    }
    for (name, key) in [
        ("allow_hosts", "mcp.allow_hosts"),
        ("idle_timeout", "mcp.idle_timeout"),
        ("max_sessions", "mcp.max_sessions"),
    ] {
        if !reader.is_default("mcp", name) {
            let value = reader.value("mcp", name).map(|value| value.shown(Kind::Text));
            return later(key, value.unwrap_or_default(), "it has no tools (MCP)");
        }
    }
    for key in ["tls_cert", "tls_key"] {
        if !reader.text("server", key).is_empty() {
            return later(
                "server.tls_cert, server.tls_key",
                reader.text("server", key),
                "put a proxy with TLS before it",
            );
        }
    }
    Ok(())
}

/// Reads settled values; the kinds were checked when they were read, so another kind cannot be.
pub(super) struct Reader<'a>(pub(super) &'a Settings);

impl Reader<'_> {
    fn value(&self, section: &'static str, name: &'static str) -> Option<&Value> {
        self.0.get(section, name).map(|setting| &setting.value)
    }

    fn is_default(&self, section: &'static str, name: &'static str) -> bool {
        self.0
            .get(section, name)
            .is_none_or(|setting| setting.origin == Origin::Default)
    }

    fn origin(&self, section: &'static str, name: &'static str) -> String {
        let origin = self.0.get(section, name).map(|setting| &setting.origin);
        origin.unwrap_or(&Origin::Default).to_string()
    }

    pub(super) fn text(&self, section: &'static str, name: &'static str) -> String {
        match self.value(section, name) {
            Some(Value::Text(text)) => text.clone(),
            _ => String::new(),
        }
    }

    fn optional(&self, section: &'static str, name: &'static str) -> Option<String> {
        Some(self.text(section, name)).filter(|text| !text.is_empty())
    }

    fn flag(&self, section: &'static str, name: &'static str) -> bool {
        matches!(self.value(section, name), Some(Value::Flag(true)))
    }

    pub(super) fn number(&self, section: &'static str, name: &'static str) -> u64 {
        match self.value(section, name) {
            Some(Value::Number(number)) => *number,
            _ => 0,
        }
    }

    pub(super) fn duration(&self, section: &'static str, name: &'static str) -> Duration {
        match self.value(section, name) {
            Some(Value::Duration(duration)) => *duration,
            _ => Duration::ZERO,
        }
    }

    fn list(&self, section: &'static str, name: &'static str) -> Vec<String> {
        match self.value(section, name) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        }
    }

    pub(super) fn refuse(&self, section: &'static str, name: &'static str, expected: impl Into<String>) -> ConfigError {
        ConfigError::Invalid {
            key: format!("{section}.{name}"),
            origin: self.origin(section, name),
            expected: expected.into(),
        }
    }
}

fn log(reader: &Reader<'_>) -> LogConfig {
    LogConfig {
        level: reader.text("log", "level"),
        format: if reader.text("log", "format") == "json" {
            LogFormat::Json
        } else {
            LogFormat::Text
        },
    }
}

fn server(reader: &Reader<'_>) -> Result<ServerConfig, ConfigError> {
    let addr = reader.text("server", "addr");
    // ":8080" is how the reference's file says "on every address".
    let addr = if addr.starts_with(':') {
        format!("0.0.0.0{addr}")
    } else {
        addr
    };
    let addr = addr.replace("localhost:", "127.0.0.1:");
    let trusted_proxies = reader
        .list("server", "trusted_proxies")
        .iter()
        .map(|text| {
            text.parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        })
        .collect::<Result<_, _>>()
        .map_err(|_| reader.refuse("server", "trusted_proxies", "a list of addresses or networks"))?;
    Ok(ServerConfig {
        addr: addr
            .parse()
            .map_err(|_| reader.refuse("server", "addr", "an address with a port, such as 127.0.0.1:8080"))?,
        allowed_origins: reader.list("server", "allowed_origins"),
        trusted_proxies,
    })
}

fn workspace(reader: &Reader<'_>) -> Result<WorkspaceConfig, ConfigError> {
    let backend = match reader.text("workspace", "backend").as_str() {
        "" | "containerd" => Backend::Containerd,
        other => {
            return Err(ConfigError::NotInThisVersion {
                key: "workspace.backend",
                value: other.to_owned(),
                reason: "the backend is containerd",
            });
        }
    };
    let image = match reader.optional("workspace", "registry") {
        Some(registry) => format!(
            "{}/{}",
            registry.trim_end_matches('/'),
            reader.text("workspace", "default_image")
        ),
        None => reader.text("workspace", "default_image"),
    };
    let data_root = std::path::absolute(reader.text("workspace", "data_root"))
        .map_err(|_| reader.refuse("workspace", "data_root", "a directory"))?;
    let path = |name| reader.optional("workspace", name).map(PathBuf::from);
    Ok(WorkspaceConfig {
        backend,
        default_image: image
            .parse()
            .map_err(|_| reader.refuse("workspace", "default_image", "an image reference"))?,
        default_image_is_ours: reader.is_default("workspace", "default_image")
            && reader.is_default("workspace", "registry"),
        snapshotter: reader.text("workspace", "snapshotter"),
        data_root,
        cni_bin_dir: path("cni_bin_dir"),
        cni_conf_dir: path("cni_conf_dir"),
        runtime_dir: path("runtime_dir"),
        image_pull_policy: match reader.text("workspace", "image_pull_policy").as_str() {
            "always" => PullPolicy::Always,
            "never" => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        },
        reconcile_interval: reader.duration("workspace", "reconcile_interval"),
        stop_grace: reader.duration("workspace", "stop_grace"),
    })
}

fn containerd(reader: &Reader<'_>) -> ContainerdConfig {
    ContainerdConfig {
        socket_path: PathBuf::from(reader.text("containerd", "socket_path")),
        socket_is_named: !reader.is_default("containerd", "socket_path"),
        namespace: reader.text("containerd", "namespace"),
        runtime: reader.text("containerd", "runtime"),
        runtime_binary: reader.optional("containerd", "runtime_binary").map(PathBuf::from),
    }
}

fn limits(reader: &Reader<'_>) -> LimitsConfig {
    LimitsConfig {
        cpu_millicores: reader.number("limits", "cpu_millicores"),
        memory_bytes: reader.number("limits", "memory_bytes"),
        pids: reader.number("limits", "pids"),
        storage_bytes: reader.number("limits", "storage_bytes"),
        reserve_bytes: reader.number("limits", "reserve_bytes"),
    }
}

fn isolation(reader: &Reader<'_>) -> IsolationConfig {
    IsolationConfig {
        user_namespace: match reader.text("isolation", "user_namespace").as_str() {
            "required" => UserNamespaceMode::Required,
            "off" => UserNamespaceMode::Off,
            _ => UserNamespaceMode::Auto,
        },
        without_seccomp: reader.flag("isolation", "without_seccomp"),
        without_apparmor: reader.flag("isolation", "without_apparmor"),
        without_limits: reader.flag("isolation", "without_limits"),
    }
}

fn network(reader: &Reader<'_>) -> Result<NetworkConfig, ConfigError> {
    Ok(NetworkConfig {
        mode: if reader.text("network", "mode") == "none" {
            NetworkMode::None
        } else {
            NetworkMode::Bridge
        },
        allow: reader
            .list("network", "allow")
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<AllowEntry>, _>>()
            .map_err(|error| reader.refuse("network", "allow", format!("a list of destinations: {error}")))?,
        bridge: reader.text("network", "bridge"),
        subnet: reader
            .text("network", "subnet")
            .parse()
            .ok()
            .filter(|subnet: &Ipv4Net| subnet.prefix_len() <= 29 && subnet.addr() == subnet.network())
            .ok_or_else(|| {
                reader.refuse(
                    "network",
                    "subnet",
                    "an IPv4 network of at least 8 addresses, such as 10.88.0.0/16",
                )
            })?,
        table: reader.text("network", "table"),
        unisolated: reader.flag("network", "unisolated"),
    })
}

fn registry(keys: &RegistrySettings) -> RegistryConfig {
    let text = |name: &str| match keys.get(name).map(|setting| &setting.value) {
        Some(Value::Text(text)) if !text.is_empty() => Some(text.clone()),
        _ => None,
    };
    RegistryConfig {
        plain_http: matches!(
            keys.get("plain_http").map(|setting| &setting.value),
            Some(Value::Flag(true))
        ),
        ca_file: text("ca_file").map(PathBuf::from),
        username: text("username"),
        password: text("password"),
        mirrors: match keys.get("mirrors").map(|setting| &setting.value) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        },
    }
}
