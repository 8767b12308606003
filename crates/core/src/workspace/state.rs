//! The life of a workspace as it is shown, and how often one that dies is started again. Pure.
//!
//! ```text
//!              Begun                     Answered
//!   Absent ──────────────▶ Starting ─────────────────▶ Running
//!     ▲                     ▲  │                        │  │
//!     │                Begun│  │NotStarted        Ending│  │Died
//!     │ Removed             │  ▼                        ▼  │
//!     │ (from any)        Down{why} ◀──────────── Stopping │
//!     │                     ▲  │ Begun   NotStarted   │    │
//!     │                Died │  └────▶ Starting        │Ended
//!     │                     └──────────────────────── │ ───┘
//!     └──────── Stopped ◀─────────────────────────────┘
//! ```
//! `Lost` leads from any state but Absent to Missing; `Begun` leads out of it. `DiskFull` is an `Ended` that nobody
//! asked for; it leads to DiskFull, which is a Stopped that says why.

use std::time::Duration;

use super::info::WorkspaceStatus;

/// Why a workspace was stopped that took the host's last space, as it is recorded and shown.
pub(crate) const DISK_FULL: &str = "disk_full";

/// Where a workspace is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// There is none.
    Absent,
    /// No process, as it should be.
    Stopped,
    /// No process: it was stopped to keep the host from filling up.
    DiskFull,
    /// Processes may be there, the bridge has not answered. Until it does, what it was before is shown.
    Starting(Box<State>),
    /// The bridge answered.
    Running,
    /// Its processes are being ended.
    Stopping,
    /// No process, though there should be.
    Down { why: String },
    /// Its container is gone.
    Missing,
}

/// What happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A start began.
    Begun,
    /// The bridge answered.
    Answered,
    /// A start came to nothing.
    NotStarted { why: String },
    /// A stop began.
    Ending,
    /// No process is left, as was asked.
    Ended,
    /// No process is left, to keep the host from filling up.
    DiskFull,
    /// Process 1 ended by itself.
    Died { why: String },
    /// It was removed.
    Removed,
    /// Its container was found to be gone.
    Lost,
}

/// The state after an event; an event that cannot be in a state is a late echo and changes nothing.
pub(crate) fn next(state: &State, event: &Event) -> State {
    match (state, event) {
        (_, Event::Removed) => State::Absent,
        (State::Running | State::Starting(_), Event::Begun) => state.clone(),
        (State::Stopping, Event::Begun) => State::Starting(Box::new(State::Stopped)),
        (_, Event::Begun) => State::Starting(Box::new(state.clone())),
        (
            State::Absent,
            Event::Answered | Event::Ended | Event::DiskFull | Event::Lost | Event::Died { .. } | Event::Ending,
        ) => State::Absent,
        (_, Event::Answered) => State::Running,
        (_, Event::NotStarted { why }) => match state {
            State::Absent => State::Absent,
            _ => State::Down { why: why.clone() },
        },
        (State::Starting(_) | State::Running | State::Stopping, Event::Ending) => State::Stopping,
        (state, Event::Ending) => state.clone(),
        (_, Event::Ended) => State::Stopped,
        (_, Event::DiskFull) => State::DiskFull,
        // A death while it is being stopped is the stop's own doing.
        (State::Running | State::Starting(_), Event::Died { why }) => State::Down { why: why.clone() },
        (state, Event::Died { .. }) => state.clone(),
        (_, Event::Lost) => State::Missing,
    }
}

impl Event {
    /// No process is left, for the recorded reason.
    pub(crate) fn ended(reason: Option<&str>) -> Self {
        match reason {
            Some(DISK_FULL) => Self::DiskFull,
            _ => Self::Ended,
        }
    }
}

impl State {
    /// No process, as it should be, for the recorded reason.
    pub(crate) fn stopped(reason: Option<&str>) -> Self {
        match reason {
            Some(DISK_FULL) => Self::DiskFull,
            _ => Self::Stopped,
        }
    }

    /// Status, whether processes run, and the reason.
    pub(crate) fn shown(&self) -> (Option<WorkspaceStatus>, bool, Option<String>) {
        match self {
            Self::Absent => (None, false, None),
            Self::Stopped => (Some(WorkspaceStatus::Stopped), false, None),
            Self::DiskFull => (Some(WorkspaceStatus::Stopped), false, Some(DISK_FULL.to_owned())),
            Self::Starting(before) => match before.shown() {
                (None, ..) => (Some(WorkspaceStatus::Created), false, None),
                (status, _, reason) => (status, false, reason),
            },
            Self::Running | Self::Stopping => (Some(WorkspaceStatus::Running), true, None),
            Self::Down { why } => (Some(WorkspaceStatus::Error), false, Some(why.clone())),
            Self::Missing => (Some(WorkspaceStatus::Missing), false, None),
        }
    }
}

/// So many deaths are followed by a start at once.
const QUICK_TRIES: u32 = 3;
/// The first pause after them; it doubles with each death.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// What follows a death, or a start that came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Start it at once.
    Now,
    /// Not before that long.
    After(Duration),
}

/// The deaths of one workspace since it last ran for long. Times are of a clock that only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deaths {
    /// Running for so long clears the count.
    cleared_after: Duration,
    count: u32,
    running_since: Option<Duration>,
    not_before: Duration,
}

