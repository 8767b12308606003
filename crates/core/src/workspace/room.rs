//! What still fits into a workspace while something is added to it: what takes long can begin within the limit of storage
//! and cross it on the way.

use std::sync::atomic::{AtomicU64, Ordering};

use skep_names::BotId;
use skep_store::ContainerRow;

use crate::bridge::{BridgeError, BridgeResult};
use crate::skep::Skep;

/// Of one request that adds.
pub(crate) struct Room {
    skep: Skep,
    bot: BotId,
    /// Bytes within the limit, by what was counted before the request, less what it has added.
    left: AtomicU64,
}

impl Room {
    /// So many bytes are about to be added. Whoever crosses the limit has the workspace counted, and goes on until that
    /// is done: it may have been cleaned up, and the file may have a smaller one in its place.
    ///
    /// # Errors
    /// `NoSpace` once it was counted and is over its limit.
    pub(crate) fn take(&self, bytes: u64) -> BridgeResult<()> {
        let taking = |left: u64| Some(left.saturating_sub(bytes));
        let (Ok(before) | Err(before)) = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taking);
        match before {
            0 => self.skep.measurements().hurry(&self.bot),
            _ if before <= bytes => self.skep.measurements().ask(&self.bot),
            _ => {}
        }
        match self.skep.observations().is_over_limit(&self.bot) {
            true => Err(BridgeError::NoSpace(
                "over the storage limit: the workspace does not hold all of it".to_owned(),
            )),
            false => Ok(()),
        }
    }
}

impl Skep {
    /// In a workspace that is within its limit.
    pub(super) fn room_of(&self, row: &ContainerRow) -> Room {
        let left = match self.storage_limit(row) {
            0 => u64::MAX,
            limit => limit.saturating_sub(self.storage_held(&row.bot_id)),
        };
        Room {
            skep: self.clone(),
            bot: row.bot_id.clone(),
            left: AtomicU64::new(left),
        }
    }
}
