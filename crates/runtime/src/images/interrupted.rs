//! What was fetched of images whose registry or network failed: kept for the next pull of the same image.
//!
//! Each failed pull leaves its lease, which ends by itself within a day, or with a prune. Known in memory only: to a
//! server that is started anew it is like what a pull that died left, gone on with when it is pulled again at once
//! and else collected by the sweep.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_names::ImageReference;

use super::daemon::Lease;

/// Failed pulls whose content is kept; the oldest goes first.
const MOST: usize = 32;

/// The leases of failed pulls, oldest first.
#[derive(Default)]
pub(super) struct Interrupted {
    kept: Mutex<VecDeque<(ImageReference, Lease)>>,
}

impl Interrupted {
    /// Keeps one; gives back the one that is too many.
    pub(super) fn keep(&self, reference: &ImageReference, lease: Lease) -> Option<Lease> {
        let mut kept = self.lock();
        kept.push_back((reference.clone(), lease));
        if kept.len() > MOST {
            kept.pop_front().map(|(_, lease)| lease)
        } else {
            None
        }
    }

    /// It is one of those that are kept.
    pub(super) fn holds(&self, lease_id: &str) -> bool {
        self.lock().iter().any(|(_, lease)| lease.id == lease_id)
    }

    /// All of one image, which are the caller's to end.
    pub(super) fn take(&self, reference: &ImageReference) -> Vec<Lease> {
        let mut kept = self.lock();
        let (of_it, others) = kept
            .drain(..)
            .partition::<VecDeque<_>, _>(|(name, _)| name == reference);
        *kept = others;
        of_it.into_iter().map(|(_, lease)| lease).collect()
    }

    /// All of all images, which are the caller's to end.
    pub(super) fn take_all(&self) -> Vec<Lease> {
        self.lock().drain(..).map(|(_, lease)| lease).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(ImageReference, Lease)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: usize) -> Lease {
        Lease { id: id.to_string() }
    }

    #[test]
    fn only_the_leases_of_the_image_are_taken() {
        let (interrupted, one, other) = (Interrupted::default(), "a.example/one:1", "a.example/two:1");
        let (one, other): (ImageReference, ImageReference) = (one.parse().unwrap(), other.parse().unwrap());
        for (number, reference) in [&one, &other, &one].into_iter().enumerate() {
            assert!(interrupted.keep(reference, lease(number)).is_none());
        }
        let ids = |leases: Vec<Lease>| leases.into_iter().map(|lease| lease.id).collect::<Vec<_>>();
        assert_eq!(ids(interrupted.take(&one)), ["0", "2"]);
        assert_eq!(ids(interrupted.take(&one)), Vec::<String>::new());
        assert_eq!(ids(interrupted.take_all()), ["1"]);
    }

    #[test]
    fn the_oldest_is_given_up_first() {
        let (interrupted, reference) = (Interrupted::default(), "a.example/one:1".parse().unwrap());
        let given_up = (0..=MOST).filter_map(|number| interrupted.keep(&reference, lease(number)));
        assert_eq!(given_up.map(|lease| lease.id).collect::<Vec<_>>(), ["0"]);
    }
}
