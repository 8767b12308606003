//! The one way to a workspace: what runs, what waits, and the driver task of each bot that has work.
//!
//! A lane is plain data under one short lock; the driver is spawned with the first request and ends with the last,
//! both under that lock, so that no request is ever left without a driver.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use skep_names::BotId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::admission::{Asked, Decision, Present, admit};
use super::request::Request;
use crate::error::{Error, Result};
use crate::operations::Hub;

/// How an operation came into its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Somebody asked for it.
    Asked,
    /// The server before this one left it waiting.
    LeftQueued,
    /// The server before this one had begun it: there may be something to undo.
    LeftBegun,
}

/// An operation that waits or runs.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) hub: Arc<Hub>,
    pub(crate) request: Request,
    pub(crate) request_id: Option<String>,
    pub(crate) origin: Origin,
    cancel: CancellationToken,
    /// By what, for the message.
    cancelled_by: OnceLock<String>,
    has_failed: AtomicBool,
    /// Somebody who cancels it, or stops it for the host's sake, comes too late; a removal does not.
    is_settled: AtomicBool,
    /// What it does now is done beside the task.
    spares_task: AtomicBool,
    fingerprint: String,
}

impl Pending {
    pub(crate) fn new(hub: Arc<Hub>, request: Request, request_id: Option<String>, origin: Origin) -> Self {
        Self {
            fingerprint: fingerprint(&request),
            hub,
            request,
            request_id,
            origin,
            cancel: CancellationToken::new(),
            cancelled_by: OnceLock::new(),
            has_failed: AtomicBool::new(false),
            is_settled: AtomicBool::new(false),
            spares_task: AtomicBool::new(false),
        }
    }

    /// Resolves when somebody cancels it.
    pub(crate) async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// It came to nothing, as its end is about to say: who asks from now on asks for another try.
    pub(crate) fn failed(&self) {
        self.has_failed.store(true, Ordering::Release);
    }

    /// Whether what it does from now on leaves the task, which it found, as it is.
    pub(crate) fn spare_task(&self, spares: bool) {
        self.spares_task.store(spares, Ordering::Release);
    }

    /// Its end is told or decided: it does nothing for whoever asks now. The driver takes it out of the lane only
    /// after those who waited for its end may have asked again.
    fn is_over(&self) -> bool {
        self.is_cancelled() || self.has_failed.load(Ordering::Acquire) || self.hub.has_ended()
    }

    fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::Acquire)
    }

    /// How one that was cancelled ends: names what cancelled it.
    pub(crate) fn cancellation(&self) -> Error {
        let by = self.cancelled_by.get().map_or("a request", String::as_str);
        Error::OperationCancelled(by.to_owned())
    }

    fn cancel(&self, by: &str) {
        // Whoever comes second changes nothing: the first one is the reason.
        self.cancelled_by.get_or_init(|| by.to_owned());
        self.cancel.cancel();
    }
}

/// Equal for requests that ask for the very same. What becomes of preserved data is not compared: a create that comes
/// after another finds a workspace, to which nothing is put back.
pub(crate) fn fingerprint(request: &Request) -> String {
    match request {
        Request::Create(plan) => {
            let made_from = (&plan.image, &plan.snapshotter, &plan.cdi_devices, &plan.env);
            format!("{made_from:?}\n{:?}", plan.limits)
        }
        other => format!("{other:?}"),
    }
}

#[derive(Debug)]
struct Waiting {
    pending: Arc<Pending>,
    /// Its row is in the journal.
    journaled: bool,
    /// What it cancels as soon as it is in the journal itself.
    overtakes: Vec<String>,
}

impl Waiting {
    /// Cancelled before it began: there is nothing to undo, so its turn need not be waited for. One that is not in
    /// the journal yet is taken out when it is.
    fn can_be_taken_out(&self) -> bool {
        self.journaled && self.pending.origin != Origin::LeftBegun && self.pending.is_cancelled()
    }
}

