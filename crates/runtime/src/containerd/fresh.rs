//! A fresh layer beside those that a bot has, for one whose container cannot be put back on its own.

use skep_names::{BotId, ImageReference};

use super::lease::Lease;
use super::{ContainerdRuntime, OVERLAYFS};
use crate::{Result, RuntimeError};

impl ContainerdRuntime {
    /// Staged from the transaction that makes it on: nobody's state until it is made the newest.
    pub(super) async fn stage_fresh_leased(
        &self,
        lease: &Lease,
        bot: &BotId,
        (name, image): (&str, &ImageReference),
    ) -> Result<()> {
        let records = self.records_of(bot, OVERLAYFS).await?;
        if records.iter().any(|layer| layer.name == name) {
            return Ok(());
        }
        let unpacked = self.images.unpack(image, OVERLAYFS).await?;
        let unpacked = unpacked.ok_or_else(|| RuntimeError::ImageNotFound {
            reference: image.to_string(),
        })?;
        let labelled = Some(image.as_str());
        self.prepare_staged(lease, bot, (name, &unpacked.chain_id), labelled)
            .await?;
        Ok(())
    }

    pub(super) async fn make_newest_now(&self, bot: &BotId, name: &str) -> Result<()> {
        if let Some(container) = self.find_container(bot).await? {
            return Err(RuntimeError::Rejected {
                reason: format!("the container {} says which layer is its own", container.id),
            });
        }
        self.mark_present(bot, OVERLAYFS, name).await
    }
}
