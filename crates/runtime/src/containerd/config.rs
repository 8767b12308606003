//! What the containerd backend is told; the server fills it from its configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::images::RegistrySettings;
use crate::layer_access::LayerProgram;
use crate::network::NetworkConfig;

/// Everything the backend needs to know. All paths are absolute.
#[derive(Debug, Clone)]
pub struct ContainerdConfig {
    /// containerd's gRPC socket.
    pub socket: PathBuf,
    /// containerd's namespace that holds everything of ours.
    pub namespace: String,
    /// `io.containerd.runc.v2`, or any other that containerd knows.
    pub runtime: String,
    /// The runtime's binary; `None`: crun when it is installed and works here, else runc.
    pub runtime_binary: Option<PathBuf>,
    /// The static wrapper that lets crun work on hosts with hybrid cgroups; without it crun is not used on them.
    pub crun_wrapper: Option<PathBuf>,
    /// What reads and writes layers from outside.
    pub layer_program: LayerProgram,
    /// Where writable layers are made.
    pub snapshotter: String,
    /// The data root.
    pub data_root: PathBuf,
    /// Its id: label and directory name of everything that belongs to it.
    pub data_root_id: String,
    /// Shared by all data roots of this host: `/run/skep`.
    pub run_root: PathBuf,
    /// Host's directory with the bridge, mounted at `/opt/memoh`.
    pub runtime_dir: PathBuf,
    /// The host's root directory, where its resolver is looked up: `/`.
    pub host_root: PathBuf,
    /// Environment of every workspace, below what its owner asks for.
    pub base_environment: BTreeMap<String, String>,
    /// The cgroup above all workspaces, such as `/skep`.
    pub cgroup_parent: String,
    /// How much separates workspaces from the host.
    pub isolation: IsolationConfig,
    /// Where specifications of devices lie; a later directory's count for more.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// How images' registries are reached.
    pub registries: RegistrySettings,
    /// Their network; its resolvers are set by the backend.
    pub network: NetworkConfig,
}

/// `[isolation]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IsolationConfig {
    /// `user_namespace`.
    pub user_namespace: UserNamespaceMode,
    /// `without_seccomp`: start without a filter of system calls.
    pub without_seccomp: bool,
    /// `without_apparmor`: start without its profile where the kernel has AppArmor.
    pub without_apparmor: bool,
    /// `without_limits`: start without limits of processor, memory and processes.
    pub without_limits: bool,
}

/// `isolation.user_namespace`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UserNamespaceMode {
    /// Used where the probe passes.
    #[default]
    Auto,
    /// Without it nothing starts.
    Required,
    /// Never.
    Off,
}
