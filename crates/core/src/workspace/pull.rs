//! The pull of an image as events: paced, monotone, complete at its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_names::ImageReference;
use skep_runtime::{ImageRecord, LayerPhase, LayerProgress, PullProgress};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::Result;
use crate::operations::{EventBody, Layer};
use crate::skep::Skep;

/// Between two events while bytes move: the contract says at least 200 ms and at most 500 ms.
const PACE: Duration = Duration::from_millis(300);

/// Collects what the runtime tells; whoever is told is never waited for.
#[derive(Default)]
struct Collected {
    layers: Mutex<Vec<LayerProgress>>,
    changed: Notify,
}

impl Collected {
    fn lock(&self) -> MutexGuard<'_, Vec<LayerProgress>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self) -> Option<EventBody> {
        let layers = self.lock();
        (!layers.is_empty()).then(|| EventBody::PullProgress {
            layers: layers.iter().map(Layer::from).collect(),
        })
    }

    /// One to tell on the way. That all is here is told once, at the end, when it is true of the image too.
    fn passing_event(&self) -> Option<EventBody> {
        let all_done = self.lock().iter().all(|layer| layer.phase == LayerPhase::Done);
        if all_done { None } else { self.event() }
    }

    /// Every layer is here: said so whatever the last word of the runtime was.
    fn complete(&self) -> Option<EventBody> {
        for layer in self.lock().iter_mut() {
            layer.offset = layer.total;
            layer.phase = LayerPhase::Done;
        }
        self.event()
    }
}

impl PullProgress for Collected {
    fn layers(&self, layers: &[LayerProgress]) {
        *self.lock() = layers.to_vec();
        self.changed.notify_one();
    }

    fn layer(&self, told: &LayerProgress) {
        {
            let mut layers = self.lock();
            let Some(known) = layers.iter_mut().find(|known| known.digest == told.digest) else {
                return;
            };
            // A retry begins anew; what is shown never goes backwards, nor past its end.
            known.offset = known.offset.max(told.offset.min(known.total));
            known.phase = told.phase;
        }
        self.changed.notify_one();
    }
}

impl Skep {
    /// Pulls an image and gives each passing event to `tell`, which must not wait. The last event, when there were
    /// any, is returned: every layer complete.
    ///
    /// # Errors
    /// [`Error::DiskFull`] where it would take the host's reserve; nothing that was fetched stays then.
    pub(crate) async fn fetch_image<F>(
        &self,
        image: &ImageReference,
        tell: F,
    ) -> Result<(ImageRecord, Option<EventBody>)>
    where
        F: Fn(EventBody),
    {
        let collected = Arc::new(Collected::default());
        let pull = async { Ok(self.runtime().pull(image, collected.clone()).await?) };
        let record = told(self.while_spare(pull), &collected, tell).await?;
        Ok((record, collected.complete()))
    }
}

/// Tells what a pull collects until it ends.
async fn told<F>(pull: impl Future<Output = Result<ImageRecord>>, collected: &Collected, tell: F) -> Result<ImageRecord>
where
    F: Fn(EventBody),
{
    tokio::pin!(pull);
    let mut next_at = Instant::now();
    loop {
        let tick = async {
            collected.changed.notified().await;
            tokio::time::sleep_until(next_at).await;
        };
        tokio::select! {
            biased;
            pulled = &mut pull => return pulled,
            () = tick => {
                if let Some(event) = collected.passing_event() {
                    tell(event);
                    next_at = Instant::now() + PACE;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digest: &str, offset: u64) -> LayerProgress {
        LayerProgress {
            digest: digest.to_owned(),
            offset,
            total: 100,
            phase: LayerPhase::Downloading,
        }
    }

    #[test]
    fn offsets_never_go_backwards_and_end_at_their_totals() {
        let collected = Collected::default();
        assert_eq!(collected.complete(), None);
        collected.layers(&[layer("a", 0), layer("b", 100)]);
        collected.layer(&layer("a", 60));
        collected.layer(&layer("a", 10));
        collected.layer(&layer("a", 500));
        collected.layer(&layer("unknown", 5));
        let Some(EventBody::PullProgress { layers }) = collected.event() else {
            panic!("there are layers");
        };
        assert_eq!(layers.iter().map(|one| one.offset).collect::<Vec<_>>(), [100, 100]);
        assert!(collected.passing_event().is_some());
        let Some(EventBody::PullProgress { layers }) = collected.complete() else {
            panic!("there are layers");
        };
        assert!(layers.iter().all(|one| one.offset == one.total && one.phase == "done"));
        assert_eq!(collected.passing_event(), None, "the end is told once");
    }
}
