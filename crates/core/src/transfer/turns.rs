//! How many transfers of a kind are under way at once, of each workspace, of each owner and in all: each holds a thread,
//! a file or both, and a client may take as long as he is allowed to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_names::BotId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// What may be under way at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// Of one workspace.
    of_a_bot: usize,
    /// Of all workspaces of one owner.
    of_an_owner: usize,
    in_all: usize,
    /// For people: what is under way.
    what: &'static str,
}

const EXPORTS: Most = Most {
    of_a_bot: 4,
    of_an_owner: 16,
    in_all: 64,
    what: "exports",
};

/// Each keeps a file as large as `/data` until it is taken.
const OF_ONE_MOMENT: Most = Most {
    of_a_bot: 1,
    of_an_owner: 16,
    in_all: 64,
    what: "exports of one moment",
};
/// Received and checked, not those that wait for their turn or are put in place.
const IMPORTS: Most = Most {
    of_a_bot: 1,
    of_an_owner: usize::MAX,
    in_all: usize::MAX,
    what: "imports",
};
/// Archives of clients that are read to their end at once: each takes a thread, tens of megabytes of memory and the
/// disk. One more waits, as does a second one of an owner.
const CHECKS: usize = 4;

/// The turns of all kinds.
#[derive(Debug)]
pub(crate) struct Turns {
    pub(super) exports: Kind,
    pub(super) of_one_moment: Kind,
    pub(super) imports: Kind,
    pub(super) checks: Checks,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            exports: Kind::new(EXPORTS),
            of_one_moment: Kind::new(OF_ONE_MOMENT),
            imports: Kind::new(IMPORTS),
            checks: Checks::new(CHECKS),
        }
    }
}

/// The turns of one kind.
#[derive(Debug)]
pub(super) struct Kind {
    most: Most,
    taken: Taken,
}

/// Which are under way, and of whom. There are never more than a few.
type Taken = Arc<Mutex<Vec<Of>>>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Of {
    bot: BotId,
    owner: String,
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
    pub(super) fn take(&self, bot: &BotId, owner: &str) -> Result<Turn> {
        let of = Of {
            bot: bot.clone(),
            owner: owner.to_owned(),
        };
        let mut taken = locked(&self.taken);
        let Most { what, .. } = self.most;
        let of_bot = taken.iter().filter(|other| other.bot == of.bot).count();
        let of_owner = taken.iter().filter(|other| other.owner == of.owner).count();
        for (whose, under_way, most) in [
            (" of the workspace", of_bot, self.most.of_a_bot),
            (" of the workspace's owner", of_owner, self.most.of_an_owner),
            ("", taken.len(), self.most.in_all),
        ] {
            if under_way >= most {
                return Err(Error::RateLimited(format!(
                    "{what}{whose} are under way already, {most} at once are the most"
                )));
            }
        }
        taken.push(of.clone());
        Ok(Turn {
            of,
            taken: Arc::clone(&self.taken),
        })
    }
}

/// One that is under way. It has ended when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    of: Of,
    taken: Taken,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = locked(&self.taken);
        if let Some(at) = taken.iter().position(|one| *one == self.of) {
            taken.swap_remove(at);
        }
    }
}

/// Checks of archives that were received.
#[derive(Debug)]
pub(super) struct Checks {
    in_all: Arc<Semaphore>,
    of_an_owner: usize,
    /// All but one are one owner's at most; of those who have some or wait.
    of_owners: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Checks {
    fn new(in_all: usize) -> Self {
        Self {
            in_all: Arc::new(Semaphore::new(in_all)),
            of_an_owner: in_all - 1,
            of_owners: Mutex::default(),
        }
    }

    /// Waits until one more may run. It has ended when the answer is dropped. Whoever waits for another one of his own
    /// keeps nobody else waiting.
    pub(super) async fn take(&self, owner: &str) -> Result<[OwnedSemaphorePermit; 2]> {
        let closed = |closed| Error::internal("waiting to check an archive", closed);
        let of_owner = self.of_owner(owner).acquire_owned().await;
        let of_owner = of_owner.map_err(closed)?;
        let of_all = Arc::clone(&self.in_all).acquire_owned().await;
        Ok([of_owner, of_all.map_err(closed)?])
    }

    fn of_owner(&self, owner: &str) -> Arc<Semaphore> {
        let mut of_owners = locked(&self.of_owners);
        if let Some(known) = of_owners.get(owner).and_then(Weak::upgrade) {
            return known;
        }
        of_owners.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.of_an_owner));
        of_owners.insert(owner.to_owned(), Arc::downgrade(&new));
        new
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn there_is_a_bound_for_each_workspace_and_for_all_and_what_has_ended_counts_no_more() {
        let kind = Kind::new(Most {
            of_a_bot: 2,
            of_an_owner: 3,
            in_all: 3,
            what: "transfers",
        });
        let (one, other) = ((BotId::random(), "ada"), (BotId::random(), "bob"));
        let take = |(bot, owner): &(BotId, &str)| kind.take(bot, owner);
        let refused = |bot| match take(bot) {
            Err(Error::RateLimited(_)) => true,
            Err(error) => panic!("{error}"),
            Ok(_) => false,
        };
        let (first, second) = (take(&one).expect("a turn"), take(&one).expect("a turn"));
        assert!(refused(&one), "a third of one workspace");
        let third = take(&other).expect("a turn");
        assert!(refused(&other), "a fourth of all");
        drop(first);
        let again = take(&one).expect("a turn");
        drop((second, third, again));
        assert!(locked(&kind.taken).is_empty(), "nothing is kept of what has ended");
    }

    #[test]
    fn one_owner_of_many_workspaces_leaves_exports_to_others() {
        let turns = Turns::default();
        for kind in [&turns.exports, &turns.of_one_moment] {
            let bots = std::iter::repeat_with(BotId::random).take(100);
            let mut taken: Vec<_> = bots.filter_map(|bot| kind.take(&bot, "ada").ok()).collect();
            assert_eq!(taken.len(), 16, "{}", kind.most.what);
            kind.take(&BotId::random(), "bob").expect("another owner's");
            taken.pop();
            kind.take(&BotId::random(), "ada").expect("one of hers has ended");
        }
    }

    #[test]
    fn one_owner_of_many_archives_leaves_a_check_to_others() {
        let checks = Checks::new(2);
        let take = |owner| checks.take(owner).now_or_never().map(|taken| taken.expect("open"));
        let first = take("ada").expect("the first");
        assert!(take("ada").is_none(), "a second one of hers");
        let other = take("bob").expect("another owner's");
        assert!(take("eve").is_none(), "a third of all");
        drop(first);
        let again = take("ada").expect("the next one of hers");
        drop((other, again));
        drop(take("eve").expect("nothing is held by who has ended"));
        assert_eq!(locked(&checks.of_owners).len(), 1, "nothing is kept of who has none");
    }
}
