//! What happens by itself: the runtime's events, and the comparison of what is wanted with what there is.

use std::time::Duration;

use serde_json::json;
use skep_names::BotId;
use skep_runtime::{RuntimeEvent, TaskState};
use skep_store::{ContainerStatus, Desired, EventLimits};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::observed::Deed;
use super::request::Request;
use super::state::{Event, Retry};
use crate::error::{Error, Result};
use crate::requester::{Patience, Requester};
use crate::skep::Skep;

/// After a comparison that failed: from, to.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The event of a process that was killed for want of memory, among those of a workspace.
pub(super) const OUT_OF_MEMORY: &str = "oom";
/// A workspace can have its processes killed as often as it likes. As many as a log shows.
const KILLS: EventLimits = EventLimits {
    kept: 256,
    apart: Duration::from_secs(1),
};
/// The pauses before it is started again keep these apart.
const EXITS: EventLimits = EventLimits {
    kept: 1024,
    apart: Duration::ZERO,
};

impl Skep {
    /// Both run until the server goes down.
    pub(crate) fn spawn_followers(&self) {
        // One place: a comparison that is asked for twice is made once.
        let (ask, asked) = mpsc::channel(1);
        let skep = self.clone();
        let mut events = self.runtime().events();
        self.tasks().spawn(async move {
            loop {
                tokio::select! {
                    () = skep.going_down().cancelled() => return,
                    event = events.recv() => match event {
                        Ok(event) => skep.follow(event, &ask).await,
                        Err(RecvError::Lagged(_)) => ask_once(&ask),
                        Err(RecvError::Closed) => {
                            tracing::error!("the runtime tells no more events");
                            return;
                        }
                    },
                }
            }
        });
        let skep = self.clone();
        self.tasks().spawn(async move { skep.reconcile_for_ever(asked).await });
    }

    async fn follow(&self, event: RuntimeEvent, ask: &mpsc::Sender<()>) {
        let followed = match event {
            RuntimeEvent::TaskExited { bot, exit_status } => self.task_exited(&bot, exit_status).await,
            RuntimeEvent::OutOfMemory { bot } => self.out_of_memory(&bot).await,
            RuntimeEvent::Reconnected => {
                tracing::info!("the runtime is back");
                ask_once(ask);
                Ok(())
            }
            RuntimeEvent::Disconnected => {
                tracing::warn!("the runtime does not answer any more");
                Ok(())
            }
        };
        if let Err(error) = followed {
            tracing::error!(
                error = error.with_causes(),
                "an event of the runtime could not be followed"
            );
            ask_once(ask);
        }
    }

    /// Process 1 ended. While an operation has the task in hand that is its own doing; else the workspace died.
    async fn task_exited(&self, bot: &BotId, exit_status: u32) -> Result<()> {
        if self.lanes().task_down(bot).is_some() {
            let (skep, bot) = (self.clone(), bot.clone());
            self.tasks()
                .spawn(async move { skep.look_after_operation(&bot, exit_status).await });
            return Ok(());
        }
        self.workspace_died(bot, exit_status).await
    }

    /// A workspace can die in the last moments of its own start, which then leaves one recorded as running.
    async fn look_after_operation(&self, bot: &BotId, exit_status: u32) {
        while let Some(hub) = self.lanes().task_down(bot) {
            tokio::select! {
                () = self.going_down().cancelled() => return,
                // Whatever its end, what counts is what is there after it.
                _ended = hub.outcome() => tokio::task::yield_now().await,
            }
        }
        let looked = async {
            match self.store().container(bot).await? {
                Some(row) if row.status == ContainerStatus::Running => self.workspace_died(bot, exit_status).await,
                _ => Ok(()),
            }
        };
        if let Err(error) = looked.await {
            tracing::error!(%bot, error = error.with_causes(), "the end of a workspace could not be followed");
            self.look_again().notify_one();
        }
    }

    /// It died, unless it is wanted so, or runs: then the end that was told is that of an earlier process.
    async fn workspace_died(&self, bot: &BotId, exit_status: u32) -> Result<()> {
        let Some(row) = self.store().container(bot).await? else {
            return Ok(());
        };
        self.bridges().evict(bot);
        if row.desired == Desired::Stopped || self.runs_again(bot).await? {
            return Ok(());
        }
        let why = format!("its first process ended with status {exit_status}");
        tracing::warn!(%bot, exit_status, "a workspace died");
        let payload = json!({ "exit_status": exit_status });
        self.store()
            .insert_limited_lifecycle_event(bot, ("exit", &payload), EXITS)
            .await?;
        self.store().set_container_error(bot, &why).await?;
        self.observations().happened(bot, &Event::Died { why });
        match self.observations().died(bot) {
            Retry::Now => self.recover_workspace(bot).await,
            Retry::After(pause) => {
                tracing::warn!(%bot, pause = ?pause, "it is not started again before that time");
                Ok(())
            }
        }
    }

    async fn runs_again(&self, bot: &BotId) -> Result<bool> {
        let instance = self.runtime().inspect(bot).await?;
        Ok(instance.is_some_and(|instance| instance.task == TaskState::Running))
    }

    async fn out_of_memory(&self, bot: &BotId) -> Result<()> {
        let store = self.store();
        if store
            .insert_limited_lifecycle_event(bot, (OUT_OF_MEMORY, &json!({})), KILLS)
            .await?
        {
            tracing::warn!(%bot, "the kernel killed a process of a workspace for want of memory");
            self.observations().done(bot, Deed::OomKilled);
        }
        Ok(())
    }

    /// Asks the driver to look. A workspace that is busy is looked at when it is not any more.
    pub(crate) async fn recover_workspace(&self, bot: &BotId) -> Result<()> {
        let requester = Requester {
            patience: Patience::Refuse,
            ..Requester::server()
        };
        match self.submit(bot, Request::Recover, &requester).await {
            Err(Error::OperationInProgress(_)) => {
                if !self.lanes().leave_to_reconcile(bot) {
                    self.look_again().notify_one();
                }
                Ok(())
            }
            Ok(_) | Err(Error::GoingDown) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn reconcile_for_ever(&self, mut asked: mpsc::Receiver<()>) {
        let mut back_off = BACK_OFF.0;
        loop {
            let compared = tokio::select! {
                // What it asked for is in the journal; what it swept may be swept again.
                () = self.going_down().cancelled() => return,
                compared = self.reconcile() => compared,
            };
            let (pause, listens) = match compared {
                Ok(()) => {
                    back_off = BACK_OFF.0;
                    (self.settings().reconcile_interval, true)
                }
                // What fails meanwhile fails for the same reason.
                Err(error) => {
                    tracing::warn!(
                        error = error.with_causes(),
                        "what is wanted was not compared with what there is"
                    );
                    back_off = (back_off * 2).min(BACK_OFF.1);
                    (back_off, false)
                }
            };
            tokio::select! {
                () = self.going_down().cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.look_again().notified(), if listens => {}
                // The other follower has ended: the clock alone remains.
                Some(()) = asked.recv() => {}
            }
        }
    }
}

fn ask_once(ask: &mpsc::Sender<()>) {
    match ask.try_send(()) {
        // Full: one is asked for already. Closed: the server goes down.
        Ok(()) | Err(_) => {}
    }
}
