//! What the watchers of a pull are told: one entry per distinct layer, never backwards.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::manifest::{Descriptor, Digest};
use crate::{LayerPhase, LayerProgress, PullProgress};

/// The state of one pull and everybody who watches it.
#[derive(Default)]
pub(super) struct Tracker {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    layers: Vec<LayerProgress>,
    places: HashMap<Digest, usize>,
    watchers: Vec<Arc<dyn PullProgress>>,
}

impl Tracker {
    /// Adds a watcher, who is told at once what is known.
    pub(super) fn watch(&self, watcher: Arc<dyn PullProgress>) {
        let mut state = self.lock();
        if !state.layers.is_empty() {
            watcher.layers(&state.layers);
        }
        state.watchers.push(watcher);
    }

    /// Names the layers, in the manifest's order; those of `present` are here in full.
    pub(super) fn begin(&self, layers: &[Descriptor], present: impl Fn(&Digest) -> bool) {
        let mut state = self.lock();
        for layer in layers {
            if state.places.contains_key(&layer.digest) {
                continue;
            }
            let place = state.layers.len();
            state.places.insert(layer.digest.clone(), place);
            state.layers.push(LayerProgress {
                digest: layer.digest.to_string(),
                offset: if present(&layer.digest) { layer.size } else { 0 },
                total: layer.size,
                phase: LayerPhase::Waiting,
            });
        }
        for watcher in &state.watchers {
            watcher.layers(&state.layers);
        }
    }

    /// So many bytes of a layer are here. Bytes fetched a second time are not counted down.
    pub(super) fn offset(&self, digest: &Digest, offset: u64) {
        self.change(digest, |layer| {
            layer.offset = layer.offset.max(offset.min(layer.total));
            layer.phase = later(layer.phase, LayerPhase::Downloading);
        });
    }

    /// A layer has come so far. From verification on, all of it is here.
    pub(super) fn phase(&self, digest: &Digest, phase: LayerPhase) {
        self.change(digest, |layer| {
            layer.phase = later(layer.phase, phase);
            if order(layer.phase) > order(LayerPhase::Downloading) {
                layer.offset = layer.total;
            }
        });
    }

    fn change(&self, digest: &Digest, change: impl FnOnce(&mut LayerProgress)) {
        let mut state = self.lock();
        let Some(&place) = state.places.get(digest) else {
            return;
        };
        let before = state.layers[place].clone();
        change(&mut state.layers[place]);
        if state.layers[place] != before {
            for watcher in &state.watchers {
                watcher.layer(&state.layers[place]);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here can be left half done by a watcher's panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn order(phase: LayerPhase) -> u8 {
    match phase {
        LayerPhase::Waiting => 0,
        LayerPhase::Downloading => 1,
        LayerPhase::Verifying => 2,
        LayerPhase::Extracting => 3,
        LayerPhase::Done => 4,
    }
}

fn later(one: LayerPhase, other: LayerPhase) -> LayerPhase {
    if order(other) > order(one) { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<LayerProgress>>);

    impl PullProgress for Seen {
        fn layers(&self, layers: &[LayerProgress]) {
            self.0.lock().unwrap().extend_from_slice(layers);
        }

        fn layer(&self, layer: &LayerProgress) {
            self.0.lock().unwrap().push(layer.clone());
        }
    }

    #[test]
    fn nothing_goes_backwards_and_a_layer_is_listed_once() {
        let layer = Descriptor::new("", b"twelve bytes");
        let tracker = Tracker::default();
        let seen = Arc::new(Seen::default());
        tracker.watch(seen.clone());
        tracker.begin(&[layer.clone(), layer.clone()], |_| false);
        tracker.offset(&layer.digest, 8);
        tracker.offset(&layer.digest, 4);
        tracker.phase(&layer.digest, LayerPhase::Verifying);
        tracker.offset(&layer.digest, 5);
        tracker.phase(&layer.digest, LayerPhase::Done);
        tracker.phase(&layer.digest, LayerPhase::Extracting);
        let steps: Vec<_> = seen
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|step| (step.offset, step.phase))
            .collect();
        assert_eq!(
            steps,
            [
                (0, LayerPhase::Waiting),
                (8, LayerPhase::Downloading),
                (12, LayerPhase::Verifying),
                (12, LayerPhase::Done)
            ]
        );
        let late = Arc::new(Seen::default());
        tracker.watch(late.clone());
        assert_eq!(late.0.lock().unwrap().len(), 1);
    }
}
