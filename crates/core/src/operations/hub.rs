//! One live operation: its events so far and its end, for everybody who listens.
//!
//! Nobody who listens can hold it up: it keeps the events, and a listener reads them at its own pace.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use skep_names::BotId;
use tokio::sync::watch;

use super::event::{EventBody, OperationEvent, Outcome};
use crate::error::{Error, Result};

/// Of the passing `pull_progress` events this many are kept, the first one and the newest ones: a pull of an
/// hour has ten thousand of them.
const PROGRESS_KEPT: usize = 64;

#[derive(Debug)]
struct Told {
    events: Vec<OperationEvent>,
    next_id: u64,
    journaled: bool,
    end: Option<Result<Outcome>>,
}

/// What is told of one operation.
#[derive(Debug)]
pub(crate) struct Hub {
    id: String,
    /// `None`: it belongs to no bot, as the pull of an image.
    bot: Option<BotId>,
    told: Mutex<Told>,
    changed: watch::Sender<u64>,
}

impl Hub {
    /// A new operation; `first_id` is 1, or more when it is carried on after a crash.
    pub(crate) fn new(id: String, bot: Option<BotId>, first_id: u64) -> Arc<Self> {
        Arc::new(Self {
            id,
            bot,
            told: Mutex::new(Told {
                events: Vec::new(),
                next_id: first_id,
                journaled: false,
                end: None,
            }),
            changed: watch::Sender::new(0),
        })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn bot(&self) -> Option<&BotId> {
        self.bot.as_ref()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells a passing event; after the end nothing more is told.
    pub(crate) fn tell(&self, body: EventBody) -> Option<OperationEvent> {
        let event = {
            let mut told = self.told();
            if told.end.is_some() {
                return None;
            }
            let event = push(&mut told, body);
            thin_out(&mut told.events);
            event
        };
        self.changed.send_modify(|version| *version += 1);
        Some(event)
    }

    /// The event that ends it with this result, numbered but not yet told: it is journaled first.
    pub(crate) fn last_event(&self, result: &Result<Outcome>, last: EventBody) -> OperationEvent {
        debug_assert!(last.is_last() && matches!(last, EventBody::Complete { .. }) == result.is_ok());
        OperationEvent {
            id: self.told().next_id,
            body: last,
        }
    }

    /// Ends it.
    pub(crate) fn end(&self, result: Result<Outcome>, last: OperationEvent) {
        self.end_with(result, Some(last));
    }

    /// This server lets go of it, and the next one carries it on: no last event is told, since it has not ended.
    pub(crate) fn let_go(&self) {
        self.end_with(Err(Error::GoingDown), None);
    }

    fn end_with(&self, result: Result<Outcome>, last: Option<OperationEvent>) {
        {
            let mut told = self.told();
            if told.end.is_some() {
                return;
            }
            told.events.extend(last);
            told.end = Some(result);
        }
        self.changed.send_modify(|version| *version += 1);
    }

    /// Whether its end is told.
    pub(crate) fn has_ended(&self) -> bool {
        self.told().end.is_some()
    }

    /// Its row is in the journal.
    pub(crate) fn note_journaled(&self) {
        self.told().journaled = true;
        self.changed.send_modify(|version| *version += 1);
    }

    /// Waits until its row is in the journal: before that it can still turn out never to have been.
    ///
    /// # Errors
    /// Why it could not be journaled.
    pub(crate) async fn journaled(&self) -> Result<()> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            {
                let told = self.told();
                match &told.end {
                    _ if told.journaled => return Ok(()),
                    Some(end) => return end.clone().map(drop),
                    None => {}
                }
            }
            if changed.changed().await.is_err() {
                return Err(Error::GoingDown);
            }
        }
    }

