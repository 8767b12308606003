//! Tells of workspaces that have as many processes as they may: the kernel counts what it refused, and tells nobody.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use skep_names::BotId;
use skep_store::EventLimits;

use super::observed::Deed;
use crate::error::Result;
use crate::skep::Skep;

/// Its event among those of a workspace.
pub(super) const REFUSED_PROCESSES: &str = "pids";
/// How often the workspace was refused one since its start, in that event.
const REFUSED: &str = "refused";
/// Between two looks at all that run.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A fork bomb goes on and on. As many as a log shows.
const REFUSALS: EventLimits = EventLimits {
    kept: 256,
    apart: Duration::from_secs(1),
};

/// A count that is smaller than the one before is that of a later run.
fn is_news(before: u64, now: u64) -> bool {
    now != before && now > 0
}

impl Skep {
    /// Looks until the server goes down.
    pub(crate) fn spawn_refusal_watch(&self) {
        let skep = self.clone();
        self.tasks().spawn(async move {
            let mut counted = HashMap::new();
            loop {
                tokio::select! {
                    () = skep.going_down().cancelled() => return,
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
                if let Err(error) = skep.look_for_refusals(&mut counted).await {
                    tracing::debug!(error = error.with_causes(), "refused processes are not known");
                }
            }
        });
    }

    async fn look_for_refusals(&self, counted: &mut HashMap<BotId, u64>) -> Result<()> {
        let running = self.observations().running();
        let refused = self.runtime().refused_processes(&running).await?;
        counted.retain(|bot, _| refused.contains_key(bot));
        for (bot, now) in refused {
            if let Err(error) = self.note_refusals(&bot, now, counted).await {
                tracing::debug!(%bot, error = error.with_causes(), "refused processes are not written down");
            }
        }
        Ok(())
    }

    async fn note_refusals(&self, bot: &BotId, now: u64, counted: &mut HashMap<BotId, u64>) -> Result<()> {
        let before = match counted.get(bot) {
            Some(before) => *before,
            // What an earlier server told is no news.
            None if now > 0 => self.refusals_told(bot).await?,
            None => 0,
        };
        if is_news(before, now) {
            let event = (REFUSED_PROCESSES, &json!({ REFUSED: now }));
            let is_written = self
                .store()
                .insert_limited_lifecycle_event(bot, event, REFUSALS)
                .await?;
            if is_written {
                tracing::warn!(%bot, refused = now, "a workspace has as many processes as it may");
                self.observations().done(bot, Deed::PidsExhausted);
            }
        }
        counted.insert(bot.clone(), now);
        Ok(())
    }

    async fn refusals_told(&self, bot: &BotId) -> Result<u64> {
        let told = self.store().lifecycle_events_of(bot, REFUSED_PROCESSES, 0, 1).await?;
        Ok(told
            .last()
            .and_then(|event| event.payload[REFUSED].as_u64())
            .unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_news_when_it_is_another_one_and_something_was_refused() {
        for (before, now, news) in [
            (0, 0, false),
            (0, 1, true),
            (7, 7, false),
            (7, 8, true),
            (7, 3, true),
            (7, 0, false),
        ] {
            assert_eq!(is_news(before, now), news, "{before} then {now}");
        }
    }
}
