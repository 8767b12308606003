//! Keeping the line of layers below a workspace short: what no version needs is merged, and the workspace put onto
//! the result, whatever operation would make the line longer.

use std::collections::HashMap;

use serde_json::json;
use skep_names::container_id_for;
use skep_runtime::{LayerKind, LayerTree};
use skep_store::ContainerRow;

use super::work::Work;
use crate::Code;
use crate::error::{Error, Result};

/// Note: layers of a line that was made shorter, old and new.
pub(super) const MERGED: &str = "merged";
/// Note: the present is committed, and the workspace is on the layer above that.
const COMMITTED: &str = "committed";
/// Note: the workspace stands on a line that is short enough for an operation without a version.
const SHORTENED: &str = "line_shortened";

/// A line that cannot be merged may grow to so many times the length from which on it would be: beyond that, a mount of
/// it might not fit into what overlayfs takes.
const LONGEST: u64 = 2;

impl Work {
    /// Puts a workspace whose line has grown too long onto a shorter one that means the same. The merging is done
    /// while it runs; when there was something to merge, it is stopped when this returns. For operations that put a
    /// layer onto the line without a version, before they do; [`Self::undo_line`] when they fail.
    pub(super) async fn shorten_line(&self, row: &ContainerRow) -> Result<()> {
        if self.noted(SHORTENED).is_some() {
            return Ok(());
        }
        let tree = self.tree().await?;
        let mut merged = self.shorten(&tree, self.below_the_present(&tree)).await?;
        // Also when nothing was merged in the end: what is committed is still there after a crash.
        if !merged.is_empty() || self.has_committed() {
            self.halt().await?;
            self.note_begun();
            let kept = self.commit_on_short_line(&self.layer_name("kept"), &mut merged).await?;
            self.use_merged(row, &merged).await?;
            // No version is this state: it lasts as long as something stands on it.
            self.step("let_go", self.release(&kept)).await?;
        }
        self.note(SHORTENED, true);
        Ok(())
    }

    /// After a failure: nothing that was merged stays unless it is used, and nothing that it took the place of.
    pub(super) async fn undo_line(&self, row: &ContainerRow) -> Result<()> {
        self.undo_own_layers(row).await?;
        self.release_what_is_left(row).await
    }

    /// Commits the present as `name`; where the line below was merged, the same again on the result, which the
    /// workspace is put onto. Returns what the committed layer is called.
    pub(super) async fn commit_on_short_line(&self, name: &str, merged: &mut Vec<(String, String)>) -> Result<String> {
        let highest = merged.last().map(|(_, highest)| highest.clone());
        // Never again once the workspace may have run on it: the old `name` may be gone by then, and what was
        // written since would be committed in its place.
        if !self.has_committed() {
            self.step("commit", async { Ok(self.layers()?.commit(self.bot(), name).await?) })
                .await?;
        }
        let kept = match highest {
            None => name.to_owned(),
            Some(highest) => {
                let kept = self.layer_name("rebased");
                let is_rebased = match self.has_committed() {
                    true => true,
                    false => self.step("rebase", self.rebase(name, (&highest, &kept))).await?,
                };
                match is_rebased {
                    true => {
                        merged.push((name.to_owned(), kept.clone()));
                        kept
                    }
                    false => {
                        // It may have been made before what failed.
                        self.release(&kept).await?;
                        for (_, made) in merged.drain(..).rev() {
                            self.release(&made).await?;
                        }
                        self.note(MERGED, json!([]));
                        name.to_owned()
                    }
                }
            }
        };
        self.note(COMMITTED, true);
        Ok(kept)
    }

    /// Whether [`Self::commit_on_short_line`] came to its end.
    pub(super) fn has_committed(&self) -> bool {
        self.noted(COMMITTED).is_some()
    }

    /// The present, which was just committed, on the shortened line; and the workspace on that. `false`: it cannot be
    /// merged, and stays where it is.
    async fn rebase(&self, name: &str, (on, copy): (&str, &str)) -> Result<bool> {
        let (layers, top) = (self.layers()?, format!("{copy}-top"));
        if layers.present(self.bot()).await?.as_deref() != Some(top.as_str()) {
            let rebased = async { Ok(layers.rebase(self.bot(), name, (on, copy)).await?) };
            // It copies a file that can have no more links.
            if let Err(error) = self.skep().while_spare(rebased).await {
                self.may_stay_long(name, error).await?;
                self.discard_half_made().await?;
                return Ok(false);
            }
            layers.stage(self.bot(), &top, copy).await?;
        }
        // Also when it is on it already: a swap that was cut off is brought to its end.
        layers.swap(self.bot(), &top).await?;
        Ok(true)
    }

