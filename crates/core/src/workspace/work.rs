//! What the work of every kind has in hand: the operation it belongs to, and its steps.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};
use skep_names::BotId;
use skep_runtime::{Runtime, failpoint};
use skep_store::{ContainerRow, EventRow, Store};

use super::lanes::Pending;
use crate::Code;
use crate::error::{Error, Result};
use crate::operations::{EventBody, Hub};
use crate::skep::Skep;

/// Note: layers are changed, or removed, from here on.
pub(super) const BEGUN: &str = "layers_changed";
/// Note: a cancel comes too late from here on.
const SETTLED: &str = "settled";
/// Note: layers are made from here on.
const MAKING: &str = "layers_made";

/// One operation while it is done. Clones are the same operation.
#[derive(Clone)]
pub(crate) struct Work {
    skep: Skep,
    bot: BotId,
    pending: Arc<Pending>,
    notes: Arc<Mutex<Map<String, Value>>>,
}

impl Work {
    pub(crate) fn new(skep: Skep, bot: BotId, pending: Arc<Pending>, notes: Map<String, Value>) -> Self {
        Self {
            skep,
            bot,
            pending,
            notes: Arc::new(Mutex::new(notes)),
        }
    }

    pub(crate) fn skep(&self) -> &Skep {
        &self.skep
    }

    pub(crate) fn bot(&self) -> &BotId {
        &self.bot
    }

    pub(crate) fn store(&self) -> &Store {
        self.skep.store()
    }

    pub(crate) fn runtime(&self) -> &dyn Runtime {
        &**self.skep.runtime()
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.pending.hub
    }

    pub(crate) fn pending(&self) -> &Arc<Pending> {
        &self.pending
    }

    /// The newest row of the bot's container.
    pub(crate) async fn row(&self) -> Result<Option<ContainerRow>> {
        Ok(self.store().container(&self.bot).await?)
    }

    /// Writes something down for whoever undoes or repeats this operation; journaled with the next step.
    pub(crate) fn note(&self, name: &str, value: impl Into<Value>) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.insert(name.to_owned(), value.into());
    }

    /// What was written down, also before a crash.
    pub(crate) fn noted(&self, name: &str) -> Option<Value> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.get(name).cloned()
    }

    pub(super) fn all_notes(&self) -> Value {
        Value::Object(self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// From here on layers are changed, or removed: a failure must not leave it half done.
    pub(super) fn note_begun(&self) {
        self.note(BEGUN, true);
    }

    /// None were, after all.
    pub(super) fn note_spared(&self) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.remove(BEGUN);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.noted(BEGUN).is_some()
    }

    /// From here on it goes on to its end, whoever cancels it; also in the next server, once a step is journaled.
    ///
    /// # Errors
    /// [`Error::OperationCancelled`] when somebody did already.
    pub(super) fn settle(&self) -> Result<()> {
        self.skep.lanes().settle(&self.pending)?;
        self.note(SETTLED, true);
        Ok(())
    }

    /// From here on there may be layers that nobody uses yet, which a failure must not leave.
    pub(super) fn note_making_layers(&self) {
        self.note(MAKING, true);
    }

    /// Whether the runtime went away while layers were changed: whoever was not answered cannot have been told
    /// whether it came to pass, so nothing that is said before it is back would be true.
    pub(crate) fn is_cut_off_by(&self, error: &Error) -> bool {
        (self.has_begun() || self.noted(MAKING).is_some()) && error.code() == Code::RuntimeUnavailable
    }

    /// Tells and journals an event.
    pub(crate) async fn tell(&self, body: EventBody) -> Result<()> {
        if let Some(event) = self.hub().tell(body) {
            let data = serde_json::to_value(&event.body).map_err(|error| Error::internal("writing an event", error))?;
            self.store()
                .insert_event(self.hub().id(), &EventRow { id: event.id, data })
                .await?;
        }
        Ok(())
    }

    /// Does a step: journaled, told (except by a create, whose events are fixed), with a failpoint on either side.
    /// Every step may be done again.
    pub(crate) async fn step<T>(&self, name: &str, doing: impl Future<Output = Result<T>>) -> Result<T> {
        let kind = self.pending.request.kind();
        self.store()
            .set_operation_step(self.hub().id(), name, &self.all_notes())
            .await?;
        if kind != crate::OperationKind::Create {
            self.tell(EventBody::Step { step: name.to_owned() }).await?;
        }
        passed(&format!("{}.{name}.before", kind.as_str()))?;
        let done = doing.await?;
        passed(&format!("{}.{name}.after", kind.as_str()))?;
        Ok(done)
    }
}

/// Whether [`Work::settle`] came to be journaled.
pub(super) fn was_settled(notes: &Value) -> bool {
    notes.get(SETTLED).is_some()
}

/// Passes a place where a test lets the step fail or ends the server.
pub(super) fn passed(point: &str) -> Result<()> {
    failpoint::pass(point).map_err(|error| Error::internal("passing a failpoint", error))
}
