//! The sections of the configuration as types; [`settled`](super::settled) makes them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use skep_names::ImageReference;
use skep_runtime::network::AllowEntry;

/// Everything in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[log]`
    pub log: LogConfig,
    /// `[server]`
    pub server: ServerConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[auth]`
    pub auth: AuthConfig,
    /// `[workspace]`
    pub workspace: WorkspaceConfig,
    /// `[containerd]`
    pub containerd: ContainerdConfig,
    /// `[registry."host"]`, by host.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[snapshots]` and `[backups]`
    pub snapshots: SnapshotsConfig,
    /// `[export]` and `[import]`
    pub import: ImportConfig,
    /// `images.allow`: registry hosts.
    pub images_allow: Vec<String>,
    /// `[gpu]`: device names members may use.
    pub gpu_allow: Vec<String>,
    /// `[gpu]`: where CDI specs lie.
    pub gpu_spec_dirs: Vec<PathBuf>,
    /// `[isolation]`
    pub isolation: IsolationConfig,
    /// `[network]`
    pub network: NetworkConfig,
    /// `[exec]`
    pub exec: ExecConfig,
    /// `[terminal]`
    pub terminal: TerminalConfig,
    /// Time zone of workspaces, when the file or `TZ` names one.
    pub timezone: Option<String>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// A level, or a filter such as `info,skep_core=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// `[server]`
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Origins that may open a terminal or a port beside our own.
    pub allowed_origins: Vec<String>,
    /// Whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNet>,
}

/// `[admin]`
#[derive(Clone)]
pub struct AdminConfig {
    /// Login name of the first admin.
    pub username: String,
    /// Password of the first admin; `None`: generated, and printed once.
    pub password: Option<String>,
    /// Address of the first admin.
    pub email: Option<String>,
}

impl std::fmt::Debug for AdminConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminConfig")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// `[auth]`
#[derive(Clone)]
pub struct AuthConfig {
    /// Signs tokens; `None`: made, and kept in the data root.
    pub jwt_secret: Option<String>,
    /// How long a token lasts.
    pub jwt_expires_in: Duration,
    /// `?token=` counts where `?ticket=` does.
    pub query_token: bool,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("jwt_expires_in", &self.jwt_expires_in)
            .field("query_token", &self.query_token)
            .finish_non_exhaustive()
    }
}

/// What makes workspaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// containerd.
    Containerd,
}

/// When a registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Only for an image that is not there.
    IfNotPresent,
    /// At every create.
    Always,
    /// Never.
    Never,
}

/// `[workspace]`
#[derive(Debug, Clone)]
pub struct WorkspaceConfig {
    /// What makes workspaces.
    pub backend: Backend,
    /// The image of a workspace that names none, `workspace.registry` put before it.
    pub default_image: ImageReference,
    /// Nobody set `default_image`: an image that was built here may take its place.
    pub default_image_is_ours: bool,
    /// Where layers are kept.
    pub snapshotter: String,
    /// Where everything is kept; absolute.
    pub data_root: PathBuf,
    /// CNI's programs, when they are not where they usually are.
    pub cni_bin_dir: Option<PathBuf>,
    /// The user's own CNI configuration.
    pub cni_conf_dir: Option<PathBuf>,
    /// The runtime directory; `None`: unpacked below the data root.
    pub runtime_dir: Option<PathBuf>,
    /// When a registry is asked.
    pub image_pull_policy: PullPolicy,
    /// How often store and runtime are compared.
    pub reconcile_interval: Duration,
    /// How long a stop waits before it kills.
    pub stop_grace: Duration,
}

/// `[containerd]`
#[derive(Debug, Clone)]
pub struct ContainerdConfig {
    /// Its socket.
    pub socket_path: PathBuf,
    /// Somebody named the socket: it is theirs, not ours to start.
    pub socket_is_named: bool,
    /// Its namespace.
    pub namespace: String,
    /// The runtime's type.
    pub runtime: String,
    /// The OCI runtime's program.
    pub runtime_binary: Option<PathBuf>,
}

/// `[registry."host"]`
#[derive(Clone, Default)]
pub struct RegistryConfig {
    /// No TLS.
    pub plain_http: bool,
    /// Certificates of authorities to trust beside the host's own.
    pub ca_file: Option<PathBuf>,
    /// Who signs in.
    pub username: Option<String>,
    /// With what.
    pub password: Option<String>,
    /// Asked before the host itself.
    pub mirrors: Vec<String>,
}

impl std::fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryConfig")
            .field("plain_http", &self.plain_http)
            .field("ca_file", &self.ca_file)
            .field("username", &self.username)
            .field("mirrors", &self.mirrors)
            .finish_non_exhaustive()
    }
}

/// `[limits]`; what a workspace gets that asks for nothing. 0 is no limit.
#[derive(Debug, Clone, Copy)]
pub struct LimitsConfig {
    /// Thousandths of a core.
    pub cpu_millicores: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes of storage.
    pub storage_bytes: u64,
    /// Bytes that stay free on the host.
    pub reserve_bytes: u64,
}

/// `[snapshots]` and `[backups]`: how many are kept.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotsConfig {
    /// Versions of a caller's own making.
    pub max: u64,
    /// Automatic ones.
    pub keep_automatic: u64,
    /// Those that a rollback made.
    pub keep_rollback: u64,
    /// Layers of a workspace, over which those that no version needs are merged.
    pub merge_over: u64,
    /// Older backups.
    pub keep_backups: u64,
}

/// `[export]` and `[import]`
#[derive(Debug, Clone, Copy)]
pub struct ImportConfig {
    /// How long a consistent export may freeze a workspace.
    pub freeze_max: Duration,
    /// Bytes an archive may unpack to.
    pub max_bytes: u64,
    /// Entries it may have.
    pub max_entries: u64,
    /// Bytes written for each byte read.
    pub max_ratio: u64,
}

/// Whether workspaces get a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserNamespaceMode {
    /// Where the host can.
    Auto,
    /// Or not at all.
    Required,
    /// No.
    Off,
}

/// `[isolation]`
#[derive(Debug, Clone, Copy)]
pub struct IsolationConfig {
    /// User namespaces.
    pub user_namespace: UserNamespaceMode,
    /// Go on without a seccomp filter.
    pub without_seccomp: bool,
    /// Go on without AppArmor's profile where the kernel has AppArmor.
    pub without_apparmor: bool,
    /// Go on without cgroup limits.
    pub without_limits: bool,
}

/// How workspaces are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// By a bridge, to the outside.
    Bridge,
    /// Not at all.
    None,
}

/// `[network]`
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// How workspaces are connected.
    pub mode: NetworkMode,
    /// Private destinations that are allowed, `CIDR[:port]`.
    pub allow: Vec<AllowEntry>,
    /// The bridge's name.
    pub bridge: String,
    /// Where addresses come from.
    pub subnet: Ipv4Net,
    /// The firewall table's name.
    pub table: String,
    /// Go on without isolation rules.
    pub unisolated: bool,
}

/// `[exec]`
#[derive(Debug, Clone, Copy)]
pub struct ExecConfig {
    /// Output kept of each.
    pub log_bytes: u64,
    /// How long it is kept.
    pub keep: Duration,
    /// The longest timeout that may be asked for.
    pub max_timeout: Duration,
}

/// `[terminal]`
#[derive(Debug, Clone, Copy)]
pub struct TerminalConfig {
    /// When a terminal that nobody uses ends.
    pub idle_timeout: Duration,
    /// How long a named session lives without a client.
    pub session_keep: Duration,
}