#[derive(Debug, Default)]
struct Lane {
    running: Option<Arc<Pending>>,
    waiting: VecDeque<Waiting>,
    changed: Arc<Notify>,
    /// Reconcile could do nothing while there was work, and is to look when there is none.
    is_left_to_reconcile: bool,
}

/// What a driver does next.
pub(crate) enum Next {
    /// This one, which is now what runs.
    Run(Arc<Pending>),
    /// The first one is not in the journal yet.
    Wait(Arc<Notify>),
    /// Nothing is left; the lane is gone and so must be the driver.
    Nothing {
        /// Reconcile was asked to look as soon as that is so.
        is_left_to_reconcile: bool,
    },
}

/// What became of a request.
pub(crate) enum Admitted {
    /// It waits; the caller journals it, after `before`, which is not journaled yet: rows are in the order of the lane.
    /// With `spawn_driver` the caller also spawns the driver.
    Enqueued {
        spawn_driver: bool,
        before: Option<Arc<Hub>>,
    },
    /// That one does it.
    Joined(Arc<Hub>),
    /// No.
    Refused(super::admission::Refusal),
}

/// What waits for a workspace to be let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// Nobody.
    Nothing,
    /// Something that leaves it there.
    Work,
    /// It is to be removed.
    Removal,
}

