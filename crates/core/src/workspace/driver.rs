//! The driver of one workspace: takes what waits in its lane, one after the other, and brings each to its end.
//!
//! It belongs to the server. Nobody who waits for an operation can cancel it by going away.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use skep_names::BotId;
use skep_runtime::failpoint;
use skep_store::{BotStatus, EventRow, NewOperation, OperationEnd, OperationRow, OperationState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::admission::{QUEUE_LENGTH, Refusal};
use super::lanes::{Admitted, Next, Origin, Pending};
use super::reconcile::AT_A_TIME;
use super::request::Request;
use super::work::{Work, passed, was_settled};
use crate::Code;
use crate::bots::after_failed_removal;
use crate::error::{Error, Result};
use crate::operations::{EventBody, Hub, OperationHandle, OperationKind, Outcome};
use crate::requester::Requester;
use crate::skep::Skep;

/// The longest a driver waits for the journal to take a row before it looks again.
const JOURNAL_WAIT: Duration = Duration::from_secs(1);
/// How long the undoing of a failed operation may take.
const UNDO_LIMIT: Duration = Duration::from_secs(60);
/// How often the same operation, or its undoing, is gone on with after the runtime went away in its middle.
const TRIES: u32 = 8;
/// Between two looks for a runtime that is down, for work that is carried on: from, to.
const RUNTIME_BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Between two tries to journal an end: from, to.
const JOURNAL_BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Why one that a later one followed is not carried on.
const FOLLOWED: &str = "it was not brought to its end before other operations of the bot began, and is not carried on";
/// Why one is not that cannot be read.
const UNREADABLE: &str = "this release cannot carry on what an older one began";

impl Skep {
    /// Accepts, joins or refuses a request. When this returns, its operation is in the journal.
    pub(crate) async fn submit(&self, bot: &BotId, request: Request, requester: &Requester) -> Result<OperationHandle> {
        if self.going_down().is_cancelled() {
            return Err(Error::GoingDown);
        }
        // Layers are named by it: it must tell nothing of the clock.
        let id = uuid::Uuid::new_v4().to_string();
        let hub = Hub::new(id.clone(), Some(bot.clone()), 1);
        let pending = Arc::new(Pending::new(
            hub.clone(),
            request,
            requester.request_id.clone(),
            Origin::Asked,
        ));
        let before = match self.lanes().admit(bot, &pending, requester.patience) {
            Admitted::Joined(joined) => {
                joined.journaled().await?;
                return Ok(OperationHandle::new(joined));
            }
            Admitted::Refused(refusal) => return Err(refused(refusal)),
            Admitted::Enqueued { spawn_driver, before } => {
                self.remember_hub(&hub);
                if spawn_driver {
                    self.spawn_driver(bot);
                }
                before
            }
        };
        // In a task of its own: a caller that goes away here must not leave a place that is never journaled.
        let (skep, bot, requester) = (self.clone(), bot.clone(), requester.clone());
        let journaling = self.tasks().spawn(async move {
            if let Some(before) = before {
                // In the order of the lane; one that could not be journaled is out of it.
                match before.journaled().await {
                    Ok(()) | Err(_) => {}
                }
            }
            skep.journal(&bot, &pending, &requester).await
        });
        match journaling.await {
            Ok(Ok(())) => Ok(OperationHandle::new(hub)),
            Ok(Err(error)) => Err(error),
            Err(panic) => Err(Error::internal("journaling an operation", panic)),
        }
    }

    async fn journal(&self, bot: &BotId, pending: &Arc<Pending>, requester: &Requester) -> Result<()> {
        let hub = &pending.hub;
        match self.insert_operation(bot, pending, requester).await {
            Ok(()) => {
                self.end_overtaken(bot, hub).await;
                Ok(())
            }
            Err(error) => {
                self.lanes().withdraw(bot, hub.id());
                // Whoever joined it meanwhile gets the same answer.
                let result = Err(error.clone());
                let last = hub.last_event(&result, error_event(&error, pending));
                hub.end(result, last);
                self.forget_hub(hub.id());
                Err(error)
            }
        }
    }

    async fn insert_operation(&self, bot: &BotId, pending: &Arc<Pending>, requester: &Requester) -> Result<()> {
        passed("operation.admitted")?;
        let request =
            serde_json::to_value(&pending.request).map_err(|error| Error::internal("writing a request", error))?;
        self.store()
            .insert_operation(&NewOperation {
                id: pending.hub.id().to_owned(),
                bot_id: bot.clone(),
                kind: pending.request.kind().as_str().to_owned(),
                request,
                requested_by: requester.user_id.clone(),
                request_id: pending.request_id.clone(),
                bot_status: (pending.request.kind() == OperationKind::DeleteBot).then_some(BotStatus::Deleting),
                idempotency: requester.idempotency.clone(),
            })
            .await?;
        failpoint::pass_or_abort("operation.journaled");
        Ok(())
    }

    /// An operation is in the journal now: what it overtakes is cancelled, and what of that had not begun is ended.
    async fn end_overtaken(&self, bot: &BotId, hub: &Hub) {
        hub.note_journaled();
        for overtaken in self.lanes().journaled(bot, hub.id()) {
            self.end_unbegun(bot, &overtaken).await;
        }
    }

    /// Cancels an operation. One that waits is ended at once, in a task of its own: a caller that goes away must
    /// not leave it without an end.
    pub(crate) fn cancel_in_lane(&self, bot: &BotId, id: &str) {
        for cancelled in self.lanes().cancel(bot, id, "a request") {
            let (skep, bot) = (self.clone(), bot.clone());
            self.tasks()
                .spawn(async move { skep.end_unbegun(&bot, &cancelled).await });
        }
    }

    /// Ends what was cancelled before it began.
    async fn end_unbegun(&self, bot: &BotId, pending: &Arc<Pending>) {
        let error = match self.end_first_set_up(bot, &pending.request).await {
            Ok(()) => pending.cancellation(),
            Err(error) => error,
        };
        self.finish(bot, pending, Err(error)).await;
    }

    /// Takes up every operation that the journal shows as unfinished, in the order they came, for some bots at a time.
    /// One after which another one of its bot had begun is over: done now, it would be done to what came of the later
    /// one.
    pub(crate) async fn carry_on_unfinished(&self) -> Result<()> {
        let turns = Arc::new(Semaphore::new(AT_A_TIME));
        for row in self.store().unfinished_operations().await? {
            let is_followed = self.store().has_begun_after(&row.bot_id, row.seq).await?;
            let request: Request = match (serde_json::from_value(row.request.clone()), is_followed) {
                (Ok(request), false) => request,
                (request, true) => {
                    self.give_up(&row, request.ok().as_ref(), FOLLOWED).await?;
                    continue;
                }
                (Err(error), false) => {
                    tracing::error!(operation = row.id, %error, "an unreadable request");
                    self.give_up(&row, None, UNREADABLE).await?;
                    continue;
                }
            };
            let (operation, kind, step) = (&row.id, &row.kind, &row.step);
            tracing::info!(bot = %row.bot_id, operation, request_id = row.request_id, kind, step, "carried on");
            // Its listeners hear it from the start again, under new numbers.
            let first_id = self.store().restart_events(&row.id).await?;
            let hub = Hub::new(row.id.clone(), Some(row.bot_id.clone()), first_id);
            self.remember_hub(&hub);
            let origin = match row.state {
                OperationState::Queued => Origin::LeftQueued,
                _ => Origin::LeftBegun,
            };
            let pending = Arc::new(Pending::new(hub.clone(), request, row.request_id, origin));
            if was_settled(&row.notes) {
                self.lanes().settle(&pending)?;
            }
            if self.lanes().put_back(&row.bot_id, pending) {
                let (skep, bot, turns) = (self.clone(), row.bot_id.clone(), turns.clone());
                self.tasks().spawn(async move { skep.drive_in_turn(&bot, turns).await });
            }
            self.end_overtaken(&row.bot_id, &hub).await;
        }
        Ok(())
    }

    /// Ends what is not carried on; `request` is what was asked for, where it can be read.
    async fn give_up(&self, row: &OperationRow, request: Option<&Request>, why: &str) -> Result<()> {
        tracing::error!(bot = %row.bot_id, operation = row.id, kind = row.kind, why, "not carried on");
        if let Some(request) = request {
            self.end_first_set_up(&row.bot_id, request).await?;
        }
        let message = why.to_owned();
        let (code, end) = match row.state {
            // Only what is cancelled is never begun.
            OperationState::Queued if why == FOLLOWED => {
                (Code::OperationCancelled, OperationEnd::Cancelled { message })
            }
            _ => {
                let code = Code::Internal.as_str().to_owned();
                (Code::Internal, OperationEnd::Failed { code, message })
            }
        };
        let last = EventBody::Error {
            code: code.as_str().to_owned(),
            message: why.to_owned(),
            request_id: row.request_id.clone(),
        };
        let last = EventRow {
            id: self.store().restart_events(&row.id).await?,
            data: serde_json::to_value(&last).map_err(|error| Error::internal("writing an event", error))?,
        };
        self.store().finish_operation(&row.id, &end, Some(&last), None).await?;
        if let Some(Request::Import(plan)) = request {
            self.spool().remove(&plan.archive);
        }
        Ok(())
    }

    /// Of a create of a new bot that is not done: else reconcile would begin it anew.
    async fn end_first_set_up(&self, bot: &BotId, request: &Request) -> Result<()> {
        if matches!(request, Request::Create(plan) if plan.of_new_bot) {
            let (creating, ready) = (BotStatus::Creating, BotStatus::Ready);
            self.store().advance_bot_status(bot, creating, ready).await?;
        }
        Ok(())
    }

    fn spawn_driver(&self, bot: &BotId) {
        let (skep, bot) = (self.clone(), bot.clone());
        self.tasks().spawn(async move { skep.drive(&bot, None).await });
    }

    /// The same for what a server before this one left: its first piece of work is done when there is a turn for it.
    async fn drive_in_turn(&self, bot: &BotId, turns: Arc<Semaphore>) {
        let turn = tokio::select! {
            turn = turns.acquire_owned() => turn.ok(),
            // The driver lets go of its lane.
            () = self.going_down().cancelled() => None,
        };
        self.drive(bot, turn).await;
    }

    async fn drive(&self, bot: &BotId, mut turn: Option<OwnedSemaphorePermit>) {
        let mut is_left_to_reconcile = false;
        loop {
            if self.going_down().is_cancelled() {
                self.abandon_lane(bot);
                return;
            }
            match self.lanes().next(bot) {
                // Not before the lane is empty: reconcile leaves a bot alone that has work.
                Next::Nothing {
                    is_left_to_reconcile: asked,
                } => {
                    if asked || is_left_to_reconcile {
                        self.look_again().notify_one();
                    }
                    return;
                }
                Next::Wait(changed) => {
                    // A lost wake-up costs this long, never the operation.
                    match timeout(JOURNAL_WAIT, changed.notified()).await {
                        Ok(()) | Err(_) => {}
                    }
                }
                Next::Run(pending) => {
                    self.run_in_turn(bot, &pending, turn.take()).await;
                    let ended = pending.hub.outcome().await;
                    is_left_to_reconcile |= ended.is_err_and(|error| error.says_nothing_of_the_workspace());
                }
            }
        }
    }

    /// What waits is in the journal; the streams of those who listen end, and tell no end of it.
    fn abandon_lane(&self, bot: &BotId) {
        for pending in self.lanes().abandon(bot) {
            self.let_go(&pending);
        }
    }

    /// Ends it for those who listen, not in the journal: the next start carries it on.
    fn let_go(&self, pending: &Arc<Pending>) {
        pending.hub.let_go();
        self.forget_hub(pending.hub.id());
    }

    /// Gives a turn back when it has ended, or when it takes longer than until the next comparison, from when the
    /// runtime answers: the other workspaces are not to wait for it.
    async fn run_in_turn(&self, bot: &BotId, pending: &Arc<Pending>, turn: Option<OwnedSemaphorePermit>) {
        let mut run = pin!(self.run(bot, pending));
        // Whether the runtime answers is asked with a list of all: not for each operation that anybody asks for.
        let Some(turn) = turn else { return run.await };
        let takes_long = async {
            self.runtime_answers().await;
            sleep(self.settings().reconcile_interval).await;
        };
        tokio::select! {
            () = &mut run => return,
            () = takes_long => drop(turn),
        }
        run.await;
    }

    async fn run(&self, bot: &BotId, pending: &Arc<Pending>) {
        let notes = match self.notes_of(pending.hub.id()).await {
            Ok(notes) => notes,
            Err(error) => return self.finish(bot, pending, Err(error)).await,
        };
        let work = Work::new(self.clone(), bot.clone(), pending.clone(), notes);
        let kind = pending.request.kind();
        let request_id = pending.request_id.as_deref();
        tracing::info!(%bot, operation = pending.hub.id(), request_id, kind = kind.as_str(), "begun");
        failpoint::pass_or_abort("operation.begun");
        let (result, let_go) = self.do_work(&work).await;
        failpoint::pass_or_abort("operation.worked");
        if let_go {
            return self.let_go(pending);
        }
        if let Err(error) = &result {
            pending.failed();
            self.undo(&work, error).await;
            failpoint::pass_or_abort("operation.undone");
            if self.letting_go().is_cancelled() {
                return self.let_go(pending);
            }
        }
        self.finish(bot, pending, result).await;
    }

    /// What was noted of an operation that is begun, or carried on. Without them it would take what it made itself
    /// for what was there before, so none that cannot be read is begun.
    async fn notes_of(&self, id: &str) -> Result<Map<String, Value>> {
        let unreadable = || Error::Internal {
            operation: format!("reading the notes of operation {id}"),
            source: None,
        };
        let row = self.store().operation(id).await?.ok_or_else(unreadable)?;
        match row.notes {
            Value::Object(notes) => Ok(notes),
            _ => Err(unreadable()),
        }
    }

    /// Does the work, and goes on with it when a runtime that went away in its middle is back, as the next server
    /// would: what it then does is one of the two things that can be answered. True: the server lets go of it.
    async fn do_work(&self, work: &Work) -> (Result<Outcome>, bool) {
        let pending = work.pending();
        let mut is_continued = pending.origin != Origin::Asked;
        let mut tries = 1;
        loop {
            if is_continued {
                tokio::select! {
                    biased;
                    // Nothing of it runs in this server now.
                    () = self.going_down().cancelled() => return (Err(Error::GoingDown), true),
                    () = pending.cancelled() => return (Err(pending.cancellation()), false),
                    () = self.runtime_answers() => {}
                }
            }
            match self.try_work(work).await {
                (Err(error), false) if tries < TRIES && work.is_cut_off_by(&error) => {
                    tracing::warn!(
                        bot = %work.bot(),
                        operation = work.hub().id(),
                        request_id = pending.request_id,
                        error = error.with_causes(),
                        "cut off; goes on when the runtime is back"
                    );
                    is_continued = true;
                    tries += 1;
                }
                ended => return ended,
            }
        }
    }

    /// Runs the work in a task of its own, so that a panic ends this operation and not the driver; a cancelled one
    /// is aborted and waited for. True: the server lets go of it.
    async fn try_work(&self, work: &Work) -> (Result<Outcome>, bool) {
        let pending = work.pending();
        let doing = work.clone();
        let mut task = tokio::spawn(async move { doing.run().await });
        let finished = tokio::select! {
            biased;
            () = self.letting_go().cancelled() => {
                abort(&mut task).await;
                return (Err(Error::GoingDown), true);
            }
            () = pending.cancelled() => {
                abort(&mut task).await;
                return (Err(pending.cancellation()), false);
            }
            finished = &mut task => finished,
        };
        let result = match finished {
            Ok(result) => result,
            Err(panic) => Err(Error::internal("the work of an operation", panic)),
        };
        (result, false)
    }

    /// Undoes what failed, once more when the runtime that it needs is back.
    async fn undo(&self, work: &Work, error: &Error) {
        let mut tries = 1;
        let failed = loop {
            match self.try_undo(work, error).await {
                Ok(()) => return,
                Err(undo) if tries < TRIES && work.is_cut_off_by(&undo) => tries += 1,
                Err(undo) => break undo,
            }
            tokio::select! {
                () = self.letting_go().cancelled() => break Error::GoingDown,
                () = self.runtime_answers() => {}
            }
        };
        tracing::error!(
            bot = %work.bot(),
            operation = work.hub().id(),
            request_id = work.pending().request_id,
            error = failed.with_causes(),
            "could not be undone; reconcile takes it up"
        );
        self.look_again().notify_one();
    }

    async fn try_undo(&self, work: &Work, error: &Error) -> Result<()> {
        let undoing = async {
            tokio::select! {
                // It stays unfinished in the journal: the next start carries it on.
                () = self.letting_go().cancelled() => Err(Error::GoingDown),
                undone = work.undo(error) => undone,
            }
        };
        match timeout(UNDO_LIMIT, undoing).await {
            Ok(undone) => undone,
            Err(late) => Err(Error::internal("undoing an operation", late)),
        }
    }

    /// Journals the end, then tells it. Until it is journaled nothing else is done to the workspace: the next server
    /// would do what it finds unfinished again, over that.
    async fn finish(&self, bot: &BotId, pending: &Arc<Pending>, result: Result<Outcome>) {
        let hub = &pending.hub;
        let (operation, request_id) = (hub.id(), pending.request_id.as_deref());
        let kind = pending.request.kind().as_str();
        match &result {
            Ok(_) => tracing::info!(%bot, operation, request_id, kind, "done"),
            Err(error) => {
                pending.failed();
                let (code, error) = (error.code().as_str(), error.with_causes());
                tracing::warn!(%bot, operation, request_id, kind, code, error, "failed");
            }
        }
        let mut pause = JOURNAL_BACK_OFF.0;
        while let Err(error) = self.journal_end(bot, pending, &result).await {
            let error = error.with_causes();
            tracing::error!(%bot, operation, request_id, error, "its end is not journaled yet");
            tokio::select! {
                () = self.letting_go().cancelled() => return self.let_go(pending),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(JOURNAL_BACK_OFF.1),
            }
        }
        if let Request::Import(plan) = &pending.request {
            self.spool().remove(&plan.archive);
        }
        failpoint::pass_or_abort("operation.ended");
        let last = hub.last_event(&result, end_event(&result, pending));
        hub.end(result, last);
        self.forget_hub(hub.id());
        self.measurements().ask(bot);
    }

    async fn journal_end(&self, bot: &BotId, pending: &Arc<Pending>, result: &Result<Outcome>) -> Result<()> {
        let last = pending.hub.last_event(result, end_event(result, pending));
        let written = |error| Error::internal("writing an event", error);
        let event = EventRow {
            id: last.id,
            data: serde_json::to_value(&last.body).map_err(written)?,
        };
        let end = match (result, &last.body) {
            (Ok(outcome), _) => OperationEnd::Succeeded {
                outcome: serde_json::to_value(outcome).map_err(written)?,
            },
            (Err(error @ Error::OperationCancelled(_)), _) => OperationEnd::Cancelled {
                message: error.to_string(),
            },
            (Err(error), _) => OperationEnd::Failed {
                code: error.code().as_str().to_owned(),
                message: error.to_string(),
            },
        };
        let bot_after = match (pending.request.kind(), result) {
            (OperationKind::DeleteBot, Err(error)) => Some(after_failed_removal(bot, error)),
            _ => None,
        };
        Ok(self
            .store()
            .finish_operation(pending.hub.id(), &end, Some(&event), bot_after.as_ref())
            .await?)
    }

    /// Waits, with back-off, until the runtime answers.
    pub(crate) async fn runtime_answers(&self) {
        let mut pause = RUNTIME_BACK_OFF.0;
        while let Err(error) = self.runtime().list().await {
            tracing::warn!(error = Error::from(error).with_causes(), "the runtime does not answer");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RUNTIME_BACK_OFF.1);
        }
    }
}

