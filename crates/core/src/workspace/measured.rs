//! What was measured of workspaces and is remembered: what their layers hold, counted in the background, and the
//! last looks at their processors' time, so that a question about either waits for nothing.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt;
use skep_names::BotId;
use skep_runtime::{RuntimeError, StorageHeld, Usage};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::Result;
use crate::skep::Skep;

/// Looks at a processor's time that are closer to each other say nothing about its load.
const SHORTEST_SPAN: Duration = Duration::from_millis(100);
/// Between two looks whose count is old, at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A count of files may take so much of the time, whatever their number.
const SHARE_OF_TIME: u32 = 20;

/// Bytes of storage, as they were when they were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasuredStorage {
    pub bytes: u64,
    pub sampled_at: DateTime<Utc>,
}

/// A look at the processors' time of one run of a workspace.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Look {
    at: Instant,
    nanoseconds: u64,
    /// Which run it was.
    started_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Copy)]
struct Looks {
    /// What a look that comes too soon after the last is compared with.
    before: Look,
    last: Look,
}

/// What each file counts for beside its bytes, where a disk is being filled: so much of a disk ext4 gives to an inode.
const FILE_BYTES: u64 = 16 << 10;

/// A count, by a clock that only goes forward.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    /// With what its files count for.
    pub(crate) bytes: u64,
    pub(crate) at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Storage {
    measured: MeasuredStorage,
    files: u64,
    counted_at: Instant,
    /// Not before this without an operation.
    again_at: Instant,
    /// Not before this when it is being written to.
    soonest: Instant,
}

/// All of them. Lost with the server, and measured anew by the next.
#[derive(Debug, Default)]
pub(crate) struct Measurements {
    looks: Mutex<HashMap<BotId, Looks>>,
    storage: Mutex<HashMap<BotId, Storage>>,
    /// Whose last count failed: not before this without an operation.
    failed: Mutex<HashMap<BotId, Instant>>,
    asked: Mutex<BTreeSet<BotId>>,
    wake: Notify,
}

impl Measurements {
    /// Per cent of one core since an earlier look; from the start of the workspace at the first. 0 when there is
    /// nothing to compare with.
    pub(crate) fn processor_percent(&self, bot: &BotId, usage: &Usage, at: Instant) -> Option<f64> {
        let now = Look {
            at,
            nanoseconds: usage.cpu_nanoseconds?,
            started_at: usage.started_at,
        };
        let mut all = locked(&self.looks);
        let Some(looks) = all.get_mut(bot).filter(|looks| looks.last.started_at == now.started_at) else {
            let first = Looks { before: now, last: now };
            all.insert(bot.clone(), first);
            return Some(since_start(&now));
        };
        if now.at - looks.last.at >= SHORTEST_SPAN {
            looks.before = looks.last;
            looks.last = now;
        }
        Some(match looks.before.at == now.at || looks.before.at == looks.last.at {
            true => since_start(&now),
            false => percent(
                now.nanoseconds.checked_sub(looks.before.nanoseconds),
                now.at - looks.before.at,
            ),
        })
    }

    /// What was counted last.
    pub(crate) fn storage(&self, bot: &BotId) -> Option<MeasuredStorage> {
        locked(&self.storage).get(bot).map(|storage| storage.measured)
    }

    /// What was counted last, to be compared with a later count.
    pub(crate) fn counted_last(&self, bot: &BotId) -> Option<Counted> {
        locked(&self.storage).get(bot).map(|storage| Counted {
            bytes: storage
                .measured
                .bytes
                .saturating_add(storage.files.saturating_mul(FILE_BYTES)),
            at: storage.counted_at,
        })
    }

    /// It is written to through the API, or would be: one that runs is not left for long until its next count.
    pub(crate) fn hurry(&self, bot: &BotId) {
        if let Some(storage) = locked(&self.storage).get_mut(bot) {
            storage.again_at = storage.again_at.min(storage.soonest);
        }
    }

    /// Its storage is to be counted now.
    pub(crate) fn ask(&self, bot: &BotId) {
        locked(&self.asked).insert(bot.clone());
        self.wake.notify_one();
    }