/// The lanes of all bots that have work.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: Mutex<HashMap<BotId, Lane>>,
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, HashMap<BotId, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides on a request and, when it is accepted, gives it its place.
    pub(crate) fn admit(&self, bot: &BotId, pending: &Arc<Pending>, patience: crate::Patience) -> Admitted {
        let mut lanes = self.lock();
        let lane = lanes.get(bot);
        let present = lane.map(Lane::present).unwrap_or_default();
        let running = lane
            .and_then(|lane| lane.running.as_ref())
            .is_some_and(|running| !running.is_over());
        let asked = Asked {
            kind: pending.request.kind(),
            overtakes: pending.request.overtakes(),
            fingerprint: pending.fingerprint.clone(),
            patience,
        };
        match admit(&present, running, &asked) {
            Decision::Refuse(refusal) => Admitted::Refused(refusal),
            Decision::Join(id) => match lane.and_then(|lane| lane.find(&id)) {
                Some(found) => Admitted::Joined(found.hub.clone()),
                None => enqueue(&mut lanes, bot, pending, Vec::new()),
            },
            Decision::Enqueue => enqueue(&mut lanes, bot, pending, Vec::new()),
            Decision::Overtake { cancelled } => enqueue(&mut lanes, bot, pending, cancelled),
        }
    }

    /// Takes an operation of the journal up again, whatever is there; the caller says next that it is journaled.
    /// True: the caller spawns the driver.
    pub(crate) fn put_back(&self, bot: &BotId, pending: Arc<Pending>) -> bool {
        let mut lanes = self.lock();
        let spawn_driver = !lanes.contains_key(bot);
        let lane = lanes.entry(bot.clone()).or_default();
        let before = lane.all().filter(|one| !one.request.overtakes());
        let before: Vec<_> = before.map(|one| one.hub.id().to_owned()).collect();
        let overtakes = match pending.request.overtakes() {
            true => before,
            false => Vec::new(),
        };
        lane.waiting.push_back(Waiting {
            pending,
            journaled: false,
            overtakes,
        });
        spawn_driver
    }

    /// Its row is in the journal: it may run, and what it overtakes is cancelled. Returned is what was cancelled
    /// before it began and is out of the lane now; the caller ends it.
    #[must_use]
    pub(crate) fn journaled(&self, bot: &BotId, id: &str) -> Vec<Arc<Pending>> {
        let mut lanes = self.lock();
        let Some(lane) = lanes.get_mut(bot) else {
            return Vec::new();
        };
        let (mut overtaken, mut removes) = (Vec::new(), false);
        for waiting in lane.waiting.iter_mut().filter(|waiting| waiting.pending.hub.id() == id) {
            waiting.journaled = true;
            overtaken.append(&mut waiting.overtakes);
            removes |= waiting.pending.request.kind().removes();
        }
        let by = format!("operation {id}");
        for one in &overtaken {
            lane.find(one)
                .filter(|found| removes || !found.is_settled())
                .inspect(|found| found.cancel(&by));
        }
        lane.changed.notify_one();
        lane.take_out_cancelled()
    }

    /// It could not be journaled: it never was.
    pub(crate) fn withdraw(&self, bot: &BotId, id: &str) {
        if let Some(lane) = self.lock().get_mut(bot) {
            lane.waiting.retain(|waiting| waiting.pending.hub.id() != id);
            lane.changed.notify_one();
        }
    }

    /// A caller may cancel it: what it did so far can be undone, or done again. One that is not there is done already.
    pub(crate) fn can_be_cancelled(&self, bot: &BotId, id: &str) -> bool {
        let lanes = self.lock();
        let found = lanes.get(bot).and_then(|lane| lane.find(id));
        found.is_none_or(|found| !found.request.overtakes())
    }

    /// It can be undone no longer: a cancel that comes after this is too late, and it goes on to its end.
    ///
    /// # Errors
    /// [`Error::OperationCancelled`] when a cancel was first.
    pub(crate) fn settle(&self, pending: &Pending) -> Result<()> {
        // Under the lock of `cancel`, so that one of the two is first.
        let _lanes = self.lock();
        if pending.is_cancelled() {
            return Err(pending.cancellation());
        }
        pending.is_settled.store(true, Ordering::Release);
        Ok(())
    }

    /// Cancels an operation that waits or runs; one that is not there, or is settled, is as good as done. Returned is what had not
    /// begun and is out of the lane now; the caller ends it.
    #[must_use]
    pub(crate) fn cancel(&self, bot: &BotId, id: &str, by: &str) -> Vec<Arc<Pending>> {
        let mut lanes = self.lock();
        let Some(lane) = lanes.get_mut(bot) else {
            return Vec::new();
        };
        lane.find(id)
            .filter(|found| !found.is_settled())
            .inspect(|found| found.cancel(by));
        lane.changed.notify_one();
        lane.take_out_cancelled()
    }

    /// For the driver: what it ran is done, what comes next?
    pub(crate) fn next(&self, bot: &BotId) -> Next {
        let mut lanes = self.lock();
        let Some(lane) = lanes.get_mut(bot) else {
            return Next::Nothing {
                is_left_to_reconcile: false,
            };
        };
        lane.running = None;
        if lane.waiting.front().is_some_and(|first| !first.journaled) {
            return Next::Wait(lane.changed.clone());
        }
        match lane.waiting.pop_front() {
            Some(first) => {
                lane.running = Some(first.pending.clone());
                Next::Run(first.pending)
            }
            None => {
                let is_left_to_reconcile = lane.is_left_to_reconcile;
                lanes.remove(bot);
                Next::Nothing { is_left_to_reconcile }
            }
        }
    }

    /// Reconcile is to look when that bot has no work any more. False: it has none now.
    #[must_use]
    pub(crate) fn leave_to_reconcile(&self, bot: &BotId) -> bool {
        let mut lanes = self.lock();
        let lane = lanes.get_mut(bot);
        lane.map(|lane| lane.is_left_to_reconcile = true).is_some()
    }

    /// For the driver of a server that goes down: the lane and what waits in it, left to the journal.
    pub(crate) fn abandon(&self, bot: &BotId) -> Vec<Arc<Pending>> {
        let lane = self.lock().remove(bot).unwrap_or_default();
        lane.waiting.into_iter().map(|waiting| waiting.pending).collect()
    }

    /// What runs of a bot and may have its task down.
    pub(crate) fn task_down(&self, bot: &BotId) -> Option<Arc<Hub>> {
        let lanes = self.lock();
        let running = lanes.get(bot)?.running.as_ref().filter(|one| !one.hub.has_ended())?;
        running
            .request
            .kind()
            .takes_the_task_down()
            .then(|| running.hub.clone())
    }

    /// The same, while it is at what the task is in the way of.
    pub(crate) fn task_taken_down(&self, bot: &BotId) -> Option<Arc<Hub>> {
        let running = self.lock().get(bot)?.running.clone()?;
        // One that came to nothing there is undone, which may take it down.
        let is_beside = running.spares_task.load(Ordering::Acquire) && !running.is_over();
        self.task_down(bot).filter(|_| !is_beside)
    }

    /// A create of that bot that runs or waits. One before a removal is cancelled by it, or goes with it.
    pub(crate) fn create_under_way(&self, bot: &BotId) -> Option<(Arc<Hub>, super::request::CreatePlan)> {
        let lanes = self.lock();
        let all: Vec<_> = lanes.get(bot)?.all().filter(|one| !one.is_over()).collect();
        let removal = all.iter().rposition(|one| one.request.kind().removes());
        let mut after = all.iter().skip(removal.map_or(0, |removal| removal + 1));
        after.find_map(|one| match &one.request {
            Request::Create(plan) => Some((one.hub.clone(), plan.clone())),
            _ => None,
        })
    }

    /// A removal runs or waits: what is there of that bot is as good as gone.
    pub(crate) fn is_being_removed(&self, bot: &BotId) -> bool {
        let lanes = self.lock();
        let all = lanes.get(bot).into_iter().flat_map(Lane::all);
        let mut under_way = all.filter(|one| !one.is_over());
        under_way.any(|one| one.request.kind().removes())
    }

    /// A create has failed or was cancelled and is not undone yet: what nobody recorded may be its own.
    pub(crate) fn is_a_create_undone(&self, bot: &BotId) -> bool {
        let lanes = self.lock();
        let all = lanes.get(bot).into_iter().flat_map(Lane::all);
        let mut over = all.filter(|one| one.is_over());
        over.any(|one| matches!(one.request, Request::Create(_)))
    }

    /// What runs or waits for that bot, for whoever holds its workspace still.
    pub(crate) fn awaited(&self, bot: &BotId) -> Awaited {
        let lanes = self.lock();
        let Some(lane) = lanes.get(bot) else {
            return Awaited::Nothing;
        };
        match lane.all().any(|one| one.request.kind().removes()) {
            true => Awaited::Removal,
            false => Awaited::Work,
        }
    }

    /// Something runs or waits for that bot.
    pub(crate) fn is_busy(&self, bot: &BotId) -> bool {
        self.lock().contains_key(bot)
    }
}

