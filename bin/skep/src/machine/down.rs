//! `skep down`: stops what runs of one data root, undoes what is on the host, deletes nothing.
//!
//! What is wanted stays as it is in the store: the next `skep up` starts what ran.

use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rustix::process::{Pid, Signal, kill_process};
use skep_names::BotId;
use skep_runtime::{Runtime, TaskState};
use skep_server::backend::make_containerd;
use skep_server::config::Config;
use skep_store::DataRoot;
use tokio::time::Instant;

use super::backend::{self, Which};
use super::{configuration, running};
use crate::arguments::ConfigurationFile;
use crate::client::{SERVER_FILE, ServerFile};
use crate::failure::{Failure, Result, with_causes};
use crate::output::tell;

/// The server lets operations reach a safe step for 30 s; then it is gone.
const SERVER_END_LIMIT: Duration = Duration::from_secs(45);
/// So many workspaces are stopped at once.
const STOPS_AT_ONCE: usize = 8;

pub(crate) async fn run(file: ConfigurationFile) -> Result<()> {
    let (_, mut config) = configuration::read(&file)?;
    config.log.level = "warn".into();
    configuration::start_logging(&config.log)?;
    let root = &config.workspace.data_root;
    if !root.exists() {
        tell(format_args!(
            "nothing to stop: there is no data root {}",
            root.display()
        ));
        return Ok(());
    }
    let data_root = end_server(&config).await?;
    let id = data_root.id().to_string();
    forget_announcement(&data_root)?;
    let which = backend::which(&config, data_root.path(), &id, false);
    config.containerd.socket_path = which.socket().to_owned();
    stop_workspaces(&config, &data_root, &which).await?;
    if let Which::Own(_) = &which {
        backend::stop_daemon(&which).await?;
        tell(format_args!("containerd of {} is stopped", data_root.path().display()));
    }
    clear_run_directory(&backend::run_directory(&id))?;
    tell(format_args!("nothing was deleted; `skep up` brings everything back"));
    Ok(())
}

/// Ends the server that owns the data root, when there is one, and owns it in its place.
async fn end_server(config: &Config) -> Result<DataRoot> {
    let root = &config.workspace.data_root;
    let whole = root
        .canonicalize()
        .map_err(|error| Failure::local(format!("cannot find {}", root.display()), error))?;
    let announced = ServerFile::read(Path::new(SERVER_FILE))?.filter(|server| server.data_root == whole);
    let refused = match running::claim(config, "skep down") {
        Ok(data_root) => return Ok(data_root),
        Err(refused) => refused,
    };
    let Some(server) = announced else { return Err(refused) };
    let pid = i32::try_from(server.pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Failure::Failed(format!("{SERVER_FILE} names process {}, which cannot be", server.pid)))?;
    kill_process(pid, Signal::TERM).map_err(|error| Failure::local("cannot end the server", error))?;
    let limit = Instant::now() + SERVER_END_LIMIT;
    loop {
        match running::claim(config, "skep down") {
            Ok(data_root) => {
                tell(format_args!("the server (process {}) is stopped", server.pid));
                return Ok(data_root);
            }
            Err(refused) if Instant::now() >= limit => return Err(refused),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A server that was killed leaves its announcement behind.
fn forget_announcement(data_root: &DataRoot) -> Result<()> {
    let announced = ServerFile::read(Path::new(SERVER_FILE))?;
    if announced.is_none_or(|server| server.data_root != data_root.path()) {
        return Ok(());
    }
    match std::fs::remove_file(SERVER_FILE) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::local(format!("cannot remove {SERVER_FILE}"), error))
        }
        _ => Ok(()),
    }
}

async fn stop_workspaces(config: &Config, data_root: &DataRoot, which: &Which) -> Result<()> {
    // One that was killed is started once more: only it can stop what it left running.
    let _daemon = backend::start_daemon(which).await?;
    let runtime = make_containerd(config, data_root).map_err(|error| Failure::Failed(with_causes(&error)))?;
    let failed = |error: skep_runtime::RuntimeError| Failure::Failed(with_causes(&error));
    // Takes up what the server had: only what is ours is taken down.
    runtime
        .network()
        .prepare()
        .await
        .map_err(|error| Failure::Failed(with_causes(&error)))?;
    let running: Vec<BotId> = runtime
        .list()
        .await
        .map_err(failed)?
        .into_iter()
        .filter(|instance| !matches!(instance.task, TaskState::None))
        .map(|instance| instance.bot)
        .collect();
    let grace = config.workspace.stop_grace;
    let stopping = running.iter().map(|bot| {
        let runtime = runtime.clone();
        async move { runtime.stop(bot, grace).await }
    });
    futures::stream::iter(stopping)
        .buffer_unordered(STOPS_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await
        .map_err(failed)?;
    tell(format_args!("workspaces stopped: {}", running.len()));
    runtime.sweep().await.map_err(failed)?;
    runtime
        .network()
        .teardown()
        .await
        .map_err(|error| Failure::Failed(with_causes(&error)))
}

/// Nothing of ours may stay mounted; what is left in the directory means nothing without it.
fn clear_run_directory(directory: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Failure::local("cannot read the table of mounts", error))?;
    let below = format!("{}/", directory.display());
    let left: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|at| at.starts_with(&below))
        .collect();
    if !left.is_empty() {
        return Err(Failure::Failed(format!("these are still mounted: {}", left.join(", "))));
    }
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::local(format!("cannot remove {}", directory.display()), error))
        }
        _ => Ok(()),
    }
}
