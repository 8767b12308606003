//! Which containerd a data root's workspaces live in, and ours among them.

use std::path::{Path, PathBuf};

use skep_runtime::containerd::daemon::{self, Daemon, DaemonConfig};
use skep_server::backend::RUN_ROOT;
use skep_server::config::Config;

use crate::failure::{Failure, Result, with_causes};

/// Which containerd a data root's workspaces live in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Which {
    /// One of our own, below the data root.
    Own(DaemonConfig),
    /// Somebody else's, which we neither start nor stop.
    Theirs(PathBuf),
}

impl Which {
    pub(super) fn socket(&self) -> &Path {
        match self {
            Self::Own(own) => &own.socket,
            Self::Theirs(socket) => socket,
        }
    }
}

/// Decides once and for all: workspaces must not vanish because they are looked for in another
/// containerd. A socket that the configuration names wins; else a data root that has a containerd of
/// its own keeps it, one that is in use without keeps the host's, and a new one gets `fresh`.
pub(super) fn which(config: &Config, root: &Path, id: &str, fresh_has_its_own: bool) -> Which {
    let own = own_daemon(root, id);
    let theirs = Which::Theirs(config.containerd.socket_path.clone());
    if config.containerd.socket_is_named {
        return theirs;
    }
    let is_in_use_without = root.join("skep.db").exists() && !own.root.exists();
    if own.root.exists() || (fresh_has_its_own && !is_in_use_without) {
        Which::Own(own)
    } else {
        theirs
    }
}

fn own_daemon(root: &Path, id: &str) -> DaemonConfig {
    DaemonConfig::new(&root.join("containerd"), &run_directory(id).join("containerd"))
}

/// What must not outlive a reboot, of this data root.
pub(super) fn run_directory(id: &str) -> PathBuf {
    Path::new(RUN_ROOT).join(id)
}

/// Starts a containerd of ours, or finds it running; `None` for somebody else's.
pub(super) async fn start_daemon(which: &Which) -> Result<Option<Daemon>> {
    match which {
        Which::Theirs(_) => Ok(None),
        Which::Own(own) => own
            .start()
            .await
            .map(Some)
            .map_err(|error| Failure::Failed(with_causes(&error))),
    }
}

/// Ends a containerd of ours; one that does not run is fine.
pub(super) async fn stop_daemon(which: &Which) -> Result<()> {
    let Which::Own(own) = which else { return Ok(()) };
    match daemon::peer_process(&own.socket) {
        None => Ok(()),
        Some(pid) => daemon::stop(pid)
            .await
            .map_err(|error| Failure::Failed(with_causes(&error))),
    }
}