impl Work {
    async fn run(&self) -> Result<Outcome> {
        match &self.pending().request {
            Request::Create(plan) => self.create(plan).await,
            Request::Start => self.start().await,
            Request::Stop { grace, cause } => self.stop(*grace, *cause).await,
            Request::Restart { grace } => self.restart(*grace).await,
            Request::Recover => self.recover().await,
            Request::Limits { limits } => self.change_limits(*limits).await,
            Request::Restore(request) => self.restore(request).await,
            Request::Import(plan) => self.import(plan).await,
            Request::Delete { data, only_remains } => self.delete(*data, *only_remains).await,
            Request::DeleteBot { data } => self.delete_bot(*data).await,
            Request::Snapshot(plan) => self.snapshot(plan).await,
            Request::SnapshotDelete { version } => self.delete_version(*version).await,
            Request::Rollback { version } => self.rollback(*version).await,
        }
    }

    async fn undo(&self, error: &Error) -> Result<()> {
        match &self.pending().request {
            Request::Create(plan) => self.undo_create(plan, error).await,
            Request::Delete { data, .. } | Request::DeleteBot { data } => self.undo_delete(*data).await,
            Request::Start | Request::Restart { .. } => self.undo_start(error).await,
            Request::Stop { .. } => self.undo_stop(error).await,
            Request::Restore(_) | Request::Import(_) => self.undo_change(error).await,
            Request::Snapshot(_) | Request::Rollback { .. } => self.undo_layers(error).await,
            Request::SnapshotDelete { .. } => self.release_what_was_forgotten().await,
            Request::Limits { .. } => self.put_limits_back().await,
            // A recovery notes each of its tries itself.
            Request::Recover => Ok(()),
        }
    }
}

async fn abort<T>(task: &mut tokio::task::JoinHandle<T>) {
    task.abort();
    // Aborted, or it came to its end just before: both are an end.
    match task.await {
        Ok(_) | Err(_) => {}
    }
}

fn end_event(result: &Result<Outcome>, pending: &Pending) -> EventBody {
    match result {
        Ok(outcome) => EventBody::Complete {
            outcome: outcome.clone(),
        },
        Err(error) => error_event(error, pending),
    }
}

fn error_event(error: &Error, pending: &Pending) -> EventBody {
    EventBody::Error {
        code: error.code().as_str().to_owned(),
        message: error.to_string(),
        request_id: pending.request_id.clone(),
    }
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::InProgress(id) | Refusal::Removing(id) => Error::OperationInProgress(id),
        Refusal::QueueFull => Error::QueueFull(QUEUE_LENGTH),
    }
}
