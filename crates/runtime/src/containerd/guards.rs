//! What guards the next start on this host: found out once, required as the configuration says, and told.

use std::sync::Arc;
use std::time::Duration;

use skep_names::BotId;

use super::oci_runtime::RUNC_SHIM;
use super::records::Guards;
use super::{CHECK_LIMIT, ContainerdRuntime, UserNamespaceMode};
use crate::isolation;
use crate::{Check, CheckStatus, Isolation, Result, RuntimeError};

/// How often a user namespace is tried before this host is taken for one that has none.
const PROBE_TRIES: u32 = 3;
const PROBE_PAUSE: Duration = Duration::from_millis(200);

impl ContainerdRuntime {
    /// # Errors
    /// A guard that the configuration requires and that this host cannot give.
    pub(super) async fn guards(&self) -> Result<Guards> {
        Ok(Guards {
            user_namespace: self.uses_user_namespaces().await?,
            ..self.guards_without_ids().await?
        })
    }

    /// For containers that have no user namespace, wherever they are.
    ///
    /// # Errors
    /// As [`Self::guards`].
    pub(super) async fn guards_without_ids(&self) -> Result<Guards> {
        Ok(Guards {
            user_namespace: false,
            seccomp: self.uses_seccomp()?,
            apparmor: self.uses_apparmor().await?,
        })
    }

    /// # Errors
    /// The configured runtime is not known to put our filter in force: gVisor and Kata Containers leave it out by
    /// default, for what they run has a kernel of its own.
    fn uses_seccomp(&self) -> Result<bool> {
        match (self.config.isolation.without_seccomp, self.obeys_specification()) {
            (true, _) => Ok(false),
            (false, true) => Ok(true),
            (false, false) => Err(self.not_obeyed("the filter of system calls", "isolation.without_seccomp")),
        }
    }

    /// # Errors
    /// The kernel has AppArmor, and the profile cannot be loaded or the configured runtime is not known to use it.
    async fn uses_apparmor(&self) -> Result<bool> {
        if self.config.isolation.without_apparmor {
            return Ok(false);
        }
        let profile = self.apparmor.profile().await;
        let profile = profile.map_err(|error| RuntimeError::Rejected {
            reason: format!(
                "the kernel has AppArmor and the workspaces' profile cannot be loaded: {error}; \
                 isolation.without_apparmor starts them without it"
            ),
        })?;
        if profile.is_some() && !self.obeys_specification() {
            return Err(self.not_obeyed("AppArmor's profile", "isolation.without_apparmor"));
        }
        Ok(profile.is_some())
    }

    /// What runc and crun run is under every guard that its specification names.
    pub(super) fn obeys_specification(&self) -> bool {
        self.config.runtime == RUNC_SHIM
    }

    fn not_obeyed(&self, guard: &str, key: &str) -> RuntimeError {
        let runtime = &self.config.runtime;
        RuntimeError::Rejected {
            reason: format!(
                "containerd.runtime {runtime} is not known to put {guard} in force; {key} starts workspaces without it"
            ),
        }
    }

    pub(super) fn seccomp_check(&self) -> Check {
        let (status, detail) = match self.uses_seccomp() {
            Ok(true) => (
                CheckStatus::Ok,
                "every workspace is started under a filter of system calls".to_owned(),
            ),
            Ok(false) => (
                CheckStatus::Warn,
                "isolation.without_seccomp is set: workspaces have no filter of system calls".to_owned(),
            ),
            Err(error) => (CheckStatus::Error, error.to_string()),
        };
        Check {
            name: "seccomp",
            status,
            detail,
        }
    }

    pub(super) async fn apparmor_check(&self) -> Check {
        let (status, detail) = match self.uses_apparmor().await {
            Ok(true) => (CheckStatus::Ok, "every workspace is started under AppArmor's profile"),
            Ok(false) if self.config.isolation.without_apparmor => (
                CheckStatus::Warn,
                "isolation.without_apparmor is set: workspaces have no profile of AppArmor",
            ),
            Ok(false) => (CheckStatus::Ok, "this kernel has no AppArmor"),
            Err(error) => return check_of_apparmor(CheckStatus::Error, error.to_string()),
        };
        check_of_apparmor(status, detail.to_owned())
    }

