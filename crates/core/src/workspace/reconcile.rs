//! What the store wants against what the runtime has, all bots, a few at a time. It only decides who needs a look:
//! the look and the work are the driver's.

use std::collections::{HashMap, HashSet};

use chrono::{TimeDelta, Utc};
use futures::StreamExt;
use skep_names::BotId;
use skep_runtime::{Instance, Swept, TaskState};
use skep_store::{BotRow, BotStatus, ContainerRow, ContainerStatus};
use tokio::time::timeout;

use super::mend::{Mend, Seen, mend};
use super::observed::Moment;
use super::remains::Remains;
use super::request::{DeleteData, Request};
use super::state::State;
use crate::checks::CheckType;
use crate::error::{Error, Result};
use crate::requester::{Patience, Requester};
use crate::skep::Skep;

/// Workspaces that are brought back at a time.
pub(super) const AT_A_TIME: usize = 8;
/// How long the operations of a bot that is gone are kept, and those of all bots.
const KEPT_DAYS: (i64, i64) = (7, 90);

/// What the runtime has.
struct There {
    /// Before it was asked.
    looked: Moment,
    instances: HashMap<BotId, Instance>,
    layers: HashSet<BotId>,
}

/// Who is looked at.
enum Found {
    Recorded(Box<ContainerRow>),
    /// It has a container or a layer, and no record.
    Unrecorded(BotId),
}

/// Whose a container or layer without a record is.
enum Met {
    Somebodys,
    Nobodys,
}

impl Skep {
    /// One comparison.
    ///
    /// # Errors
    /// [`Error::RuntimeUnavailable`], [`Error::StoreUnavailable`]; what fails for one workspace is logged and does
    /// not keep the others waiting.
    pub(crate) async fn reconcile(&self) -> Result<()> {
        match self.runtime().sweep().await {
            Ok(swept) => self.show_networks(&swept).await?,
            Err(error) => {
                let error = Error::from(error);
                tracing::warn!(error = error.with_causes(), "what a crash left was not swept");
            }
        }
        let looked = self.observations().moment();
        let instances = self.runtime().list().await?;
        let there = There {
            looked,
            layers: self.runtime().bots_with_layers().await?.into_iter().collect(),
            instances: instances.into_iter().map(|one| (one.bot.clone(), one)).collect(),
        };
        let rows = self.store().containers().await?;
        let known: HashSet<BotId> = rows.iter().map(|row| row.bot_id.clone()).collect();
        let all = there.instances.keys().chain(&there.layers).cloned();
        let strangers: HashSet<BotId> = all.filter(|bot| !known.contains(bot)).collect();
        // First what nobody recorded: it may be the rest of a create or a delete, and there is little of it. What
        // has to be started takes long, and a server that dies often would never come to the end of that.
        let found = strangers.into_iter().map(Found::Unrecorded);
        let found = found.chain(rows.into_iter().map(|row| Found::Recorded(Box::new(row))));
        let nobodys: Vec<BotId> = futures::stream::iter(found)
            .map(|found| async {
                match found {
                    Found::Unrecorded(bot) => self.meet_one(bot).await,
                    Found::Recorded(row) => {
                        self.reconcile_one(*row, &there).await;
                        None
                    }
                }
            })
            .buffer_unordered(AT_A_TIME)
            .filter_map(std::future::ready)
            .collect()
            .await;
        self.observations().set_nobodys(nobodys);
        self.carry_on_bots().await?;
        let now = Utc::now();
        let days = |days| now - TimeDelta::days(days);
        self.store()
            .forget_operations(days(KEPT_DAYS.0), days(KEPT_DAYS.1))
            .await?;
        Ok(())
    }

    /// A workspace whose network is broken runs on, and is shown as that until it is whole, or stopped.
    async fn show_networks(&self, swept: &Swept) -> Result<()> {
        let check = CheckType::ContainerTask.as_str();
        let shown = self.store().faults_of_all(check).await?;
        for bot in shown.keys().filter(|bot| !swept.broken_networks.contains_key(*bot)) {
            self.store().clear_fault(bot, check).await?;
        }
        for (bot, why) in &swept.broken_networks {
            if shown.get(bot) != Some(why) {
                tracing::error!(%bot, why, "the network of a workspace does not work any more: stop and start it");
                self.store().put_fault(bot, check, why).await?;
            }
        }
        Ok(())
    }

    async fn reconcile_one(&self, row: ContainerRow, there: &There) {
        let bot = row.bot_id.clone();
        if let Err(error) = self.compare(row, there).await {
            tracing::warn!(%bot, error = error.with_causes(), "a workspace could not be brought back");
        }
    }

