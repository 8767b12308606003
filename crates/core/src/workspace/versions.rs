//! The work of keeping a version, of going back to one, and of forgetting one.
//!
//! The commit point is the journaling of the step that first changes a layer. An operation that a crash cut off
//! before it is rolled back, one that passed it is carried on: each step finds by the operation's id what it made.

use serde_json::{Value, json};
use skep_names::container_id_for;
use skep_runtime::{LayerKind, LayerRecord, Layers, RuntimeError};
use skep_store::{ContainerRow, Desired, NewVersion, OperationState, VersionRow};

use super::lanes::Origin;
use super::request::SnapshotPlan;
use super::short_line::MERGED;
use super::state::Event;
use super::work::Work;
use crate::error::{Error, Result};
use crate::operations::{Outcome, TakenSnapshot};
use crate::versions::{SOURCE_PRE_EXEC, SOURCE_ROLLBACK, layers_of, required_layers};

/// Note: the layer that is gone back to, or whose version is deleted.
const TARGET: &str = "target";
/// Note: the version that holds the present already, so that nothing is to be saved.
const SAVED: &str = "saved_version";
/// Layers of these roles are nobody's state once their operation has ended, unless they are a version.
const OF_NO_USE_LATER: [&str; 4] = ["snapshot", "kept", "rebased", "base"];
/// So many operations are looked back for layers that were to be let go.
const LOOKED_BACK: u32 = 64;
/// Of the id of an operation, in the names of its layers.
const OPERATION_ID_LENGTH: usize = uuid::fmt::Hyphenated::LENGTH;
/// Note: layers of versions that were forgotten, to be released.
const FORGOTTEN: &str = "forgotten";

impl Work {
    /// The work of `snapshot`.
    pub(crate) async fn snapshot(&self, plan: &SnapshotPlan) -> Result<Outcome> {
        self.refuse_what_was_not_begun()?;
        let row = self.layered_row().await?;
        let name = self.layer_name("snapshot");
        if !self.has_begun() {
            self.check_room(&row, &plan.source).await?;
        }
        let tree = self.tree().await?;
        let mut merged = self.shorten(&tree, self.below_the_present(&tree)).await?;
        let is_there = tree.line.iter().chain(&tree.side).any(|layer| layer.name == name);
        if !self.has_committed() && !is_there {
            self.halt().await?;
        }
        self.note_begun();
        let kept = self.commit_on_short_line(&name, &mut merged).await?;
        self.come_back(&row).await?;
        self.settle()?;
        let version = self.step("version", self.record_version(&row, &kept, plan)).await?;
        self.tidy_up(&row, &merged).await?;
        Ok(Outcome::Snapshot(TakenSnapshot::from(version)))
    }

    /// The work of `rollback`.
    pub(crate) async fn rollback(&self, version: u64) -> Result<Outcome> {
        self.refuse_what_was_not_begun()?;
        let row = self.layered_row().await?;
        let target = match self.noted_text(TARGET) {
            Some(target) => target,
            None => {
                let found = self.store().version(&row.container_id, version).await?;
                found.ok_or(Error::VersionNotFound(version))?.runtime_snapshot_name
            }
        };
        let merged = self.shorten(&self.tree().await?, Some(&target)).await?;
        let highest = merged.last().map_or(target.as_str(), |(_, highest)| highest.as_str());
        let (saved_name, back) = (self.layer_name("saved"), self.layer_name("back"));
        if self.layers()?.present(self.bot()).await?.as_deref() != Some(back.as_str()) {
            self.halt().await?;
            if !self.has_begun()
                && let Some(saved) = self.version_of_the_present(&row).await?
            {
                self.note(SAVED, saved);
            }
            self.note_begun();
            self.note(TARGET, target.clone());
            self.change_to(&saved_name, &back, highest).await?;
        } else {
            // A swap that was cut off is brought to its end.
            self.settle()?;
            self.step("swap", async { Ok(self.layers()?.swap(self.bot(), &back).await?) })
                .await?;
        }
        self.come_back(&row).await?;
        let saved_version = self
            .step("version", self.record_rollback(&row, &saved_name, version))
            .await?;
        self.tidy_up(&row, &merged).await?;
        Ok(Outcome::RolledBack { version, saved_version })
    }

