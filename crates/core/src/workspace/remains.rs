//! What an operation left that failed half-way, mostly because the runtime went away: told by the journal, so that
//! it is finished when the runtime is back and never taken for a workspace.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use skep_names::{BotId, is_legacy};
use skep_runtime::Instance;
use skep_store::{OperationRow, OperationState};

use super::create::HAD_LAYER;
use super::preserve::PRESERVED;
use super::request::DeleteData;
use super::work::BEGUN;
use crate::error::{Error, Result};
use crate::operations::OperationKind;
use crate::skep::Skep;

/// So many operations are looked back: starts and stops come between.
const LOOKED_BACK: u32 = 64;

/// What a create asked for may come to be so long after its end, when it was cut off from the runtime.
const MADE_LATE: TimeDelta = TimeDelta::seconds(60);

/// Whose own all is that is left of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remains {
    /// Of a create that began with nothing and failed.
    OfCreate,
    /// Of a removal that failed after it had begun. Layers go after the container, the newest first: what is left of
    /// them is not what the workspace was.
    OfRemoval {
        /// Its data was kept before.
        data_is_kept: bool,
    },
}

impl Skep {
    /// By the last operation that made or removed this bot's workspace; `None`: it is a workspace.
    pub(crate) async fn remains(&self, bot: &BotId) -> Result<Option<Remains>> {
        let operations = self.store().operations(bot, LOOKED_BACK).await?;
        let left = operations.iter().find_map(|one| left_by(one).map(|left| (left, one)));
        let Some((Some(left), operation)) = left else {
            return Ok(None);
        };
        if left == Remains::OfCreate
            && let Some(there) = self.runtime().inspect(bot).await?
            && !may_be_of(operation.finished_at, &there)
        {
            return Ok(None);
        }
        Ok(Some(left))
    }

    /// What the last removal of a bot was asked to do with its data.
    pub(crate) async fn data_of_last_removal(&self, bot: &BotId) -> Result<DeleteData> {
        let operations = self.store().operations(bot, LOOKED_BACK).await?;
        let last = operations
            .iter()
            .find(|one| one.kind == OperationKind::DeleteBot.as_str());
        Ok(match last.is_some_and(keeps_data) {
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

/// `None`: it neither makes nor removes a workspace, nor shows that there was one; or it is under way, which may be the
/// very one that asks.
fn left_by(operation: &OperationRow) -> Option<Option<Remains>> {
    let failed = matches!(operation.state, OperationState::Failed | OperationState::Cancelled);
    if !failed && operation.state != OperationState::Succeeded {
        return None;
    }
    let is = |kind: OperationKind| operation.kind == kind.as_str();
    if is(OperationKind::Create) {
        // What was there before this create may hold data; one that failed does not tell what it is.
        let began_with_nothing = operation.notes.get(HAD_LAYER) == Some(&Value::Bool(false));
        return match (failed, began_with_nothing) {
            (true, true) => Some(Some(Remains::OfCreate)),
            (true, false) => None,
            (false, _) => Some(None),
        };
    }
    if is(OperationKind::Delete) || is(OperationKind::DeleteBot) {
        let has_begun = operation.notes.get(BEGUN).is_some();
        let data_is_kept = operation.notes.get(PRESERVED).is_some();
        return Some((failed && has_begun).then_some(Remains::OfRemoval { data_is_kept }));
    }
    // None of these succeeds without a whole workspace; a stop or new limits do.
    let shows_a_workspace = [
        OperationKind::Start,
        OperationKind::Restart,
        OperationKind::Recover,
        OperationKind::Snapshot,
        OperationKind::Rollback,
        OperationKind::Import,
        OperationKind::Restore,
    ]
    .map(is)
    .contains(&true);
    if shows_a_workspace && operation.state == OperationState::Succeeded {
        return Some(None);
    }
    None
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
