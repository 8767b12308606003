//! Which program makes containers: crun where it is installed and works, else runc.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::process::Command;

use super::ContainerdConfig;
use crate::RuntimeError;

/// The one shim whose options we know.
pub(super) const RUNC_SHIM: &str = "io.containerd.runc.v2";
/// What works everywhere.
const RUNC: &str = "runc";
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// The binary to name to the shim; `None`: the runtime's own default.
///
/// # Errors
/// A configured crun where workspaces have no user namespace: it would mount their root without `nosuid` and `nodev`.
pub(super) async fn choose(config: &ContainerdConfig, user_namespaces: bool) -> Result<Option<PathBuf>, RuntimeError> {
    if config.runtime != RUNC_SHIM {
        return Ok(None);
    }
    if let Some(binary) = &config.runtime_binary {
        if !user_namespaces && is_crun(binary) {
            return Err(crun_without_user_namespace());
        }
        return Ok(Some(binary.clone()));
    }
    let runc = Some(PathBuf::from(RUNC));
    let Some(crun) = crun(config).filter(|_| user_namespaces) else {
        return Ok(runc);
    };
    Ok(match probe(&crun, config).await {
        Ok(()) => Some(crun),
        Err(reason) => {
            tracing::warn!(crun = %crun.display(), reason, "crun does not work on this host; runc is used");
            runc
        }
    })
}

/// The binary for a container that has no user namespace where others have one: `chosen`, unless that is crun.
///
/// # Errors
/// As [`choose`].
pub(super) fn without_user_namespace(config: &ContainerdConfig, chosen: &Path) -> Result<PathBuf, RuntimeError> {
    match (is_crun(chosen), &config.runtime_binary) {
        (false, _) => Ok(chosen.to_owned()),
        (true, None) => Ok(PathBuf::from(RUNC)),
        (true, Some(_)) => Err(crun_without_user_namespace()),
    }
}

fn crun_without_user_namespace() -> RuntimeError {
    RuntimeError::Rejected {
        reason: "containerd.runtime_binary is crun, which drops nosuid and nodev from a workspace's root where \
                 it has no user namespace: leave it unset, use runc, or mend what `user_namespace` says in the checks"
            .to_owned(),
    }
}

/// Also by our wrapper, whose name says so.
fn is_crun(binary: &Path) -> bool {
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    name.contains("crun")
}

/// crun refuses hybrid cgroups; the wrapper hides one half from it.
fn crun(config: &ContainerdConfig) -> Option<PathBuf> {
    let installed = installed("crun")?;
    if Path::new("/sys/fs/cgroup/unified").is_dir() {
        config.crun_wrapper.clone().filter(|wrapper| wrapper.exists())
    } else {
        Some(installed)
    }
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Makes a container that never starts, with limits, and deletes it: cgroups are what crun refuses.
async fn probe(crun: &Path, config: &ContainerdConfig) -> Result<(), String> {
    let bundle = config.run_root.join(&config.data_root_id).join("crun-probe");
    let root = bundle.join("state");
    // A server that was killed in the middle of its probe left a process that waits for a start.
    clear(crun, &bundle, &root).await?;
    let id = format!("skep-probe-{}", uuid::Uuid::new_v4());
    write_bundle(&bundle, &format!("{}/{id}", config.cgroup_parent))
        .map_err(|error| format!("writing {}: {error}", bundle.display()))?;
    let bundle_path = bundle.to_string_lossy().into_owned();
    let created = call(crun, &root, vec!["create".into(), "--bundle".into(), bundle_path, id]).await;
    let cleared = clear(crun, &bundle, &root).await;
    created.and(cleared)
}

/// Deletes the containers of probes, which are directories in crun's own root, and the bundle with them.
async fn clear(crun: &Path, bundle: &Path, root: &Path) -> Result<(), String> {
    let containers = match std::fs::read_dir(root) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    for container in containers.map_err(|error| format!("listing {}: {error}", root.display()))? {
        let id = container.file_name().to_string_lossy().into_owned();
        call(crun, root, vec!["delete".into(), "--force".into(), id]).await?;
    }
    match std::fs::remove_dir_all(bundle) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(format!("removing {}: {error}", bundle.display())),
        _ => Ok(()),
    }
}

fn write_bundle(bundle: &Path, cgroup: &str) -> std::io::Result<()> {
    // crun opens the directories that it mounts on or makes device nodes in.
    let rootfs = bundle.join("rootfs");
    for name in ["dev", "proc"] {
        std::fs::create_dir_all(rootfs.join(name))?;
    }
    // crun looks whether process 1 could be executed, and executes it only at `start`.
    let process = rootfs.join("probe");
    std::fs::write(&process, "")?;
    std::fs::set_permissions(&process, PermissionsExt::from_mode(0o755))?;
    std::fs::write(bundle.join("config.json"), probe_specification(cgroup).to_string())
}

/// Process 1 is never executed: between `create` and `delete` it only waits for `start`.
fn probe_specification(cgroup: &str) -> serde_json::Value {
    let namespaces = ["mount", "pid", "ipc", "uts", "network"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/probe"], "cwd": "/", "noNewPrivileges": true },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": cgroup,
            "resources": { "pids": { "limit": 16 }, "memory": { "limit": 64 << 20 } },
        },
    })
}

async fn call(crun: &Path, root: &Path, arguments: Vec<String>) -> Result<(), String> {
    let verb = arguments.first().cloned().unwrap_or_default();
    let mut command = Command::new(crun);
    command
        .arg("--root")
        .arg(root)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command.spawn().map_err(|error| format!("{verb}: {error}"))?;
    // The container's first process keeps stderr open: the end of crun itself is what counts.
    let ended = tokio::time::timeout(PROBE_LIMIT, wait_and_read(child)).await;
    match ended.map_err(|_| format!("{verb}: no answer within {PROBE_LIMIT:?}"))? {
        Ok((status, _)) if status.success() => Ok(()),
        Ok((status, text)) => Err(format!("{verb}: {status}: {text}")),
        Err(error) => Err(format!("{verb}: {error}")),
    }
}

async fn wait_and_read(mut child: tokio::process::Child) -> std::io::Result<(std::process::ExitStatus, String)> {
    use tokio::io::AsyncReadExt;
    let stderr = child.stderr.take();
    let status = child.wait().await?;
    let mut text = vec![0; 4096];
    let mut length = 0;
    if let (false, Some(mut stderr)) = (status.success(), stderr) {
        length = stderr.read(&mut text).await?;
    }
    Ok((status, String::from_utf8_lossy(&text[..length]).trim().to_owned()))
}