    /// Saves the present unless a version holds it, and puts the workspace onto the state that is gone back to.
    async fn change_to(&self, saved: &str, back: &str, target: &str) -> Result<()> {
        let layers = self.layers()?;
        if self.noted(SAVED).is_none() {
            self.step("save", async { Ok(layers.commit(self.bot(), saved).await?) })
                .await?;
        }
        self.step("stage", async { Ok(layers.stage(self.bot(), back, target).await?) })
            .await?;
        self.settle()?;
        self.step("swap", async { Ok(layers.swap(self.bot(), back).await?) })
            .await
    }

    async fn record_rollback(&self, row: &ContainerRow, saved: &str, version: u64) -> Result<u64> {
        let saved_version = match self.noted(SAVED).and_then(|saved| saved.as_u64()) {
            Some(saved) => saved,
            None => {
                self.record_version(row, saved, &SnapshotPlan::of_rollback())
                    .await?
                    .version
            }
        };
        self.lived(
            "version_rollback",
            &json!({"version": version, "saved_version": saved_version}),
        )
        .await?;
        Ok(saved_version)
    }

    /// The work of `snapshot_delete`.
    pub(crate) async fn delete_version(&self, version: u64) -> Result<Outcome> {
        let row = self.layered_row().await?;
        if self.noted_text(TARGET).is_none() {
            let found = self.store().version(&row.container_id, version).await?;
            let found = found.ok_or(Error::VersionNotFound(version))?;
            self.note(FORGOTTEN, json!([found.runtime_snapshot_name]));
            self.note(TARGET, found.runtime_snapshot_name);
            self.note_begun();
        }
        let name = self.noted_text(TARGET).ok_or(Error::VersionNotFound(version))?;
        self.settle()?;
        self.step("forget", async {
            Ok(self
                .store()
                .delete_version(self.bot(), &row.container_id, version)
                .await?)
        })
        .await?;
        let released = self.step("release", self.release(&name)).await;
        self.tidied(&row, released).await?;
        Ok(Outcome::Done)
    }

    async fn tidy_up(&self, row: &ContainerRow, merged: &[(String, String)]) -> Result<()> {
        let tidied = async {
            self.use_merged(row, merged).await?;
            self.drop_surplus(row).await
        };
        self.tidied(row, tidied.await).await
    }

    /// The version is recorded, or forgotten: whatever fails after that, an answer that it failed would not be true. What
    /// is left of it is let go as after a failure, or by a later operation.
    ///
    /// # Errors
    /// That the runtime is away: it goes on when that is back.
    async fn tidied(&self, row: &ContainerRow, tidied: Result<()>) -> Result<()> {
        let told = |error: &Error| {
            tracing::warn!(bot = %self.bot(), error = error.with_causes(), "layers that nobody needs are not let go");
        };
        match tidied {
            Err(error) if !self.is_cut_off_by(&error) => {
                told(&error);
                if let Err(error) = self.undo_line(row).await {
                    told(&error);
                }
            }
            tidied => tidied?,
        }
        self.release_abandoned(row).await;
        Ok(())
    }

    /// After a failure, or when it was called off: no half of a change stays, and the workspace is as it was wanted.
    pub(crate) async fn undo_layers(&self, error: &Error) -> Result<()> {
        let Some(row) = self.row().await? else { return Ok(()) };
        self.undo_own_layers(&row).await?;
        self.release_what_is_left(&row).await?;
        if matches!(error, Error::SnapshotLimit(_) | Error::VersionNotFound(_)) {
            return Ok(());
        }
        if matches!(
            error,
            Error::ContainerStartFailed { .. } | Error::NetworkSetupFailed { .. }
        ) {
            return self.note_not_running(error).await.map(|_| ());
        }
        match self.come_back(&row).await {
            Ok(()) => Ok(()),
            Err(error) => self.note_not_running(&error).await.map(|_| ()),
        }
    }

