//! Operations: what changes a workspace, journaled before it is done, told while it is done.

mod event;
mod hub;
mod kind;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use skep_names::BotId;
use skep_store::{OperationRow, OperationState};

pub use event::{CompletedWorkspace, EventBody, Imported, Layer, LimitsReport, OperationEvent, Outcome, TakenSnapshot};
pub(crate) use hub::Hub;
pub use kind::OperationKind;

use crate::error::{Code, Error, Result};
use crate::skep::Skep;

/// One operation as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub id: String,
    pub bot_id: BotId,
    /// As the journal has it: a kind of an older release is shown too.
    pub kind: String,
    pub state: OperationState,
    pub step: String,
    pub started_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
    /// Code and message.
    pub error: Option<(Code, String)>,
    /// Done and total, while it runs and tells it.
    pub progress: Option<(u64, u64)>,
}

/// One page of operations, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationPage {
    pub operations: Vec<Operation>,
    /// For the next page; `None` at the end.
    pub next_cursor: Option<String>,
}

/// An operation that was accepted, or joined. Dropping it changes nothing: the operation is the server's.
#[derive(Debug, Clone)]
pub struct OperationHandle {
    hub: Arc<Hub>,
}

impl OperationHandle {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// For `X-Operation-Id`.
    pub fn id(&self) -> &str {
        self.hub.id()
    }

    /// Every event with an id over `after` (0: from the start), those to come included, to the last one.
    pub fn events(&self, after: u64) -> BoxStream<'static, OperationEvent> {
        self.hub.clone().events(after)
    }

    /// Its end. May be awaited by any number of callers.
    ///
    /// # Errors
    /// What made it fail.
    pub async fn outcome(&self) -> Result<Outcome> {
        self.hub.outcome().await
    }
}

/// The place in the order of making that a cursor of ours names.
pub(crate) fn before(cursor: Option<&str>) -> Result<Option<i64>> {
    cursor
        .map(|cursor| cursor.parse::<i64>().ok().filter(|seq| *seq > 0))
        .map(|seq| seq.ok_or_else(|| Error::InvalidArgument("the cursor is not one of ours".to_owned())))
        .transpose()
}

fn shown(row: OperationRow, hub: Option<&Arc<Hub>>) -> Operation {
    let error = row.error_message.map(|message| {
        let code = row.error_code.as_deref().and_then(Code::parse);
        (code.unwrap_or(Code::Internal), message)
    });
    Operation {
        id: row.id,
        bot_id: row.bot_id,
        kind: row.kind,
        state: row.state,
        step: row.step,
        started_at: row.started_at,
        finished_at: row.finished_at,
        error,
        progress: hub.filter(|_| !row.state.is_final()).and_then(|hub| hub.progress()),
    }
}

impl Skep {
    /// One page of a bot's operations, newest first; `cursor` is the `next_cursor` of the page before.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a cursor that is none of ours.
    pub async fn operations(&self, bot: &BotId, cursor: Option<&str>, limit: u32) -> Result<OperationPage> {
        let before = before(cursor)?;
        let limit = limit.clamp(1, 1000);
        let mut rows = self.store().operations_before(bot, before, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let last = rows.last().filter(|_| more);
        Ok(OperationPage {
            next_cursor: last.map(|row| row.seq.to_string()),
            operations: rows
                .into_iter()
                .map(|row| {
                    let hub = self.live_hub(&row.id);
                    shown(row, hub.as_ref())
                })
                .collect(),
        })
    }

    /// One operation, also of a bot that is gone.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn operation(&self, id: &str) -> Result<Operation> {
        let row = self.store().operation(id).await?.ok_or_else(|| not_found(id))?;
        let hub = self.live_hub(id);
        Ok(shown(row, hub.as_ref()))
    }

    /// The events of an operation with an id over `after`, from the journal when it has ended.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn operation_events(&self, id: &str, after: u64) -> Result<BoxStream<'static, OperationEvent>> {
        if let Some(hub) = self.live_hub(id) {
            return Ok(hub.events(after));
        }
        if self.store().operation(id).await?.is_none() {
            return Err(not_found(id));
        }
        let rows = self.store().events(id).await?;
        let events = rows
            .into_iter()
            .filter(|row| row.id > after)
            .map(|row| {
                let body = serde_json::from_value(row.data)
                    .map_err(|error| Error::internal("reading an event of the journal", error))?;
                Ok(OperationEvent { id: row.id, body })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(stream::iter(events).boxed())
    }

    /// The outcome of an operation, waited for when it is still under way, from the journal when it has ended
    /// (for a request that is repeated with its idempotency key).
    ///
    /// # Errors
    /// What made it fail; [`Error::NotFound`].
    pub async fn operation_outcome(&self, id: &str) -> Result<Outcome> {
        if let Some(hub) = self.live_hub(id) {
            return hub.outcome().await;
        }
        let row = self.store().operation(id).await?.ok_or_else(|| not_found(id))?;
        match (row.state, row.outcome) {
            (OperationState::Succeeded, Some(outcome)) => serde_json::from_value(outcome)
                .map_err(|error| Error::internal("reading an outcome of the journal", error)),
            (OperationState::Succeeded, None) => Ok(Outcome::Done),
            (OperationState::Failed | OperationState::Cancelled, _) => Err(Error::Recorded {
                code: row
                    .error_code
                    .as_deref()
                    .and_then(Code::parse)
                    .unwrap_or(Code::Internal),
                message: row.error_message.unwrap_or_else(|| "the operation failed".to_owned()),
            }),
            (OperationState::Queued | OperationState::Running, _) => Err(Error::GoingDown),
        }
    }

    /// Cancels an operation that waits or runs: what it did is undone, its listeners get `operation_cancelled`.
    /// Returns when it has ended, which for one that waits is at once; one that has ended before stays as it is, and one
    /// whose change is in place already goes on to its end.
    ///
    /// # Errors
    /// [`Error::Conflict`] for one that cannot be cancelled, [`Error::NotFound`].
    pub async fn cancel_operation(&self, id: &str) -> Result<Operation> {
        if let Some(hub) = self.live_hub(id) {
            if let Some(bot) = hub.bot() {
                if !self.lanes().can_be_cancelled(bot, id) {
                    return Err(Error::Conflict(
                        "an operation that deletes, or keeps the host from filling up, cannot be cancelled".to_owned(),
                    ));
                }
                self.cancel_in_lane(bot, id);
            }
            // Its end is what is waited for; how it ended is read from the journal below.
            match hub.outcome().await {
                Ok(_) | Err(_) => {}
            }
        }
        self.operation(id).await
    }
}

fn not_found(id: &str) -> Error {
    Error::NotFound(format!("operation {id} not found"))
}
