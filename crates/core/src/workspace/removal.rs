//! The work of deleting a workspace, and a bot with it. Every step may be done again, after a crash at any point.

use serde_json::json;

use super::preserve::OF_LEGACY;
use super::remains::Remains;
use super::request::DeleteData;
use super::state::Event;
use super::work::Work;
use crate::error::Result;
use crate::operations::Outcome;

impl Work {
    /// The work of `delete`. A workspace may have been made since somebody saw that there are only remains, but not once
    /// this has begun.
    pub(crate) async fn delete(&self, data: DeleteData, only_remains: bool) -> Result<Outcome> {
        let remains = self.skep().remains(self.bot()).await?;
        if only_remains && !self.has_begun() && remains.is_none() {
            return Ok(Outcome::Done);
        }
        if matches!(remains, Some(Remains::OfRemoval { of_legacy: true, .. })) {
            // What the removal before this one did not come to.
            self.note(OF_LEGACY, true);
        }
        if data == DeleteData::Preserve {
            self.preserve().await?;
        }
        self.remove_workspace().await?;
        self.migrate_preserved_legacy().await?;
        Ok(Outcome::Done)
    }

    /// The work of `delete_bot`.
    pub(crate) async fn delete_bot(&self, data: DeleteData) -> Result<Outcome> {
        if data == DeleteData::Preserve {
            self.preserve_legacy_directory().await?;
            self.preserve().await?;
        }
        self.remove_workspace().await?;
        self.step("files", self.skep().remove_legacy_directories(self.bot(), data))
            .await?;
        self.step("bot", async { Ok(self.store().delete_bot(self.bot()).await?) })
            .await?;
        self.skep().observations().forget(self.bot());
        Ok(Outcome::Done)
    }

    async fn remove_workspace(&self) -> Result<()> {
        self.skep().observations().happened(self.bot(), &Event::Ending);
        // One that is away is told at once: nothing has begun.
        self.runtime().inspect(self.bot()).await?;
        self.note_begun();
        self.step("remove", async {
            self.skep().bridges().evict(self.bot());
            self.runtime().remove(self.bot()).await?;
            self.skep().bridges().evict(self.bot());
            Ok(())
        })
        .await?;
        self.step("forget", async {
            self.store().delete_containers(self.bot()).await?;
            self.lived("delete", &json!({})).await
        })
        .await?;
        self.skep().observations().happened(self.bot(), &Event::Removed);
        Ok(())
    }
}
