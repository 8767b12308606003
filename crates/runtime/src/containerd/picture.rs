//! What containerd last told of our workspaces, kept true by its events, so that hundreds of them can be shown
//! without asking about each.
//!
//! Only what was asked for is kept, and it is dropped by the first event about it and by every verb of ours, never
//! changed: the next reader asks again. It is used only by a reader who knows that all events up to now are in it
//! ([`super::echo`]).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use containerd_client::services::v1::Container;
use skep_names::{BotId, derive_bot_id};

use crate::TaskState;

/// A bot's container, when it has one, and its task.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Without its specification, which is most of it and which no reader wants.
    pub(super) container: Option<Container>,
    pub(super) task: TaskState,
}

impl Seen {
    pub(super) fn new(container: Option<Container>, task: TaskState) -> Self {
        let container = container.map(|container| Container {
            spec: None,
            ..container
        });
        Self { container, task }
    }
}

enum Known {
    Seen(Box<Seen>),
    /// Something happened to it while somebody asks: at that moment.
    Changed(u64),
}

#[derive(Default)]
struct Inner {
    /// Counts what happens.
    now: u64,
    /// An answer to a question that is older is not kept.
    forgotten_at: u64,
    asking: usize,
    known: HashMap<BotId, Known>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Picture {
    inner: Mutex<Inner>,
}

/// A question that is under way: its answer is kept unless something happened meanwhile.
pub(super) struct Asking<'a> {
    picture: &'a Picture,
    since: u64,
}

/// A verb that changes a workspace: what was known of it is dropped when the verb ends, whichever way.
pub(super) struct Changing<'a> {
    picture: &'a Picture,
    bot: &'a BotId,
}

impl Picture {
    /// What is known of these bots, and those of whom nothing is.
    pub(super) fn look(&self, bots: &[BotId]) -> (HashMap<BotId, Seen>, Vec<BotId>) {
        let inner = self.locked();
        let mut found = HashMap::with_capacity(bots.len());
        let mut unknown = Vec::new();
        for bot in bots {
            match inner.known.get(bot) {
                Some(Known::Seen(seen)) => drop(found.insert(bot.clone(), Seen::clone(seen))),
                Some(Known::Changed(_)) | None => unknown.push(bot.clone()),
            }
        }
        (found, unknown)
    }

    /// To be called before containerd is asked.
    pub(super) fn asking(&self) -> Asking<'_> {
        let mut inner = self.locked();
        inner.asking += 1;
        Asking {
            picture: self,
            since: inner.now,
        }
    }

    pub(super) fn changing<'a>(&'a self, bot: &'a BotId) -> Changing<'a> {
        Changing { picture: self, bot }
    }

    /// Something happened to a bot's workspace.
    fn changed(&self, bot: &BotId) {
        let mut inner = self.locked();
        inner.now += 1;
        match inner.asking {
            0 => drop(inner.known.remove(bot)),
            _ => {
                let now = inner.now;
                inner.known.insert(bot.clone(), Known::Changed(now));
            }
        }
    }

    /// Something happened to a container, or to its task.
    pub(super) fn container_changed(&self, id: &str) {
        let by_name: Option<BotId> = derive_bot_id(id, None).and_then(|bot| bot.parse().ok());
        let by_container = self.bot_of_container(id);
        if by_name.is_none() && by_container.is_none() {
            // One of a name that is not ours can belong to any bot that has none, by its label.
            return self.forget_absent();
        }
        for bot in [by_name, by_container].into_iter().flatten() {
            self.changed(&bot);
        }
    }

    fn bot_of_container(&self, id: &str) -> Option<BotId> {
        let is_it = |known: &Known| matches!(known, Known::Seen(seen) if seen.container.as_ref().is_some_and(|one| one.id == id));
        let inner = self.locked();
        let found = inner.known.iter().find(|(_, known)| is_it(known));
        found.map(|(bot, _)| bot.clone())
    }

    fn forget_absent(&self) {
        let mut inner = self.locked();
        inner.now += 1;
        inner.forgotten_at = inner.now;
        inner
            .known
            .retain(|_, known| !matches!(known, Known::Seen(seen) if seen.container.is_none()));
    }

    /// Nothing that was known counts any more.
    pub(super) fn forget(&self) {
        let mut inner = self.locked();
        inner.now += 1;
        inner.forgotten_at = inner.now;
        inner.known.clear();
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking<'_> {
    /// What containerd answered of a bot.
    pub(super) fn learned(&self, bot: BotId, seen: Seen) {
        let mut inner = self.picture.locked();
        let outdated = matches!(inner.known.get(&bot), Some(Known::Changed(at)) if *at > self.since);
        if !outdated && self.since >= inner.forgotten_at {
            inner.known.insert(bot, Known::Seen(Box::new(seen)));
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut inner = self.picture.locked();
        inner.asking -= 1;
        if inner.asking == 0 {
            // Nobody is left whose answer could be older.
            inner.known.retain(|_, known| matches!(known, Known::Seen(_)));
        }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.picture.changed(self.bot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(bot: &BotId) -> Seen {
        let container = Container {
            id: skep_names::container_id_for(bot),
            ..Default::default()
        };
        Seen::new(Some(container), TaskState::Running)
    }

    fn is_known(picture: &Picture, bot: &BotId) -> bool {
        picture.look(std::slice::from_ref(bot)).1.is_empty()
    }

    #[test]
    fn what_was_told_is_known_until_something_happens_to_it() {
        let (picture, bot, other) = (Picture::default(), BotId::random(), BotId::random());
        for bot in [&bot, &other] {
            picture.asking().learned(bot.clone(), seen(bot));
        }
        assert!(is_known(&picture, &bot));
        picture.container_changed(&skep_names::container_id_for(&bot));
        assert!(!is_known(&picture, &bot));
        assert!(is_known(&picture, &other));
        drop(picture.changing(&other));
        assert!(!is_known(&picture, &other));
    }

    #[test]
    fn an_answer_is_not_kept_when_something_happened_since_the_question() {
        let (picture, bot) = (Picture::default(), BotId::random());
        let (older, newer) = (picture.asking(), picture.asking());
        picture.changed(&bot);
        older.learned(bot.clone(), seen(&bot));
        assert!(!is_known(&picture, &bot));
        drop((older, newer));
        assert!(
            picture.locked().known.is_empty(),
            "a mark is kept only while somebody asks"
        );
        let asking = picture.asking();
        picture.forget();
        asking.learned(bot.clone(), seen(&bot));
        assert!(!is_known(&picture, &bot));
    }

    #[test]
    fn a_container_of_a_foreign_name_changes_whose_it_is_or_could_be() {
        let (picture, named, absent) = (Picture::default(), BotId::random(), BotId::random());
        let foreign = Container {
            id: "taken-over".to_owned(),
            ..Default::default()
        };
        let asking = picture.asking();
        asking.learned(named.clone(), Seen::new(Some(foreign), TaskState::None));
        asking.learned(absent.clone(), Seen::new(None, TaskState::None));
        drop(asking);
        picture.container_changed("taken-over");
        assert!(!is_known(&picture, &named));
        assert!(is_known(&picture, &absent));
        picture.container_changed("new-one");
        assert!(!is_known(&picture, &absent));
    }
}
