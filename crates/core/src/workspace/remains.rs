//! What an operation left that failed half-way, mostly because the runtime went away: told by the journal, so that
//! it is finished when the runtime is back and never taken for a workspace.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use skep_names::{BotId, is_legacy};
use skep_runtime::Instance;
use skep_store::{OperationRow, OperationState};

use super::create::HAD_LAYER;
use super::preserve::{OF_LEGACY, PRESERVED};
use super::request::DeleteData;
use super::work::BEGUN;
use crate::error::{Error, Result};
use crate::operations::OperationKind;
use crate::skep::Skep;

/// None of these succeeds without a whole workspace; a stop or new limits do.
const SHOW_A_WORKSPACE: [OperationKind; 7] = [
    OperationKind::Start,
    OperationKind::Restart,
    OperationKind::Recover,
    OperationKind::Snapshot,
    OperationKind::Rollback,
    OperationKind::Import,
    OperationKind::Restore,
];

/// So many operations are read at a time.
const READ_AT_ONCE: u32 = 64;

/// What a create asked for may come to be so long after its end, when it was cut off from the runtime.
const MADE_LATE: TimeDelta = TimeDelta::seconds(60);

/// Whose own all is that is left of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remains {
    /// Of a create that began with nothing and failed before it was recorded.
    OfCreate,
    /// Of a removal that failed after it had begun. Layers go after the container, the newest first: what is left of
    /// them is not what the workspace was.
    OfRemoval {
        /// Its data was kept before, by this removal or by one that it repeats.
        data_is_kept: bool,
        /// It was kept from the legacy directory, which has not got the name yet that says so.
        of_legacy: bool,
    },
}

impl Skep {
    /// By what the journal tells of this bot's workspace, however long ago; `None`: it is a workspace. The container goes
    /// before any layer: while it is there, all of the workspace is.
    pub(crate) async fn remains(&self, bot: &BotId) -> Result<Option<Remains>> {
        match self.remains_by_the_journal(bot).await? {
            Some(Remains::OfRemoval { .. }) if self.runtime().inspect(bot).await?.is_some() => Ok(None),
            told => Ok(told),
        }
    }

    async fn remains_by_the_journal(&self, bot: &BotId) -> Result<Option<Remains>> {
        let kinds = SHOW_A_WORKSPACE
            .into_iter()
            .chain([OperationKind::Create, OperationKind::Delete, OperationKind::DeleteBot])
            .map(OperationKind::as_str);
        let kinds: Vec<_> = kinds.collect();
        // One that failed may be the repeat of one that had kept the data.
        let mut removed = None;
        let mut before = None;
        loop {
            let page = self
                .store()
                .operations_of_kinds(bot, &kinds, before, READ_AT_ONCE)
                .await?;
            for operation in &page {
                match (left_by(operation), removed) {
                    (None, _) => {}
                    (Some(Left::Remains(Remains::OfCreate)), None) => {
                        return self.remains_of_create(bot, operation).await;
                    }
                    (Some(Left::Workspace | Left::Remains(Remains::OfCreate)), _) => return Ok(removed),
                    (Some(Left::Remains(kept @ Remains::OfRemoval { data_is_kept: true, .. })), _) => {
                        return Ok(Some(kept));
                    }
                    (Some(Left::Remains(of_removal)), _) => removed = Some(of_removal),
                }
            }
            match page.last() {
                Some(oldest) => before = Some(oldest.seq),
                None => return Ok(removed),
            }
        }
    }

    /// Of a create that began with nothing and failed. One that was recorded before is a workspace, which may have been
    /// used since.
    async fn remains_of_create(&self, bot: &BotId, create: &OperationRow) -> Result<Option<Remains>> {
        if self.store().container(bot).await?.is_some() {
            return Ok(None);
        }
        let there = self.runtime().inspect(bot).await?;
        let is_of_it = there.is_none_or(|there| may_be_of(create.finished_at, &there));
        Ok(is_of_it.then_some(Remains::OfCreate))
    }

