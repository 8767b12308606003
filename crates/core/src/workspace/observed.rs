//! What was last seen of every workspace, for those who watch, and how often each died.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use skep_names::BotId;
use skep_store::Desired;
use tokio::sync::watch;
use tokio::time::Instant;

use super::info::WorkspaceState;
use super::state::{Deaths, Event, Retry, State, next};

/// A moment in the order of all that is told here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

#[derive(Debug)]
struct One {
    state: State,
    /// When that, or what is desired, was told last.
    told: Moment,
    desired: Option<Desired>,
    deaths: Deaths,
    /// `None`: it was not counted by this server yet.
    storage_over_limit: Option<bool>,
    /// The last probe of its `/data` failed, and nothing was told of it since.
    is_data_path_broken: bool,
    shown: watch::Sender<Shown>,
}

/// What the kernel did to the processes of a workspace, which changes no state. Its word is the reason of a state event.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Deed {
    /// It killed one for want of memory.
    OomKilled,
    /// It started none: as many run as may.
    PidsExhausted,
}

impl Deed {
    const ALL: [Self; 2] = [Self::OomKilled, Self::PidsExhausted];

    fn reason(self) -> &'static str {
        match self {
            Self::OomKilled => "oom_killed",
            Self::PidsExhausted => "pids_exhausted",
        }
    }
}

/// What those who watch are shown.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) state: WorkspaceState,
    /// How often each of [`Deed::ALL`] was told.
    deeds: [u64; Deed::ALL.len()],
}

impl Shown {
    /// The events that lead here from what was shown before: one for each kind of deed, then the state if it is
    /// another one. Who reads slowly gets no more than that.
    pub(crate) fn events_since(&self, before: &Self) -> Vec<WorkspaceState> {
        let mut events = Vec::new();
        for (deed, (now, then)) in Deed::ALL.into_iter().zip(self.deeds.iter().zip(before.deeds)) {
            if *now != then {
                events.push(WorkspaceState {
                    reason: Some(deed.reason().to_owned()),
                    at: Utc::now(),
                    ..self.state.clone()
                });
            }
        }
        if self.state != before.state {
            events.push(self.state.clone());
        }
        events
    }
}

/// All of them. Nothing here is the truth: that is the store's and the runtime's.
#[derive(Debug)]
pub(crate) struct Observations {
    bots: Mutex<HashMap<BotId, One>>,
    /// Of containers and layers of ours, those whose bot is not there.
    nobodys: Mutex<Vec<BotId>>,
    /// How much was told of all bots.
    told: AtomicU64,
    since: Instant,
    deaths_cleared_after: Duration,
}

fn shown(state: &State, desired: Option<Desired>, storage_over_limit: bool) -> WorkspaceState {
    let (status, task_running, reason) = state.shown();
    WorkspaceState {
        status,
        task_running,
        desired: desired.filter(|_| status.is_some()),
        reason,
        storage_over_limit,
        at: Utc::now(),
    }
}

impl One {
    fn new(deaths_cleared_after: Duration) -> Self {
        Self {
            state: State::Absent,
            told: Moment(0),
            desired: None,
            deaths: Deaths::none(deaths_cleared_after),
            storage_over_limit: None,
            is_data_path_broken: false,
            shown: watch::Sender::new(Shown {
                state: shown(&State::Absent, None, false),
                deeds: [0; Deed::ALL.len()],
            }),
        }
    }

    fn publish(&self) {
        let new = shown(&self.state, self.desired, self.storage_over_limit == Some(true));
        self.shown.send_if_modified(|old| {
            let same = WorkspaceState {
                at: new.at,
                ..old.state.clone()
            } == new;
            if !same {
                old.state = new;
            }
            !same
        });
    }

    fn tell(&self, deed: Deed) {
        self.shown.send_modify(|shown| shown.deeds[deed as usize] += 1);
    }
}

impl Observations {
    /// Of nothing yet; deaths are forgotten after a workspace ran for so long.
    pub(crate) fn new(deaths_cleared_after: Duration) -> Self {
        Self {
            bots: Mutex::default(),
            nobodys: Mutex::default(),
            told: AtomicU64::new(0),
            since: Instant::now(),
            deaths_cleared_after,
        }
    }

