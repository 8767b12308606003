//! What a test makes go wrong, be slow or wait, verb by verb; and how often each verb was called.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_runtime::{CheckStatus, Result, RuntimeError};
use tokio::sync::watch;

/// The verbs of the runtime that can be made to fail, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `images` and `image`.
    Images,
    /// `pull`.
    Pull,
    /// `import`.
    Import,
    /// `remove_image`.
    RemoveImage,
    /// `create`.
    Create,
    /// `start`.
    Start,
    /// `stop`.
    Stop,
    /// `remove`.
    Remove,
    /// Each layer of a `remove`, the newest first, once its container is gone.
    RemoveLayers,
    /// `inspect`.
    Inspect,
    /// `list`.
    List,
    /// `bots_with_layers`.
    BotsWithLayers,
    /// `has_layer`.
    HasLayer,
    /// `list` and `present` of layers.
    ListLayers,
    /// `commit` of a layer.
    Commit,
    /// `stage` of a layer.
    Stage,
    /// `swap` of layers.
    Swap,
    /// `shorten` and `rebase` of layers.
    Merge,
    /// `discard` and `release` of a layer.
    RemoveLayer,
    /// `apply_limits`.
    ApplyLimits,
    /// `usage`, which asks no daemon: it does not fail while that is away.
    Usage,
    /// `storage_held`.
    StorageHeld,
    /// `free_bytes`.
    FreeBytes,
    /// `sweep`.
    Sweep,
    /// `address`.
    Address,
    /// `read_data`.
    ReadData,
    /// `write_data`.
    WriteData,
}

#[derive(Default)]
struct State {
    unavailable: bool,
    calls: HashMap<Verb, u64>,
    failures: HashMap<Verb, VecDeque<RuntimeError>>,
    delays: HashMap<Verb, Duration>,
    holds: HashMap<Verb, watch::Receiver<()>>,
    check: Option<(CheckStatus, String)>,
}

/// Shared by a fake runtime and the test that drives it.
#[derive(Clone, Default)]
pub struct Faults {
    state: Arc<Mutex<State>>,
}

/// While it lives, calls of its verb wait before they do anything. Dropped, they go on.
pub struct Hold {
    _sender: watch::Sender<()>,
}

impl Faults {
    /// The next call of `verb` fails so; given again, the one after it.
    pub fn fail_next(&self, verb: Verb, error: RuntimeError) {
        self.lock().failures.entry(verb).or_default().push_back(error);
    }

    /// Failures that were told and did not come to pass never do.
    pub fn forget(&self) {
        self.lock().failures.clear();
    }

    /// Every call of `verb` takes at least this long; zero ends it.
    pub fn delay(&self, verb: Verb, delay: Duration) {
        self.lock().delays.insert(verb, delay);
    }

    /// Calls of `verb` wait until the answer is dropped.
    #[must_use]
    pub fn hold(&self, verb: Verb) -> Hold {
        let (sender, receiver) = watch::channel(());
        self.lock().holds.insert(verb, receiver);
        Hold { _sender: sender }
    }

    /// Whether every verb that needs the daemon fails with `Unavailable`.
    /// Use [`FakeRuntime::go_away`](super::FakeRuntime::go_away) to have the events told too.
    pub(super) fn set_unavailable(&self, unavailable: bool) {
        self.lock().unavailable = unavailable;
    }

    /// Whether the daemon is away.
    pub fn is_unavailable(&self) -> bool {
        self.lock().unavailable
    }

    /// How often `verb` was called, failed calls included.
    pub fn calls(&self, verb: Verb) -> u64 {
        self.lock().calls.get(&verb).copied().unwrap_or(0)
    }

    /// From now on the runtime's own check says this while the daemon answers.
    pub fn set_check(&self, status: CheckStatus, detail: &str) {
        self.lock().check = Some((status, detail.to_owned()));
    }

    pub(super) fn check(&self) -> Option<(CheckStatus, String)> {
        self.lock().check.clone()
    }

    /// Counts the call, waits as told and fails as told.
    pub(super) async fn enter(&self, verb: Verb) -> Result<()> {
        let (delay, hold) = {
            let mut state = self.lock();
            *state.calls.entry(verb).or_default() += 1;
            (state.delays.get(&verb).copied(), state.holds.get(&verb).cloned())
        };
        if let Some(mut hold) = hold {
            // The only thing the sender ever does is go away: an error is the signal to go on.
            while hold.changed().await.is_ok() {}
        }
        if let Some(delay) = delay.filter(|delay| !delay.is_zero()) {
            tokio::time::sleep(delay).await;
        }
        let mut state = self.lock();
        if state.unavailable && verb != Verb::Usage {
            return Err(RuntimeError::Unavailable {
                runtime: "fake runtime",
                source: None,
            });
        }
        match state.failures.get_mut(&verb).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