    /// A line that cannot be merged is no reason to refuse what would make it longer, for a while.
    ///
    /// # Errors
    /// That one, where the runtime is away or the line is too long already.
    async fn may_stay_long(&self, top: &str, error: Error) -> Result<()> {
        let most = self.skep().settings().versions.merge_over.saturating_mul(LONGEST);
        if error.code() == Code::RuntimeUnavailable || self.length_from(&self.tree().await?, top) >= most {
            return Err(error);
        }
        tracing::error!(bot = %self.bot(), error = error.with_causes(), "layers cannot be merged, the line stays long");
        Ok(())
    }

    /// Layers that a merge was writing when it was given up.
    async fn discard_half_made(&self) -> Result<()> {
        let (layers, own) = (self.layers()?, self.layer_name(""));
        let tree = self.tree().await?;
        let all = tree.line.iter().chain(&tree.side);
        for layer in all.filter(|layer| layer.is_staged() && layer.name.starts_with(&own)) {
            layers.discard(self.bot(), &layer.name).await?;
        }
        Ok(())
    }

    /// What a merge made before it failed.
    async fn release_half_merged(&self) -> Result<()> {
        self.discard_half_made().await?;
        let (tree, own) = (self.tree().await?, self.layer_name(""));
        let all = tree.line.iter().chain(&tree.side);
        for layer in all.filter(|layer| layer.kind == LayerKind::Committed && layer.name.starts_with(&own)) {
            self.release(&layer.name).await?;
        }
        Ok(())
    }

    /// Merges what no version needs of the line below, when it has grown too long. What took the place of what.
    pub(super) async fn shorten(&self, tree: &LayerTree, top: Option<&str>) -> Result<Vec<(String, String)>> {
        if let Some(noted) = self.noted(MERGED) {
            return serde_json::from_value(noted).map_err(|error| Error::internal("reading a note", error));
        }
        let merged = match top {
            Some(top) if self.length_from(tree, top) >= self.skep().settings().versions.merge_over => {
                let (layers, operation) = (self.layers()?, self.hub().id());
                self.note_making_layers();
                // The task is taken down only after this, which may take long.
                self.pending().spare_task(true);
                let shortened = async { Ok(layers.shorten(self.bot(), operation, top).await?) };
                // It copies a file that can have no more links.
                let merged = self.step("merge", self.skep().while_spare(shortened)).await;
                self.pending().spare_task(false);
                match merged {
                    Ok(merged) => merged,
                    Err(error) => {
                        self.may_stay_long(top, error).await?;
                        self.release_half_merged().await?;
                        Vec::new()
                    }
                }
            }
            _ => Vec::new(),
        };
        // Also that there was nothing: a repeat, whose line is longer by what this operation made, must not differ.
        let noted = serde_json::to_value(&merged).map_err(|error| Error::internal("writing a note", error))?;
        self.note(MERGED, noted);
        Ok(merged)
    }

    /// How many layers of ours there are from that one down.
    fn length_from(&self, tree: &LayerTree, top: &str) -> u64 {
        let own = container_id_for(self.bot());
        let all: HashMap<&str, Option<&str>> = tree
            .line
            .iter()
            .chain(&tree.side)
            .filter(|layer| layer.name.starts_with(&own))
            .map(|layer| (layer.name.as_str(), layer.parent.as_deref()))
            .collect();
        let mut length: usize = 0;
        let mut next = Some(top);
        while let Some(parent) = next.and_then(|name| all.get(name)).filter(|_| length < all.len()) {
            length += 1;
            next = *parent;
        }
        length as u64
    }

    pub(super) async fn tree(&self) -> Result<LayerTree> {
        Ok(self.layers()?.list(self.bot()).await?)
    }

    pub(super) fn below_the_present<'a>(&self, tree: &'a LayerTree) -> Option<&'a str> {
        let own = container_id_for(self.bot());
        let below = tree.line.iter().find(|layer| layer.kind == LayerKind::Committed);
        below
            .map(|layer| layer.name.as_str())
            .filter(|name| name.starts_with(&own))
    }

    /// Versions are found under their new names from now on, and nobody needs the old ones.
    pub(super) async fn use_merged(&self, row: &ContainerRow, merged: &[(String, String)]) -> Result<()> {
        if merged.is_empty() {
            return Ok(());
        }
        self.step("rename", async {
            Ok(self.store().rename_snapshots(&row.container_id, merged).await?)
        })
        .await?;
        self.step("release", async {
            // From the top: what stands on another goes before it.
            for (old, _) in merged.iter().rev() {
                self.release(old).await?;
            }
            Ok(())
        })
        .await
    }
}
