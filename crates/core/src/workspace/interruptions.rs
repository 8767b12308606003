//! When each workspace's processes were ended by an operation that brings it back by itself, so that whoever watches one of
//! them can tell that end from the process's own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use chrono::{DateTime, Utc};
use skep_names::BotId;

/// A workspace's processes from a moment on, until an operation ends them all and brings the workspace back.
#[derive(Debug, Clone, Default)]
pub struct Uninterrupted(Arc<OnceLock<DateTime<Utc>>>);

impl Uninterrupted {
    /// That operation has not come.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.0.get().is_none()
    }

    /// Whether a process that ended then was ended by that operation: one that had ended before has its own end, however
    /// late that is read.
    #[must_use]
    pub fn has_ended_one_of(&self, finished_at: DateTime<Utc>) -> bool {
        self.0.get().is_some_and(|&at| finished_at >= at)
    }
}

/// Of all bots whose processes are watched.
#[derive(Debug, Default)]
pub(crate) struct Interruptions {
    watched: Mutex<HashMap<BotId, Uninterrupted>>,
}

impl Interruptions {
    /// The workspace's processes are about to be ended, and it comes back.
    pub(crate) fn interrupt(&self, bot: &BotId) {
        if let Some(watched) = self.lock().remove(bot) {
            watched.0.get_or_init(Utc::now);
        }
    }

    /// From now on.
    pub(crate) fn watch(&self, bot: &BotId) -> Uninterrupted {
        let mut watched = self.lock();
        if let Some(known) = watched.get(bot) {
            return known.clone();
        }
        // What nobody watches any more need not be known.
        watched.retain(|_, one| Arc::strong_count(&one.0) > 1);
        watched.entry(bot.clone()).or_default().clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BotId, Uninterrupted>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_watches_is_told_of_the_first_interruption_since() {
        let (interruptions, bot, other) = (Interruptions::default(), BotId::random(), BotId::random());
        interruptions.interrupt(&bot);
        let before = Utc::now();
        let (first, not_it) = (interruptions.watch(&bot), interruptions.watch(&other));
        assert!(first.goes_on() && !first.has_ended_one_of(before), "that was before");
        interruptions.interrupt(&bot);
        let after = Utc::now();
        assert!(!first.goes_on() && first.has_ended_one_of(after));
        let a_moment = chrono::TimeDelta::nanoseconds(1);
        assert!(!first.has_ended_one_of(before - a_moment), "it ended by itself");
        let second = interruptions.watch(&bot);
        assert!(second.goes_on());
        interruptions.interrupt(&bot);
        assert!(first.has_ended_one_of(after), "the first one counts");
        assert!(!second.goes_on() && not_it.goes_on());
    }
}