    fn one<'a>(&self, bots: &'a mut HashMap<BotId, One>, bot: &BotId) -> &'a mut One {
        bots.entry(bot.clone())
            .or_insert_with(|| One::new(self.deaths_cleared_after))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BotId, One>> {
        self.bots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.since.elapsed()
    }

    /// Containers and layers of ours that belong to no bot, as the last comparison found them.
    pub(crate) fn nobodys(&self) -> Vec<BotId> {
        self.nobodys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_nobodys(&self, mut found: Vec<BotId>) {
        found.sort();
        *self.nobodys.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// The present moment, for a look that begins now.
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.told.load(Ordering::SeqCst))
    }

    fn next_moment(&self) -> Moment {
        Moment(self.told.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Something happened.
    pub(crate) fn happened(&self, bot: &BotId, event: &Event) {
        let now = self.now();
        let mut bots = self.lock();
        let one = self.one(&mut bots, bot);
        one.told = self.next_moment();
        one.state = next(&one.state, event);
        one.is_data_path_broken = false;
        if *event == Event::Removed {
            one.storage_over_limit = None;
        }
        if *event == Event::Answered {
            one.deaths.answered(now);
        }
        one.publish();
    }

    /// A look that began at that moment saw this. What was told since then is newer, and stays.
    pub(crate) fn seen(&self, bot: &BotId, looked: Moment, (state, desired): (State, Desired)) {
        let now = self.now();
        let mut bots = self.lock();
        let one = self.one(&mut bots, bot);
        if one.told > looked {
            return;
        }
        one.told = self.next_moment();
        if state == State::Running {
            one.deaths.answered(now);
        }
        if state != one.state {
            one.is_data_path_broken = false;
        }
        one.state = state;
        one.desired = Some(desired);
        one.publish();
    }

    /// Something is wanted.
    pub(crate) fn wanted(&self, bot: &BotId, desired: Desired) {
        let mut bots = self.lock();
        let one = self.one(&mut bots, bot);
        one.told = self.next_moment();
        one.desired = Some(desired);
        one.publish();
    }

    /// Whether it holds more than it may. True: that is news to this server.
    pub(crate) fn storage(&self, bot: &BotId, is_over_limit: bool) -> bool {
        let mut bots = self.lock();
        if !is_over_limit && !bots.contains_key(bot) {
            return false;
        }
        let one = self.one(&mut bots, bot);
        let is_news = one.storage_over_limit.replace(is_over_limit) != Some(is_over_limit);
        one.publish();
        is_news
    }

    /// It holds more than it may, as it was counted last.
    pub(crate) fn is_over_limit(&self, bot: &BotId) -> bool {
        self.lock()
            .get(bot)
            .is_some_and(|one| one.storage_over_limit == Some(true))
    }

    /// Tells those who watch it what the kernel did.
    pub(crate) fn done(&self, bot: &BotId, deed: Deed) {
        if let Some(one) = self.lock().get(bot) {
            one.tell(deed);
        }
    }

    /// A probe of its `/data` that began at that moment came to this end. What happened since then is newer.
    pub(crate) fn data_path(&self, bot: &BotId, looked: Moment, is_broken: bool) {
        let mut bots = self.lock();
        if !is_broken && !bots.contains_key(bot) {
            return;
        }
        let one = self.one(&mut bots, bot);
        if one.told <= looked {
            one.is_data_path_broken = is_broken;
        }
    }

    /// The last probe of its `/data` failed.
    pub(crate) fn is_data_path_broken(&self, bot: &BotId) -> bool {
        self.lock().get(bot).is_some_and(|one| one.is_data_path_broken)
    }

    /// It is known to run.
    pub(crate) fn is_running(&self, bot: &BotId) -> bool {
        self.lock().get(bot).is_some_and(|one| one.state == State::Running)
    }

    /// Something is known of it.
    pub(crate) fn is_known(&self, bot: &BotId) -> bool {
        self.lock().get(bot).is_some_and(|one| one.state != State::Absent)
    }

    /// Its container is known to be gone.
    pub(crate) fn is_missing(&self, bot: &BotId) -> bool {
        self.lock().get(bot).is_some_and(|one| one.state == State::Missing)
    }

    /// All that are known to run.
    pub(crate) fn running(&self) -> Vec<BotId> {
        let bots = self.lock();
        let running = bots.iter().filter(|(_, one)| one.state == State::Running);
        running.map(|(bot, _)| bot.clone()).collect()
    }

    /// All that have a workspace, whatever it is thought to do.
    pub(crate) fn present(&self) -> Vec<BotId> {
        let bots = self.lock();
        let present = bots.iter().filter(|(_, one)| one.state != State::Absent);
        present.map(|(bot, _)| bot.clone()).collect()
    }

    /// Counts a death, or a start that came to nothing.
    pub(crate) fn died(&self, bot: &BotId) -> Retry {
        let now = self.now();
        self.one(&mut self.lock(), bot).deaths.died(now)
    }

    /// Somebody asked for a start: what was before does not count.
    pub(crate) fn forgive(&self, bot: &BotId) {
        if let Some(one) = self.lock().get_mut(bot) {
            one.deaths = Deaths::none(self.deaths_cleared_after);
        }
    }

    /// The server may start it by itself.
    pub(crate) fn may_try(&self, bot: &BotId) -> bool {
        let now = self.now();
        self.lock().get(bot).is_none_or(|one| one.deaths.may_try(now))
    }

    /// Every change from now on; the present value is marked as seen.
    pub(crate) fn watch(&self, bot: &BotId) -> watch::Receiver<Shown> {
        let mut bots = self.lock();
        let one = self.one(&mut bots, bot);
        one.shown.subscribe()
    }

    /// The bot is gone; those who watch see the end.
    pub(crate) fn forget(&self, bot: &BotId) {
        self.lock().remove(bot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_does_not_undo_what_was_told_after_it_began() {
        let bot: BotId = "11111111-2222-4333-8444-555555555555".parse().unwrap();
        let observations = Observations::new(Duration::from_secs(600));
        let shown = || {
            let shown = observations.watch(&bot).borrow().state.clone();
            (shown.task_running, shown.desired)
        };
        let stopped = || (State::Stopped, Desired::Stopped);
        observations.seen(&bot, observations.moment(), stopped());
        let looked = observations.moment();
        observations.wanted(&bot, Desired::Running);
        observations.happened(&bot, &Event::Begun);
        observations.happened(&bot, &Event::Answered);
        observations.seen(&bot, looked, stopped());
        assert_eq!(shown(), (true, Some(Desired::Running)));
        assert_eq!(observations.running(), std::slice::from_ref(&bot));
        observations.seen(&bot, observations.moment(), stopped());
        assert_eq!(shown(), (false, Some(Desired::Stopped)));
    }

    #[test]
    fn a_slow_reader_is_told_each_kind_of_deed_once_and_then_the_state() {
        let bot: BotId = "11111111-2222-4333-8444-555555555555".parse().unwrap();
        let observations = Observations::new(Duration::from_secs(600));
        observations.done(&bot, Deed::OomKilled);
        let changes = observations.watch(&bot);
        observations.seen(&bot, observations.moment(), (State::Running, Desired::Running));
        let before = changes.borrow().clone();
        let reasons = || {
            let events = changes.borrow().events_since(&before);
            events.into_iter().map(|event| event.reason).collect::<Vec<_>>()
        };
        assert_eq!(reasons(), []);
        observations.done(&bot, Deed::PidsExhausted);
        observations.done(&bot, Deed::PidsExhausted);
        observations.done(&bot, Deed::OomKilled);
        let deeds = ["oom_killed", "pids_exhausted"].map(|word| Some(word.to_owned()));
        assert_eq!(reasons(), deeds);
        let why = || "it ended".to_owned();
        observations.happened(&bot, &Event::Died { why: why() });
        assert_eq!(reasons(), [&deeds[..], &[Some(why())]].concat());
    }
}
