//! How often each workspace's processes were ended by an operation that brings it back by itself, so that whoever
//! watches one of them can tell that end from the process's own.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_names::BotId;

/// The counts of all bots since the server started.
#[derive(Debug, Default)]
pub(crate) struct Interruptions {
    counts: Mutex<HashMap<BotId, u64>>,
}

impl Interruptions {
    /// The workspace's processes are about to be ended, and it comes back.
    pub(crate) fn interrupt(&self, bot: &BotId) {
        *self.lock().entry(bot.clone()).or_default() += 1;
    }

    /// How often that was.
    pub(crate) fn count(&self, bot: &BotId) -> u64 {
        self.lock().get(bot).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BotId, u64>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
