//! Putting an archive into `/data` of a workspace that is there, all or nothing: for `restore` and `import`.
//!
//! The archive goes into a layer beside the workspace's own, which takes its place in one step when all is in it and
//! on the disk. Until then a failure or a crash leaves the workspace on the layer it had.

use std::future::Future;

use skep_runtime::layer_access::{Applied, Apply, ArchiveStream, DataPlace};
use skep_store::ContainerRow;

use super::work::Work;
use crate::error::{Error, Result};

/// Note: what was put into the layer beside.
const APPLIED: &str = "applied";

impl Work {
    /// Ends every process and changes the data; the caller brings the workspace back. Repeatable after a crash: what
    /// was written in part is written anew, what was put in place stays.
    pub(super) async fn change_data(
        &self,
        row: &ContainerRow,
        archive: impl Future<Output = Result<ArchiveStream>>,
        apply: Apply,
    ) -> Result<Applied> {
        let layers = self.skep().changeable_layers()?;
        let (bot, operation) = (self.bot(), self.hub().id());
        if !layers.is_adopted(bot, operation).await? {
            self.shorten_line(row).await?;
            self.halt().await?;
            self.note_begun();
            self.step("write", async {
                // What a crash left of it, half written.
                layers.discard_change(bot, operation).await?;
                let mount = layers.stage_change(bot, operation).await?;
                let place = DataPlace::Mounted {
                    bot: bot.clone(),
                    mount,
                };
                let access = self.skep().layer_access()?;
                let applied = access
                    .write_data(&place, self.skep().sparing(archive.await?), apply)
                    .await?;
                let noted = serde_json::to_value(applied);
                self.note(
                    APPLIED,
                    noted.map_err(|error| Error::internal("writing a note", error))?,
                );
                Ok(())
            })
            .await?;
        }
        // Also when it was adopted before a crash: one that was cut off is brought to its end.
        self.adopt_change().await?;
        let noted = self.noted(APPLIED).unwrap_or_default();
        serde_json::from_value(noted).map_err(|error| Error::internal("reading a note", error))
    }

    /// Whether the workspace is on what was put into the layer beside.
    pub(super) async fn is_change_adopted(&self) -> Result<bool> {
        let layers = self.skep().changeable_layers()?;
        Ok(layers.is_adopted(self.bot(), self.hub().id()).await?)
    }

    /// Puts the workspace onto what was put into the layer beside. Repeatable.
    pub(super) async fn adopt_change(&self) -> Result<()> {
        let layers = self.skep().changeable_layers()?;
        self.settle()?;
        self.step("adopt", async {
            Ok(layers.adopt_change(self.bot(), self.hub().id()).await?)
        })
        .await
    }

    /// After a change that failed: no half of it stays, and what is wanted running runs again.
    pub(super) async fn undo_change(&self, error: &Error) -> Result<()> {
        let Some(row) = self.row().await? else { return Ok(()) };
        // Told only afterwards: a layer that stays is no reason for a workspace not to run.
        let undone = self.undo_line(&row).await;
        let not_running = match error {
            Error::ContainerStartFailed { .. } | Error::NetworkSetupFailed { .. } => Some(error.clone()),
            _ => self.come_back(&row).await.err(),
        };
        if let Some(error) = not_running {
            self.note_not_running(&error).await?;
        }
        undone
    }
}
