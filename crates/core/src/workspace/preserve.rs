//! Keeping a workspace's data before it is deleted. Whatever fails before the backup is whole aborts the delete,
//! and what ran runs again.

use std::path::{Path, PathBuf};

use serde_json::Value;
use skep_names::is_legacy;
use skep_runtime::TaskState;
use skep_runtime::layer_access::DataPlace;

use super::remains::Remains;
use super::request::DeleteData;
use super::work::Work;
use crate::error::{Error, Result};

/// Note: the data is kept, or there was none.
pub(super) const PRESERVED: &str = "preserved";
/// Note: the workspace ran before it was stopped for this.
const RAN: &str = "ran";
/// Note: the legacy directory of a bot that is removed is kept.
const LEGACY_PRESERVED: &str = "legacy_preserved";
/// Note: the data lay in the legacy directory, which is not needed when the workspace is gone.
pub(super) const OF_LEGACY: &str = "of_legacy";

impl Work {
    /// Stops the workspace and keeps its data. Without one there is nothing to keep.
    pub(super) async fn preserve(&self) -> Result<()> {
        if self.noted(PRESERVED).is_some() {
            return Ok(());
        }
        let place = match self.skep().remains(self.bot()).await? {
            // Half of a restored backup, which is kept itself; or what the removal left of something that is kept.
            Some(Remains::OfCreate | Remains::OfRemoval { data_is_kept: true, .. }) => None,
            Some(Remains::OfRemoval {
                data_is_kept: false, ..
            }) if self.skep().is_there(self.bot()).await? => {
                return Err(Error::Conflict(
                    "the workspace was deleted half-way, so that its data is not whole and cannot be kept".to_owned(),
                ));
            }
            // Of such a removal nothing is left, or it is a workspace.
            Some(Remains::OfRemoval { .. }) | None => self.place_of_data().await?,
        };
        let Some(place) = place else {
            // Should this removal fail, the next one must not take what is left for data that is not whole.
            self.note(PRESERVED, true);
            return Ok(());
        };
        // Else it would be stopped for nothing.
        self.skep().require_spare().await?;
        self.note_whether_it_ran().await?;
        let grace = self.skep().settings().stop_grace;
        self.step("stop", self.end_task(grace)).await?;
        self.step("preserve", self.skep().back_up(self.bot(), &place)).await?;
        self.note(PRESERVED, true);
        // What is kept twice would stay so: from here on it is removed, whoever is away for a while.
        self.note_begun();
        Ok(())
    }

    /// Where the data is; `None` when there is none, or when it is kept already.
    async fn place_of_data(&self) -> Result<Option<DataPlace>> {
        if let Some(instance) = self.runtime().inspect(self.bot()).await? {
            if !is_legacy(&instance.container_id) {
                return Ok(Some(DataPlace::Workspace(self.bot().clone())));
            }
            return Ok(Some(self.place_of_legacy_data(instance.legacy_data).await?));
        }
        match self.has_layer_among_all().await? {
            true => Ok(Some(DataPlace::Workspace(self.bot().clone()))),
            false => {
                self.refuse_unseen_layer().await?;
                Ok(None)
            }
        }
    }

    /// Where the configuration names another snapshotter than the workspace has, its layer is not seen: that is not
    /// that there is none.
    async fn refuse_unseen_layer(&self) -> Result<()> {
        let Some(row) = self.row().await? else { return Ok(()) };
        if row.snapshotter.is_empty() || self.skep().capabilities().snapshotters.contains(&row.snapshotter) {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "the data of this workspace is in the snapshotter {}, which workspace.snapshotter does not name, so that it \
             cannot be kept",
            row.snapshotter
        )))
    }

    /// Where the legacy container has its data, if that is where such data is kept: else it is nothing of ours.
    async fn place_of_legacy_data(&self, bound: Option<PathBuf>) -> Result<DataPlace> {
        let directory = self.skep().legacy_directory(self.bot()).await?;
        let is_it = |directory: &PathBuf| bound.as_deref().is_some_and(|bound| is_same_place(bound, directory));
        let Some(directory) = directory.filter(is_it) else {
            tracing::warn!(bot = %self.bot(), ?bound, "the data of a legacy container is not below the data root");
            return Err(Error::Conflict(
                "the data of this legacy container is not in the directory of its bot below the data root, so that it \
                 cannot be kept"
                    .to_owned(),
            ));
        };
        self.note(OF_LEGACY, true);
        Ok(DataPlace::Directory(directory))
    }

    /// The first try's look counts: later ones find it stopped.
    pub(super) async fn note_whether_it_ran(&self) -> Result<()> {
        if self.noted(RAN).is_none() {
            let instance = self.runtime().inspect(self.bot()).await?;
            self.note(RAN, instance.is_some_and(|one| one.task == TaskState::Running));
        }
        Ok(())
    }

    /// A bot that is removed takes its legacy directory with it. What nobody put into its workspace is kept first, so
    /// that the workspace's own data is the newer backup. That of a legacy container is its data, kept by `preserve`.
    pub(super) async fn preserve_legacy_directory(&self) -> Result<()> {
        if self.noted(LEGACY_PRESERVED).is_some() {
            // Kept once more, it would be the newer one.
            return Ok(());
        }
        let instance = self.runtime().inspect(self.bot()).await?;
        if instance.is_some_and(|one| is_legacy(&one.container_id)) {
            return Ok(());
        }
        let Some(directory) = self.skep().legacy_directory(self.bot()).await? else {
            return Ok(());
        };
        let place = DataPlace::Directory(directory);
        let keep = async {
            match self.skep().remains(self.bot()).await? {
                // The workspace's data is kept already, and stays the newer one.
                Some(Remains::OfRemoval { data_is_kept: true, .. }) => {
                    self.skep().back_up_behind_the_current(self.bot(), &place).await
                }
                _ => self.skep().back_up_before_another(self.bot(), &place).await,
            }
        };
        self.step("preserve_legacy", keep).await?;
        self.note(LEGACY_PRESERVED, true);
        Ok(())
    }

    /// The workspace is gone: the directory whose content was kept gets the name that says so.
    pub(super) async fn migrate_preserved_legacy(&self) -> Result<()> {
        match self.noted(OF_LEGACY) {
            Some(_) => self.step("migrate", self.skep().mark_migrated(self.bot())).await,
            None => Ok(()),
        }
    }

    /// What [`Self::note_whether_it_ran`] noted.
    pub(super) fn ran(&self) -> bool {
        self.noted(RAN) == Some(Value::Bool(true))
    }

    /// The container goes before any layer: while it is there, all of the workspace is, and it is none of what is left of
    /// a removal. It may be used from now on, and lose its container some day.
    async fn spare_what_is_whole(&self) -> Result<()> {
        if !self.has_begun() || self.runtime().inspect(self.bot()).await?.is_none() {
            return Ok(());
        }
        self.note_spared();
        self.step("spare", async { Ok(()) }).await
    }

    /// After a delete that failed: nothing was removed before the data was kept, so what ran runs again.
    pub(crate) async fn undo_delete(&self, data: DeleteData) -> Result<()> {
        self.spare_what_is_whole().await?;
        if data == DeleteData::Remove || !self.ran() || self.noted(PRESERVED).is_some() {
            return Ok(());
        }
        match self.row().await? {
            Some(row) => self.bring_up(&row).await,
            None => {
                let limits = self.skep().settings().default_limits;
                match self.start_task(&limits).await {
                    Ok(_) | Err(Error::NotFound(_)) => Ok(()),
                    Err(error) => Err(error),
                }
            }
        }
    }
}

/// Whatever links lead there.
fn is_same_place(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
