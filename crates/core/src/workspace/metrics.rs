//! What a workspace uses, told from counters of the kernel and from what was measured before: the runtime's daemon
//! is not asked, so a question about hundreds of workspaces costs what their counters cost.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use skep_names::BotId;
use skep_runtime::{RuntimeError, Usage};
use tokio::time::Instant;

use super::measured::MeasuredStorage;
use crate::error::{Error, Result};
use crate::skep::Skep;

/// What a workspace uses.
#[derive(Debug, Clone, Default)]
pub struct WorkspaceMetrics {
    /// The bot has a workspace.
    pub exists: bool,
    /// Its counters, while it runs.
    pub live: Option<LiveMetrics>,
    /// Its storage, once it was counted; `None` where there is no workspace.
    pub storage: Option<MeasuredStorage>,
}

/// Of a workspace that runs.
#[derive(Debug, Clone)]
pub struct LiveMetrics {
    pub usage: Usage,
    /// Per cent of one core since the last look.
    pub processor_percent: Option<f64>,
    pub sampled_at: DateTime<Utc>,
}

impl Skep {
    /// What a bot's workspace uses now. Neither sleeps nor asks the runtime's daemon.
    ///
    /// # Errors
    /// [`Error::StoreUnavailable`].
    pub async fn workspace_metrics(&self, bot: &BotId) -> Result<WorkspaceMetrics> {
        let usage = match self.runtime().usage(bot).await {
            Ok(usage) => Some(usage),
            Err(RuntimeError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let exists =
            usage.is_some() || (self.store().container(bot).await?.is_some() && !self.observations().is_missing(bot));
        if !exists {
            return Ok(WorkspaceMetrics::default());
        }
        Ok(WorkspaceMetrics {
            exists: true,
            live: usage.map(|usage| LiveMetrics {
                processor_percent: self.measurements().processor_percent(bot, &usage, Instant::now()),
                sampled_at: Utc::now(),
                usage,
            }),
            storage: self.measurements().storage(bot),
        })
    }

    /// The same, now and then once every `interval`, until the bot is deleted. Whatever else ends it is an error in it:
    /// [`Error::GoingDown`] with the server.
    ///
    /// # Errors
    /// As [`Skep::workspace_metrics`].
    pub async fn watch_metrics(
        &self,
        bot: &BotId,
        interval: Duration,
    ) -> Result<BoxStream<'static, Result<WorkspaceMetrics>>> {
        let first = self.workspace_metrics(bot).await?;
        let (skep, bot) = (self.clone(), bot.clone());
        let mut ticks = tokio::time::interval(interval);
        // A reader that stalls is not sent all that it missed.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first is over at once, and told already.
        ticks.tick().await;
        let rest = stream::try_unfold((skep, bot, ticks), |(skep, bot, mut ticks)| async move {
            tokio::select! {
                _ = ticks.tick() => {}
                () = skep.going_down().cancelled() => return Err(Error::GoingDown),
            }
            match skep.metrics_of_a_bot(&bot).await {
                Ok(metrics) => Ok(Some((metrics, (skep, bot, ticks)))),
                Err(Error::BotNotFound) => Ok(None),
                Err(error) => Err(error),
            }
        });
        Ok(stream::once(async { Ok(first) }).chain(rest).boxed())
    }

    async fn metrics_of_a_bot(&self, bot: &BotId) -> Result<WorkspaceMetrics> {
        self.store().bot(bot).await?.ok_or(Error::BotNotFound)?;
        self.workspace_metrics(bot).await
    }
}
