//! The backend that the configuration asks for, made from it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_runtime::containerd::{ContainerdConfig, ContainerdRuntime, IsolationConfig, UserNamespaceMode};
use skep_runtime::images::{RegistryHost, RegistrySettings};
use skep_runtime::layer_access::LayerProgram;
use skep_runtime::network::{NetworkConfig, NetworkError, NetworkMode};
use skep_runtime::{PullCredentials, Runtime, RuntimeError};
use skep_store::DataRoot;

use crate::config::{self, Backend, Config};

/// Shared by all data roots of this host; what lies below it does not outlive a reboot.
pub const RUN_ROOT: &str = "/run/skep";
/// The cgroup above all workspaces.
const CGROUP_PARENT: &str = "/skep";

/// Why there is no backend.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A file or directory of it could not be made.
    #[error("{what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The network cannot be made, or is another data root's.
    #[error("preparing the network of workspaces")]
    Network(#[from] NetworkError),
    /// The backend refuses its configuration.
    #[error("preparing the backend")]
    Runtime(#[from] RuntimeError),
}

/// Makes the backend. The daemon behind it need not answer yet; the network must work.
pub async fn make(config: &Config, data_root: &DataRoot) -> Result<Arc<dyn Runtime>, BackendError> {
    match config.workspace.backend {
        Backend::Containerd => {
            let runtime = make_containerd(config, data_root)?;
            for warning in runtime.network().prepare().await? {
                tracing::warn!("{warning}");
            }
            Ok(runtime)
        }
    }
}

/// The containerd backend with its network as it is, for taking both down.
pub fn make_containerd(config: &Config, data_root: &DataRoot) -> Result<Arc<ContainerdRuntime>, BackendError> {
    Ok(ContainerdRuntime::new(containerd_config(config, data_root)?)?)
}

fn containerd_config(config: &Config, data_root: &DataRoot) -> Result<ContainerdConfig, BackendError> {
    let id = data_root.id().to_string();
    let runtime_dir = runtime_directory(config, data_root)?;
    let run_directory = run_directory(&id)?;
    let registries = RegistrySettings {
        hosts: config
            .registries
            .iter()
            .map(|(host, one)| (host.clone(), registry(one)))
            .collect(),
        docker_config: RegistrySettings::default_docker_config(),
    };
    Ok(ContainerdConfig {
        socket: config.containerd.socket_path.clone(),
        namespace: config.containerd.namespace.clone(),
        runtime: config.containerd.runtime.clone(),
        runtime_binary: config.containerd.runtime_binary.clone(),
        crun_wrapper: Some(runtime_dir.join(skep_bridge_binary::CRUN_WRAPPER_FILE)).filter(|path| path.is_file()),
        layer_program: layer_program(data_root, &run_directory)?,
        snapshotter: config.workspace.snapshotter.clone(),
        data_root: data_root.path().to_owned(),
        run_root: PathBuf::from(RUN_ROOT),
        runtime_dir,
        host_root: PathBuf::from("/"),
        base_environment: [("LANG".to_owned(), "C.UTF-8".to_owned())].into(),
        cgroup_parent: CGROUP_PARENT.to_owned(),
        isolation: isolation(config),
        cdi_spec_dirs: config.gpu_spec_dirs.clone(),
        registries,
        network: NetworkConfig {
            mode: match config.network.mode {
                config::NetworkMode::Bridge => NetworkMode::Bridge,
                config::NetworkMode::None => NetworkMode::None,
            },
            bridge: config.network.bridge.clone(),
            subnet: config.network.subnet,
            table: config.network.table.clone(),
            allow: config.network.allow.clone(),
            unisolated: config.network.unisolated,
            cni_bin_dir: config.workspace.cni_bin_dir.clone(),
            cni_conf_dir: config.workspace.cni_conf_dir.clone(),
            ..NetworkConfig::new(id.clone())
        },
        data_root_id: id,
    })
}

fn isolation(config: &Config) -> IsolationConfig {
    IsolationConfig {
        user_namespace: match config.isolation.user_namespace {
            config::UserNamespaceMode::Auto => UserNamespaceMode::Auto,
            config::UserNamespaceMode::Required => UserNamespaceMode::Required,
            config::UserNamespaceMode::Off => UserNamespaceMode::Off,
        },
        without_seccomp: config.isolation.without_seccomp,
        without_apparmor: config.isolation.without_apparmor,
        without_limits: config.isolation.without_limits,
    }
}

/// A name without a password still signs in, with an empty one: some registries want just that.
fn registry(registry: &config::RegistryConfig) -> RegistryHost {
    RegistryHost {
        plain_http: registry.plain_http,
        ca_file: registry.ca_file.clone(),
        credentials: registry.username.clone().map(|username| PullCredentials {
            username,
            password: registry.password.clone().unwrap_or_default(),
        }),
        mirrors: registry.mirrors.clone(),
    }
}

/// The configured one as it is, else what this binary carries, unpacked below the data root.
fn runtime_directory(config: &Config, data_root: &DataRoot) -> Result<PathBuf, BackendError> {
    if let Some(directory) = &config.workspace.runtime_dir {
        return Ok(directory.clone());
    }
    let directory = data_root.path().join("runtime");
    skep_bridge_binary::unpack(&directory).map_err(|source| file("unpacking", &directory, source))?;
    Ok(directory)
}

fn layer_program(data_root: &DataRoot, run_directory: &Path) -> Result<LayerProgram, BackendError> {
    let directory = data_root.path().join("programs");
    let program = skep_bridge_binary::unpack_layer_program(&directory);
    Ok(LayerProgram {
        program: program.map_err(|source| file("unpacking", &directory, source))?,
        scratch: run_directory.join("layers"),
        spool: data_root.path().join("spool"),
    })
}

fn run_directory(id: &str) -> Result<PathBuf, BackendError> {
    let directory = Path::new(RUN_ROOT).join(id);
    std::fs::create_dir_all(&directory).map_err(|source| file("making", &directory, source))?;
    Ok(directory)
}

fn file(what: &'static str, path: &Path, source: std::io::Error) -> BackendError {
    BackendError::File {
        what,
        path: path.to_owned(),
        source,
    }
}
