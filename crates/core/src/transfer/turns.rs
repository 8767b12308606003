//! How many transfers of a kind are under way at once, of each workspace and in all: each holds a thread, a file or
//! both, and a client may take as long as he is allowed to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_names::BotId;
use tokio::sync::Semaphore;

use crate::error::{Error, Result};

/// What may be under way at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// Of one workspace.
    of_a_bot: usize,
    in_all: usize,
    /// For people: what is under way.
    what: &'static str,
}

const EXPORTS: Most = Most {
    of_a_bot: 4,
    in_all: 64,
    what: "exports",
};

/// Each keeps a file as large as `/data` until it is taken.
const OF_ONE_MOMENT: Most = Most {
    of_a_bot: 1,
    in_all: 64,
    what: "exports of one moment",
};
/// Received and checked, not those that wait for their turn or are put in place.
const IMPORTS: Most = Most {
    of_a_bot: 1,
    in_all: usize::MAX,
    what: "imports",
};
/// Archives of clients that are read to their end at once: each takes a thread, tens of megabytes of memory and the
/// disk. One more waits.
const CHECKS: usize = 4;

type Taken = Arc<Mutex<HashMap<BotId, usize>>>;

/// The turns of all kinds.
#[derive(Debug)]
pub(crate) struct Turns {
    pub(super) exports: Kind,
    pub(super) of_one_moment: Kind,
    pub(super) imports: Kind,
    pub(super) checks: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            exports: Kind::new(EXPORTS),
            of_one_moment: Kind::new(OF_ONE_MOMENT),
            imports: Kind::new(IMPORTS),
            checks: Arc::new(Semaphore::new(CHECKS)),
        }
    }
}

/// The turns of one kind.
#[derive(Debug)]
pub(super) struct Kind {
    most: Most,
    taken: Taken,
}

impl Kind {
    fn new(most: Most) -> Self {
        Self {
            most,
            taken: Taken::default(),
        }
    }

    /// # Errors
    /// [`Error::RateLimited`] while too many are under way.
    pub(super) fn take(&self, bot: &BotId) -> Result<Turn> {
        let mut taken = locked(&self.taken);
        let of_bot = taken.get(bot).copied().unwrap_or_default();
        let Most { of_a_bot, in_all, what } = self.most;
        if of_bot >= of_a_bot {
            return Err(Error::RateLimited(format!(
                "{what} of the workspace are under way already, {of_a_bot} at once are the most"
            )));
        }
        if taken.values().sum::<usize>() >= in_all {
            return Err(Error::RateLimited(format!(
                "{what} are under way already, {in_all} at once are the most"
            )));
        }
        taken.insert(bot.clone(), of_bot + 1);
        Ok(Turn {
            bot: bot.clone(),
            taken: Arc::clone(&self.taken),
        })
    }
}

/// One that is under way. It has ended when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    bot: BotId,
    taken: Taken,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = locked(&self.taken);
        match taken.get_mut(&self.bot) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.bot)),
        }
    }
}

fn locked(taken: &Taken) -> MutexGuard<'_, HashMap<BotId, usize>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_bound_for_each_workspace_and_for_all_and_what_has_ended_counts_no_more() {
        let kind = Kind::new(Most {
            of_a_bot: 2,
            in_all: 3,
            what: "transfers",
        });
        let (one, other) = (BotId::random(), BotId::random());
        let refused = |bot| match kind.take(bot) {
            Err(Error::RateLimited(_)) => true,
            Err(error) => panic!("{error}"),
            Ok(_) => false,
        };
        let (first, second) = (kind.take(&one).expect("a turn"), kind.take(&one).expect("a turn"));
        assert!(refused(&one), "a third of one workspace");
        let third = kind.take(&other).expect("a turn");
        assert!(refused(&other), "a fourth of all");
        drop(first);
        let again = kind.take(&one).expect("a turn");
        drop((second, third, again));
        assert!(locked(&kind.taken).is_empty(), "nothing is kept of what has ended");
    }
}
