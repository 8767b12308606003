//! [`Layers`] on containerd: commit, prepare and the one step that puts a container onto another layer.
//!
//! Whatever is made is labelled in the transaction that makes it, so that there is no moment in which a tenant's
//! data is referenced by nothing; a lease is held beside that. A new active layer is always staged first, then the
//! container points to it, then its labels say so: a container's own pointer decides while there is one, and a
//! pointer to a layer that was just committed away is mended from the labels by whoever meets it.

use std::collections::HashMap;

use async_trait::async_trait;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Info, MountsRequest, PrepareSnapshotRequest, UpdateSnapshotRequest, UsageRequest,
};
use containerd_client::services::v1::{Container, UpdateContainerRequest};
use containerd_client::types::Mount;
use prost_types::FieldMask;
use skep_names::{BotId, ImageReference, is_legacy};
use tonic::Code;

use super::client::failed;
use super::layer::record;
use super::lease::Lease;
use super::upper::Upper;
use super::usage::COUNT_LIMIT;
use super::{ContainerdRuntime, OVERLAYFS};
use crate::images::LABEL_IMAGE;
use crate::layers::{
    LABEL_RELEASED, LABEL_SEQUENCE, LABEL_SET, LABEL_STAGED, active_on, arrange, check_layer_name, collectable,
    next_sequence, present_of,
};
use crate::{LayerKind, LayerMount, LayerRecord, LayerTree, Layers, Result, RuntimeError, failpoint};

impl ContainerdRuntime {
    /// The mounts of a container's layer. A pointer to a layer that a cut-off commit took away is mended first, and so
    /// are the labels where a cut-off swap left them behind: what is written from here on would not be found without
    /// the container.
    pub(super) async fn present_mounts(&self, bot: &BotId, container: &Container) -> Result<Vec<Mount>> {
        match self.layer_mounts(&container.snapshotter, &container.snapshot_key).await {
            Err(RuntimeError::NotFound { .. }) => {
                let key = self.mend_pointer(bot, container).await?;
                self.layer_mounts(&container.snapshotter, &key).await
            }
            Ok(mounts) => {
                if container.snapshotter == OVERLAYFS {
                    self.mark_swapped(bot, &container.snapshot_key).await?;
                }
                Ok(mounts)
            }
            Err(error) => Err(error),
        }
    }

    async fn mark_swapped(&self, bot: &BotId, key: &str) -> Result<()> {
        let layer = self.any_layer(key).await?;
        match layer.is_some_and(|layer| layer.is_staged()) {
            true => self.mark_present(bot, OVERLAYFS, key).await,
            false => Ok(()),
        }
    }

    /// Puts a container whose layer is missing onto the bot's newest state.
    async fn mend_pointer(&self, bot: &BotId, container: &Container) -> Result<String> {
        let layer = self.layer_of(bot, &container.snapshotter).await?;
        let layer = layer.ok_or_else(|| no_such_layer(&container.snapshot_key))?;
        tracing::warn!(%bot, layer = layer.key, "a change of layers was cut off; the workspace goes on with its newest state");
        self.point_container(&container.id, &layer.key).await?;
        Ok(layer.key)
    }

    /// A new active layer on a committed one, for a bot without a container that could point to it.
    pub(super) async fn prepare_on(&self, bot: &BotId, snapshotter: &str, below: &LayerRecord) -> Result<String> {
        let key = active_on(&below.name);
        self.stage_layer(None, bot, (snapshotter, &key), below).await?;
        self.mark_present(bot, snapshotter, &key).await?;
        Ok(key)
    }

    /// A workspace's container whose layers can be changed.
    async fn layered_container(&self, bot: &BotId) -> Result<Container> {
        let container = self.required_container(bot).await?;
        let what = match () {
            () if is_legacy(&container.id) => format!("changing the layers of the legacy container {}", container.id),
            () if container.snapshotter != OVERLAYFS => {
                format!("changing layers of the snapshotter {}", container.snapshotter)
            }
            () => return Ok(container),
        };
        Err(RuntimeError::Unsupported {
            backend: "containerd",
            what,
        })
    }

