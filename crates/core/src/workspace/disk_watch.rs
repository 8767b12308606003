//! Keeps tenants from filling the host: looks at the free space, and stops a workspace when the reserve is eaten up.
//! When, and which, is decided in `reserve`, by what `weighing` finds.

use std::time::Duration;

use skep_names::BotId;
use tokio::time::Instant;

use super::request::{Request, StopCause};
use super::reserve::{Look, Reserve, whom_to_stop};
use super::weighing::Before;
use crate::error::{Error, Result};
use crate::requester::Requester;
use crate::skep::Skep;

/// Between two looks: a disk of a gigabyte a second leaves this long for a reserve of two.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After a look, or a stop, that failed: from, to.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// With fewer reserves free than these, it is remembered how the disk was a little while ago: who takes the last of it
/// in one go has done so before anybody looks.
const NEAR: u64 = 8;
const REMEMBERED_EVERY: Duration = Duration::from_secs(5);
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
            near: bytes.saturating_mul(NEAR),
            reserve: Reserve::new(bytes),
            older: None,
            newer: None,
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
}

struct DiskWatch {
    skep: Skep,
    /// So little free is near to the reserve.
    near: u64,
    reserve: Reserve,
    /// How the disk was: two of them, so that there is one that is not too young.
    older: Option<Before>,
    newer: Option<Before>,
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
        let look = self.reserve.look(free, Instant::now());
        if look == Look::Fine {
            self.remember(free).await;
            return Ok(());
        }
        if let Some(bot) = self.choose(look, free).await? {
            match self.stop(&bot).await {
                // The next look chooses anew: one that cannot be stopped must not stand before all others.
                Err(error) if !is_gone(&error) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        self.reserve.acted(Instant::now());
        // What was lost until now is no matter of those that still run.
        (self.older, self.newer) = (None, None);
        Ok(())
    }

    async fn remember(&mut self, free: u64) {
        if free >= self.near {
            (self.older, self.newer) = (None, None);
            return;
        }
        if self.newer.as_ref().is_none_or(|newer| newer.age() >= REMEMBERED_EVERY) {
            let now = self.skep.state_of_disk(free).await;
            self.older = self.newer.replace(now);
        }
    }

    async fn choose(&self, look: Look, free: u64) -> Result<Option<BotId>> {
        let before = match self.older.as_ref().or(self.newer.as_ref()) {
            Some(before) => before.clone(),
            None => self.skep.state_of_disk(free).await,
        };
        let mut weighed = self.skep.weigh(&before).await?;
        if look == Look::Gone {
            // Whoever does not add to it has been started to clean up.
            weighed.writers.retain(|one| one.bytes > 0);
        }
        let Some(found) = whom_to_stop(&weighed.writers, weighed.lost) else {
            let lost = weighed.lost;
            tracing::warn!(
                free,
                lost,
                "the disk is nearly full, and no workspace that runs fills it"
            );
            return Ok(None);
        };
        tracing::warn!(
            bot = %found.bot,
            free,
            lost = weighed.lost,
            over_limit_by = found.over_limit_by,
            bytes = found.bytes,
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
