//! How fast many workspaces are looked at, one after the other.

use std::time::Duration;

use tokio::time::Instant;

/// So many times as long as the looks took is rested after them.
const RESTS: u32 = 4;
/// Looks are shorter than what a clock can be waited for, so those of this time together are followed by one rest.
const WORKS: Duration = Duration::from_millis(5);
/// On a host that is busy a look takes long because it waits; the last of many is not to come much later for that.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// A round of looks.
#[derive(Debug)]
pub(super) enum Pace {
    AtOnce,
    Unhurried { began: Instant },
}

impl Pace {
    pub(super) fn at_once() -> Self {
        Self::AtOnce
    }

    /// Leaves most of a processor to those who ask for something meanwhile.
    pub(super) fn unhurried() -> Self {
        Self::Unhurried { began: Instant::now() }
    }

    /// Between two looks. Nothing that others wait for may be held.
    pub(super) async fn rest(&mut self) {
        let Self::Unhurried { began } = self else { return };
        if let Some(rest) = rest_after(began.elapsed()) {
            tokio::time::sleep(rest).await;
            *began = Instant::now();
        }
    }
}

fn rest_after(worked: Duration) -> Option<Duration> {
    (worked >= WORKS).then(|| (worked * RESTS).min(LONGEST_REST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_take_a_fifth_of_the_time_and_the_rest_after_a_long_one_is_bounded() {
        assert_eq!(rest_after(WORKS - Duration::from_nanos(1)), None);
        assert_eq!(rest_after(WORKS), Some(WORKS * 4));
        assert_eq!(rest_after(Duration::from_secs(9)), Some(LONGEST_REST));
    }
}
