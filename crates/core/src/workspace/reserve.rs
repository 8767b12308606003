//! The host's reserve of free space: when a workspace is to be stopped so that it lasts, and which. Pure.

use skep_names::BotId;

/// Of the reserve, the part that has the next workspace stopped when it is eaten too; at most so many bytes.
const STEP_PART: u64 = 32;
const LARGEST_STEP: u64 = 64 << 20;

/// Of a reserve, the part that is told apart from the rest of it.
pub(crate) fn step_of(reserve: u64) -> u64 {
    (reserve / STEP_PART).clamp(1, LARGEST_STEP)
}

/// The reserve, and what was free when something was last done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reserve {
    bytes: u64,
    /// The most that was free since a workspace was stopped. `None`: the reserve is whole, as far as is known.
    mark: Option<u64>,
}

impl Reserve {
    /// One that is whole; `bytes` is not 0.
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, mark: None }
    }

    /// Whether a workspace is to be stopped now that so much is free: the reserve was just touched, or is eaten up
    /// further. One that is only not whole yet stops nobody: what fills the disk stays on it after a stop, and
    /// whoever was stopped may be started again to clean up.
    pub(crate) fn is_eaten(&mut self, free: u64) -> bool {
        if free >= self.bytes.saturating_add(self.step()) {
            self.mark = None;
        }
        match self.mark {
            None => free < self.bytes,
            Some(mark) => {
                self.mark = Some(mark.max(free));
                free < self.bytes && free.saturating_add(self.step()) <= mark
            }
        }
    }

    /// Something was done about it: what is free at the next look is what those after it are compared with.
    pub(crate) fn acted(&mut self) {
        self.mark = Some(0);
    }

    fn step(&self) -> u64 {
        step_of(self.bytes)
    }
}

/// One workspace that runs, as far as it matters to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Writer {
    pub(crate) bot: BotId,
    /// Bytes it holds beyond its limit of storage.
    pub(crate) over_limit_by: u64,
    /// Bytes it writes in a second, or grows by.
    pub(crate) bytes_per_second: u64,
}

/// The one over its limit, else the one that writes most. Of several over theirs, the one that writes most, and where
/// none writes, the one furthest over. `None`: nobody is over a limit and nobody writes, so nobody's end would help.
pub(crate) fn whom_to_stop(running: &[Writer]) -> Option<&Writer> {
    let over = running.iter().filter(|one| one.over_limit_by > 0);
    let over = over.max_by_key(|one| (one.bytes_per_second, one.over_limit_by));
    let writing = running.iter().filter(|one| one.bytes_per_second > 0);
    over.or_else(|| writing.max_by_key(|one| one.bytes_per_second))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    /// Whether it acts at each look; it does what it should at once.
    fn looks(reserve: u64, frees: &[u64]) -> Vec<bool> {
        let mut reserve = Reserve::new(reserve);
        let look = |free: &u64| {
            let eaten = reserve.is_eaten(*free);
            if eaten {
                reserve.acted();
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
        let mut reserve = Reserve::new(GIB);
        assert!(reserve.is_eaten(1) && reserve.is_eaten(1), "a stop that failed");
        reserve.acted();
        assert!(!reserve.is_eaten(1));
    }

    fn writers(of: &[(u64, u64)]) -> Vec<Writer> {
        let one = |&(over_limit_by, bytes_per_second): &(u64, u64)| Writer {
            bot: BotId::random(),
            over_limit_by,
            bytes_per_second,
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
            assert_eq!(whom_to_stop(&running), expected, "{of:?}");
        }
    }

    proptest! {
        #[test]
        fn nobody_within_a_limit_goes_before_one_who_is_over_it(
            of in prop::collection::vec((0u64..3, 0u64..5), 0..8),
        ) {
            let running = writers(&of);
            let found = whom_to_stop(&running);
            let is_one_over = running.iter().any(|one| one.over_limit_by > 0);
            prop_assert_eq!(found.is_some_and(|one| one.over_limit_by > 0), is_one_over);
            if let Some(found) = found.filter(|_| !is_one_over) {
                prop_assert!(found.bytes_per_second > 0);
                prop_assert!(running.iter().all(|one| one.bytes_per_second <= found.bytes_per_second));
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
