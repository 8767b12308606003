//! The limit of storage. It is a soft one: what a workspace holds is counted now and then, and while that is over the
//! limit, nothing is added to it through the API. What runs inside writes on; that the host lasts is `disk_watch`'s.

use serde_json::json;
use skep_names::BotId;
use skep_store::{ContainerRow, EventLimits};

use super::limits::to_runtime;
use super::usable::Starter;
use crate::error::{Error, Result};
use crate::files::{RenameByCopy, RoomyBridge};
use crate::skep::Skep;

const OVER_LIMIT: &str = "storage_over_limit";
const WITHIN_LIMIT: &str = "storage_within_limit";
/// A workspace can cross its limit as often as it likes.
const CROSSINGS: EventLimits = EventLimits {
    kept: 256,
    apart: std::time::Duration::ZERO,
};

/// Bytes beyond a limit; 0 is no limit.
fn beyond(held: u64, limit: u64) -> u64 {
    match limit {
        0 => 0,
        limit => held.saturating_sub(limit),
    }
}

impl Skep {
    /// The bridge of a workspace that may be added to, as [`Skep::usable_bridge`].
    ///
    /// # Errors
    /// As [`Skep::usable_bridge`]; [`Error::DiskFull`] over the limit of storage.
    pub async fn roomy_bridge(&self, bot: &BotId, starter: Option<&Starter<'_>>) -> Result<RoomyBridge> {
        let bridge = self.usable_bridge(bot, starter).await?;
        self.require_room(bot).await?;
        let row = self.store().container(bot).await?.ok_or(Error::ContainerNotFound)?;
        // What is about to be written is to be counted soon.
        self.measurements().hurry(bot);
        Ok(RoomyBridge::within(bridge, self.room_of(&row)))
    }

    /// What a rename in that workspace may do. One that is over its limit may be tidied up, and not copied.
    ///
    /// # Errors
    /// [`Error::StoreUnavailable`].
    pub async fn rename_by_copy(&self, bot: &BotId) -> Result<RenameByCopy> {
        Ok(match self.require_room(bot).await {
            Ok(()) => RenameByCopy::Allowed,
            Err(Error::DiskFull(_)) => RenameByCopy::Refused,
            Err(error) => return Err(error),
        })
    }

    /// Refuses what would add to a workspace that is over its limit, and has it counted soon: it may have been
    /// cleaned up.
    pub(crate) async fn require_room(&self, bot: &BotId) -> Result<()> {
        let Some(row) = self.store().container(bot).await? else {
            return Ok(());
        };
        if self.storage_over_by(&row) == 0 {
            return Ok(());
        }
        self.measurements().hurry(bot);
        let held = self.storage_held(bot);
        Err(Error::DiskFull(format!(
            "over the storage limit: the workspace holds {held} bytes, its limit is {}; delete files, or raise the limit",
            self.storage_limit(&row)
        )))
    }

    /// Bytes that a workspace holds beyond its limit, as it was counted last; 0 while it never was.
    pub(crate) fn storage_over_by(&self, row: &ContainerRow) -> u64 {
        self.holds_beyond(&row.bot_id, self.storage_limit(row))
    }

    pub(crate) fn holds_beyond(&self, bot: &BotId, limit: u64) -> u64 {
        beyond(self.storage_held(bot), limit)
    }

    /// The same with so many bytes more than were counted.
    pub(super) fn storage_over_by_with(&self, row: &ContainerRow, more: u64) -> u64 {
        let held = self.storage_held(&row.bot_id).saturating_add(more);
        beyond(held, self.storage_limit(row))
    }

    /// As it was counted last; 0 while it never was.
    pub(super) fn storage_held(&self, bot: &BotId) -> u64 {
        self.measurements().storage(bot).map_or(0, |measured| measured.bytes)
    }

    /// 0: none.
    pub(crate) fn storage_limit(&self, row: &ContainerRow) -> u64 {
        let effective = self.settings().effective_limits(&to_runtime(&row.limits_wanted));
        effective.storage_bytes
    }

    /// Tells those who watch whether a workspace is over its limit now, and writes down when that changed.
    pub(crate) async fn show_storage(&self, bot: &BotId) -> Result<()> {
        let row = self.store().container(bot).await?;
        let over_by = row.as_ref().map_or(0, |row| self.storage_over_by(row));
        let is_news = self.observations().storage(bot, over_by > 0);
        let Some(row) = row.filter(|_| is_news) else {
            return Ok(());
        };
        // A server before this one may have written it down.
        if self.was_over_limit(&row).await? == (over_by > 0) {
            return Ok(());
        }
        let (event, payload) = match over_by {
            0 => (WITHIN_LIMIT, json!({})),
            over_by => (OVER_LIMIT, json!({ "over_by_bytes": over_by })),
        };
        tracing::info!(%bot, over_by, event, "a workspace crossed its limit of storage");
        self.store()
            .insert_limited_lifecycle_event(bot, (event, &payload), CROSSINGS)
            .await?;
        Ok(())
    }

    /// As it was written down last of this very workspace.
    async fn was_over_limit(&self, row: &ContainerRow) -> Result<bool> {
        Ok(self.newest_of(row, OVER_LIMIT).await? > self.newest_of(row, WITHIN_LIMIT).await?)
    }

    /// The number of its newest event of a kind.
    async fn newest_of(&self, row: &ContainerRow, event: &str) -> Result<Option<i64>> {
        let found = self.store().lifecycle_events_of(&row.bot_id, event, 0, 1).await?;
        let of_it = found.into_iter().find(|event| event.created_at >= row.created_at);
        Ok(of_it.map(|event| event.seq))
    }

    /// Has all that have a limit counted, also those that do not run: a server knows nothing of them at first.
    pub(crate) async fn ask_for_limited(&self) -> Result<()> {
        for row in self.store().containers().await? {
            if self.storage_limit(&row) > 0 {
                self.measurements().ask(&row.bot_id);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_held_beyond_a_limit_is_over_it() {
        for (held, limit, over) in [
            (0, 0, 0),
            (u64::MAX, 0, 0),
            (9, 10, 0),
            (10, 10, 0),
            (11, 10, 1),
            (7, 1, 6),
        ] {
            assert_eq!(beyond(held, limit), over, "{held} of {limit}");
        }
    }
}
