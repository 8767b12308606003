//! The work of deleting a workspace, and a bot with it. Every step may be done again, after a crash at any point.

use std::io::ErrorKind;

use serde_json::json;

use super::state::Event;
use super::work::Work;
use crate::error::{Error, Result};
use crate::operations::Outcome;

impl Work {
    /// The work of `delete`.
    pub(crate) async fn delete(&self) -> Result<Outcome> {
        self.remove_workspace().await?;
        Ok(Outcome::Done)
    }

    /// The work of `delete_bot`.
    pub(crate) async fn delete_bot(&self) -> Result<Outcome> {
        self.remove_workspace().await?;
        self.step("files", self.remove_legacy_directory()).await?;
        self.step("bot", async { Ok(self.store().delete_bot(self.bot()).await?) })
            .await?;
        self.skep().observations().forget(self.bot());
        Ok(Outcome::Done)
    }

    async fn remove_workspace(&self) -> Result<()> {
        self.skep().observations().happened(self.bot(), &Event::Ending);
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

    /// The data directory of a workspace from before the bridge, which only its bot's removal takes away.
    async fn remove_legacy_directory(&self) -> Result<()> {
        let directory = self.skep().settings().data_root.join("bots").join(self.bot().as_str());
        match tokio::fs::remove_dir_all(&directory).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::internal("removing the bot's legacy data directory", error)),
        }
    }
}