    async fn commit_leased(
        &self,
        lease: &Lease,
        bot: &BotId,
        (container, mut records): (&Container, Vec<LayerRecord>),
        name: &str,
    ) -> Result<()> {
        if find(&records, name).is_none() {
            let key = match find(&records, &container.snapshot_key) {
                Some(_) => container.snapshot_key.clone(),
                None => self.mend_pointer(bot, container).await?,
            };
            let image = find(&records, &key).and_then(|present| present.labels.get(LABEL_IMAGE).cloned());
            let mut labels = self.layer_labels(bot, Some(image.as_deref().unwrap_or(&container.image)));
            labels.insert(LABEL_SEQUENCE.to_owned(), next_sequence(&records).to_string());
            let request = CommitSnapshotRequest {
                snapshotter: OVERLAYFS.to_owned(),
                name: name.to_owned(),
                key,
                labels,
            };
            let request = lease.under(self.client.request_within(request, COUNT_LIMIT));
            let committed = self.client.snapshots().commit(request).await;
            committed.map_err(|status| failed(format!("committing the layer {name}"), status))?;
            failpoint::PRESENT_COMMITTED.passed()?;
            records = self.records_of(bot, OVERLAYFS).await?;
        }
        let below = find(&records, name).ok_or_else(|| no_such_layer(name))?;
        let key = active_on(name);
        self.stage_layer(Some(lease), bot, (OVERLAYFS, &key), below).await?;
        self.put_onto(bot, container, &key, &records).await
    }

