//! The host's reserve of free space: when a workspace is to be stopped so that it lasts, and which. Pure.

use std::time::Duration;

use skep_names::BotId;
use tokio::time::Instant;

/// Of the reserve, the part that has the next workspace stopped when it is eaten too; at most so many bytes.
const STEP_PART: u64 = 32;
const LARGEST_STEP: u64 = 64 << 20;

/// Of a reserve, the part that is told apart from the rest of it.
pub(crate) fn step_of(reserve: u64) -> u64 {
    (reserve / STEP_PART).clamp(1, LARGEST_STEP)
}

/// Nothing to speak of is left, and it stays so: so long after something was done about it, something is done again.
const PAUSE: Duration = Duration::from_secs(30);
/// Of what the disk lost, the part that is to be explained by the one that is stopped; else half of it by all together.
const LEAST_PART: u64 = 10;

/// What a look at the free space comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nobody is stopped.
    Fine,
    /// The reserve was just touched, or is eaten up further.
    Eaten,
    /// There is nothing left to be eaten, whatever was done about it.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Acted {
    at: Instant,
    /// The most that was free since.
    mark: u64,
}

/// The reserve, and what was free when something was last done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reserve {
    bytes: u64,
    /// `None`: the reserve is whole, as far as is known.
    acted: Option<Acted>,
}

impl Reserve {
    /// One that is whole; `bytes` is not 0.
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, acted: None }
    }

    /// Whether a workspace is to be stopped now that so much is free. A reserve that is only not whole yet stops
    /// nobody: what fills the disk stays on it after a stop, and whoever was stopped may be started again to clean up.
    pub(crate) fn look(&mut self, free: u64, now: Instant) -> Look {
        let step = step_of(self.bytes);
        if free >= self.bytes.saturating_add(step) {
            self.acted = None;
        }
        let since = match &mut self.acted {
            None if free < self.bytes => return Look::Eaten,
            None => return Look::Fine,
            Some(acted) => {
                acted.mark = acted.mark.max(free);
                *acted
            }
        };
        if free < self.bytes && free.saturating_add(step) <= since.mark {
            return Look::Eaten;
        }
        match free < step && now.duration_since(since.at) >= PAUSE {
            true => Look::Gone,
            false => Look::Fine,
        }
    }

    /// Something was done about it: what is free at the next look is what those after it are compared with.
    pub(crate) fn acted(&mut self, now: Instant) {
        self.acted = Some(Acted { at: now, mark: 0 });
    }
}

/// One workspace that has processes, as far as it matters to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Writer {
    pub(crate) bot: BotId,
    /// Bytes it holds beyond its limit of storage.
    pub(crate) over_limit_by: u64,
    /// Bytes it wrote, or grew by, in the time that is looked at.
    pub(crate) bytes: u64,
}