fn enqueue(lanes: &mut HashMap<BotId, Lane>, bot: &BotId, pending: &Arc<Pending>, overtakes: Vec<String>) -> Admitted {
    let spawn_driver = !lanes.contains_key(bot);
    let waiting = &mut lanes.entry(bot.clone()).or_default().waiting;
    let before = waiting.iter().rfind(|waiting| !waiting.journaled);
    let before = before.map(|waiting| waiting.pending.hub.clone());
    waiting.push_back(Waiting {
        pending: pending.clone(),
        journaled: false,
        overtakes,
    });
    Admitted::Enqueued { spawn_driver, before }
}

impl Lane {
    fn all(&self) -> impl Iterator<Item = &Arc<Pending>> {
        self.running
            .iter()
            .chain(self.waiting.iter().map(|waiting| &waiting.pending))
    }

    /// What is over is as good as gone: nobody joins it or waits for it, and it does not fill the queue.
    fn present(&self) -> Vec<Present> {
        self.all()
            .filter(|pending| !pending.is_over())
            .map(|pending| Present {
                id: pending.hub.id().to_owned(),
                kind: pending.request.kind(),
                overtakes: pending.request.overtakes(),
                fingerprint: pending.fingerprint.clone(),
            })
            .collect()
    }

    fn take_out_cancelled(&mut self) -> Vec<Arc<Pending>> {
        let (out, stay) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<VecDeque<_>, _>(Waiting::can_be_taken_out);
        self.waiting = stay;
        out.into_iter().map(|waiting| waiting.pending).collect()
    }

