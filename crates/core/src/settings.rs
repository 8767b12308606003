//! What the rules need to know of the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use skep_names::ImageReference;
use skep_runtime::Limits;

use crate::versions::VersionLimits;

/// The longest that an export of one moment may freeze a workspace: what waits for its bridge waits longer than that.
pub const LONGEST_FREEZE: Duration = Duration::from_secs(60);

/// When a registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImagePullPolicy {
    /// Only for an image that is not here.
    #[default]
    IfNotPresent,
    /// At every create.
    Always,
    /// Not at all.
    Never,
}

/// What an archive that a client sends may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportLimits {
    /// Sizes of all files together.
    pub max_bytes: u64,
    /// Entries of any kind.
    pub max_entries: u64,
    /// How many times longer it may be than what was sent, once it is longer than 64 MiB.
    pub max_ratio: u64,
}

impl Default for ImportLimits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 30,
            max_entries: 10_000_000,
            max_ratio: 200,
        }
    }
}

/// The configuration, as far as it is a matter of the rules. Fixed for the life of the server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Image of a workspace for which nobody names one; `workspace.registry` is in it already.
    pub default_image: ImageReference,
    /// When a registry is asked.
    pub image_pull_policy: ImagePullPolicy,
    /// Registry hosts whose images may be asked for by name. Empty: all of them for admins, for members
    /// the default image's.
    pub images_allow: Vec<String>,
    /// CDI devices that others than admins may use.
    pub gpu_allow: Vec<String>,
    /// Between SIGTERM and SIGKILL when a stop does not say.
    pub stop_grace: Duration,
    /// Between two comparisons of what is wanted with what there is.
    pub reconcile_interval: Duration,
    /// Running for so long clears the count of a workspace's deaths.
    pub deaths_cleared_after: Duration,
    /// Between two measurements of the storage of a workspace that runs, at least.
    pub storage_measured_every: Duration,
    /// For a limit that nobody set.
    pub default_limits: Limits,
    /// Free space of the host that workspaces may not eat up; 0: all of it may be.
    pub reserve_bytes: u64,
    /// How many versions of a workspace are kept.
    pub versions: VersionLimits,
    /// Environment of every workspace (`TZ`, skill roots); a workspace's own wins over it.
    pub workspace_env: BTreeMap<String, String>,
    /// Older backups of a bot that are kept beside the current one.
    pub keep_backups: u64,
    /// How long an export of one moment may freeze a workspace; at most [`LONGEST_FREEZE`].
    pub freeze_max: Duration,
    /// What an archive that a client sends may be at most.
    pub import: ImportLimits,
    /// The data root, absolute.
    pub data_root: PathBuf,
}

impl Settings {
    /// The defaults of the contract for a data root.
    pub fn new(data_root: PathBuf, default_image: ImageReference) -> Self {
        Self {
            default_image,
            image_pull_policy: ImagePullPolicy::default(),
            images_allow: Vec::new(),
            gpu_allow: Vec::new(),
            stop_grace: Duration::from_secs(10),
            reconcile_interval: Duration::from_secs(60),
            deaths_cleared_after: Duration::from_secs(600),
            storage_measured_every: Duration::from_secs(60),
            default_limits: Limits {
                cpu_millicores: 2000,
                memory_bytes: 2 << 30,
                pids: 1024,
                storage_bytes: 0,
            },
            reserve_bytes: 2 << 30,
            versions: VersionLimits::default(),
            workspace_env: BTreeMap::new(),
            keep_backups: 3,
            freeze_max: LONGEST_FREEZE,
            import: ImportLimits::default(),
            data_root,
        }
    }

    /// Limits in force for those wanted: zero is the default.
    pub fn effective_limits(&self, wanted: &Limits) -> Limits {
        let or_default = |wanted: u64, default: u64| if wanted == 0 { default } else { wanted };
        Limits {
            cpu_millicores: or_default(wanted.cpu_millicores, self.default_limits.cpu_millicores),
            memory_bytes: or_default(wanted.memory_bytes, self.default_limits.memory_bytes),
            pids: or_default(wanted.pids, self.default_limits.pids),
            storage_bytes: or_default(wanted.storage_bytes, self.default_limits.storage_bytes),
        }
    }
}
