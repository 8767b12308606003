//! Bots: their rows, and how a bot comes and goes.

use std::collections::HashMap;

use serde_json::{Map, Value};
use skep_names::BotId;
use skep_runtime::failpoint;
use skep_store::{BotAfter, BotRow, BotStatus, BotUpdate, BotVisibility, KnownIssues, NewBot};

use crate::backups::Backup;
use crate::checks::{CheckState, CheckType};
use crate::error::{Error, Result};
use crate::operations::{OperationHandle, before};
use crate::requester::Requester;
use crate::skep::Skep;
use crate::workspace::{DeleteData, Request};

/// The longest metadata of a bot, as JSON text.
const METADATA_BYTES: usize = 256 * 1024;
/// The longest display name, avatar URL or time zone.
const FIELD_BYTES: usize = 4096;

/// A bot as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Bot {
    pub row: BotRow,
    /// From what is known without asking anybody, and what [`Skep::checks`] found, which asks.
    pub check_state: CheckState,
    pub check_issue_count: u32,
}

/// One page of bots, newest first.
#[derive(Debug, Clone)]
pub struct BotList {
    pub bots: Vec<Bot>,
    /// For the next page; `None` at the end.
    pub next_cursor: Option<String>,
}

/// A bot to be.
#[derive(Debug, Clone, Default)]
pub struct CreateBot {
    pub owner_user_id: String,
    pub display_name: String,
    pub avatar_url: Option<String>,
    pub timezone: Option<String>,
    pub is_active: Option<bool>,
    pub metadata: Option<Map<String, Value>>,
    /// A backup that its workspace begins with, which the caller may use.
    pub restore_backup: Option<Backup>,
    /// Its workspace is set up in the background; else the bot is `ready` at once and has none.
    pub with_workspace: bool,
}

/// A change of a bot; `None` leaves a field as it is, `Some(None)` empties it.
#[derive(Debug, Clone, Default)]
pub struct BotChange {
    pub display_name: Option<String>,
    pub avatar_url: Option<Option<String>>,
    pub timezone: Option<Option<String>>,
    pub is_active: Option<bool>,
    /// `PUT`: takes the place of the whole; `PATCH`: is merged into it (RFC 7396).
    pub metadata: Option<Map<String, Value>>,
}

/// A removal under way.
#[derive(Debug, Clone)]
pub struct DeletedBot {
    pub id: BotId,
    pub operation: OperationHandle,
}

fn check_fields(name: Option<&str>, others: [Option<&str>; 2], metadata: Option<&Map<String, Value>>) -> Result<()> {
    let too_long = |text: &str| text.len() > FIELD_BYTES;
    if name.is_some_and(too_long) || others.into_iter().flatten().any(too_long) {
        return Err(Error::InvalidArgument(format!("a field may have {FIELD_BYTES} bytes")));
    }
    if name.is_some_and(|name| name.contains(char::is_control)) {
        return Err(Error::InvalidArgument(
            "a display name is one line of text without control characters".to_owned(),
        ));
    }
    metadata.map_or(Ok(()), check_metadata)
}

fn check_metadata(metadata: &Map<String, Value>) -> Result<()> {
    if Value::Object(metadata.clone()).to_string().len() > METADATA_BYTES {
        return Err(Error::InvalidArgument(format!(
            "the metadata of a bot may have {METADATA_BYTES} bytes"
        )));
    }
    Ok(())
}

fn checked_update(change: BotChange) -> Result<BotUpdate> {
    let others = [
        change.avatar_url.as_ref().and_then(Option::as_deref),
        change.timezone.as_ref().and_then(Option::as_deref),
    ];
    check_fields(change.display_name.as_deref(), others, change.metadata.as_ref())?;
    Ok(BotUpdate {
        display_name: change.display_name,
        avatar_url: change.avatar_url,
        timezone: change.timezone,
        is_active: change.is_active,
        metadata: change.metadata,
    })
}

