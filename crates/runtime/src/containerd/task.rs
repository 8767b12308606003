//! Tasks: the running process tree of a container.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::{
    CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, ListTasksRequest, StartRequest, UpdateTaskRequest,
    WaitRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::{Process, Status};
use prost::Message;
use prost_types::Any;
use rustix::process::Signal;
use tonic::Code;

use super::client::{failed, optional, ran_out_of_time};
use super::host::on_host_failed;
use super::records::Running;
use super::{ContainerdRuntime, bundle, oci_runtime};
use crate::spec::limits_as_resources;
use crate::{Limits, Result, RuntimeError, TaskState, failpoint};

/// What containerd's own client writes.
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
const RUNTIME_OPTIONS_TYPE: &str = "containerd.runc.v1.Options";
/// How long a task may be in no state that containerd can tell.
const UNKNOWN_LIMIT: Duration = Duration::from_secs(2);
/// A task takes a tenth of a second to make; on a host at its limits, some.
const CREATE_LIMIT: Duration = Duration::from_secs(10);
/// What containerd clears away by itself after a call that was cut off is gone after this.
const CLEARED_AWAY: Duration = Duration::from_millis(500);
/// How long a killed process tree may take to be gone, before the kernel kills its cgroup and once more after that.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// The part of `containerd.runc.v1.Options` we use: which binary the shim calls.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
}

/// Whether a process ended within a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    Ended,
    StillRunning,
}

impl ContainerdRuntime {
    pub(super) async fn task_state(&self, id: &str) -> Result<TaskState> {
        Ok(self.status(id).await?.map_or(TaskState::None, state_of))
    }

