//! Instances: what the rules ask for and what a backend reports.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use skep_names::{BotId, ImageReference};

/// What a backend can do beyond the verbs all of them have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// `containerd`, `fake`, …
    pub backend: &'static str,
    /// Snapshots, versions and rollback.
    pub snapshots: bool,
    /// GPU devices by CDI.
    pub gpu: bool,
    /// The snapshotters that can be chosen; the first is the default.
    pub snapshotters: Vec<String>,
}

/// Result of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// `runtime`, `network`, `user_namespace`, …
    pub name: &'static str,
    /// How it went.
    pub status: CheckStatus,
    /// One sentence for a person.
    pub detail: String,
}

/// How a probe went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckStatus {
    /// All is well.
    Ok,
    /// It works, with less than it could.
    Warn,
    /// It does not work.
    Error,
}

/// What a workspace is made from.
#[derive(Debug, Clone)]
pub struct InstanceSpec {
    /// The bot it belongs to.
    pub bot: BotId,
    /// Full name of a stored image.
    pub image: ImageReference,
    /// `None`: the backend's default.
    pub snapshotter: Option<String>,
    /// Environment of every process of the workspace. Values are never logged.
    pub env: BTreeMap<String, String>,
    /// CDI device names, in order.
    pub cdi_devices: Vec<String>,
    /// Labels beyond those every container of ours has.
    pub labels: BTreeMap<String, String>,
}

/// What a workspace may use. Zero means no limit of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_millicores: u64,
    /// Bytes of memory; swap is always 0.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes of storage.
    pub storage_bytes: u64,
}

/// Whether a create made the writable layer or found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerOutcome {
    /// Made by this call, empty above its image.
    Made,
    /// It was there and is used as it was.
    Kept,
}

/// What a create did.
#[derive(Debug, Clone)]
pub struct CreateOutcome {
    /// The instance as it is now.
    pub instance: Instance,
    /// Whether its layer is new.
    pub layer: LayerOutcome,
}

/// What is in force for a running workspace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Isolation {
    /// It has a user namespace of its own.
    pub user_namespace: bool,
    /// A seccomp filter is in force.
    pub seccomp: bool,
    /// AppArmor's profile is in force.
    pub apparmor: bool,
    /// `no_new_privs` is set.
    pub no_new_privileges: bool,
    /// Capabilities of its root, as `CAP_…`.
    pub capabilities: Vec<String>,
    /// `bridge`, `none`, …
    pub network: String,
    /// `hard` or `soft`.
    pub storage_quota: String,
}

/// A start that worked as far as the backend sees it: process 1 runs.
#[derive(Debug, Clone)]
pub struct Started {
    /// Its address, when it has one.
    pub address: Option<IpAddr>,
    /// What is in force.
    pub isolation: Isolation,
    /// It ran before this call.
    pub already_running: bool,
}

/// What a sweep found that only a stop and a start can mend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Running workspaces whose network does not work any more, each with what is missing.
    pub broken_networks: BTreeMap<BotId, String>,
}

/// The running process tree, or what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// There is none.
    None,
    /// Process 1 runs.
    Running,
    /// Process 1 has ended and nobody has cleared it away.
    Dead,
}

/// One instance as its backend reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The bot it belongs to.
    pub bot: BotId,
    /// The backend's name for it: `workspace-<bot>` or, for legacy ones, `mcp-<bot>`.
    pub container_id: String,
    /// Full name of its image.
    pub image: String,
    /// Digest of that image, when it is known.
    pub image_digest: Option<String>,
    /// Where its layers are.
    pub snapshotter: String,
    /// The backend's namespace (containerd's), else empty.
    pub namespace: String,
    /// Frozen at its creation.
    pub cdi_devices: Vec<String>,
    /// Its process tree.
    pub task: TaskState,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its record last changed.
    pub updated_at: DateTime<Utc>,
    /// When process 1 was started, when that is known.
    pub started_at: Option<DateTime<Utc>>,
    /// What is in force, or while it does not run, what the next start puts in force. `None`: this cannot be
    /// told, as of a task that another server started and left no record of.
    pub isolation: Option<Isolation>,
    /// Of a legacy container, the directory of the host that is its `/data`, when it has one.
    pub legacy_data: Option<PathBuf>,
}

/// Something that happened without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// Process 1 ended.
    TaskExited { bot: BotId, exit_status: u32 },
    /// The kernel killed a process of it for want of memory.
    OutOfMemory { bot: BotId },
    /// The backend was away and is back, or events were lost: list everything anew.
    Reconnected,
    /// The backend stopped answering.
    Disconnected,
}

/// Counters of a running workspace; what the host cannot tell is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Nanoseconds of all cores.
    pub cpu_nanoseconds: Option<u64>,
    /// Of those, in user mode.
    pub cpu_user_nanoseconds: Option<u64>,
    /// Of those, in the kernel.
    pub cpu_kernel_nanoseconds: Option<u64>,
    /// Bytes in use.
    pub memory_bytes: Option<u64>,
    /// The limit, when there is one.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Through its network.
    pub network: Option<NetworkBytes>,
    /// To and from disks.
    pub io: Option<IoBytes>,
    /// Since when all this is counted: its start.
    pub started_at: Option<DateTime<Utc>>,
}

/// What the layers of a workspace hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StorageHeld {
    pub bytes: u64,
    /// Everything that has a name, whatever it is.
    pub files: u64,
}

/// What went through the network of a workspace, as it sees it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetworkBytes {
    /// To it.
    pub received: u64,
    /// From it.
    pub sent: u64,
}

/// What went to and from disks; the page cache spares some of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoBytes {
    /// From disks.
    pub read: u64,
    /// To disks.
    pub written: u64,
}

/// Where a bridge listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BridgeEndpoint {
    /// `file_name` in `directory`, which the tenant can write: never follow a link there.
    Unix {
        /// On the host.
        directory: PathBuf,
        /// In that directory.
        file_name: String,
        /// Host uid that the listener must have (`SO_PEERCRED`).
        owner_uid: u32,
        /// The control group that the listener must be in; `None` where its uid belongs to this bot alone.
        cgroup: Option<String>,
    },
    /// A legacy container.
    Tcp(SocketAddr),
}
