//! Putting preserved data back: into the layer that a create makes, before its task starts; and, when somebody asks,
//! into a workspace that is there, by way of a layer that is put in the place of its own when all is in it.

use std::time::Duration;

use futures::StreamExt;
use serde_json::json;
use skep_runtime::Layers;
use skep_runtime::layer_access::{Apply, ApplyMode, ArchiveFormat, ArchiveStream, DataPlace, Pack, Trust};
use skep_store::ContainerRow;

use super::preserved::{Preserved, PutBack};
use super::request::{CreatePlan, PreservedData, RestoreRequest};
use super::work::Work;
use crate::backups::{Identity, Slot, Verified};
use crate::checks::CheckType;
use crate::error::{Error, Result, stages};
use crate::operations::{EventBody, Outcome};
use crate::skep::Skep;
use crate::transfer::chunks_of;

/// What was put back stays where it was kept.
const STILL_KEPT: &str = "the preserved data was put back, but could not be removed from where it was kept";
/// How often that is tried, and how long after another.
const RELEASE_TRIES: u32 = 3;
const RELEASE_PAUSE: Duration = Duration::from_millis(100);
/// Note: what was put back, which is on the disk by then.
const PUT_BACK: &str = "put_back";
/// Note: what went with it that somebody should know.
const WARNINGS: &str = "warnings";

/// Note: the workspace is on the layer with what was put back.
const CHANGED: &str = "changed";

impl Skep {
    /// The layers of a backend that can change them from outside.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub(crate) fn changeable_layers(&self) -> Result<&dyn Layers> {
        let layers = self.runtime().layers();
        layers.ok_or_else(|| {
            let backend = self.capabilities().backend;
            Error::Unsupported(format!(
                "changing data from outside is not supported on the {backend} backend"
            ))
        })
    }
}

impl Work {
    /// The work of `restore`. Until the workspace is put onto the new layer, its own is as it was.
    pub(crate) async fn restore(&self, request: &RestoreRequest) -> Result<Outcome> {
        let row = self.row_or_adopted().await?;
        self.step("container", self.ensure_container(&row)).await?;
        if self.noted(CHANGED).is_none() {
            // What was put in place before a crash may not be kept anywhere else by now.
            match self.is_change_adopted().await? {
                true => self.adopt_change().await?,
                false => self.change_to_what_is_kept(&row, request).await?,
            }
            self.note(CHANGED, true);
        }
        self.is_in_place(&row, ("restore", &json!({ "backup": request.name })))
            .await;
        self.release_put_back().await?;
        Ok(Outcome::Done)
    }

    async fn change_to_what_is_kept(&self, row: &ContainerRow, request: &RestoreRequest) -> Result<()> {
        let preserved = self.step("verify", self.asked_for(request)).await?;
        if let Some(warning) = preserved.warning() {
            tracing::warn!(bot = %self.bot(), warning, "not all of a backup comes back");
        }
        if request.name.is_none() {
            self.note_put_back(&preserved)?;
        }
        let (archive, trust) = self.archive_of(&preserved).await?;
        let apply = Apply {
            mode: request.mode.into(),
            trust,
        };
        self.change_data(row, async { Ok(archive) }, apply).await?;
        Ok(())
    }

    /// What is to be put back; a damaged one is set aside and refused.
    async fn asked_for(&self, request: &RestoreRequest) -> Result<Preserved> {
        let sha256 = request.sha256.as_deref();
        let Some(name) = &request.name else {
            if let Some(sha256) = sha256 {
                self.skep().check_current_backup(self.bot(), sha256).await?;
            }
            let (preserved, warnings) = self.skep().find_preserved(self.bot()).await?;
            return match (preserved, warnings.is_empty()) {
                (Some(preserved), _) => Ok(preserved),
                (None, true) => Err(Error::BackupNotFound("no preserved data found".to_owned())),
                (None, false) => Err(Error::ArchiveRefused(warnings.join("; "))),
            };
        };
        let slot = self.skep().slot_of_backup(self.bot(), name, sha256).await?;
        match self.skep().verify_backup(self.bot(), slot).await? {
            Verified::Whole {
                identity,
                trust,
                altered,
            } => Ok(Preserved::Backup {
                slot,
                identity,
                trust,
                altered,
            }),
            Verified::Damaged(why) => Err(self.refuse_damaged((name, slot), &why).await?),
        }
    }

    /// A backup that was found damaged is never shown as a good one again.
    async fn refuse_damaged(&self, (name, slot): (&str, Slot), why: &str) -> Result<Error> {
        let mut refused = format!("the backup {name} does not verify: {why}");
        if !matches!(slot, Slot::SetAside(_)) {
            let aside = self.skep().set_backup_aside(self.bot(), slot).await?;
            tracing::error!(bot = %self.bot(), aside, why, "a backup does not verify and is set aside");
            refused.push_str("; it is set aside as ");
            refused.push_str(&aside);
        }
        Ok(Error::ArchiveRefused(refused))
    }

    fn note_put_back(&self, preserved: &Preserved) -> Result<()> {
        let noted = serde_json::to_value(preserved.put_back());
        self.note(
            PUT_BACK,
            noted.map_err(|error| Error::internal("writing a note", error))?,
        );
        Ok(())
    }