    /// Makes a staged layer on a committed one, with the attributes of its root directory. Repeatable.
    async fn stage_layer(
        &self,
        lease: Option<&Lease>,
        bot: &BotId,
        (snapshotter, key): (&str, &str),
        below: &LayerRecord,
    ) -> Result<()> {
        let mut labels = self.layer_labels(bot, below.labels.get(LABEL_IMAGE).map(String::as_str));
        labels.insert(LABEL_STAGED.to_owned(), LABEL_SET.to_owned());
        let request = self.client.request(PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: below.name.clone(),
            labels,
        });
        let request = match lease {
            Some(lease) => lease.under(request),
            None => request,
        };
        let mounts = match self.client.snapshots().prepare(request).await {
            Ok(answer) => answer.into_inner().mounts,
            Err(status) if status.code() == Code::AlreadyExists => self.layer_mounts(snapshotter, key).await?,
            Err(status) => return Err(failed(format!("making a layer on {}", below.name), status)),
        };
        failpoint::ACTIVE_PREPARED.passed()?;
        on_upper(key, mounts, |upper| upper.copy_root_attributes()).await?;
        Ok(())
    }

    /// The container's pointer, then the label that counts when there is no container.
    async fn put_onto(&self, bot: &BotId, container: &Container, key: &str, records: &[LayerRecord]) -> Result<()> {
        self.point_container(&container.id, key).await?;
        failpoint::CONTAINER_SWAPPED.passed()?;
        self.mark_among(records, bot, &container.snapshotter, key).await
    }

    async fn point_container(&self, id: &str, key: &str) -> Result<()> {
        let request = self.client.request(UpdateContainerRequest {
            container: Some(Container {
                id: id.to_owned(),
                snapshot_key: key.to_owned(),
                ..Default::default()
            }),
            update_mask: Some(FieldMask {
                paths: vec!["snapshotkey".to_owned()],
            }),
        });
        let updated = self.client.containers().update(request).await;
        updated
            .map(drop)
            .map_err(|status| failed(format!("putting the container {id} onto the layer {key}"), status))
    }

    /// Counts an active layer as the newest state, unless it is.
    pub(super) async fn mark_present(&self, bot: &BotId, snapshotter: &str, key: &str) -> Result<()> {
        let records = self.records_of(bot, snapshotter).await?;
        self.mark_among(&records, bot, snapshotter, key).await
    }

    /// The same by what is known of the bot's layers.
    async fn mark_among(&self, records: &[LayerRecord], bot: &BotId, snapshotter: &str, key: &str) -> Result<()> {
        if present_of(bot, records).is_some_and(|present| present.name == key && present.sequence() > 0) {
            return Ok(());
        }
        let sequence = next_sequence(records).to_string();
        self.label_layer(snapshotter, key, &[(LABEL_SEQUENCE, &sequence), (LABEL_STAGED, "")])
            .await?;
        failpoint::PRESENT_MARKED.passed()
    }

    /// An empty value takes a label away.
    async fn label_layer(&self, snapshotter: &str, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let request = self.client.request(UpdateSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            info: Some(Info {
                name: name.to_owned(),
                labels: labels
                    .iter()
                    .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
                    .collect::<HashMap<_, _>>(),
                ..Default::default()
            }),
            update_mask: Some(FieldMask {
                paths: labels.iter().map(|(label, _)| format!("labels.{label}")).collect(),
            }),
        });
        let updated = self.client.snapshots().update(request).await;
        updated
            .map(drop)
            .map_err(|status| failed(format!("labelling the layer {name}"), status))
    }

    /// Whether a layer is as it was made on another one of the bot.
    async fn is_layer_unchanged(&self, records: &[LayerRecord], layer: &LayerRecord) -> Result<bool> {
        let on_own = layer
            .parent
            .as_deref()
            .is_some_and(|parent| find(records, parent).is_some());
        if !on_own {
            return Ok(false);
        }
        let mounts = self.layer_mounts(OVERLAYFS, &layer.name).await?;
        Ok(on_upper(&layer.name, mounts, Upper::is_unchanged)
            .await?
            .unwrap_or(false))
    }

    async fn swap_leased(&self, bot: &BotId, container: &Container, name: &str) -> Result<()> {
        let records = self.records_of(bot, OVERLAYFS).await?;
        let target = find(&records, name).filter(|layer| layer.kind == LayerKind::Active);
        if target.is_none() {
            return Err(no_such_layer(name));
        }
        if container.snapshot_key != name
            && let Some(present) = find(&records, &container.snapshot_key)
            && !self.is_layer_unchanged(&records, present).await?
        {
            return Err(RuntimeError::Rejected {
                reason: format!("the layer {} holds what no version has", present.name),
            });
        }
        self.put_onto(bot, container, name, &records).await?;
        self.remove_abandoned(bot, name, &records).await
    }

    /// Removes active layers that a workspace was on before and that hold nothing; one that holds something stays.
    async fn remove_abandoned(&self, bot: &BotId, present: &str, records: &[LayerRecord]) -> Result<()> {
        let abandoned = |layer: &&LayerRecord| {
            layer.kind == LayerKind::Active && layer.name != present && !layer.is_staged() && layer.sequence() > 0
        };
        for layer in records.iter().filter(abandoned) {
            if self.is_layer_unchanged(records, layer).await? {
                self.remove_snapshot(OVERLAYFS, &layer.name).await?;
                failpoint::ABANDONED_GONE.passed()?;
            } else {
                tracing::warn!(%bot, layer = layer.name, "an active layer that is not the workspace's holds data; it stays");
            }
        }
        Ok(())
    }

    /// Removes what nobody needs and nothing stands on. What cannot be removed, as others may have put a layer of theirs
    /// on it, stays with all below it.
    async fn collect_released(&self, bot: &BotId) -> Result<()> {
        let records = self.records_of(bot, OVERLAYFS).await?;
        let mut staying: Vec<String> = Vec::new();
        for name in collectable(bot, &records) {
            let stands_on_it = |above: &String| {
                let above = find(&records, above);
                above.and_then(|layer| layer.parent.as_deref()) == Some(name.as_str())
            };
            if staying.iter().any(stands_on_it) {
                staying.push(name);
                continue;
            }
            match self.remove_snapshot(OVERLAYFS, &name).await {
                Ok(()) => failpoint::RELEASED_GONE.passed()?,
                Err(error @ RuntimeError::Unavailable { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%bot, layer = name, %error, "a layer that nobody needs cannot be removed, and stays");
                    staying.push(name);
                }
            }
        }
        Ok(())
    }

    async fn required_record(&self, bot: &BotId, name: &str) -> Result<LayerRecord> {
        let records = self.records_of(bot, OVERLAYFS).await?;
        find(&records, name).cloned().ok_or_else(|| no_such_layer(name))
    }

    async fn any_layer(&self, name: &str) -> Result<Option<LayerRecord>> {
        Ok(self.snapshot(OVERLAYFS, name).await?.map(record))
    }
}

#[async_trait]
impl Layers for ContainerdRuntime {
    async fn list(&self, bot: &BotId) -> Result<LayerTree> {
        let container = self.layered_container(bot).await?;
        let mut all = self.records_of(bot, OVERLAYFS).await?;
        // The image's layers are nobody's; they are asked for one by one.
        let mut next = Some(container.snapshot_key.clone());
        let mut seen = std::collections::BTreeSet::new();
        while let Some(name) = next.filter(|name| seen.insert(name.clone())) {
            if find(&all, &name).is_none() {
                all.extend(self.any_layer(&name).await?);
            }
            next = find(&all, &name).and_then(|layer| layer.parent.clone());
        }
        Ok(arrange(OVERLAYFS, &container.snapshot_key, all))
    }

