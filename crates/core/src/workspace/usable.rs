//! What is used of a workspace from outside: its bridge, and its state as it changes.

use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use skep_names::BotId;
use skep_runtime::TaskState;
use skep_store::{ContainerRow, ContainerStatus, Desired};

use super::info::WorkspaceState;
use super::interruptions::Uninterrupted;
use super::mend::{Mend, Seen, mend};
use super::request::Request;
use super::state::{Event, State};
use crate::bridge::Bridge;
use crate::error::{Error, Result};
use crate::operations::OperationHandle;
use crate::requester::Requester;
use crate::skep::Skep;

/// How long files, exec and terminal wait in all, for an operation that has the task down or for a bridge that is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was submitted meanwhile goes on without the caller.
pub(super) async fn patiently<T>(waiting: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(done) => done,
        Err(_) => Err(Error::BridgeUnavailable(
            "container not reachable: an operation is still under way".to_owned(),
        )),
    }
}

/// One who has a stopped workspace started before it is used.
pub struct Starter<'a> {
    pub requester: Requester,
    /// Is told of each operation that is begun for that.
    pub begun: Box<dyn Fn(&OperationHandle) + Send + Sync + 'a>,
}

impl Skep {
    /// The bridge of a workspace that runs, for files, exec and terminal. Waits up to 30 s, for a start first and while
    /// an operation has the task down; one that should run and does not is brought up first. The runtime is not asked
    /// when the workspace is recorded as running and its bridge answers, so that this works while it is away.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::WorkspaceStopped`] when it should be stopped and there is no `starter`;
    /// those of a start; [`Error::BridgeUnavailable`].
    pub async fn usable_bridge(&self, bot: &BotId, starter: Option<&Starter<'_>>) -> Result<Bridge> {
        Ok(self.watched_bridge(bot, starter).await?.0)
    }

    /// The same with the processes of this bridge, until an operation ends them all.
    ///
    /// # Errors
    /// As [`Skep::usable_bridge`].
    pub async fn watched_bridge(&self, bot: &BotId, starter: Option<&Starter<'_>>) -> Result<(Bridge, Uninterrupted)> {
        patiently(async {
            loop {
                let processes = self.uninterrupted(bot);
                let bridge = self.bridge_when_started(bot, starter).await?;
                // Else it may be that of processes that are ended now.
                if processes.goes_on() {
                    return Ok((bridge, processes));
                }
            }
        })
        .await
    }

    async fn bridge_when_started(&self, bot: &BotId, starter: Option<&Starter<'_>>) -> Result<Bridge> {
        let Some(starter) = starter else {
            return self.bridge_when_usable(bot).await;
        };
        self.start_if_stopped(bot, starter).await?;
        match self.bridge_when_usable(bot).await {
            // By what was in the lane before.
            Err(Error::WorkspaceStopped) => {
                self.start_if_stopped(bot, starter).await?;
                self.bridge_when_usable(bot).await
            }
            usable => usable,
        }
    }

    async fn start_if_stopped(&self, bot: &BotId, starter: &Starter<'_>) -> Result<()> {
        if self.workspace_row(bot).await?.desired == Desired::Stopped {
            let start = self.submit(bot, Request::Start, &starter.requester).await?;
            (starter.begun)(&start);
            start.outcome().await?;
        }
        Ok(())
    }

    async fn bridge_when_usable(&self, bot: &BotId) -> Result<Bridge> {
        self.wait_for_usable(bot).await?;
        let lost = match self.bridges().bridge(bot).await {
            Ok(bridge) => return Ok(bridge),
            Err(error) if error.is_lost() => Error::from(error),
            Err(error) => return Err(error.into()),
        };
        // Recorded as running, and nobody answers: its end may not have been told yet.
        match self.recover_at_once(bot).await {
            Ok(()) => {}
            Err(Error::RuntimeUnavailable { .. }) => return Err(lost),
            Err(error) => return Err(error),
        }
        self.wait_for_usable(bot).await?;
        Ok(self.bridges().bridge(bot).await?)
    }

