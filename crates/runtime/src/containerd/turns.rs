//! One verb at a time for each bot, so that cleaning up never meets a start under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use skep_names::BotId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Whose turn it is, by bot.
#[derive(Default)]
pub(super) struct Turns {
    waiting: Mutex<HashMap<BotId, Arc<Semaphore>>>,
}

/// Held while a verb works on a bot, and by work on the host that outlives a cancelled verb.
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Turns {
    /// Waits until no other verb works on this bot.
    pub(super) async fn take(&self, bot: &BotId) -> Arc<Turn> {
        let semaphore = self.semaphore(bot);
        match semaphore.acquire_owned().await {
            Ok(permit) => Arc::new(Turn { _permit: permit }),
            Err(closed) => unreachable!("nobody closes the semaphore of a bot: {closed}"),
        }
    }

    /// `None` while another verb works on this bot.
    pub(super) fn try_take(&self, bot: &BotId) -> Option<Arc<Turn>> {
        let permit = self.semaphore(bot).try_acquire_owned().ok()?;
        Some(Arc::new(Turn { _permit: permit }))
    }

    fn semaphore(&self, bot: &BotId) -> Arc<Semaphore> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Forget bots nobody works on: their semaphore is known here alone.
        if waiting.len() > 1024 {
            waiting.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        Arc::clone(
            waiting
                .entry(bot.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(1))),
        )
    }
}
