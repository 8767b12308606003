//! Keeps tenants from filling the host: looks at the free space, and stops a workspace when the reserve is eaten up.
//! When, and which, is decided in `reserve`.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use skep_names::BotId;
use skep_runtime::RuntimeError;
use tokio::time::Instant;

use super::request::{Request, StopCause};
use super::reserve::{Reserve, Writer, whom_to_stop};
use crate::error::{Error, Result};
use crate::requester::Requester;
use crate::skep::Skep;

/// Between two looks: a disk of a gigabyte a second leaves this long for a reserve of two.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After a look, or a stop, that failed: from, to.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Between the two looks at what is written, at least.
const LEAST_SPAN: Duration = Duration::from_millis(500);
/// Layers that are not counted by then are judged by what they wrote.
const COUNTED_WITHIN: Duration = Duration::from_secs(2);
/// Workspaces that are asked for at once.
const AT_A_TIME: usize = 16;
/// Between SIGTERM and SIGKILL: who fills a disk is not waited for.
const GRACE: Duration = Duration::from_secs(1);
/// What of the workspace's operations it overtakes may have something to undo first.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

impl Skep {
    /// Watches the free space until the server goes down. Without a reserve there is nothing to watch.
    pub(crate) fn spawn_disk_watch(&self) {
        let bytes = self.settings().reserve_bytes;
        if bytes == 0 {
            return;
        }
        let skep = self.clone();
        let mut watch = DiskWatch {
            skep: self.clone(),
            reserve: Reserve::new(bytes),
            back_off: BACK_OFF.0,
        };
        self.tasks().spawn(async move {
            loop {
                let watching = async {
                    let pause = watch.look().await;
                    tokio::time::sleep(pause).await;
                };
                tokio::select! {
                    // A stop that was begun is in the journal.
                    () = skep.going_down().cancelled() => return,
                    () = watching => {}
                }
            }
        });
    }

    /// Of each workspace that has processes, what it does to the disk. Whether it has some is asked of the kernel: one
    /// that is being stopped, or said not to run, may write on.
    async fn weigh(&self) -> Result<Vec<Writer>> {
        let began = Instant::now();
        let before = self.written_by(self.observations().present()).await;
        let with_processes: Vec<BotId> = before.keys().cloned().collect();
        let growth = self.growth_of(with_processes.clone()).await;
        tokio::time::sleep_until(began + LEAST_SPAN).await;
        let after = self.written_by(with_processes).await;
        let span = began.elapsed();
        let bots: Vec<BotId> = after.keys().cloned().collect();
        let rows = self.store().containers_of(&bots).await?;
        let over: HashMap<_, _> = rows
            .iter()
            .map(|row| (&row.bot_id, self.storage_over_by(row)))
            .collect();
        let weighed = bots.iter().map(|bot| {
            let written = match (before.get(bot), after.get(bot)) {
                (Some(Some(before)), Some(Some(after))) => per_second(after.saturating_sub(*before), span),
                _ => 0,
            };
            Writer {
                bot: bot.clone(),
                over_limit_by: over.get(bot).copied().unwrap_or(0),
                // What was deleted and is still open grows nothing that is counted, and space that is only
                // reserved is never written.
                bytes_per_second: written.max(growth.get(bot).copied().unwrap_or(0)),
            }
        });
        Ok(weighed.collect())
    }

    /// What each that has processes has written so far, where that can be told.
    async fn written_by(&self, bots: Vec<BotId>) -> HashMap<BotId, Option<u64>> {
        let asked = bots.into_iter().map(|bot| async move {
            match self.runtime().written_bytes(&bot).await {
                Ok(bytes) => Some((bot, Some(bytes))),
                Err(RuntimeError::NotFound { .. }) => None,
                Err(error) => {
                    let error = Error::from(error);
                    tracing::warn!(%bot, error = error.with_causes(), "what a workspace writes cannot be told");
                    Some((bot, None))
                }
            }
        });
        let told = futures::stream::iter(asked).buffer_unordered(AT_A_TIME);
        told.filter_map(std::future::ready).collect().await
    }