    /// Its end, as soon as there is one.
    pub(crate) async fn outcome(&self) -> Result<Outcome> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(end) = &self.told().end {
                return end.clone();
            }
            if changed.changed().await.is_err() {
                return Err(Error::GoingDown);
            }
        }
    }

    /// So much of so much, of the newest event that says so.
    pub(crate) fn progress(&self) -> Option<(u64, u64)> {
        self.told().events.iter().rev().find_map(|event| match &event.body {
            EventBody::Progress { done, total } => Some((*done, *total)),
            EventBody::PullProgress { layers } => Some((
                layers.iter().map(|layer| layer.offset).sum(),
                layers.iter().map(|layer| layer.total).sum(),
            )),
            _ => None,
        })
    }

    fn after(&self, id: u64) -> (Vec<OperationEvent>, bool) {
        let told = self.told();
        let events = told.events.iter().filter(|event| event.id > id).cloned().collect();
        (events, told.end.is_some())
    }

    /// Every event with an id over `after`, those to come included; ends after the last one.
    pub(crate) fn events(self: Arc<Self>, after: u64) -> BoxStream<'static, OperationEvent> {
        let changed = self.changed.subscribe();
        stream::unfold(Some((self, changed, after)), |state| async move {
            let (hub, mut changed, after) = state?;
            loop {
                changed.borrow_and_update();
                let (events, ended) = hub.after(after);
                if let Some(last) = events.last().map(|event| event.id) {
                    let rest = (!ended).then_some((hub, changed, last));
                    return Some((stream::iter(events), rest));
                }
                if ended || changed.changed().await.is_err() {
                    return None;
                }
            }
        })
        .flatten()
        .boxed()
    }
}

fn push(told: &mut Told, body: EventBody) -> OperationEvent {
    let event = OperationEvent { id: told.next_id, body };
    told.next_id += 1;
    told.events.push(event.clone());
    event
}

/// Drops the second-oldest progress event when too many are kept: the first shows every layer at its start.
fn thin_out(events: &mut Vec<OperationEvent>) {
    let is_progress = |event: &OperationEvent| matches!(event.body, EventBody::PullProgress { .. });
    if events.iter().filter(|event| is_progress(event)).count() <= PROGRESS_KEPT {
        return;
    }
    let second = events
        .iter()
        .enumerate()
        .filter(|(_, event)| is_progress(event))
        .map(|(index, _)| index)
        .nth(1);
    if let Some(index) = second {
        events.remove(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub() -> Arc<Hub> {
        Hub::new("o".into(), None, 1)
    }

    fn progress() -> EventBody {
        EventBody::PullProgress { layers: vec![] }
    }

    fn end(hub: &Hub) {
        let result = Ok(Outcome::Done);
        let last = hub.last_event(&result, EventBody::Complete { outcome: Outcome::Done });
        hub.end(result, last);
    }

    #[tokio::test]
    async fn a_late_listener_hears_all_from_the_start() {
        let hub = hub();
        hub.tell(EventBody::Pulling { image: "i".into() });
        hub.tell(EventBody::Creating);
        let early = hub.clone().events(0);
        end(&hub);
        let late: Vec<_> = hub.clone().events(0).collect().await;
        assert_eq!(late.iter().map(|event| event.id).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(early.collect::<Vec<_>>().await, late);
        assert_eq!(hub.clone().events(2).collect::<Vec<_>>().await.len(), 1);
        assert!(hub.events(3).collect::<Vec<_>>().await.is_empty());
    }

    #[tokio::test]
    async fn a_long_pull_keeps_its_first_and_its_newest_progress() {
        let hub = hub();
        hub.tell(EventBody::Pulling { image: "i".into() });
        for _ in 0..1000 {
            hub.tell(progress());
        }
        end(&hub);
        let ids: Vec<_> = hub.events(0).map(|event| event.id).collect().await;
        assert_eq!(&ids[..2], [1, 2]);
        assert_eq!(&ids[ids.len() - 2..], [1001, 1002]);
        assert!(ids.len() < PROGRESS_KEPT + 4, "{} are kept", ids.len());
    }

    #[tokio::test]
    async fn who_follows_what_a_server_lets_go_of_hears_no_end_of_it() {
        let hub = hub();
        hub.tell(EventBody::Creating);
        hub.let_go();
        let told: Vec<_> = hub.clone().events(0).map(|event| event.body).collect().await;
        assert_eq!(told, [EventBody::Creating]);
        assert!(matches!(hub.outcome().await, Err(Error::GoingDown)));
    }

    #[tokio::test]
    async fn nothing_is_told_after_the_end() {
        let hub = hub();
        end(&hub);
        assert_eq!(hub.tell(EventBody::Creating), None);
        assert!(hub.outcome().await.is_ok());
    }
}
