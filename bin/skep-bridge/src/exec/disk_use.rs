//! What all logs hold on disk together, and when that is too much.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The bytes of segment files and records. Ended processes give theirs up first, the oldest end before all others.
pub(crate) struct DiskUse {
    limit: u64,
    all: AtomicU64,
    of_ended: AtomicU64,
    too_much: Notify,
}

impl DiskUse {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            all: AtomicU64::new(0),
            of_ended: AtomicU64::new(0),
            too_much: Notify::new(),
        }
    }

    pub(crate) fn all(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    pub(crate) fn is_too_much(&self) -> bool {
        self.all() > self.limit
    }

    /// A running process wrote. Returns what running ones hold too much: a share of the limit stays for the ends of
    /// others, which would not be known at all without it.
    pub(crate) fn grow(&self, bytes: u64) -> u64 {
        let all = self.all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let of_ended = self.of_ended.load(Ordering::Relaxed);
        if all > self.limit && of_ended > 0 {
            self.too_much.notify_one();
        }
        all.saturating_sub(of_ended)
            .saturating_sub(self.limit - self.limit / 16)
    }

    pub(crate) fn shrink(&self, bytes: u64) {
        self.all.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A process that ended holds `bytes` from now on, `new` of which were not counted yet.
    pub(crate) fn keep_ended(&self, bytes: u64, new: u64) {
        self.all.fetch_add(new, Ordering::Relaxed);
        self.of_ended.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn drop_ended(&self, bytes: u64) {
        self.of_ended.fetch_sub(bytes, Ordering::Relaxed);
        self.shrink(bytes);
    }

    /// Until ended ones have to give something up.
    pub(crate) async fn too_much(&self) {
        self.too_much.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_processes_give_theirs_up_before_running_ones() {
        let disk = DiskUse::new(1600);
        disk.keep_ended(1000, 1000);
        assert_eq!(disk.grow(1500), 0, "there is enough to be dropped of ended ones");
        assert!(disk.is_too_much());
        disk.drop_ended(1000);
        assert!(!disk.is_too_much());
        assert_eq!(
            disk.grow(10),
            10,
            "running ones leave a sixteenth to the ends of others"
        );
        disk.shrink(10);
        assert_eq!(disk.all(), 1500);
    }
}