    /// Layers whose version was forgotten, or is another layer by now, before it failed.
    pub(crate) async fn release_what_was_forgotten(&self) -> Result<()> {
        match self.row().await? {
            Some(row) => self.release_what_is_left(&row).await,
            None => Ok(()),
        }
    }

    pub(super) async fn release_what_is_left(&self, row: &ContainerRow) -> Result<()> {
        let recorded = self.store().versions(&row.container_id).await?;
        let is_version = |name: &str| recorded.iter().any(|version| version.runtime_snapshot_name == name);
        let left = of_no_use_later(&self.all_notes(), is_version)?;
        for name in left.iter().rev() {
            self.release(name).await?;
        }
        Ok(())
    }

    /// What this operation made and no version names is nobody's state. But what a rollback saved before it was done
    /// is the only copy of what was there: it becomes the version that it was to be.
    pub(super) async fn undo_own_layers(&self, row: &ContainerRow) -> Result<()> {
        let layers = self.layers()?;
        let (saved, back) = (self.layer_name("saved"), self.layer_name("back"));
        let own = self.layer_name("");
        // Where the present was committed and nothing was made on it, there is a new and empty layer from here on.
        let present = layers.present(self.bot()).await?;
        if let Some(present) = present.as_deref().filter(|present| present.starts_with(&own)) {
            // A swap that was cut off is brought to its end: what the workspace was on before is not left.
            layers.swap(self.bot(), present).await?;
        }
        let was_done = present.is_some_and(|present| present == back);
        let recorded = self.store().versions(&row.container_id).await?;
        let is_version = |name: &str| recorded.iter().any(|version| version.runtime_snapshot_name == name);
        let tree = self.tree().await?;
        let made: Vec<&LayerRecord> = tree
            .line
            .iter()
            .chain(&tree.side)
            .filter(|layer| layer.name.starts_with(&own))
            .collect();
        // First: what one of these stands on goes only when it is gone.
        for layer in made
            .iter()
            .filter(|layer| layer.kind == LayerKind::Active && layer.is_staged())
        {
            layers.discard(self.bot(), &layer.name).await?;
        }
        for layer in made.iter().filter(|layer| layer.kind == LayerKind::Committed) {
            if is_version(&layer.name) {
                continue;
            }
            if was_done && layer.name == saved {
                self.record_version(row, &saved, &SnapshotPlan::of_rollback()).await?;
            } else {
                layers.release(self.bot(), &layer.name).await?;
            }
        }
        Ok(())
    }

    /// What earlier operations left that could not be undone or tidied up. Else it would stay for good, and committed
    /// layers would grow the line. What fails here is tried again by the next one that is kept, gone back to or put in.
    pub(super) async fn release_abandoned(&self, row: &ContainerRow) {
        if let Err(error) = self.try_to_release_abandoned(row).await {
            tracing::warn!(bot = %self.bot(), error = error.with_causes(), "what earlier operations left stays for now");
        }
    }

    async fn try_to_release_abandoned(&self, row: &ContainerRow) -> Result<()> {
        let layers = self.layers()?;
        let tree = self.tree().await?;
        let recorded = self.store().versions(&row.container_id).await?;
        let is_version = |name: &str| recorded.iter().any(|version| version.runtime_snapshot_name == name);
        let mut of_no_use = Vec::new();
        let operations = self.store().operations(self.bot(), LOOKED_BACK).await?;
        for operation in operations.iter().filter(|one| one.finished_at.is_some()) {
            match of_no_use_later(&operation.notes, is_version) {
                Ok(layers) => of_no_use.extend(layers),
                Err(error) => tracing::warn!(operation = operation.id, error = error.with_causes(), "its layers stay"),
            }
        }
        // The workspace's own is none of them.
        let below = tree.line.iter().skip(1);
        let mut left = Vec::new();
        for layer in below.chain(&tree.side) {
            if is_version(&layer.name) || layer.is_released() {
                continue;
            }
            let is_of_no_use = layer.kind == LayerKind::Committed && of_no_use.contains(&layer.name);
            if is_of_no_use || self.was_given_up(layer).await? {
                left.push(layer);
            }
        }
        // First: what one of these stands on goes only when it is gone.
        left.sort_by_key(|layer| layer.kind == LayerKind::Committed);
        for layer in left {
            tracing::warn!(bot = %self.bot(), layer = layer.name, "a layer that an earlier operation left is let go");
            let gone = match layer.kind {
                LayerKind::Committed => layers.release(self.bot(), &layer.name).await,
                LayerKind::Active => layers.discard(self.bot(), &layer.name).await,
            };
            match gone {
                Ok(()) => {}
                Err(error @ RuntimeError::Unavailable { .. }) => return Err(error.into()),
                Err(error) => tracing::warn!(bot = %self.bot(), layer = layer.name, %error, "it stays for now"),
            }
        }
        Ok(())
    }