    /// Those of these whose last count is old enough are to be counted.
    fn ask_for_old(&self, running: Vec<BotId>) {
        let now = Instant::now();
        let (storage, failed) = (locked(&self.storage), locked(&self.failed));
        let is_old = |bot: &BotId| {
            failed.get(bot).is_none_or(|&again_at| again_at <= now)
                && storage.get(bot).is_none_or(|storage| storage.again_at <= now)
        };
        locked(&self.asked).extend(running.into_iter().filter(is_old));
    }

    fn next_asked(&self) -> Option<BotId> {
        locked(&self.asked).pop_first()
    }

    fn take_asked(&self) -> Vec<BotId> {
        std::mem::take(&mut *locked(&self.asked)).into_iter().collect()
    }

    /// A count that took so long; the next comes after `every` by itself.
    fn counted(&self, bot: &BotId, held: StorageHeld, (took, every): (Duration, Duration)) {
        let now = Instant::now();
        let storage = Storage {
            measured: MeasuredStorage {
                bytes: held.bytes,
                sampled_at: Utc::now(),
            },
            files: held.files,
            counted_at: now,
            again_at: now + every.max(took * SHARE_OF_TIME),
            soonest: now + every.min(LOOK_EVERY).max(took * SHARE_OF_TIME),
        };
        locked(&self.storage).insert(bot.clone(), storage);
        locked(&self.failed).remove(bot);
    }

    /// A count that took so long and told nothing takes no more of the time than another.
    fn count_failed(&self, bot: &BotId, (took, every): (Duration, Duration)) {
        let again_at = Instant::now() + every.max(took * SHARE_OF_TIME);
        locked(&self.failed).insert(bot.clone(), again_at);
    }