    async fn present(&self, bot: &BotId) -> Result<Option<String>> {
        let _turn = self.turns.take(bot).await;
        self.end_abandoned_lease(bot).await?;
        match self.layered_container(bot).await {
            Ok(container) => match self.any_layer(&container.snapshot_key).await? {
                Some(_) => Ok(Some(container.snapshot_key)),
                None => self.mend_pointer(bot, &container).await.map(Some),
            },
            Err(RuntimeError::NotFound { .. }) => Ok(self.layer_of(bot, OVERLAYFS).await?.map(|layer| layer.key)),
            Err(error) => Err(error),
        }
    }

    async fn is_unchanged(&self, bot: &BotId) -> Result<bool> {
        let container = self.layered_container(bot).await?;
        let records = self.records_of(bot, OVERLAYFS).await?;
        match find(&records, &container.snapshot_key) {
            Some(present) => self.is_layer_unchanged(&records, present).await,
            // It was just committed, and nothing was made on it since.
            None => Ok(present_of(bot, &records).is_some()),
        }
    }

    async fn commit(&self, bot: &BotId, name: &str) -> Result<()> {
        check_layer_name(bot, name)?;
        let _turn = self.turns.take(bot).await;
        let container = self.layered_container(bot).await?;
        let records = self.records_of(bot, OVERLAYFS).await?;
        // The container may have gone on since: it is not put back.
        if find(&records, name).is_some() && find(&records, &container.snapshot_key).is_some() {
            // Of a try that was cut off when all but this was done.
            self.end_abandoned_lease(bot).await?;
            return self.mark_present(bot, OVERLAYFS, &container.snapshot_key).await;
        }
        let lease = self.take_lease(bot).await?;
        let committed = self.commit_leased(&lease, bot, (&container, records), name).await;
        let ended = self.end_lease(bot).await;
        committed.and(ended)
    }

    async fn stage(&self, bot: &BotId, name: &str, on: &str) -> Result<()> {
        check_layer_name(bot, name)?;
        let _turn = self.turns.take(bot).await;
        let records = self.records_of(bot, OVERLAYFS).await?;
        if find(&records, name).is_some_and(|layer| !layer.is_staged()) {
            return self.end_abandoned_lease(bot).await;
        }
        let below = find(&records, on).filter(|layer| layer.kind == LayerKind::Committed);
        let below = below.ok_or_else(|| no_such_layer(on))?;
        let lease = self.take_lease(bot).await?;
        let staged = self.stage_layer(Some(&lease), bot, (OVERLAYFS, name), below).await;
        let ended = self.end_lease(bot).await;
        staged.and(ended)
    }

    async fn swap(&self, bot: &BotId, name: &str) -> Result<()> {
        check_layer_name(bot, name)?;
        let _turn = self.turns.take(bot).await;
        let container = self.layered_container(bot).await?;
        self.take_lease(bot).await?;
        let swapped = self.swap_leased(bot, &container, name).await;
        let ended = self.end_lease(bot).await;
        swapped.and(ended)
    }

    async fn discard(&self, bot: &BotId, name: &str) -> Result<()> {
        check_layer_name(bot, name)?;
        let _turn = self.turns.take(bot).await;
        let records = self.records_of(bot, OVERLAYFS).await?;
        let Some(layer) = find(&records, name) else {
            return Ok(());
        };
        let used = match self.find_container(bot).await? {
            Some(container) => container.snapshot_key == name,
            None => false,
        };
        if !layer.is_staged() || used {
            return Err(RuntimeError::Rejected {
                reason: format!("the layer {name} is not staged"),
            });
        }
        self.remove_snapshot(OVERLAYFS, name).await?;
        failpoint::STAGED_GONE.passed()
    }

    async fn release(&self, bot: &BotId, name: &str) -> Result<()> {
        check_layer_name(bot, name)?;
        let _turn = self.turns.take(bot).await;
        let records = self.records_of(bot, OVERLAYFS).await?;
        match find(&records, name) {
            Some(layer) if layer.kind == LayerKind::Active => {
                return Err(RuntimeError::Rejected {
                    reason: format!("the layer {name} is not committed"),
                });
            }
            Some(layer) if !layer.is_released() => {
                self.label_layer(OVERLAYFS, name, &[(LABEL_RELEASED, LABEL_SET)])
                    .await?;
                failpoint::LAYER_RELEASED.passed()?;
            }
            Some(_) | None => {}
        }
        self.collect_released(bot).await
    }

