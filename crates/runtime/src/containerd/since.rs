//! What happened, by containerd's events, to things that are known by name.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// So many changed ones are asked about one by one; of more, a list of all is cheaper.
const ONE_BY_ONE: usize = 64;

/// What happened since it was last taken.
#[derive(Default)]
pub(super) struct Since(Mutex<Happened>);

#[derive(Default)]
pub(super) struct Happened {
    /// Anything may have.
    pub(super) anything: bool,
    /// Names of what was made, changed or removed.
    pub(super) changed: HashSet<String>,
}

impl Since {
    /// One was made, changed or removed.
    pub(super) fn changed(&self, name: &str) {
        let mut happened = self.locked();
        if happened.changed.len() < ONE_BY_ONE {
            happened.changed.insert(name.to_owned());
        } else {
            happened.anything = true;
            happened.changed.clear();
        }
    }

    /// Nothing that was known counts any more.
    pub(super) fn forget(&self) {
        self.locked().anything = true;
    }

    pub(super) fn take(&self) -> Happened {
        std::mem::take(&mut *self.locked())
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Happened> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