/// The one over its limit, else the one that wrote most, if the disk has lost so much by that, or by all of them together,
/// that they matter: else something else fills it. Of several over theirs, the one that wrote most, and where none did,
/// the one furthest over. `None`: nobody's end would help.
pub(crate) fn whom_to_stop(running: &[Writer], lost: u64) -> Option<&Writer> {
    let over = running.iter().filter(|one| one.over_limit_by > 0);
    let over = over.max_by_key(|one| (one.bytes, one.over_limit_by));
    over.or_else(|| {
        let most = running.iter().max_by_key(|one| one.bytes)?;
        let all = running.iter().fold(0, |all: u64, one| all.saturating_add(one.bytes));
        let explains = most.bytes >= lost / LEAST_PART || all >= lost / 2;
        (most.bytes > 0 && explains).then_some(most)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    /// Whether it acts at each look; it does what it should at once.
    fn looks(reserve: u64, frees: &[u64]) -> Vec<bool> {
        let (mut reserve, now) = (Reserve::new(reserve), Instant::now());
        let look = |free: &u64| {
            let eaten = reserve.look(*free, now) == Look::Eaten;
            if eaten {
                reserve.acted(now);
            }
            eaten
        };
        frees.iter().map(look).collect()
    }

    #[test]
    fn a_reserve_that_is_touched_stops_one_and_one_more_for_each_further_step() {
        let frees = [
            3 * GIB,
            2 * GIB,
            2 * GIB - 1,
            2 * GIB - 1,
            2 * GIB - 64 * MIB,
            2 * GIB - 65 * MIB,
        ];
        assert_eq!(looks(2 * GIB, &frees), [false, false, true, false, false, true]);
    }

    #[test]
    fn what_is_free_after_a_stop_is_what_counts() {
        // The one that was stopped wrote on to its end.
        assert_eq!(
            looks(2 * GIB, &[2 * GIB - 1, GIB, GIB, GIB - 64 * MIB]),
            [true, false, false, true]
        );
    }

    #[test]
    fn cleaning_up_stops_nobody_and_filling_up_again_does() {
        let frees = [GIB, GIB, GIB + 200 * MIB, GIB + 140 * MIB, GIB + 136 * MIB];
        assert_eq!(looks(2 * GIB, &frees), [true, false, false, false, true]);
    }

    #[test]
    fn a_reserve_is_whole_again_a_step_above_itself() {
        let frees = [2 * GIB - 1, 2 * GIB - 1, 2 * GIB, 2 * GIB - 1];
        assert_eq!(
            looks(2 * GIB, &frees),
            [true, false, false, false],
            "to and fro at its edge"
        );
        let frees = [2 * GIB - 1, 2 * GIB + 64 * MIB, 2 * GIB - 1];
        assert_eq!(looks(2 * GIB, &frees), [true, false, true]);
    }

    #[test]
    fn nothing_that_is_done_is_done_again_at_the_next_look() {
        let (mut reserve, now) = (Reserve::new(GIB), Instant::now());
        assert_eq!(reserve.look(1, now), Look::Eaten);
        assert_eq!(reserve.look(1, now), Look::Eaten, "a stop that failed");
        reserve.acted(now);
        assert_eq!(reserve.look(1, now), Look::Fine);
    }

    #[test]
    fn where_nothing_is_left_something_is_done_again_after_a_pause() {
        let (mut reserve, now) = (Reserve::new(GIB), Instant::now());
        let second = Duration::from_secs(1);
        for round in 0..3 {
            let now = now + round * PAUSE;
            reserve.acted(now);
            for free in [0, step_of(GIB) - 1] {
                assert_eq!(reserve.look(free, now + PAUSE - second), Look::Fine, "{free}");
                assert_eq!(reserve.look(free, now + PAUSE), Look::Gone, "{free}");
            }
            assert_eq!(
                reserve.look(step_of(GIB), now + PAUSE),
                Look::Fine,
                "it can be eaten still"
            );
        }
    }

    fn writers(of: &[(u64, u64)]) -> Vec<Writer> {
        let one = |&(over_limit_by, bytes): &(u64, u64)| Writer {
            bot: BotId::random(),
            over_limit_by,
            bytes,
        };
        of.iter().map(one).collect()
    }

    #[test]
    fn the_table_of_whom_to_stop() {
        let cases = [
            (vec![], None),
            (vec![(0, 0), (0, 0)], None),
            (vec![(0, 5), (0, 7), (0, 6)], Some(1)),
            (vec![(0, 900), (1, 0)], Some(1)),
            (vec![(9, 0), (1, 5), (0, 900)], Some(1)),
            (vec![(1, 0), (9, 0), (0, 900)], Some(1)),
        ];
        for (of, index) in cases {
            let running = writers(&of);
            let expected = index.map(|index: usize| &running[index]);
            assert_eq!(whom_to_stop(&running, 0), expected, "{of:?}");
        }
    }

    #[test]
    fn who_had_next_to_no_part_in_it_is_not_stopped_for_it() {
        let whom = |of: &[(u64, u64)], lost| {
            let running = writers(of);
            let found = whom_to_stop(&running, lost).cloned();
            found.map(|found| running.iter().position(|one| *one == found).unwrap())
        };
        assert_eq!(whom(&[(0, 1), (0, 2)], 64 * MIB), None);
        assert_eq!(whom(&[(0, 6 * MIB), (0, 1)], 64 * MIB), None);
        assert_eq!(whom(&[(0, 7 * MIB), (0, 1)], 64 * MIB), Some(0));
        // Many of them, each with a little.
        assert_eq!(whom(&[(0, MIB); 31], 64 * MIB), None);
        assert!(whom(&[(0, MIB); 32], 64 * MIB).is_some());
        assert_eq!(whom(&[(1, 0), (0, 2)], 64 * MIB), Some(0), "it is over its limit");
    }

    proptest! {
        #[test]
        fn nobody_within_a_limit_goes_before_one_who_is_over_it(
            of in prop::collection::vec((0u64..3, 0u64..5), 0..8),
        ) {
            let running = writers(&of);
            let found = whom_to_stop(&running, 0);
            let is_one_over = running.iter().any(|one| one.over_limit_by > 0);
            prop_assert_eq!(found.is_some_and(|one| one.over_limit_by > 0), is_one_over);
            if let Some(found) = found.filter(|_| !is_one_over) {
                prop_assert!(found.bytes > 0);
                prop_assert!(running.iter().all(|one| one.bytes <= found.bytes));
            }
        }

        #[test]
        fn whatever_comes_nobody_is_stopped_while_the_reserve_is_there(frees in prop::collection::vec(0u64..200, 0..50)) {
            for (free, eaten) in frees.iter().zip(looks(100, &frees)) {
                prop_assert!(!eaten || *free < 100);
            }
        }
    }
}
