//! Every key there is, with its kind and its default: the one list that reading, environment,
//! `config show` and the error for an unknown key go by.

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A text that is never shown.
    Secret,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// A whole number from 0.
    Number,
    /// `90s`, `24h`.
    Duration,
    /// Bytes, or `2GiB`.
    Size,
    /// A list of texts; in the environment joined by commas.
    List,
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its section.
    pub section: &'static str,
    /// Its name in the section.
    pub name: &'static str,
    /// What it must be.
    pub kind: Kind,
    /// What counts when nobody says; empty is "not set", or an empty list.
    pub default: &'static str,
}

const fn key(section: &'static str, name: &'static str, kind: Kind, default: &'static str) -> Key {
    Key {
        section,
        name,
        kind,
        default,
    }
}

use Kind::{Duration, Flag, List, Number, OneOf, Secret, Size, Text};

/// All keys but those of `[registry."host"]`.
pub const KEYS: &[Key] = &[
    key("log", "level", Text, "info"),
    key("log", "format", OneOf(&["text", "json"]), "text"),
    key("server", "addr", Text, "127.0.0.1:8080"),
    key("server", "allowed_origins", List, ""),
    key("server", "trusted_proxies", List, ""),
    key("server", "metrics_addr", Text, ""),
    key("server", "tls_cert", Text, ""),
    key("server", "tls_key", Text, ""),
    key("admin", "username", Text, "admin"),
    key("admin", "password", Secret, ""),
    key("admin", "email", Text, ""),
    key("auth", "jwt_secret", Secret, ""),
    key("auth", "jwt_expires_in", Duration, "24h"),
    key("auth", "query_token", Flag, "false"),
    key("database", "url", Secret, ""),
    key("workspace", "backend", Text, "containerd"),
    key("workspace", "registry", Text, ""),
    key("workspace", "default_image", Text, "debian:bookworm-slim"),
    key("workspace", "snapshotter", Text, "overlayfs"),
    key("workspace", "data_root", Text, "data"),
    key("workspace", "cni_bin_dir", Text, ""),
    key("workspace", "cni_conf_dir", Text, ""),
    key("workspace", "runtime_dir", Text, ""),
    key(
        "workspace",
        "image_pull_policy",
        OneOf(&["if_not_present", "always", "never"]),
        "if_not_present",
    ),
    key("workspace", "reconcile_interval", Duration, "60s"),
    key("workspace", "stop_grace", Duration, "10s"),
    key("containerd", "socket_path", Text, "/run/containerd/containerd.sock"),
    key("containerd", "namespace", Text, "default"),
    key("containerd", "runtime", Text, "io.containerd.runc.v2"),
    key("containerd", "runtime_binary", Text, ""),
    key("limits", "cpu_millicores", Number, "2000"),
    key("limits", "memory_bytes", Size, "2GiB"),
    key("limits", "pids", Number, "1024"),
    key("limits", "storage_bytes", Size, "0"),
    key("limits", "reserve_bytes", Size, "2GiB"),
    key("snapshots", "max", Number, "64"),
    key("snapshots", "keep_automatic", Number, "16"),
    key("snapshots", "keep_rollback", Number, "8"),
    key("snapshots", "merge_over", Number, "100"),
    key("backups", "keep", Number, "3"),
    key("export", "freeze_max", Duration, "60s"),
    key("import", "max_bytes", Size, "64GiB"),
    key("import", "max_entries", Number, "10000000"),
    key("import", "max_ratio", Number, "200"),
    key("images", "allow", List, ""),
    key("gpu", "allow", List, ""),
    key("gpu", "spec_dirs", List, "/etc/cdi,/var/run/cdi"),
    key(
        "isolation",
        "user_namespace",
        OneOf(&["auto", "required", "off"]),
        "auto",
    ),
    key("isolation", "without_seccomp", Flag, "false"),
    key("isolation", "without_apparmor", Flag, "false"),
    key("isolation", "without_limits", Flag, "false"),
    key("network", "mode", OneOf(&["bridge", "none"]), "bridge"),
    key("network", "allow", List, ""),
    key("network", "bridge", Text, "skep0"),
    key("network", "subnet", Text, "10.88.0.0/16"),
    key("network", "table", Text, "skep"),
    key("network", "unisolated", Flag, "false"),
    key("mcp", "allow_hosts", List, ""),
    key("mcp", "idle_timeout", Duration, "30m"),
    key("mcp", "max_sessions", Number, "16"),
    key("exec", "log_bytes", Size, "64MiB"),
    key("exec", "keep", Duration, "24h"),
    key("exec", "max_timeout", Duration, "24h"),
    key("terminal", "idle_timeout", Duration, "30m"),
    key("terminal", "session_keep", Duration, "10m"),
];

/// The keys of one `[registry."host[:port]"]`.
pub const REGISTRY_KEYS: &[Key] = &[
    key("registry", "plain_http", Flag, "false"),
    key("registry", "ca_file", Text, ""),
    key("registry", "username", Text, ""),
    key("registry", "password", Secret, ""),
    key("registry", "mirrors", List, ""),
];

/// The key of that name.
pub(crate) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// The key whose full name is nearest to what somebody wrote.
pub(crate) fn nearest(wrong: &str) -> String {
    KEYS.iter()
        .map(|key| format!("{}.{}", key.section, key.name))
        .max_by(|left, right| strsim::jaro_winkler(wrong, left).total_cmp(&strsim::jaro_winkler(wrong, right)))
        .unwrap_or_default()
}
