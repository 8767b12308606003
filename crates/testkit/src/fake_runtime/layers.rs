//! [`Layers`] on directories: every layer is a whole copy of its file system, so nothing stands on anything but by name.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use chrono::Utc;
use skep_names::{BotId, ImageReference, container_id_for};
use skep_runtime::layers::{
    LABEL_RELEASED, LABEL_SEQUENCE, LABEL_SET, LABEL_STAGED, active_on, arrange, check_layer_name, collectable,
    next_sequence, plan_of_merges, present_of,
};
use skep_runtime::{
    LayerKind, LayerMount, LayerOutcome, LayerRecord, LayerTree, Layers, Result, RuntimeError, StorageHeld,
};

use super::faults::Verb;
use super::{Bot, FakeRuntime, blocking, tree};

/// What the lowest layer of a workspace stands on.
const IMAGE: &str = "image";
/// As its capabilities name it.
pub(super) const SNAPSHOTTER: &str = "directory";

impl Bot {
    /// The layer its container is on, else its newest state.
    pub(super) fn present(&self, bot: &BotId) -> Option<String> {
        let newest = || present_of(bot, &self.layers).map(|layer| layer.name.clone());
        self.record.as_ref().map(|record| record.layer.clone()).or_else(newest)
    }

    fn layer(&self, name: &str) -> Option<&LayerRecord> {
        self.layers.iter().find(|layer| layer.name == name)
    }

    fn label(&mut self, name: &str, label: &str, value: Option<String>) {
        if let Some(layer) = self.layers.iter_mut().find(|layer| layer.name == name) {
            match value {
                Some(value) => layer.labels.insert(label.to_owned(), value),
                None => layer.labels.remove(label),
            };
            layer.updated_at = Utc::now();
        }
    }

    fn mark_present(&mut self, name: &str) {
        let sequence = next_sequence(&self.layers).to_string();
        self.label(name, LABEL_SEQUENCE, Some(sequence));
        self.label(name, LABEL_STAGED, None);
    }

    fn forget_layer(&mut self, name: &str) {
        self.layers.retain(|layer| layer.name != name);
    }
}

impl FakeRuntime {
    pub(super) fn layer_directory(&self, bot: &BotId, name: &str) -> PathBuf {
        self.directory_of(bot).join("layers").join(name)
    }

    /// The layer of a bot, made from the image when it has none.
    pub(super) async fn make_layer(&self, bot: &BotId) -> Result<(String, LayerOutcome)> {
        if let Some(present) = self.lock().get(bot).and_then(|state| state.present(bot)) {
            return Ok((present, LayerOutcome::Kept));
        }
        let (this, bot) = (self.clone(), bot.clone());
        blocking("copy the image", move || {
            std::fs::create_dir_all(this.directory_of(&bot).join("run"))?;
            let name = container_id_for(&bot);
            let directory = this.layer_directory(&bot, &name);
            this.fill(&bot, &directory, |staging| {
                tree::copy(&this.root().join("image"), staging)
            })?;
            let mut layer = new_layer(&name, IMAGE);
            layer.labels.insert(LABEL_SEQUENCE.to_owned(), "1".to_owned());
            this.lock().entry(bot).or_default().layers.push(layer);
            Ok((name, LayerOutcome::Made))
        })
        .await
    }