    /// Counts each anew: bytes a second that it grew by since it was counted last.
    async fn growth_of(&self, bots: Vec<BotId>) -> HashMap<BotId, u64> {
        futures::stream::iter(bots)
            .map(|bot| async move {
                let rate = self.growth(&bot).await;
                (bot, rate)
            })
            .buffer_unordered(AT_A_TIME)
            .take_until(tokio::time::sleep(COUNTED_WITHIN))
            .collect()
            .await
    }

    async fn growth(&self, bot: &BotId) -> u64 {
        let before = self.measurements().counted_last(bot);
        self.measure(bot).await;
        match (before, self.measurements().counted_last(bot)) {
            (Some(before), Some(now)) => per_second(now.bytes.saturating_sub(before.bytes), now.at - before.at),
            _ => 0,
        }
    }
}

/// 0 where no time has passed.
fn per_second(bytes: u64, span: Duration) -> u64 {
    let rate = u128::from(bytes) * 1000 / span.as_millis().max(1);
    match span.is_zero() {
        true => 0,
        false => u64::try_from(rate).unwrap_or(u64::MAX),
    }
}

struct DiskWatch {
    skep: Skep,
    reserve: Reserve,
    back_off: Duration,
}

impl DiskWatch {
    /// Says how long to wait for the next look.
    async fn look(&mut self) -> Duration {
        match self.keep().await {
            Ok(()) => {
                self.back_off = BACK_OFF.0;
                LOOK_EVERY
            }
            Err(error) => {
                tracing::warn!(error = error.with_causes(), "the host's free space is not kept");
                let pause = self.back_off;
                self.back_off = (pause * 2).min(BACK_OFF.1);
                pause
            }
        }
    }

    async fn keep(&mut self) -> Result<()> {
        let free = self.skep.runtime().free_bytes().await?;
        if !self.reserve.is_eaten(free) {
            return Ok(());
        }
        if let Some(bot) = self.choose(free).await? {
            match self.stop(&bot).await {
                // The next look chooses anew: one that cannot be stopped must not stand before all others.
                Err(error) if !is_gone(&error) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        self.reserve.acted();
        Ok(())
    }

    async fn choose(&self, free: u64) -> Result<Option<BotId>> {
        let weighed = self.skep.weigh().await?;
        let Some(found) = whom_to_stop(&weighed) else {
            tracing::warn!(free, "the disk is nearly full, and no workspace that runs fills it");
            return Ok(None);
        };
        tracing::warn!(
            bot = %found.bot,
            free,
            over_limit_by = found.over_limit_by,
            bytes_per_second = found.bytes_per_second,
            "the disk is nearly full: a workspace is stopped"
        );
        Ok(Some(found.bot.clone()))
    }

    async fn stop(&self, bot: &BotId) -> Result<()> {
        let request = Request::Stop {
            grace: Some(GRACE),
            cause: StopCause::DiskFull,
        };
        let operation = self.skep.submit(bot, request, &Requester::server()).await?;
        match tokio::time::timeout(STOPPED_WITHIN, operation.outcome()).await {
            Ok(outcome) => outcome.map(drop),
            Err(late) => Err(Error::internal("stopping a workspace that fills the disk", late)),
        }
    }
}

/// Deleted meanwhile, or about to be.
fn is_gone(error: &Error) -> bool {
    use crate::Code::{BotNotFound, ContainerNotFound, OperationInProgress};
    matches!(error.code(), BotNotFound | ContainerNotFound | OperationInProgress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_time_that_has_passed() {
        assert_eq!(per_second(1000, Duration::from_secs(2)), 500);
        assert_eq!(per_second(1000, Duration::from_millis(500)), 2000);
        assert_eq!(per_second(1000, Duration::ZERO), 0);
        assert_eq!(per_second(u64::MAX, Duration::from_millis(1)), u64::MAX);
        assert_eq!(per_second(1000, Duration::from_micros(1)), 1_000_000);
    }
}
