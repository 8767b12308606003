//! What each workspace does to the disk: the bytes that it wrote, or grew by, since a little while ago.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use skep_names::BotId;
use skep_runtime::RuntimeError;
use tokio::time::Instant;

use super::reserve::Writer;
use crate::error::{Error, Result};
use crate::skep::Skep;

/// Between the two looks at what is written, at least.
const LEAST_SPAN: Duration = Duration::from_millis(500);
/// Layers that are not counted by then are judged by what was written.
const COUNTED_WITHIN: Duration = Duration::from_secs(2);
/// Workspaces that are asked for at once.
const AT_A_TIME: usize = 16;

/// What was free, and what each workspace had written, at some time.
#[derive(Debug, Clone)]
pub(super) struct Before {
    at: Instant,
    free: u64,
    /// Those that had processes; `None` where it could not be told.
    written: HashMap<BotId, Option<u64>>,
}

impl Before {
    pub(super) fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// Who had no processes then has written all of it since. What could not be told is nobody's fault.
    fn written_since(&self, bot: &BotId, now: Option<u64>) -> u64 {
        match (self.written.get(bot), now) {
            (None, Some(now)) => now,
            (Some(Some(before)), Some(now)) => now.saturating_sub(*before),
            (_, None) | (Some(None), Some(_)) => 0,
        }
    }
}

/// What became of the disk since then, and by whom.
#[derive(Debug)]
pub(super) struct Weighed {
    pub(super) lost: u64,
    pub(super) writers: Vec<Writer>,
}

impl Skep {
    pub(super) async fn state_of_disk(&self, free: u64) -> Before {
        Before {
            at: Instant::now(),
            free,
            written: self.written_by(self.observations().present()).await,
        }
    }

    /// Of each workspace that has processes, what it did to the disk since then. Whether it has some is asked of the
    /// kernel: one that is being stopped, or said not to run, may write on.
    pub(super) async fn weigh(&self, before: &Before) -> Result<Weighed> {
        let growth = self.growth_of(before.written.keys().cloned().collect()).await;
        tokio::time::sleep_until(before.at + LEAST_SPAN).await;
        let after = self.written_by(self.observations().present()).await;
        let free = self.runtime().free_bytes().await?;
        let span = before.age();
        let over = self.over_limit(after.keys().cloned().collect()).await?;
        let writers = after.iter().map(|(bot, written)| {
            // What was deleted and is still open does not grow, and files without a byte are not written.
            let grown = within(growth.get(bot).copied().unwrap_or(0), span);
            Writer {
                bot: bot.clone(),
                over_limit_by: over.get(bot).copied().unwrap_or(0),
                bytes: before.written_since(bot, *written).max(grown),
            }
        });
        Ok(Weighed {
            lost: before.free.saturating_sub(free),
            writers: writers.collect(),
        })
    }

    /// What those that have a limit hold beyond it, with what they hold that has no name any more.
    async fn over_limit(&self, bots: Vec<BotId>) -> Result<HashMap<BotId, u64>> {
        let rows = self.store().containers_of(&bots).await?;
        let limited = rows.iter().filter(|row| self.storage_limit(row) > 0);
        let asked = limited.map(|row| async move {
            let nameless = self.runtime().nameless_bytes(&row.bot_id).await;
            let nameless = told(&row.bot_id, nameless).flatten().unwrap_or(0);
            (row.bot_id.clone(), self.storage_over_by_with(row, nameless))
        });
        // Collected first: a stream of what borrows from an iterator cannot be sent to another thread.
        let asked: Vec<_> = asked.collect();
        Ok(futures::stream::iter(asked).buffer_unordered(AT_A_TIME).collect().await)
    }

    /// What each that has processes has written so far, where that can be told.
    async fn written_by(&self, bots: Vec<BotId>) -> HashMap<BotId, Option<u64>> {
        let asked = bots.into_iter().map(|bot| async move {
            let written = told(&bot, self.runtime().written_bytes(&bot).await)?;
            Some((bot, written))
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

/// `None`: it has no processes. `Some(None)`: it cannot be told.
fn told(bot: &BotId, bytes: skep_runtime::Result<u64>) -> Option<Option<u64>> {
    match bytes {
        Ok(bytes) => Some(Some(bytes)),
        Err(RuntimeError::NotFound { .. }) => None,
        Err(error) => {
            let error = Error::from(error);
            tracing::warn!(%bot, error = error.with_causes(), "what a workspace writes cannot be told");
            Some(None)
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

/// At that rate, in that time.
fn within(rate: u64, span: Duration) -> u64 {
    u64::try_from(u128::from(rate) * span.as_millis() / 1000).unwrap_or(u64::MAX)
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
        assert_eq!(within(500, Duration::from_secs(2)), 1000);
        assert_eq!(within(u64::MAX, Duration::from_secs(2)), u64::MAX);
    }

    #[test]
    fn who_has_started_since_has_written_all_of_it_since() {
        let (old, new, unknown) = (BotId::random(), BotId::random(), BotId::random());
        let before = Before {
            at: Instant::now(),
            free: 0,
            written: HashMap::from([(old.clone(), Some(70)), (unknown.clone(), None)]),
        };
        assert_eq!(before.written_since(&old, Some(100)), 30);
        assert_eq!(before.written_since(&old, Some(10)), 0, "another run of it");
        assert_eq!(before.written_since(&old, None), 0);
        assert_eq!(before.written_since(&new, Some(100)), 100);
        assert_eq!(before.written_since(&unknown, Some(100)), 0);
    }
}