    async fn shorten(&self, bot: &BotId, operation: &str, top: &str) -> Result<Vec<(String, String)>> {
        let turn = self.turns.take(bot).await;
        let lease = self.take_lease(bot).await?;
        let shortened = self.shorten_leased((&turn, &lease), bot, (operation, top)).await;
        let ended = self.end_lease(bot).await;
        shortened.and_then(|renamed| ended.map(|()| renamed))
    }

    async fn rebase(&self, bot: &BotId, name: &str, (on, copy): (&str, &str)) -> Result<()> {
        check_layer_name(bot, copy)?;
        let turn = self.turns.take(bot).await;
        let lease = self.take_lease(bot).await?;
        let rebased = self.rebase_leased((&turn, &lease), bot, (name, on, copy)).await;
        let ended = self.end_lease(bot).await;
        rebased.and(ended)
    }

    async fn stage_fresh(&self, bot: &BotId, name: &str, image: &ImageReference) -> Result<LayerMount> {
        check_layer_name(bot, name)?;
        let turn = self.turns.take(bot).await;
        let lease = self.take_lease(bot).await?;
        let staged = self.stage_fresh_leased(&lease, bot, (name, image)).await;
        let ended = self.end_lease(bot).await;
        drop(turn);
        staged.and(ended)?;
        self.mount_of(bot, name).await
    }

    async fn make_newest(&self, bot: &BotId, name: &str) -> Result<()> {
        check_layer_name(bot, name)?;
        let _turn = self.turns.take(bot).await;
        self.required_record(bot, name).await?;
        self.make_newest_now(bot, name).await
    }

    async fn mount_of(&self, bot: &BotId, name: &str) -> Result<LayerMount> {
        let layer = self.required_record(bot, name).await?;
        if layer.kind != LayerKind::Active {
            return Err(no_such_layer(name));
        }
        let request = self.client.request(MountsRequest {
            snapshotter: OVERLAYFS.to_owned(),
            key: name.to_owned(),
        });
        let answer = self.client.snapshots().mounts(request).await;
        let answer = answer.map_err(|status| failed(format!("the mounts of layer {name}"), status))?;
        single(name, answer.into_inner().mounts)
    }

    async fn bytes(&self, bot: &BotId, name: &str) -> Result<u64> {
        self.required_record(bot, name).await?;
        let request = self.client.request(UsageRequest {
            snapshotter: OVERLAYFS.to_owned(),
            key: name.to_owned(),
        });
        let answer = self.client.snapshots().usage(request).await;
        let answer = answer.map_err(|status| failed(format!("the size of layer {name}"), status))?;
        Ok(u64::try_from(answer.into_inner().size).unwrap_or(0))
    }
}

/// Looks at or changes the directory of an active layer, where there is one: `None` for a layer on nothing.
async fn on_upper<T: Send + 'static>(
    name: &str,
    mounts: Vec<Mount>,
    work: impl FnOnce(&Upper) -> std::io::Result<T> + Send + 'static,
) -> Result<Option<T>> {
    let Some(upper) = Upper::of(&single(name, mounts)?) else {
        return Ok(None);
    };
    let operation = format!("looking at the directory of layer {name}");
    match tokio::task::spawn_blocking(move || work(&upper)).await {
        Ok(done) => done.map(Some).map_err(|error| RuntimeError::other(operation, error)),
        Err(panicked) => Err(RuntimeError::other(operation, panicked)),
    }
}

fn single(name: &str, mounts: Vec<Mount>) -> Result<LayerMount> {
    let count = mounts.len();
    let mut mounts = mounts.into_iter();
    match (mounts.next(), count) {
        (Some(mount), 1) => Ok(LayerMount {
            kind: mount.r#type,
            source: mount.source,
            options: mount.options,
        }),
        _ => Err(RuntimeError::other(
            format!("mounting the layer {name}"),
            format!("it has {count} mounts"),
        )),
    }
}

fn find<'a>(records: &'a [LayerRecord], name: &str) -> Option<&'a LayerRecord> {
    records.iter().find(|layer| layer.name == name)
}

fn no_such_layer(name: &str) -> RuntimeError {
    RuntimeError::NotFound {
        what: format!("the layer {name}"),
    }
}