    async fn wait_for_usable(&self, bot: &BotId) -> Result<()> {
        loop {
            while let Some(hub) = self.lanes().task_taken_down(bot) {
                // Whatever its end, what counts is what is there after it.
                match hub.outcome().await {
                    Ok(_) | Err(_) => tokio::task::yield_now().await,
                }
            }
            let row = self.workspace_row(bot).await?;
            match (row.desired, row.status) {
                (Desired::Stopped, _) => return Err(Error::WorkspaceStopped),
                (Desired::Running, ContainerStatus::Running) => return Ok(()),
                (Desired::Running, _) => self.recover_at_once(bot).await?,
            }
        }
    }

    /// Brings up one that should run, as often as its deaths allow: who uses it does not forgive them, as a start does.
    /// Nothing is journaled where there is nothing to be done now.
    async fn recover_at_once(&self, bot: &BotId) -> Result<()> {
        let row = self.store().container(bot).await?.ok_or(Error::ContainerNotFound)?;
        match mend(&self.look(&row).await?) {
            Mend::Nothing => return Ok(()),
            Mend::Wait => return Err(not_there(row)),
            Mend::LeaveMissing => {
                self.observations().happened(bot, &Event::Lost);
                return Err(not_there(row));
            }
            _ => {}
        }
        let recovered = self.submit(bot, Request::Recover, &Requester::server()).await?;
        recovered.outcome().await?;
        let row = self.store().container(bot).await?.ok_or(Error::ContainerNotFound)?;
        if row.desired == Desired::Stopped || row.status == ContainerStatus::Running {
            return Ok(());
        }
        Err(not_there(row))
    }

    /// What the workspace of that record should be, and what there is of it now.
    pub(super) async fn look(&self, row: &ContainerRow) -> Result<Seen> {
        let bot = &row.bot_id;
        let instance = self.runtime().inspect(bot).await?;
        let has_layer = self.runtime().has_layer(bot).await?;
        let is_gone = instance.is_none() && !has_layer;
        Ok(Seen {
            desired: row.desired,
            recorded: row.status,
            is_the_recorded: instance
                .as_ref()
                .is_none_or(|instance| instance.container_id == row.container_id),
            task: instance.map(|instance| instance.task),
            has_layer,
            has_data_elsewhere: is_gone && self.has_data_elsewhere(bot).await?,
            may_try: self.observations().may_try(bot),
        })
    }

    /// The state of a workspace: the present one first, then every change, and what the kernel did to its processes as
    /// the reason of a state that is as it was (`oom_killed`, `pids_exhausted`), until the bot or the server is gone.
    ///
    /// # Errors
    /// [`Error::BotNotFound`].
    pub async fn watch_workspace(&self, bot: &BotId) -> Result<BoxStream<'static, WorkspaceState>> {
        self.store().bot(bot).await?.ok_or(Error::BotNotFound)?;
        self.refresh(bot).await?;
        let changes = self.observations().watch(bot);
        let first = changes.borrow().clone();
        let stop = self.going_down().clone();
        let state = first.state.clone();
        let rest = stream::unfold((changes, first), |(mut changes, before)| async move {
            changes.changed().await.ok()?;
            let now = changes.borrow_and_update().clone();
            Some((stream::iter(now.events_since(&before)), (changes, now)))
        });
        let until = async move { stop.cancelled().await }.boxed();
        let states = stream::once(async move { state }).chain(rest.flatten());
        Ok(states.take_until(until).boxed())
    }

    /// What is known of a workspace that nobody looked at since the server started.
    async fn refresh(&self, bot: &BotId) -> Result<()> {
        let looked = self.observations().moment();
        if self.observations().is_running(bot) || (self.lanes().is_busy(bot) && self.observations().is_known(bot)) {
            return Ok(());
        }
        let Some(row) = self.store().container(bot).await? else {
            return Ok(());
        };
        let state = match (self.runtime().inspect(bot).await, row.status) {
            (Ok(None), _) => State::Missing,
            (Ok(Some(instance)), _) if instance.task == TaskState::Running => State::Running,
            (Err(_), ContainerStatus::Running) => State::Running,
            (_, ContainerStatus::Error) => State::Down {
                why: row.reason.unwrap_or_else(|| "it ended".to_owned()),
            },
            _ => State::stopped(row.reason.as_deref()),
        };
        self.observations().seen(bot, looked, (state, row.desired));
        Ok(())
    }
}

fn not_there(row: ContainerRow) -> Error {
    let why = row.reason.unwrap_or_else(|| "it is not there; start it".to_owned());
    Error::BridgeUnavailable(format!("container not reachable: {why}"))
}