    /// What the last removal of a bot was asked to do with its data.
    pub(crate) async fn data_of_last_removal(&self, bot: &BotId) -> Result<DeleteData> {
        let kinds = [OperationKind::DeleteBot.as_str()];
        let last = self.store().operations_of_kinds(bot, &kinds, None, 1).await?;
        Ok(match last.first().is_some_and(keeps_data) {
            true => DeleteData::Preserve,
            false => DeleteData::Remove,
        })
    }
}

/// Nobody uses it, and nobody takes it up.
pub(super) fn half_removed() -> Error {
    Error::Conflict("the workspace was deleted half-way: delete it once more".to_owned())
}

/// Whether a create that has ended may have made that container: others may have put one there since.
fn may_be_of(ended: Option<DateTime<Utc>>, there: &Instance) -> bool {
    !is_legacy(&there.container_id) && ended.is_none_or(|ended| there.created_at <= ended + MADE_LATE)
}

/// What one operation tells of what is there after it.
enum Left {
    Workspace,
    Remains(Remains),
}

/// `None`: it neither makes nor removes a workspace, nor shows that there was one; or it is under way, which may be the
/// very one that asks.
fn left_by(operation: &OperationRow) -> Option<Left> {
    let failed = matches!(operation.state, OperationState::Failed | OperationState::Cancelled);
    if !failed && operation.state != OperationState::Succeeded {
        return None;
    }
    let is = |kind: OperationKind| operation.kind == kind.as_str();
    if is(OperationKind::Create) {
        // What was there before this create may hold data; one that failed does not tell what it is.
        let began_with_nothing = operation.notes.get(HAD_LAYER) == Some(&Value::Bool(false));
        return match (failed, began_with_nothing) {
            (true, true) => Some(Left::Remains(Remains::OfCreate)),
            (true, false) => None,
            (false, _) => Some(Left::Workspace),
        };
    }
    if is(OperationKind::Delete) || is(OperationKind::DeleteBot) {
        let has_begun = operation.notes.get(BEGUN).is_some();
        let data_is_kept = operation.notes.get(PRESERVED).is_some();
        let of_legacy = operation.notes.get(OF_LEGACY).is_some();
        return match (failed, has_begun) {
            (true, true) => Some(Left::Remains(Remains::OfRemoval {
                data_is_kept,
                of_legacy,
            })),
            // It was refused, or could not be: what was there before it is there.
            (true, false) => None,
            (false, _) => Some(Left::Workspace),
        };
    }
    // A recovery that came to no step has only looked.
    let has_done_nothing = is(OperationKind::Recover) && operation.step.is_empty();
    (!failed && !has_done_nothing && SHOW_A_WORKSPACE.map(is).contains(&true)).then_some(Left::Workspace)
}

/// Whether a removal was to keep the data.
fn keeps_data(operation: &OperationRow) -> bool {
    operation.request.get("data") == Some(&Value::String("preserve".to_owned()))
}

#[cfg(test)]
mod tests {
    use skep_names::container_id_for;
    use skep_runtime::TaskState;

    use super::*;

    #[test]
    fn what_others_made_after_a_failed_create_is_not_its_remains() {
        let bot = BotId::random();
        let ended = Utc::now();
        let made = |container_id: String, created_at| Instance {
            bot: bot.clone(),
            container_id,
            image: String::new(),
            image_digest: None,
            snapshotter: String::new(),
            namespace: String::new(),
            cdi_devices: Vec::new(),
            task: TaskState::None,
            created_at,
            updated_at: created_at,
            started_at: None,
            isolation: None,
            legacy_data: None,
        };
        let own = |seconds| made(container_id_for(&bot), ended + TimeDelta::seconds(seconds));
        assert!(may_be_of(Some(ended), &own(-1)));
        assert!(may_be_of(Some(ended), &own(1)), "it was answered late");
        assert!(!may_be_of(Some(ended), &own(600)));
        assert!(!may_be_of(
            Some(ended),
            &made(format!("mcp-{bot}"), ended - TimeDelta::seconds(1))
        ));
    }
}