    fn forget(&self, bot: &BotId) {
        locked(&self.storage).remove(bot);
        locked(&self.failed).remove(bot);
        locked(&self.looks).remove(bot);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of the whole run so far.
fn since_start(now: &Look) -> f64 {
    let run = now.started_at.and_then(|started| (Utc::now() - started).to_std().ok());
    percent(Some(now.nanoseconds), run.unwrap_or_default())
}

/// 0 when the counter or the clock went backwards.
fn percent(nanoseconds: Option<u64>, span: Duration) -> f64 {
    match (nanoseconds, span.as_nanos()) {
        (None, _) | (_, 0) => 0.0,
        (Some(used), span) => used as f64 / span as f64 * 100.0,
    }
}

impl Skep {
    /// Counts the storage of workspaces after operations, and of those that run every now and then, one at a time.
    pub(crate) fn spawn_measuring(&self) {
        let skep = self.clone();
        self.tasks().spawn(async move {
            let measurements = skep.measurements();
            let look_every = skep.settings().storage_measured_every.min(LOOK_EVERY);
            if let Err(error) = skep.ask_for_limited().await {
                tracing::warn!(
                    error = error.with_causes(),
                    "the workspaces with a limit of storage are not known"
                );
            }
            loop {
                loop {
                    let asked = measurements.take_asked();
                    if asked.is_empty() {
                        break;
                    }
                    tokio::select! {
                        () = skep.going_down().cancelled() => return,
                        () = skep.measure_all(&asked) => {}
                    }
                }
                tokio::select! {
                    () = skep.going_down().cancelled() => return,
                    () = measurements.wake.notified() => {}
                    () = tokio::time::sleep(look_every) => {}
                }
                measurements.ask_for_old(skep.observations().running());
            }
        });
    }

    async fn measure_all(&self, bots: &[BotId]) {
        let mut counts = self.runtime().storage_held_by(bots);
        for bot in bots {
            let began = Instant::now();
            if let Some(held) = counts.next().await {
                self.counted(bot, held, began).await;
            }
            // Somebody waits for that: an operation has ended, or what is written crosses a limit.
            if let Some(urgent) = self.measurements().next_asked() {
                self.measure(&urgent).await;
            }
        }
    }

    /// Counts the storage of a workspace now, and tells those who watch when that puts it over its limit, or within.
    pub(super) async fn measure(&self, bot: &BotId) {
        let began = Instant::now();
        self.counted(bot, self.runtime().storage_held(bot).await, began).await;
    }

    async fn counted(&self, bot: &BotId, held: skep_runtime::Result<StorageHeld>, began: Instant) {
        if let Err(error) = self.keep_count(bot, held, began.elapsed()).await {
            tracing::debug!(%bot, error = error.with_causes(), "the storage of a workspace was not counted");
        }
    }

    async fn keep_count(&self, bot: &BotId, held: skep_runtime::Result<StorageHeld>, took: Duration) -> Result<()> {
        let every = self.settings().storage_measured_every;
        match held {
            Ok(held) => self.measurements().counted(bot, held, (took, every)),
            Err(RuntimeError::NotFound { .. }) => self.measurements().forget(bot),
            Err(error) => {
                self.measurements().count_failed(bot, (took, every));
                return Err(error.into());
            }
        }
        self.show_storage(bot).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(nanoseconds: u64, started_at: DateTime<Utc>) -> Usage {
        Usage {
            cpu_nanoseconds: Some(nanoseconds),
            started_at: Some(started_at),
            ..Usage::default()
        }
    }

    /// Looks at so many nanoseconds, so many milliseconds after the first.
    fn looks(looks: &[(u64, u64)]) -> Vec<f64> {
        let (measurements, bot, start, first) = (Measurements::default(), BotId::random(), Utc::now(), Instant::now());
        let look = |&(nanoseconds, milliseconds): &(u64, u64)| {
            let at = first + Duration::from_millis(milliseconds);
            let percent = measurements.processor_percent(&bot, &usage(nanoseconds, start), at);
            percent.expect("a counter")
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn a_full_core_is_a_hundred_per_cent() {
        let told = looks(&[
            (5_000_000_000, 0),
            (6_000_000_000, 1000),
            (8_000_000_000, 2000),
            (8_500_000_000, 4000),
        ]);
        assert_eq!(told[1..], [100.0, 200.0, 25.0]);
    }

    #[test]
    fn a_counter_or_a_clock_that_goes_backwards_is_no_load() {
        assert_eq!(looks(&[(5_000_000_000, 0), (1_000_000_000, 1000)])[1], 0.0);
        assert_eq!(percent(Some(1), Duration::ZERO), 0.0);
    }

    #[test]
    fn a_second_reader_does_not_spoil_the_figures_of_the_first() {
        let told = looks(&[
            (0, 0),
            (1_000_000_000, 1000),
            (1_010_000_000, 1010),
            (3_000_000_000, 2000),
        ]);
        assert_eq!(told[1], 100.0);
        assert_eq!(told[2].round(), 100.0, "from the look before the last");
        assert_eq!(told[3], 200.0, "from the last that counted");
    }

    #[test]
    fn a_count_that_failed_is_not_asked_for_again_at_once() {
        let (measurements, bot, every) = (Measurements::default(), BotId::random(), Duration::from_secs(600));
        let is_asked = || {
            measurements.ask_for_old(vec![bot.clone()]);
            !measurements.take_asked().is_empty()
        };
        let at_once = (Duration::ZERO, Duration::ZERO);
        assert!(is_asked());
        measurements.count_failed(&bot, (every, Duration::ZERO));
        assert!(!is_asked(), "it took its share of the time");
        measurements.count_failed(&bot, at_once);
        assert!(is_asked());
        measurements.count_failed(&bot, (Duration::ZERO, every));
        assert!(!is_asked());
        measurements.counted(&bot, StorageHeld::default(), at_once);
        assert!(is_asked(), "it counts no more that it failed once");
    }

    #[test]
    fn another_run_is_not_compared_with_the_one_before() {
        let (measurements, bot, now) = (Measurements::default(), BotId::random(), Instant::now());
        let old = Utc::now() - chrono::TimeDelta::hours(1);
        measurements.processor_percent(&bot, &usage(1_000_000_000, old), now);
        let new = Utc::now() - chrono::TimeDelta::seconds(100);
        let later = now + Duration::from_secs(1);
        let percent = measurements.processor_percent(&bot, &usage(50_000_000_000, new), later);
        assert!(
            percent.is_some_and(|percent| (49.0..=50.1).contains(&percent)),
            "{percent:?}"
        );
        assert_eq!(measurements.processor_percent(&bot, &Usage::default(), later), None);
    }
}