    /// `None`: there is no task.
    async fn status(&self, id: &str) -> Result<Option<Status>> {
        let request = self.client.request(GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let answer = optional(self.client.tasks().get(request).await, || format!("task {id}"))?;
        Ok(answer.and_then(|answer| answer.process).map(|process| process.status()))
    }

    /// Process 1 as the host sees it.
    pub(super) async fn task_pid(&self, id: &str) -> Result<Option<u32>> {
        let request = self.client.request(GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let answer = optional(self.client.tasks().get(request).await, || format!("task {id}"))?;
        let process = answer.and_then(|answer| answer.process);
        Ok(process.map(|process| process.pid).filter(|pid| *pid > 0))
    }

    /// All tasks in our namespace, by container.
    pub(super) async fn tasks(&self) -> Result<HashMap<String, TaskState>> {
        let request = self.client.request(ListTasksRequest::default());
        let answer = self.client.tasks().list(request).await;
        let tasks = answer
            .map_err(|status| failed("listing tasks", status))?
            .into_inner()
            .tasks;
        // In a list, containerd puts the container's id into the field of the process.
        let id = |process: &Process| match process.container_id.is_empty() {
            true => process.id.clone(),
            false => process.container_id.clone(),
        };
        Ok(tasks
            .iter()
            .map(|process| (id(process), state_of(process.status())))
            .collect())
    }

    pub(super) async fn create_task(&self, running: &Running, rootfs: Vec<Mount>) -> Result<()> {
        let id = running.container_id.as_str();
        let options = self.oci_runtime_for(running)?.map(|binary| RuncOptions {
            binary_name: binary.to_string_lossy().into_owned(),
        });
        let message = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            options: options.map(|options| Any {
                type_url: RUNTIME_OPTIONS_TYPE.to_owned(),
                value: options.encode_to_vec(),
            }),
            ..Default::default()
        };
        let first = self.client.request_within(message.clone(), CREATE_LIMIT);
        let refused = match self.client.tasks().create(first).await {
            Ok(_) => return Ok(()),
            Err(refused) => refused,
        };
        self.clear_the_way(id, refused).await?;
        let created = self.client.tasks().create(self.client.request(message)).await;
        created
            .map(drop)
            .map_err(|status| failed(format!("creating the task {id}"), status))
    }

    /// The binary to name to the shim; `None`: the runtime's own default.
    fn oci_runtime_for(&self, running: &Running) -> Result<Option<PathBuf>> {
        let chosen = self.oci_runtime.get().filter(|binary| !binary.as_os_str().is_empty());
        match (chosen, running.ids) {
            (None, _) => Ok(None),
            (Some(binary), Some(_)) => Ok(Some(binary.clone())),
            (Some(binary), None) => oci_runtime::without_user_namespace(&self.config, binary).map(Some),
        }
    }

    /// After a task could not be made: clears away what is in its way of an earlier one; else that is the error.
    async fn clear_the_way(&self, id: &str, refused: tonic::Status) -> Result<()> {
        if ran_out_of_time(&refused) {
            // containerd clears away the task of a server that died while it was made, by its name: one made
            // anew in that moment loses its directory and is never answered for.
            tracing::warn!(id, "containerd does not answer for a new task; it is made once more");
            self.clear_task(id).await?;
            tokio::time::sleep(CLEARED_AWAY).await;
            return Ok(());
        }
        let bundle = bundle::in_the_way(&refused, &self.config.namespace, id);
        if refused.code() != Code::AlreadyExists && bundle.is_none() {
            return Err(failed(format!("creating the task {id}"), refused));
        }
        // A daemon that died while it created a task finds a shim without a process, or a bundle without a shim: it
        // tells of no task, and makes none in its place.
        tracing::info!(id, "clearing away a task that was never whole");
        self.delete_task(id).await?;
        self.clear_dead(id, TaskState::None).await?;
        self.nothing_left_of(id).await?;
        let Some(bundle) = bundle else { return Ok(()) };
        let removed = tokio::task::spawn_blocking(move || bundle::remove(&bundle)).await;
        removed
            .map_err(|panicked| RuntimeError::other(format!("clearing away the task {id}"), panicked))?
            .map_err(on_host_failed)
    }

    pub(super) async fn start_task(&self, id: &str) -> Result<()> {
        let request = self.client.request(StartRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let started = self.client.tasks().start(request).await;
        started
            .map(drop)
            .map_err(|status| failed(format!("starting the task {id}"), status))
    }

    /// A task or process that is gone is a success.
    pub(super) async fn kill_task(&self, id: &str, signal: Signal) -> Result<()> {
        let request = self.client.request(KillRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
            signal: signal.as_raw().unsigned_abs(),
            all: signal == Signal::KILL,
        });
        match self.client.tasks().kill(request).await {
            Ok(_) => Ok(()),
            Err(status) if is_gone(&status) => Ok(()),
            Err(status) => Err(failed(format!("signalling the task {id}"), status)),
        }
    }

    /// Waits until process 1 has ended: told at once, also when it ended before the question.
    pub(super) async fn wait_for_task(&self, id: &str, limit: Duration) -> Result<Waited> {
        let message = WaitRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let request = self.client.request_within(message, limit);
        match self.client.tasks().wait(request).await {
            Ok(_) => Ok(Waited::Ended),
            Err(status) if is_gone(&status) => Ok(Waited::Ended),
            // A silent daemon answers nothing either: ask for the state, with a limit of its own.
            Err(status) if ran_out_of_time(&status) => match self.task_state(id).await? {
                TaskState::Running => Ok(Waited::StillRunning),
                TaskState::Dead | TaskState::None => Ok(Waited::Ended),
            },
            Err(status) => Err(failed(format!("waiting for the task {id}"), status)),
        }
    }

    /// Kills whatever is left of a task and removes it. Repeatable.
    pub(super) async fn clear_task(&self, id: &str) -> Result<()> {
        self.until_known(id).await?;
        self.kill_task(id, Signal::KILL).await?;
        if self.wait_for_task(id, KILL_LIMIT).await? == Waited::StillRunning {
            // The shim or the runtime hangs: the kernel does it without them.
            self.kill_cgroup(id).await?;
            if self.wait_for_task(id, KILL_LIMIT).await? == Waited::StillRunning {
                let seconds = 2 * KILL_LIMIT.as_secs();
                return Err(RuntimeError::other(
                    format!("ending the task {id}"),
                    format!("it still runs {seconds} s after SIGKILL"),
                ));
            }
        }
        self.delete_task(id).await
    }

    /// A task that is being made, or cleared away half-made, has no state that containerd could tell: either is
    /// over in a moment, and interfering makes it worse.
    async fn until_known(&self, id: &str) -> Result<()> {
        let begun = tokio::time::Instant::now();
        while self.status(id).await? == Some(Status::Unknown) && begun.elapsed() < UNKNOWN_LIMIT {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    pub(super) async fn delete_task(&self, id: &str) -> Result<()> {
        let request = self.client.request(DeleteTaskRequest {
            container_id: id.to_owned(),
        });
        match self.client.tasks().delete(request).await {
            Ok(_) => failpoint::TASK_GONE.passed(),
            Err(status) if is_gone(&status) => Ok(()),
            Err(status) => Err(failed(format!("removing the task {id}"), status)),
        }
    }

    pub(super) async fn update_task(&self, id: &str, limits: &Limits) -> Result<()> {
        let resources = limits_as_resources(limits, self.limit_support);
        let request = self.client.request(UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(Any {
                type_url: RESOURCES_TYPE.to_owned(),
                value: resources.to_string().into_bytes(),
            }),
            annotations: HashMap::new(),
        });
        let updated = self.client.tasks().update(request).await;
        updated.map_err(|status| match is_in_use(&status) {
            true => RuntimeError::Rejected {
                reason:
                    "the workspace has more memory in use than memory_bytes would leave it: end what uses it first, or \
                         stop the workspace"
                        .to_owned(),
            },
            false => failed(format!("limiting the task {id}"), status),
        })?;
        failpoint::TASK_LIMITED.passed()
    }
}

/// A task that was created and never started has no process of the workspace: it is as good as dead.
fn state_of(status: Status) -> TaskState {
    match status {
        Status::Running | Status::Paused | Status::Pausing => TaskState::Running,
        Status::Created | Status::Stopped | Status::Unknown => TaskState::Dead,
    }
}

/// cgroups of version 1 take no limit of memory that is below what cannot be taken back: crun tells the kernel's `EBUSY`, which
/// is said of nothing else, runc what it makes of it.
fn is_in_use(status: &tonic::Status) -> bool {
    let text = status.message().to_lowercase();
    text.contains("device or resource busy") || text.contains("unable to set memory limit to")
}

fn is_gone(status: &tonic::Status) -> bool {
    let text = status.message();
    status.code() == Code::NotFound
        || text.contains("process already finished")
        || text.contains("no such process")
        || text.contains("container not running")
}