/// RFC 7396: `null` removes, objects are merged, everything else takes the place of what was there.
pub(crate) fn merge_patch(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(patch) => {
                let entry = target.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
                if !entry.is_object() {
                    *entry = Value::Object(Map::new());
                }
                if let Value::Object(inner) = entry {
                    merge_patch(inner, patch);
                }
            }
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

impl Skep {
    /// Makes a bot, and begins to set up its workspace when that is asked for: then the status is `creating` and
    /// the operation is returned.
    ///
    /// # Errors
    /// What its workspace is refused for (an image that is not allowed, say), before anything is kept.
    pub async fn create_bot(&self, new: CreateBot, requester: &Requester) -> Result<(Bot, Option<OperationHandle>)> {
        let others = [new.avatar_url.as_deref(), new.timezone.as_deref()];
        check_fields(Some(&new.display_name), others, new.metadata.as_ref())?;
        let metadata = new.metadata.unwrap_or_default();
        let plan = if new.with_workspace {
            Some(self.plan_first_create(&metadata, requester).await?)
        } else {
            None
        };
        let row = NewBot {
            id: BotId::random(),
            owner_user_id: new.owner_user_id,
            display_name: new.display_name,
            avatar_url: new.avatar_url,
            timezone: new.timezone,
            is_active: new.is_active.unwrap_or(true),
            status: match plan {
                Some(_) => BotStatus::Creating,
                None => BotStatus::Ready,
            },
            metadata,
            idempotency: requester.idempotency.clone(),
        };
        let row = match &new.restore_backup {
            Some(backup) => self.insert_bot_with_backup(row, backup).await?,
            None => self.store().insert_bot(row).await?,
        };
        failpoint::pass_or_abort("bot.inserted");
        let operation = match plan {
            Some(plan) => Some(self.submit_first_create(&row.id, plan, requester).await?),
            None => None,
        };
        Ok((self.shown(row, &HashMap::new()), operation))
    }

    /// The backup is given before the bot is there: nobody may set it up without what it is to begin with.
    async fn insert_bot_with_backup(&self, row: NewBot, backup: &Backup) -> Result<BotRow> {
        self.layer_access()?;
        let id = row.id.clone();
        let made = async {
            self.give_backup(backup, &id).await?;
            let inserted = self.store().insert_bot(row).await?;
            self.confirm_given_backup(&id).await?;
            Ok(inserted)
        };
        let made = made.await;
        if made.is_err() {
            self.store().delete_bot(&id).await?;
            self.take_backup_back(&id).await?;
        }
        made
    }

    /// A bot whose set-up could not be journaled is taken back: its caller is told that there is none.
    async fn submit_first_create(
        &self,
        bot: &BotId,
        plan: crate::workspace::CreatePlan,
        requester: &Requester,
    ) -> Result<OperationHandle> {
        let submitted = self.submit(bot, Request::Create(plan), requester).await;
        if submitted.is_err() && !matches!(submitted, Err(Error::GoingDown)) {
            self.store().delete_bot(bot).await?;
            self.take_backup_back(bot).await?;
        }
        submitted
    }

    /// One bot.
    ///
    /// # Errors
    /// [`Error::BotNotFound`].
    pub async fn bot(&self, id: &BotId) -> Result<Bot> {
        let row = self.store().bot(id).await?.ok_or(Error::BotNotFound)?;
        let issues = self.store().known_issues().await?;
        Ok(self.shown(row, &issues))
    }

    /// One page of the bots of `visible`, newest first; `cursor` is the `next_cursor` of the page before.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a cursor that is none of ours.
    pub async fn bots(&self, visible: &BotVisibility, cursor: Option<&str>, limit: u32) -> Result<BotList> {
        let page = self
            .store()
            .bots(visible, before(cursor)?, limit.clamp(1, 1000))
            .await?;
        let issues = self.store().known_issues().await?;
        Ok(BotList {
            bots: page.bots.into_iter().map(|row| self.shown(row, &issues)).collect(),
            next_cursor: page.next_before.map(|seq| seq.to_string()),
        })
    }

    /// How long the metadata of each bot on that page is, in bytes, in the page's order.
    ///
    /// # Errors
    /// As [`Skep::bots`].
    pub async fn bots_metadata_bytes(
        &self,
        visible: &BotVisibility,
        cursor: Option<&str>,
        limit: u32,
    ) -> Result<Vec<usize>> {
        let lengths = self
            .store()
            .bots_metadata_bytes(visible, before(cursor)?, limit.clamp(1, 1000))
            .await?;
        Ok(lengths
            .into_iter()
            .map(|length| usize::try_from(length).unwrap_or(0))
            .collect())
    }

    /// Changes a bot; its metadata is replaced as a whole (`PUT`).
    ///
    /// # Errors
    /// [`Error::BotNotFound`]; [`Error::ImageNotAllowed`], [`Error::Forbidden`] for an image or a device in the metadata
    /// that a requester who is not the owner may not ask for himself.
    pub async fn replace_bot(&self, id: &BotId, change: BotChange, requester: &Requester) -> Result<Bot> {
        self.change_bot(id, (change, requester), |metadata, new| *metadata = new)
            .await
    }

    /// Changes a bot; its metadata is merged (`PATCH`, RFC 7396). All of it or nothing.
    ///
    /// # Errors
    /// As [`Skep::replace_bot`]; [`Error::InvalidArgument`] when the merged metadata is too large.
    pub async fn patch_bot(&self, id: &BotId, change: BotChange, requester: &Requester) -> Result<Bot> {
        self.change_bot(id, (change, requester), |metadata, patch| merge_patch(metadata, &patch))
            .await
    }

    async fn change_bot(
        &self,
        id: &BotId,
        (mut change, requester): (BotChange, &Requester),
        put: impl FnOnce(&mut Map<String, Value>, Map<String, Value>) + Send,
    ) -> Result<Bot> {
        let new = change.metadata.take();
        new.as_ref().map_or(Ok(()), check_metadata)?;
        let update = checked_update(change)?;
        let changed = match new {
            Some(new) => {
                let row = self.store().bot(id).await?.ok_or(Error::BotNotFound)?;
                // It is the owner's word, and held against him when it is to be done.
                let is_the_owners = requester.user_id.as_ref() == Some(&row.owner_user_id);
                let change = move |metadata: &mut Map<String, Value>| {
                    let before = metadata.clone();
                    put(metadata, new);
                    // What counts is the whole that comes of it: many patches would otherwise make it as large as they
                    // like.
                    check_metadata(metadata)?;
                    match is_the_owners {
                        true => Ok(()),
                        false => self.check_remembered(&before, metadata, requester),
                    }
                };
                self.store().patch_bot(id, update, change).await?
            }
            None => self.store().update_bot(id, update).await?,
        };
        changed.ok_or(Error::BotNotFound)?;
        self.bot(id).await
    }

    /// Gives a bot to another user, who must exist (the caller checked).
    ///
    /// # Errors
    /// [`Error::BotNotFound`].
    pub async fn set_bot_owner(&self, id: &BotId, owner_user_id: &str) -> Result<Bot> {
        self.store()
            .set_bot_owner(id, owner_user_id)
            .await?
            .ok_or(Error::BotNotFound)?;
        self.bot(id).await
    }

    /// Begins to remove a bot with all it has; its status is `deleting` when this returns. A repeat joins.
    /// A removal that fails leaves the bot `ready`, with the cause in the check `bot.delete`.
    ///
    /// # Errors
    /// [`Error::BotNotFound`].
    pub async fn delete_bot(&self, id: &BotId, data: DeleteData, requester: &Requester) -> Result<DeletedBot> {
        self.store().bot(id).await?.ok_or(Error::BotNotFound)?;
        self.can_delete_with(data)?;
        let operation = self.submit(id, Request::DeleteBot { data }, requester).await?;
        Ok(DeletedBot {
            id: id.clone(),
            operation,
        })
    }

    fn shown(&self, row: BotRow, issues: &HashMap<String, KnownIssues>) -> Bot {
        let known = issues.get(row.id.as_str()).copied().unwrap_or_default();
        let is_task_wrong = known.is_task_wrong || self.observations().is_missing(&row.id);
        let is_data_path_wrong = self.observations().is_data_path_broken(&row.id);
        let count = known.faults + u32::from(is_task_wrong) + u32::from(is_data_path_wrong);
        Bot {
            check_state: CheckState::of(count),
            check_issue_count: count,
            row,
        }
    }
}

/// What a removal that failed leaves: the bot is there, and a check shows why.
pub(crate) fn after_failed_removal(bot: &BotId, error: &Error) -> BotAfter {
    BotAfter {
        bot_id: bot.clone(),
        status: BotStatus::Ready,
        check_type: CheckType::BotDelete.as_str(),
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_examples_of_rfc_7396_hold() {
        for (target, patch, expected) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (
                json!({"a":"foo"}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ] {
            let (Value::Object(mut target), Value::Object(patch)) = (target, patch) else {
                panic!("the cases are objects");
            };
            merge_patch(&mut target, &patch);
            assert_eq!(Value::Object(target), expected);
        }
    }
}