    /// Whether the operation that made this layer failed, and by its role it is nobody's state then. By the journal: that
    /// no version names a layer says little, as the versions of a store that was put back from an older copy are missing,
    /// and their layers are wanted. What a rollback saved is never meant.
    async fn was_given_up(&self, layer: &LayerRecord) -> Result<bool> {
        let bots_own = format!("{}-", container_id_for(self.bot()));
        let name = layer.name.strip_prefix(&bots_own);
        let Some((operation, role)) = name.and_then(|name| name.split_at_checked(OPERATION_ID_LENGTH)) else {
            return Ok(false);
        };
        let may_be_left = match layer.kind {
            LayerKind::Committed => {
                let role = role.strip_prefix('-').unwrap_or_default();
                OF_NO_USE_LATER.contains(&role) || role.strip_prefix("merged-").is_some_and(is_number)
            }
            LayerKind::Active => layer.is_staged(),
        };
        if !may_be_left {
            return Ok(false);
        }
        let operation = self.store().operation(operation).await?;
        Ok(operation.is_some_and(|one| matches!(one.state, OperationState::Failed | OperationState::Cancelled)))
    }

    /// One that the last server had begun and that changed no layer is rolled back: nobody waits for it any more.
    fn refuse_what_was_not_begun(&self) -> Result<()> {
        if self.pending().origin == Origin::LeftBegun && !self.has_begun() {
            return Err(Error::OperationCancelled("a restart of the server".to_owned()));
        }
        Ok(())
    }

    pub(super) fn layers(&self) -> Result<&dyn Layers> {
        layers_of(self.runtime())
    }

    /// The row of a workspace whose layers can be changed, its container put back should it be gone.
    async fn layered_row(&self) -> Result<ContainerRow> {
        required_layers(self.runtime())?;
        let row = self.row_or_adopted().await?;
        self.step("container", self.ensure_container(&row)).await?;
        Ok(row)
    }

    pub(super) fn layer_name(&self, role: &str) -> String {
        format!("{}-{}-{role}", container_id_for(self.bot()), self.hub().id())
    }

    fn noted_text(&self, note: &str) -> Option<String> {
        self.noted(note)?.as_str().map(str::to_owned)
    }

    /// Ends every process, to be brought back at the end: those who watch one are told that it was not its own end.
    pub(super) async fn halt(&self) -> Result<()> {
        self.skep().interruptions().interrupt(self.bot());
        self.skep().observations().happened(self.bot(), &Event::Ending);
        let grace = self.skep().settings().stop_grace;
        self.step("stop", self.end_task(grace)).await
    }

    /// Running when that is wanted; what was stopped stays stopped.
    pub(super) async fn come_back(&self, row: &ContainerRow) -> Result<()> {
        match row.desired {
            Desired::Running => self.bring_up(row).await,
            Desired::Stopped => {
                let event = Event::ended(row.reason.as_deref());
                self.skep().observations().happened(self.bot(), &event);
                Ok(())
            }
        }
    }