    pub(super) async fn user_namespace_check(&self) -> Check {
        let limited = tokio::time::timeout(CHECK_LIMIT, self.uses_user_namespaces()).await;
        let (status, detail) = match limited {
            Ok(Ok(true)) => (CheckStatus::Ok, "every workspace has user ids of its own".to_owned()),
            Ok(Ok(false)) => (CheckStatus::Warn, self.why_without_user_namespaces()),
            Ok(Err(error)) => (CheckStatus::Error, error.to_string()),
            Err(_) => (CheckStatus::Error, "the probe did not end in time".to_owned()),
        };
        Check {
            name: "user_namespace",
            status,
            detail,
        }
    }

    fn why_without_user_namespaces(&self) -> String {
        match self.user_namespace_probe.get() {
            Some(Err(reason)) => format!("workspaces run as the host's root, without capabilities over it: {reason}"),
            _ => "isolation.user_namespace is off: workspaces run as the host's root".to_owned(),
        }
    }

    /// Whether workspaces get ids of their own, by configuration and by one try on this host.
    ///
    /// # Errors
    /// The configuration requires it and this host cannot do it.
    pub(super) async fn uses_user_namespaces(&self) -> Result<bool> {
        if self.config.isolation.user_namespace == UserNamespaceMode::Off {
            return Ok(false);
        }
        let probed = self
            .user_namespace_probe
            .get_or_try_init(|| self.probe_user_namespaces())
            .await?;
        match (probed, self.config.isolation.user_namespace) {
            (Ok(()), _) => Ok(true),
            (Err(reason), UserNamespaceMode::Required) => Err(RuntimeError::Rejected {
                reason: format!("isolation.user_namespace is required and this host cannot do it: {reason}"),
            }),
            (Err(_), _) => Ok(false),
        }
    }

    /// `None` when no start is possible as configured, or the host cannot be tried now.
    pub(super) async fn isolation_of_next_start(&self) -> Option<Isolation> {
        match self.guards().await {
            Ok(guards) => Some(guards.isolation(self.network.mode().as_str())),
            Err(error) => {
                tracing::debug!(%error, "what the next start isolates cannot be told");
                None
            }
        }
    }

    async fn probe_user_namespaces(&self) -> Result<std::result::Result<(), String>> {
        if self.config.snapshotter != super::OVERLAYFS {
            let snapshotter = &self.config.snapshotter;
            return Ok(Err(format!("the snapshotter {snapshotter} is not overlayfs")));
        }
        let root = self.snapshotter_root().await?;
        let daemon = self.daemon_process()?;
        let (paths, data_root_id) = (Arc::clone(&self.paths), self.config.data_root_id.clone());
        let probed_as = BotId::random();
        // What a bot has claimed for which nothing is done looks like what a crash left, and is swept.
        let turn = self.turns.take(&probed_as).await;
        let probing = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            // Workspaces would share the host's ids for as long as this server runs: not for a failure that passes.
            let mut tries = 1;
            loop {
                match isolation::probe_user_namespaces(&paths, (&data_root_id, &probed_as), (&root, daemon)) {
                    Err(error) if tries < PROBE_TRIES => {
                        tracing::warn!(%error, source = %error.source, tries, "a user namespace could not be made; it is tried again");
                        tries += 1;
                        std::thread::sleep(PROBE_PAUSE);
                    }
                    probed => return probed,
                }
            }
        });
        let probed = probing.await;
        let probed = probed.map_err(|panicked| RuntimeError::other("probing user namespaces", panicked))?;
        Ok(probed.map_err(|error| {
            let reason = format!("{error}: {}", error.source);
            tracing::warn!(reason, "workspaces have no user namespace of their own on this host");
            reason
        }))
    }
}

fn check_of_apparmor(status: CheckStatus, detail: String) -> Check {
    Check {
        name: "apparmor",
        status,
        detail,
    }
}