    /// Every layer of a bot, the newest first.
    pub(super) async fn remove_layers(&self, bot: &BotId) -> Result<()> {
        loop {
            let newest = self.lock().get(bot).and_then(|state| state.layers.last().cloned());
            let Some(newest) = newest else { return Ok(()) };
            self.faults().enter(Verb::RemoveLayers).await?;
            let directory = self.layer_directory(bot, &newest.name);
            blocking("remove a layer", move || match std::fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            })
            .await?;
            if let Some(state) = self.lock().get_mut(bot) {
                state.forget_layer(&newest.name);
            }
        }
    }

    /// Makes a directory whole or not at all.
    fn fill(&self, bot: &BotId, directory: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let staging = self.directory_of(bot).join("staging");
        if staging.exists() {
            std::fs::remove_dir_all(&staging)?;
        }
        fill(&staging)?;
        std::fs::create_dir_all(directory.parent().unwrap_or(directory))?;
        std::fs::rename(&staging, directory)
    }

    /// Runs a verb to its end, also when its caller gives up.
    async fn on_layers<T: Send + 'static>(
        &self,
        bot: &BotId,
        work: impl FnOnce(&FakeRuntime) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let alone = self.alone(bot).await;
        let this = self.clone();
        blocking("change the layers", move || {
            let done = work(&this);
            drop(alone);
            done
        })
        .await
    }

    /// Of all layers of a bot.
    pub(super) async fn size_of_layers(&self, bot: &BotId) -> Result<StorageHeld> {
        let names: Vec<String> = self.layers_of(bot).into_iter().map(|layer| layer.name).collect();
        if names.is_empty() {
            return Err(RuntimeError::NotFound {
                what: format!("a layer of bot {bot}"),
            });
        }
        let directories: Vec<PathBuf> = names.iter().map(|name| self.layer_directory(bot, name)).collect();
        blocking("measure the layers", move || size_of(&directories)).await
    }

    fn layers_of(&self, bot: &BotId) -> Vec<LayerRecord> {
        self.lock().get(bot).map_or_else(Vec::new, |state| state.layers.clone())
    }

    /// The layer its container is on.
    fn pointer(&self, bot: &BotId) -> Result<String> {
        Ok(self.record_of(bot)?.layer)
    }

    fn record_named(&self, bot: &BotId, name: &str) -> Result<LayerRecord> {
        let found = self.lock().get(bot).and_then(|state| state.layer(name).cloned());
        found.ok_or_else(|| RuntimeError::NotFound {
            what: format!("the layer {name}"),
        })
    }

    fn stage_now(&self, bot: &BotId, name: &str, on: &str) -> io::Result<()> {
        if self.layers_of(bot).iter().any(|layer| layer.name == name) {
            return Ok(());
        }
        let from = self.layer_directory(bot, on);
        self.fill(bot, &self.layer_directory(bot, name), |staging| {
            tree::copy(&from, staging)
        })?;
        let mut layer = new_layer(name, on);
        layer.labels.insert(LABEL_STAGED.to_owned(), LABEL_SET.to_owned());
        self.lock().entry(bot.clone()).or_default().layers.push(layer);
        Ok(())
    }

    fn stage_fresh_now(&self, bot: &BotId, name: &str) -> io::Result<()> {
        if self.layers_of(bot).iter().any(|layer| layer.name == name) {
            return Ok(());
        }
        self.fill(bot, &self.layer_directory(bot, name), |staging| {
            tree::copy(&self.root().join("image"), staging)
        })?;
        let mut layer = new_layer(name, IMAGE);
        layer.labels.insert(LABEL_STAGED.to_owned(), LABEL_SET.to_owned());
        self.lock().entry(bot.clone()).or_default().layers.push(layer);
        Ok(())
    }

    fn commit_now(&self, bot: &BotId, name: &str) -> io::Result<()> {
        if self.layers_of(bot).iter().any(|layer| layer.name == name) {
            return Ok(());
        }
        let present = self.pointer(bot).map_err(io::Error::other)?;
        std::fs::rename(self.layer_directory(bot, &present), self.layer_directory(bot, name))?;
        if let Some(state) = self.lock().get_mut(bot) {
            let sequence = next_sequence(&state.layers).to_string();
            if let Some(layer) = state.layers.iter_mut().find(|layer| layer.name == present) {
                layer.kind = LayerKind::Committed;
                name.clone_into(&mut layer.name);
            }
            state.label(name, LABEL_SEQUENCE, Some(sequence));
        }
        let active = active_on(name);
        self.stage_now(bot, &active, name)?;
        self.put_onto(bot, &active);
        Ok(())
    }

    fn put_onto(&self, bot: &BotId, name: &str) {
        if let Some(state) = self.lock().get_mut(bot) {
            if let Some(record) = &mut state.record {
                name.clone_into(&mut record.layer);
                record.updated_at = Utc::now();
            }
            state.mark_present(name);
        }
    }

    fn unchanged_now(&self, bot: &BotId, name: &str) -> io::Result<bool> {
        let layers = self.layers_of(bot);
        let of = |name: &str| layers.iter().find(|layer| layer.name == name);
        match of(name).and_then(|layer| layer.parent.clone()) {
            Some(parent) if of(&parent).is_some() => {
                same_tree(&self.layer_directory(bot, name), &self.layer_directory(bot, &parent))
            }
            _ => Ok(false),
        }
    }

    /// A layer for each of the plan, which is a copy of the highest that it takes the place of.
    fn shorten_now(&self, bot: &BotId, operation: &str, top: &str) -> io::Result<Vec<(String, String)>> {
        let merges = plan_of_merges(bot, operation, (top, &self.layers_of(bot)));
        let mut told = Vec::new();
        for (index, one) in merges.iter().enumerate() {
            self.copy_committed(bot, one.top(), (&one.on, &one.name))?;
            if one.released
                && let Some(state) = self.lock().get_mut(bot)
            {
                state.label(&one.name, LABEL_RELEASED, Some(LABEL_SET.to_owned()));
            }
            if !one.released || index + 1 == merges.len() {
                told.push((one.top().to_owned(), one.name.clone()));
            }
        }
        Ok(told)
    }

    fn rebase_now(&self, bot: &BotId, name: &str, (on, copy): (&str, &str)) -> io::Result<()> {
        self.copy_committed(bot, name, (on, copy))?;
        if let Some(state) = self.lock().get_mut(bot)
            && let Some(sequence) = state
                .layer(name)
                .and_then(|layer| layer.labels.get(LABEL_SEQUENCE).cloned())
        {
            state.label(copy, LABEL_SEQUENCE, Some(sequence));
        }
        Ok(())
    }

    /// The same state again, on another layer.
    fn copy_committed(&self, bot: &BotId, name: &str, (on, copy): (&str, &str)) -> io::Result<()> {
        if self.layers_of(bot).iter().any(|layer| layer.name == copy) {
            return Ok(());
        }
        let from = self.layer_directory(bot, name);
        self.fill(bot, &self.layer_directory(bot, copy), |staging| {
            tree::copy(&from, staging)
        })?;
        let mut layer = new_layer(copy, on);
        layer.kind = LayerKind::Committed;
        self.lock().entry(bot.clone()).or_default().layers.push(layer);
        Ok(())
    }

    fn remove_now(&self, bot: &BotId, name: &str) -> io::Result<()> {
        std::fs::remove_dir_all(self.layer_directory(bot, name))?;
        if let Some(state) = self.lock().get_mut(bot) {
            state.forget_layer(name);
        }
        Ok(())
    }
}