impl Deaths {
    pub(crate) fn none(cleared_after: Duration) -> Self {
        Self {
            cleared_after,
            count: 0,
            running_since: None,
            not_before: Duration::ZERO,
        }
    }

    /// Its bridge answered.
    pub(crate) fn answered(&mut self, now: Duration) {
        self.running_since.get_or_insert(now);
    }

    /// It died, or did not start.
    pub(crate) fn died(&mut self, now: Duration) -> Retry {
        let ran_for = self.running_since.take().map(|since| now.saturating_sub(since));
        if ran_for.is_some_and(|ran_for| ran_for >= self.cleared_after) {
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count <= QUICK_TRIES {
            self.not_before = now;
            return Retry::Now;
        }
        let doublings = (self.count - QUICK_TRIES - 1).min(10);
        let pause = (FIRST_PAUSE * 2u32.pow(doublings)).min(LONGEST_PAUSE);
        self.not_before = now + pause;
        Retry::After(pause)
    }

    /// It may be started by the server itself.
    pub(crate) fn may_try(&self, now: Duration) -> bool {
        now >= self.not_before
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEN_MINUTES: Duration = Duration::from_secs(600);

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Begun),
            Just(Event::Answered),
            Just(Event::NotStarted { why: "n".into() }),
            Just(Event::Ending),
            Just(Event::Ended),
            Just(Event::DiskFull),
            Just(Event::Died { why: "d".into() }),
            Just(Event::Removed),
            Just(Event::Lost),
        ]
    }

    proptest! {
        #[test]
        fn after_any_history_the_last_fact_is_shown(history in prop::collection::vec(any_event(), 0..40)) {
            let mut state = State::Absent;
            for event in &history {
                let before = state.clone();
                state = next(&state, event);
                match event {
                    Event::Removed => prop_assert_eq!(&state, &State::Absent),
                    Event::Begun => prop_assert!(matches!(state, State::Starting(_) | State::Running)),
                    Event::Answered if before != State::Absent => prop_assert_eq!(&state, &State::Running),
                    Event::Ended if before != State::Absent => prop_assert_eq!(&state, &State::Stopped),
                    Event::DiskFull if before != State::Absent => prop_assert_eq!(&state, &State::DiskFull),
                    Event::Died { .. } if before == State::Stopped => prop_assert_eq!(&state, &before),
                    Event::Died { .. } | Event::NotStarted { .. } => prop_assert_ne!(&state, &State::Running),
                    _ => {}
                }
                // Only a beginning makes something out of nothing.
                if before == State::Absent && *event != Event::Begun {
                    prop_assert_eq!(&state, &State::Absent);
                }
            }
        }

        #[test]
        fn a_workspace_that_keeps_dying_is_tried_ever_less_often(pauses in prop::collection::vec(0u64..900, 4..30)) {
            let mut deaths = Deaths::none(TEN_MINUTES);
            let mut now = Duration::ZERO;
            let mut last = Duration::ZERO;
            for (number, ran) in pauses.iter().enumerate() {
                now += Duration::from_secs(1);
                let retry = deaths.died(now);
                match retry {
                    Retry::Now => prop_assert!(number < 3),
                    Retry::After(pause) => {
                        prop_assert!(number >= 3 && pause >= last && pause <= LONGEST_PAUSE);
                        prop_assert!(!deaths.may_try(now) && deaths.may_try(now + pause));
                        last = pause;
                    }
                }
                // It runs, but never long enough to be forgiven.
                deaths.answered(now);
                now += Duration::from_secs(*ran.min(&598));
            }
        }
    }

    #[test]
    fn one_that_was_stopped_for_space_is_stopped_and_says_why() {
        let state = next(&State::Stopping, &Event::ended(Some(DISK_FULL)));
        let shown = (Some(WorkspaceStatus::Stopped), false, Some(DISK_FULL.to_owned()));
        assert_eq!(state.shown(), shown);
        assert_eq!(State::stopped(Some(DISK_FULL)), state, "also by the next server");
        let starting = next(&state, &Event::Begun);
        assert_eq!(starting, State::Starting(Box::new(state)), "and may be started again");
    }

    #[test]
    fn until_its_bridge_answers_one_shows_what_it_was() {
        let down = State::Down { why: "it ended".into() };
        for (before, status, reason) in [
            (State::Absent, WorkspaceStatus::Created, None),
            (State::Stopped, WorkspaceStatus::Stopped, None),
            (State::Stopping, WorkspaceStatus::Stopped, None),
            (State::DiskFull, WorkspaceStatus::Stopped, Some(DISK_FULL)),
            (down, WorkspaceStatus::Error, Some("it ended")),
            (State::Missing, WorkspaceStatus::Missing, None),
        ] {
            let mut starting = next(&before, &Event::Begun);
            for _ in 0..2 {
                let shown = (Some(status), false, reason.map(str::to_owned));
                assert_eq!(starting.shown(), shown, "{before:?}");
                starting = next(&starting, &Event::Begun);
            }
            assert_eq!(next(&starting, &Event::Answered), State::Running);
        }
    }

    #[test]
    fn ten_minutes_of_running_clear_the_count() {
        let mut deaths = Deaths::none(TEN_MINUTES);
        for second in 1..=10 {
            deaths.died(Duration::from_secs(second));
        }
        deaths.answered(Duration::from_secs(20));
        assert_eq!(deaths.died(Duration::from_secs(620)), Retry::Now);
    }
}
