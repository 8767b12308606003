//! Pulls of the same image at the same time are one work.
//!
//! The work runs in a task of its own, so that its clean-up happens whoever goes away; the task ends when
//! the last one who waits for it is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_names::ImageReference;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::progress::Tracker;
use super::pull;
use super::store::Inner;
use crate::{PullProgress, Result, RuntimeError};

/// How a pull ended; `None` while it runs.
type Outcome = Option<std::result::Result<(), Arc<RuntimeError>>>;

/// The pulls under way, by image.
#[derive(Default)]
pub(super) struct Pulls {
    running: Arc<Mutex<HashMap<ImageReference, Weak<Job>>>>,
}

/// A pull under way. Whoever holds it, waits for it.
struct Job {
    tracker: Arc<Tracker>,
    outcome: watch::Receiver<Outcome>,
    _ended_with_the_last_waiter: DropGuard,
}

/// A failure that several waiters are told of.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<RuntimeError>);

impl Pulls {
    /// Waits for a pull of this image, which is begun unless one runs.
    pub(super) async fn join(
        &self,
        inner: &Arc<Inner>,
        reference: &ImageReference,
        progress: Arc<dyn PullProgress>,
    ) -> Result<()> {
        let job = {
            let mut running = lock(&self.running);
            let joined = running.get(reference).and_then(Weak::upgrade);
            // One that has ended and is not yet cleared away knows nothing of what was asked since.
            let joined = joined.filter(|job| job.outcome.borrow().is_none());
            joined.unwrap_or_else(|| {
                let job = self.begin(inner, reference);
                running.insert(reference.clone(), Arc::downgrade(&job));
                job
            })
        };
        job.tracker.watch(progress);
        let mut outcome = job.outcome.clone();
        let ended = outcome.wait_for(Option::is_some).await;
        match ended.map(|outcome| outcome.clone()) {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(error))) => Err(again(error)),
            Ok(None) | Err(_) => Err(RuntimeError::other(
                format!("pull {reference}"),
                "the task that pulled it ended early",
            )),
        }
    }

    fn begin(&self, inner: &Arc<Inner>, reference: &ImageReference) -> Arc<Job> {
        let tracker = Arc::new(Tracker::default());
        let (sender, outcome) = watch::channel(None);
        let cancel = CancellationToken::new();
        let job = Arc::new(Job {
            tracker: Arc::clone(&tracker),
            outcome,
            _ended_with_the_last_waiter: cancel.clone().drop_guard(),
        });
        let (running, tasks) = (Arc::clone(&self.running), inner.tasks.clone());
        let (inner, reference) = (Arc::clone(inner), reference.clone());
        tasks.spawn(async move {
            let ended = pull::pull(&inner, &reference, &tracker, &cancel).await;
            sender.send_replace(Some(ended.map_err(Arc::new)));
            lock(&running).retain(|_, job| job.upgrade().is_some_and(|job| job.outcome.borrow().is_none()));
        });
        job
    }
}

fn lock(running: &Mutex<HashMap<ImageReference, Weak<Job>>>) -> MutexGuard<'_, HashMap<ImageReference, Weak<Job>>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same failure for one more waiter: what callers tell apart is kept, the rest goes into the source.
fn again(error: Arc<RuntimeError>) -> RuntimeError {
    match &*error {
        RuntimeError::Rejected { reason } => RuntimeError::Rejected { reason: reason.clone() },
        RuntimeError::Registry { reason } => RuntimeError::Registry { reason: reason.clone() },
        RuntimeError::ImageNotFound { reference } => RuntimeError::ImageNotFound {
            reference: reference.clone(),
        },
        RuntimeError::NoSpace { operation } => RuntimeError::NoSpace {
            operation: operation.clone(),
        },
        RuntimeError::Unavailable { runtime, .. } => RuntimeError::Unavailable {
            runtime,
            source: Some(Box::new(Shared(error))),
        },
        _ => RuntimeError::other("pull the image", Shared(error)),
    }
}
