//! `skep down`: stops what runs of one data root, undoes what is on the host, deletes nothing.
//!
//! What is wanted stays as it is in the store: the next `skep up` starts what ran.

use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use skep_names::BotId;
use skep_runtime::{Runtime, TaskState};
use skep_server::announcement::{self, Announced};
use skep_server::backend::make_containerd;
use skep_server::config::Config;
use skep_store::{DataRoot, DataRootError};
use tokio::time::Instant;

use super::backend::{self, Which};
use super::{configuration, running};
use crate::arguments::ConfigurationFile;
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
    let held = match running::claim_or_held(config, "skep down")? {
        Ok(data_root) => return Ok(data_root),
        Err(held) => held,
    };
    let Some(server) = announced_holder(config, &held)? else {
        return Err(Failure::Failed(with_causes(&held)));
    };
    tell_to_end(&server)?;
    let limit = Instant::now() + SERVER_END_LIMIT;
    loop {
        match running::claim_or_held(config, "skep down")? {
            Ok(data_root) => {
                tell(format_args!("the server (process {}) is stopped", server.pid));
                return Ok(data_root);
            }
            Err(held) if Instant::now() >= limit => return Err(Failure::Failed(with_causes(&held))),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The server that owns the data root and serves. One that is just being started, or another `skep down`, is not for
/// us to end; nor is a process that has the number of a server that was killed.
fn announced_holder(config: &Config, held: &DataRootError) -> Result<Option<Announced>> {
    let DataRootError::Held { holder, .. } = held else {
        return Ok(None);
    };
    let file = config.workspace.data_root.join("id");
    let id = std::fs::read_to_string(&file)
        .map_err(|error| Failure::local(format!("cannot read {}", file.display()), error))?;
    let announced = announcement::of_data_root_here(id.trim()).map_err(unreadable)?;
    Ok(announced.filter(|server| holder.process() == Some(server.pid)))
}

fn unreadable(error: std::io::Error) -> Failure {
    Failure::local("cannot read where the server is", error)
}

/// By a descriptor: between the look and the signal its number cannot come to mean another process.
fn tell_to_end(server: &Announced) -> Result<()> {
    let failed = |error| Failure::local(format!("cannot end the server (process {})", server.pid), error);
    let Some(pid) = i32::try_from(server.pid).ok().and_then(Pid::from_raw) else {
        return Err(Failure::Failed(format!("there can be no process {}", server.pid)));
    };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !server.lives() {
        return Ok(());
    }
    match pidfd_send_signal(process, Signal::TERM) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// What a server says of itself is left behind when it is killed; another server's is not touched.
fn forget_announcement(data_root: &DataRoot) -> Result<()> {
    match announcement::of_data_root_here(&data_root.id().to_string()).map_err(unreadable)? {
        Some(ended) => {
            announcement::withdraw(&ended).map_err(|error| Failure::local("cannot forget where the server was", error))
        }
        None => Ok(()),
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