    /// Puts what is preserved into the layer this create made. Done again after a crash it comes to the same: all
    /// that is in `/data` gives way to what is put back.
    pub(super) async fn put_preserved_back(&self, plan: &CreatePlan) -> Result<()> {
        if plan.preserved == PreservedData::KeepAside || self.noted(PUT_BACK).is_some() {
            return Ok(());
        }
        if !self.skep().has_preserved_data(self.bot()).await? {
            return Ok(());
        }
        let put = async {
            let (preserved, warnings) = self.step("verify", self.found_for_create()).await?;
            if !warnings.is_empty() {
                self.note(WARNINGS, warnings);
            }
            let Some(preserved) = preserved else {
                return Ok(());
            };
            self.tell(EventBody::Restoring).await?;
            // A task that the try before a crash started.
            self.end_task(Duration::ZERO).await?;
            let place = DataPlace::Workspace(self.bot().clone());
            self.step("restore", self.write_preserved(&place, &preserved, ApplyMode::Replace))
                .await?;
            self.note_put_back(&preserved)
        };
        put.await.map_err(|error: Error| error.at(stages::RESTORE))
    }

    /// A backup that cannot be read now blocks no start: it stays where it is, and so does what it would win over.
    async fn found_for_create(&self) -> Result<(Option<Preserved>, Vec<String>)> {
        match self.skep().find_preserved(self.bot()).await {
            Err(error @ Error::Internal { .. }) => {
                tracing::error!(bot = %self.bot(), error = error.with_causes(), "preserved data cannot be read");
                let warning = "the preserved data cannot be read, and nothing of it was put back; it stays where it is";
                Ok((None, vec![warning.to_owned()]))
            }
            found => found,
        }
    }

    async fn write_preserved(&self, place: &DataPlace, preserved: &Preserved, mode: ApplyMode) -> Result<()> {
        let (archive, trust) = self.archive_of(preserved).await?;
        let apply = Apply { mode, trust };
        let archive = self.skep().sparing(archive);
        self.skep().layer_access()?.write_data(place, archive, apply).await?;
        Ok(())
    }

    /// The archive to put back; of a directory it is made as it is read.
    async fn archive_of(&self, preserved: &Preserved) -> Result<(ArchiveStream, Trust)> {
        match preserved {
            Preserved::Backup { slot, trust, .. } => {
                let (of, slot): (_, Slot) = (self.bot().clone(), *slot);
                let file = self.skep().with_backups(move |files| files.open(&of, slot)).await?;
                Ok((chunks_of(file.into()), *trust))
            }
            Preserved::Legacy(directory) => {
                let pack = Pack {
                    format: ArchiveFormat::Tar,
                    trust: Trust::Ours,
                };
                let place = DataPlace::Directory(directory.clone());
                let reader = self.skep().layer_access()?.read_data(&place, pack).await?;
                Ok((reader.into_stream().boxed(), Trust::Ours))
            }
        }
    }

    /// The workspace runs with what was put back, which is on the disk: it is not needed elsewhere any more. A legacy
    /// directory that a backup won over does not count from then on, and stays. Nothing takes either away later, so it is
    /// tried more than once.
    pub(super) async fn release_put_back(&self) -> Result<()> {
        let Some(noted) = self.noted(PUT_BACK) else {
            return Ok(());
        };
        let put_back: PutBack =
            serde_json::from_value(noted).map_err(|error| Error::internal("reading a note", error))?;
        for _ in 1..RELEASE_TRIES {
            match self.step("release", self.take_away(&put_back)).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(bot = %self.bot(), error = error.with_causes(), "what was put back is still kept")
                }
            }
            tokio::time::sleep(RELEASE_PAUSE).await;
        }
        let released = self.step("release", self.take_away(&put_back)).await;
        released.map_err(|error| error.at(STILL_KEPT))
    }

    async fn take_away(&self, put_back: &PutBack) -> Result<()> {
        match *put_back {
            PutBack::Backup { size_bytes, created_at } => {
                let restored = Identity { size_bytes, created_at };
                self.skep().remove_restored(self.bot(), restored).await?;
                self.skep().mark_superseded(self.bot()).await
            }
            PutBack::InPart => self.skep().mark_superseded(self.bot()).await,
            PutBack::Legacy => self.skep().mark_migrated(self.bot()).await,
        }
    }

    pub(super) fn was_put_back(&self) -> bool {
        self.noted(PUT_BACK).is_some()
    }

    /// Sentences for whoever asked, kept over a crash.
    pub(super) fn warnings(&self) -> Vec<String> {
        let noted = self.noted(WARNINGS).unwrap_or_default();
        serde_json::from_value(noted).unwrap_or_default()
    }

    /// The check of a set-up that went well shows what went with it.
    pub(super) async fn show_set_up(&self) -> Result<()> {
        let check = CheckType::ContainerInit.as_str();
        match self.warnings().as_slice() {
            [] => self.store().clear_fault(self.bot(), check).await?,
            warnings => self.store().put_fault(self.bot(), check, &warnings.join("; ")).await?,
        }
        Ok(())
    }
}