    fn find(&self, id: &str) -> Option<&Arc<Pending>> {
        self.all().find(|pending| pending.hub.id() == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Patience;
    use crate::operations::{EventBody, Outcome};
    use crate::workspace::request::StopCause;

    fn start(bot: &BotId, id: &str) -> Arc<Pending> {
        let hub = Hub::new(id.to_owned(), Some(bot.clone()), 1);
        Arc::new(Pending::new(hub, Request::Start, None, Origin::Asked))
    }

    /// Under way, as its driver has it.
    fn run(lanes: &Lanes, bot: &BotId, id: &str) -> Arc<Pending> {
        let pending = start(bot, id);
        let admitted = lanes.admit(bot, &pending, Patience::Queue);
        assert!(matches!(admitted, Admitted::Enqueued { spawn_driver: true, .. }));
        assert!(lanes.journaled(bot, id).is_empty());
        assert!(matches!(lanes.next(bot), Next::Run(_)));
        pending
    }

    #[test]
    fn what_has_told_its_end_is_neither_joined_nor_waited_for() {
        let bot: BotId = "11111111-2222-4333-8444-555555555555".parse().unwrap();
        for patience in [Patience::Queue, Patience::Refuse] {
            let lanes = Lanes::default();
            let first = run(&lanes, &bot, "first");
            let early = lanes.admit(&bot, &start(&bot, "early"), Patience::Queue);
            assert!(matches!(early, Admitted::Joined(hub) if hub.id() == "first"));
            let done = Ok(Outcome::Done);
            let last = first
                .hub
                .last_event(&done, EventBody::Complete { outcome: Outcome::Done });
            first.hub.end(done, last);
            // Its driver has not looked again.
            let late = lanes.admit(&bot, &start(&bot, "late"), patience);
            assert!(matches!(
                late,
                Admitted::Enqueued {
                    spawn_driver: false,
                    ..
                }
            ));
            assert!(lanes.journaled(&bot, "late").is_empty());
            assert!(matches!(lanes.next(&bot), Next::Run(pending) if pending.hub.id() == "late"));
        }
    }

    #[test]
    fn whoever_cancels_what_is_settled_comes_too_late_and_a_delete_does_not() {
        let bot: BotId = "11111111-2222-4333-8444-555555555555".parse().unwrap();
        let lanes = Lanes::default();
        let first = run(&lanes, &bot, "first");
        lanes.settle(&first).unwrap();
        assert!(lanes.cancel(&bot, "first", "a request").is_empty());
        assert!(!first.is_cancelled());
        let hub = Hub::new("stop".to_owned(), Some(bot.clone()), 1);
        let (grace, cause) = (None, StopCause::DiskFull);
        let stop = Arc::new(Pending::new(hub, Request::Stop { grace, cause }, None, Origin::Asked));
        lanes.admit(&bot, &stop, Patience::Queue);
        assert!(lanes.journaled(&bot, "stop").is_empty());
        assert!(!first.is_cancelled());
        let hub = Hub::new("delete".to_owned(), Some(bot.clone()), 1);
        let data = crate::DeleteData::Remove;
        let request = Request::Delete {
            data,
            only_remains: false,
        };
        let delete = Arc::new(Pending::new(hub, request, None, Origin::Asked));
        lanes.admit(&bot, &delete, Patience::Queue);
        assert!(lanes.journaled(&bot, "delete").is_empty());
        assert!(first.is_cancelled());
        let late = lanes.settle(&first);
        assert!(matches!(late, Err(Error::OperationCancelled(by)) if by.contains("delete")));
    }
}
