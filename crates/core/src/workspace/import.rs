//! The work of `import`: an archive that a client sent, received and checked whole before, goes into `/data`.

use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use skep_runtime::layer_access::{Apply, ArchiveStream, Trust};
use skep_store::ContainerRow;

use super::request::ImportPlan;
use super::work::Work;
use crate::backups::file_error;
use crate::error::Result;
use crate::operations::{EventBody, Imported, Outcome};
use crate::transfer::chunks_of;

/// So many events tell how far it is.
const PROGRESS_EVENTS: u64 = 50;

impl Work {
    pub(crate) async fn import(&self, plan: &ImportPlan) -> Result<Outcome> {
        let row = self.row_or_adopted().await?;
        self.step("container", self.ensure_container(&row)).await?;
        let apply = Apply {
            mode: plan.mode.into(),
            trust: Trust::Strangers,
        };
        let put = self.change_data(&row, self.received(plan), apply).await?;
        let (entries, bytes) = match plan.entries {
            // An older release noted nothing of it; of an archive without entries it is the same.
            0 => (put.entries, put.bytes),
            entries => (entries, plan.bytes),
        };
        let noted = json!({ "entries": entries, "bytes": bytes });
        self.is_in_place(&row, ("import", &noted)).await;
        Ok(Outcome::Imported(Imported {
            entries,
            bytes,
            skipped: put.skipped,
            remapped: put.remapped,
            cleared: plan.cleared,
        }))
    }

    /// All of the archive is in `/data`: whatever fails from here on, an answer that it failed would not be true. That
    /// the workspace does not come back is told by its checks.
    pub(super) async fn is_in_place(&self, row: &ContainerRow, (event, noted): (&str, &Value)) {
        if let Err(error) = self.lived(event, noted).await {
            tracing::warn!(bot = %self.bot(), event, error = error.with_causes(), "missing in the history");
        }
        if let Err(error) = self.come_back(row).await {
            tracing::warn!(bot = %self.bot(), error = error.with_causes(), "not running with its new data");
            if let Err(error) = self.note_not_running(&error).await {
                tracing::warn!(bot = %self.bot(), error = error.with_causes(), "left to reconcile");
            }
        }
        self.release_abandoned(row).await;
    }

    /// The archive as it lies in the spool; how much of it was read is told.
    async fn received(&self, plan: &ImportPlan) -> Result<ArchiveStream> {
        let path = self.skep().spool().path(&plan.archive);
        let file = tokio::fs::File::open(path).await;
        let file = file.map_err(|error| file_error("reading a received archive", error))?;
        let total = file.metadata().await;
        let total = total
            .map_err(|error| file_error("reading a received archive", error))?
            .len();
        let (hub, mut done) = (self.hub().clone(), 0_u64);
        let part = move |bytes: u64| bytes.saturating_mul(PROGRESS_EVENTS) / total.max(1);
        let told = chunks_of(file).inspect_ok(move |chunk| {
            let before = done;
            done += chunk.len() as u64;
            if part(before) != part(done) {
                // A passing event, not journaled; nobody may be listening.
                drop(hub.tell(EventBody::Progress { done, total }));
            }
        });
        Ok(told.boxed())
    }
}