#[async_trait]
impl Layers for FakeRuntime {
    async fn list(&self, bot: &BotId) -> Result<LayerTree> {
        self.faults().enter(Verb::ListLayers).await?;
        Ok(arrange(SNAPSHOTTER, &self.pointer(bot)?, self.layers_of(bot)))
    }

    async fn present(&self, bot: &BotId) -> Result<Option<String>> {
        self.faults().enter(Verb::ListLayers).await?;
        Ok(self.lock().get(bot).and_then(|state| state.present(bot)))
    }

    async fn is_unchanged(&self, bot: &BotId) -> Result<bool> {
        let (present, of) = (self.pointer(bot)?, bot.clone());
        self.on_layers(bot, move |this| this.unchanged_now(&of, &present)).await
    }

    async fn commit(&self, bot: &BotId, name: &str) -> Result<()> {
        self.faults().enter(Verb::Commit).await?;
        check_layer_name(bot, name)?;
        self.pointer(bot)?;
        let (of, name) = (bot.clone(), name.to_owned());
        self.on_layers(bot, move |this| this.commit_now(&of, &name)).await
    }

    async fn stage(&self, bot: &BotId, name: &str, on: &str) -> Result<()> {
        self.faults().enter(Verb::Stage).await?;
        check_layer_name(bot, name)?;
        if self.record_named(bot, on)?.kind != LayerKind::Committed {
            return Err(RuntimeError::NotFound {
                what: format!("the committed layer {on}"),
            });
        }
        let (of, name, on) = (bot.clone(), name.to_owned(), on.to_owned());
        self.on_layers(bot, move |this| this.stage_now(&of, &name, &on)).await
    }