    async fn compare(&self, row: ContainerRow, there: &There) -> Result<()> {
        let bot = &row.bot_id;
        if self.lanes().is_busy(bot) {
            return Ok(());
        }
        let instance = there.instances.get(bot);
        let has_layer = there.layers.contains(bot);
        let task = instance.map(|instance| instance.task);
        let mend = mend(&Seen {
            desired: row.desired,
            recorded: row.status,
            task,
            is_the_recorded: instance.is_none_or(|instance| instance.container_id == row.container_id),
            has_layer,
            has_data_elsewhere: instance.is_none() && !has_layer && self.has_data_elsewhere(bot).await?,
            may_try: self.observations().may_try(bot),
        });
        let is_to_be_finished = match mend {
            Mend::Rebuild | Mend::LeaveMissing => self.remains(bot).await?.is_some(),
            Mend::Start | Mend::PutBack | Mend::Wait if instance.is_none() => {
                matches!(self.remains(bot).await?, Some(Remains::OfRemoval { .. }))
            }
            _ => false,
        };
        let seen = |state| self.observations().seen(bot, there.looked, (state, row.desired));
        match mend {
            _ if is_to_be_finished => {
                tracing::info!(%bot, "a delete that failed half-way is finished");
                self.have_done(bot, finished_delete()).await?;
            }
            Mend::Nothing => seen(as_it_is(task, &row)),
            Mend::Wait => seen(down(&row)),
            Mend::LeaveMissing => seen(State::Missing),
            _ => {
                tracing::info!(%bot, mend = ?mend, "a workspace is not as it should be");
                self.have_done(bot, Request::Recover).await?;
            }
        }
        Ok(())
    }

    /// As the server's own wish, which gives way to everybody's. What takes longer than until the next comparison goes
    /// on without this one: the other workspaces are not to wait for it.
    async fn have_done(&self, bot: &BotId, request: Request) -> Result<()> {
        let requester = Requester {
            patience: Patience::GiveWay,
            ..Requester::server()
        };
        match self.submit(bot, request, &requester).await {
            Ok(operation) => match timeout(self.settings().reconcile_interval, operation.outcome()).await {
                Ok(ended) => ended.map(|_| ()),
                Err(_) => {
                    tracing::warn!(%bot, operation = operation.id(), "takes long; it goes on beside the comparison");
                    Ok(())
                }
            },
            Err(Error::OperationInProgress(_) | Error::GoingDown) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The bot's id when it is nobody's.
    async fn meet_one(&self, bot: BotId) -> Option<BotId> {
        match self.meet(&bot).await {
            Ok(Met::Somebodys) => None,
            Ok(Met::Nobodys) => {
                tracing::warn!(%bot, "a container or layer of ours belongs to no bot; it is left alone");
                Some(bot)
            }
            Err(error) => {
                tracing::warn!(%bot, error = error.with_causes(), "a workspace without a record could not be taken in");
                None
            }
        }
    }

    /// A container or a layer of ours without a row: adopted as it is when its bot exists, else only told. What a
    /// create or a delete left that failed half-way is removed, as those would have done.
    async fn meet(&self, bot: &BotId) -> Result<Met> {
        if self.lanes().is_busy(bot) {
            return Ok(Met::Somebodys);
        }
        if self.store().bot(bot).await?.is_none() {
            return Ok(Met::Nobodys);
        }
        // It may have been recorded, or removed, since the list was made.
        if self.store().container(bot).await?.is_none() {
            let request = match self.remains(bot).await? {
                Some(_) => finished_delete(),
                None => Request::Recover,
            };
            tracing::info!(%bot, what = request.kind().as_str(), "a workspace without a record");
            self.have_done(bot, request).await?;
        }
        Ok(Met::Somebodys)
    }

    /// Bots that were being made or removed and for which nothing is under way: carried on, never left.
    async fn carry_on_bots(&self) -> Result<()> {
        for bot in self.store().bots_with_status(BotStatus::Creating).await? {
            if !self.lanes().is_busy(&bot.id) {
                self.carry_on_creating(&bot).await?;
            }
        }
        for bot in self.store().bots_with_status(BotStatus::Deleting).await? {
            if !self.lanes().is_busy(&bot.id) {
                self.carry_on_deleting(&bot.id).await?;
            }
        }
        Ok(())
    }

    /// Its data may have been asked to be kept: then it is kept again, which a repeat of is nothing new.
    async fn carry_on_deleting(&self, bot: &BotId) -> Result<()> {
        let request = Request::DeleteBot {
            data: self.data_of_last_removal(bot).await?,
        };
        self.submit(bot, request, &Requester::server()).await.map(drop)
    }

    async fn carry_on_creating(&self, bot: &BotRow) -> Result<()> {
        let requester = Requester::server();
        match self.plan_again(bot).await {
            Ok(mut plan) => {
                plan.of_new_bot = true;
                self.submit(&bot.id, Request::Create(plan), &requester).await?;
            }
            Err(away @ Error::RuntimeUnavailable { .. }) => return Err(away),
            // It was let in once and cannot be made now, after a change of the configuration, say.
            Err(error) => {
                let check = CheckType::ContainerInit.as_str();
                self.store().put_fault(&bot.id, check, &error.to_string()).await?;
                self.store()
                    .advance_bot_status(&bot.id, BotStatus::Creating, BotStatus::Ready)
                    .await?;
            }
        }
        Ok(())
    }
}

/// What a delete left, without anything that is to be kept: that was kept before.
fn finished_delete() -> Request {
    Request::Delete {
        data: DeleteData::Remove,
        only_remains: true,
    }
}

fn as_it_is(task: Option<TaskState>, row: &ContainerRow) -> State {
    match task {
        Some(TaskState::Running) => State::Running,
        Some(TaskState::Dead | TaskState::None) => State::stopped(row.reason.as_deref()),
        None => State::Missing,
    }
}

fn down(row: &ContainerRow) -> State {
    let why = row.reason.clone().filter(|_| row.status == ContainerStatus::Error);
    State::Down {
        why: why.unwrap_or_else(|| "it ended".to_owned()),
    }
}