    async fn record_version(&self, row: &ContainerRow, name: &str, plan: &SnapshotPlan) -> Result<VersionRow> {
        let version = NewVersion {
            bot_id: self.bot().clone(),
            container_id: row.container_id.clone(),
            runtime_snapshot_name: name.to_owned(),
            display_name: plan.display_name.clone(),
            snapshotter: row.snapshotter.clone(),
            source: plan.source.clone(),
        };
        Ok(self.store().record_version(&version).await?)
    }

    /// The version that holds the present state, when nothing was written since.
    async fn version_of_the_present(&self, row: &ContainerRow) -> Result<Option<u64>> {
        let layers = self.layers()?;
        if !layers.is_unchanged(self.bot()).await? {
            return Ok(None);
        }
        let tree = self.tree().await?;
        let below = tree.line.iter().find(|layer| layer.kind == LayerKind::Committed);
        let versions = self.store().versions(&row.container_id).await?;
        let holds = |version: &&VersionRow| below.is_some_and(|below| below.name == version.runtime_snapshot_name);
        Ok(versions.iter().find(holds).map(|version| version.version))
    }

    /// Versions of a caller's own making are never dropped: there may be so many and no more.
    async fn check_room(&self, row: &ContainerRow, source: &str) -> Result<()> {
        if [SOURCE_PRE_EXEC, SOURCE_ROLLBACK].contains(&source) {
            return Ok(());
        }
        let most = self.skep().settings().versions.max;
        let versions = self.store().versions(&row.container_id).await?;
        let own = |version: &&VersionRow| ![SOURCE_PRE_EXEC, SOURCE_ROLLBACK].contains(&version.source.as_str());
        match versions.iter().filter(own).count() as u64 >= most {
            true => Err(Error::SnapshotLimit(format!(
                "the workspace has {most} versions, the most that snapshots.max allows; delete one first"
            ))),
            false => Ok(()),
        }
    }

    /// Automatic versions beyond what is kept are forgotten, the oldest first.
    async fn drop_surplus(&self, row: &ContainerRow) -> Result<()> {
        let kept = &self.skep().settings().versions;
        let versions = self.store().versions(&row.container_id).await?;
        let mut forgotten = self.noted(FORGOTTEN).unwrap_or(json!([]));
        let mut surplus = Vec::new();
        for (source, keep) in [
            (SOURCE_PRE_EXEC, kept.keep_automatic),
            (SOURCE_ROLLBACK, kept.keep_rollback),
        ] {
            let of_source: Vec<&VersionRow> = versions.iter().filter(|version| version.source == source).collect();
            let too_many = of_source
                .len()
                .saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
            surplus.extend(of_source.into_iter().take(too_many));
        }
        if let Value::Array(names) = &mut forgotten {
            names.extend(surplus.iter().map(|version| json!(version.runtime_snapshot_name)));
            if names.is_empty() {
                return Ok(());
            }
        }
        self.note(FORGOTTEN, forgotten.clone());
        self.step("forget", async {
            for version in &surplus {
                self.store()
                    .delete_version(self.bot(), &row.container_id, version.version)
                    .await?;
            }
            Ok(())
        })
        .await?;
        self.step("release", async {
            for name in forgotten.as_array().into_iter().flatten().filter_map(Value::as_str) {
                self.release(name).await?;
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn release(&self, name: &str) -> Result<()> {
        Ok(self.layers()?.release(self.bot(), name).await?)
    }
}

fn is_number(text: &str) -> bool {
    text.parse::<u64>().is_ok()
}

/// What an operation noted of layers that nobody needs: their version was forgotten, or is another layer by now. In the
/// order they were made.
fn of_no_use_later(notes: &Value, is_version: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let reading = |error| Error::internal("reading a note", error);
    let noted = |name: &str| notes.get(name).cloned().unwrap_or_else(|| json!([]));
    let merged: Vec<(String, String)> = serde_json::from_value(noted(MERGED)).map_err(reading)?;
    let forgotten: Vec<String> = serde_json::from_value(noted(FORGOTTEN)).map_err(reading)?;
    let replaced = merged
        .into_iter()
        .filter(|(_, new)| is_version(new))
        .map(|(old, _)| old);
    Ok(replaced.chain(forgotten).filter(|name| !is_version(name)).collect())
}