    async fn swap(&self, bot: &BotId, name: &str) -> Result<()> {
        self.faults().enter(Verb::Swap).await?;
        check_layer_name(bot, name)?;
        self.record_named(bot, name)?;
        let before = self.pointer(bot)?;
        if before == name {
            return Ok(());
        }
        let (of, left) = (bot.clone(), before.clone());
        if !self.on_layers(bot, move |this| this.unchanged_now(&of, &left)).await? {
            return Err(RuntimeError::Rejected {
                reason: format!("the layer {before} holds what no version has"),
            });
        }
        let (of, name) = (bot.clone(), name.to_owned());
        self.on_layers(bot, move |this| {
            this.put_onto(&of, &name);
            this.remove_now(&of, &before)
        })
        .await
    }

    async fn discard(&self, bot: &BotId, name: &str) -> Result<()> {
        self.faults().enter(Verb::RemoveLayer).await?;
        check_layer_name(bot, name)?;
        match self.record_named(bot, name) {
            Err(RuntimeError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(layer) if !layer.is_staged() => Err(RuntimeError::Rejected {
                reason: format!("the layer {name} is not staged"),
            }),
            Ok(_) => {
                let (of, name) = (bot.clone(), name.to_owned());
                self.on_layers(bot, move |this| this.remove_now(&of, &name)).await
            }
        }
    }

    async fn release(&self, bot: &BotId, name: &str) -> Result<()> {
        self.faults().enter(Verb::RemoveLayer).await?;
        check_layer_name(bot, name)?;
        match self.record_named(bot, name) {
            Ok(layer) if layer.kind == LayerKind::Active => {
                return Err(RuntimeError::Rejected {
                    reason: format!("the layer {name} is not committed"),
                });
            }
            Ok(_) | Err(RuntimeError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let (of, name) = (bot.clone(), name.to_owned());
        self.on_layers(bot, move |this| {
            if let Some(state) = this.lock().get_mut(&of) {
                state.label(&name, LABEL_RELEASED, Some(LABEL_SET.to_owned()));
            }
            let gone = collectable(&of, &this.layers_of(&of));
            gone.iter().try_for_each(|name| this.remove_now(&of, name))
        })
        .await
    }

    async fn shorten(&self, bot: &BotId, operation: &str, top: &str) -> Result<Vec<(String, String)>> {
        self.faults().enter(Verb::Merge).await?;
        let (of, operation, top) = (bot.clone(), operation.to_owned(), top.to_owned());
        self.on_layers(bot, move |this| this.shorten_now(&of, &operation, &top))
            .await
    }

    async fn rebase(&self, bot: &BotId, name: &str, (on, copy): (&str, &str)) -> Result<()> {
        self.faults().enter(Verb::Merge).await?;
        check_layer_name(bot, copy)?;
        self.record_named(bot, on)?;
        let (of, name, on, copy) = (bot.clone(), name.to_owned(), on.to_owned(), copy.to_owned());
        self.on_layers(bot, move |this| this.rebase_now(&of, &name, (&on, &copy)))
            .await
    }

    async fn stage_fresh(&self, bot: &BotId, name: &str, image: &ImageReference) -> Result<LayerMount> {
        self.faults().enter(Verb::Stage).await?;
        check_layer_name(bot, name)?;
        if self.shared.images.stored(image).is_none() {
            return Err(RuntimeError::ImageNotFound {
                reference: image.to_string(),
            });
        }
        let (of, fresh) = (bot.clone(), name.to_owned());
        self.on_layers(bot, move |this| this.stage_fresh_now(&of, &fresh))
            .await?;
        self.mount_of(bot, name).await
    }

    async fn make_newest(&self, bot: &BotId, name: &str) -> Result<()> {
        check_layer_name(bot, name)?;
        self.record_named(bot, name)?;
        if let Ok(record) = self.record_of(bot) {
            return Err(RuntimeError::Rejected {
                reason: format!("the container says that {} is its own layer", record.layer),
            });
        }
        if let Some(state) = self.lock().get_mut(bot) {
            state.mark_present(name);
        }
        Ok(())
    }

    async fn mount_of(&self, bot: &BotId, name: &str) -> Result<LayerMount> {
        let layer = self.record_named(bot, name)?;
        if layer.kind != LayerKind::Active {
            return Err(RuntimeError::NotFound {
                what: format!("the active layer {name}"),
            });
        }
        Ok(LayerMount {
            kind: "bind".to_owned(),
            source: self.layer_directory(bot, name).to_string_lossy().into_owned(),
            options: vec!["rbind".to_owned(), "rw".to_owned()],
        })
    }

    async fn bytes(&self, bot: &BotId, name: &str) -> Result<u64> {
        self.record_named(bot, name)?;
        let directory = self.layer_directory(bot, name);
        blocking("measure a layer", move || Ok(size_of(&[directory])?.bytes)).await
    }
}

fn new_layer(name: &str, parent: &str) -> LayerRecord {
    LayerRecord {
        name: name.to_owned(),
        parent: Some(parent.to_owned()),
        kind: LayerKind::Active,
        created_at: Utc::now(),
        updated_at: Utc::now(),
        labels: std::collections::BTreeMap::new(),
    }
}

/// What goes away while it is counted is not counted.
fn size_of(directories: &[PathBuf]) -> io::Result<StorageHeld> {
    let mut counted = Counted::default();
    for directory in directories {
        counted.add(directory)?;
    }
    Ok(counted.held)
}

#[derive(Default)]
struct Counted {
    held: StorageHeld,
    /// A file with several names is held once.
    inodes: HashSet<u64>,
}

impl Counted {
    fn add(&mut self, path: &Path) -> io::Result<()> {
        match self.add_what_is_there(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            sized => sized,
        }
    }

    fn add_what_is_there(&mut self, path: &Path) -> io::Result<()> {
        let metadata = std::fs::symlink_metadata(path)?;
        if self.inodes.insert(metadata.ino()) {
            self.held.bytes += metadata.blocks() * 512;
            self.held.files += 1;
        }
        if metadata.is_dir() {
            for entry in std::fs::read_dir(path)? {
                self.add(&entry?.path())?;
            }
        }
        Ok(())
    }
}

/// By names, kinds, sizes, owners, modes and times: a copy has them all.
fn same_tree(one: &Path, other: &Path) -> io::Result<bool> {
    let (a, b) = (std::fs::symlink_metadata(one)?, std::fs::symlink_metadata(other)?);
    let looks = |metadata: &Metadata| {
        let size = if metadata.is_dir() { 0 } else { metadata.size() };
        let times = (metadata.mtime(), metadata.mtime_nsec());
        (metadata.mode(), metadata.uid(), metadata.gid(), size, times)
    };
    if looks(&a) != looks(&b) {
        return Ok(false);
    }
    if a.is_symlink() {
        return Ok(std::fs::read_link(one)? == std::fs::read_link(other)?);
    }
    if !a.is_dir() {
        return Ok(true);
    }
    let names = |directory: &Path| -> io::Result<Vec<_>> {
        let mut names = std::fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    let found = names(one)?;
    if found != names(other)? {
        return Ok(false);
    }
    for name in found {
        if !same_tree(&one.join(&name), &other.join(&name))? {
            return Ok(false);
        }
    }
    Ok(true)
}
