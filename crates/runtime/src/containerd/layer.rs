//! Layers as containerd keeps them: found, made, mounted and removed, whatever happens to their containers.

use std::collections::{BTreeSet, HashMap};

use chrono::DateTime;
use containerd_client::services::v1::snapshots::{
    Info, Kind, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types::Mount;
use prost_types::Timestamp;
use skep_names::{BotId, LABEL_BOT, LABEL_DATA_ROOT, WORKSPACE_PREFIX, container_id_for};
use tonic::Code;

use super::ContainerdRuntime;
use super::client::{collect, failed, optional};
use crate::images::LABEL_IMAGE;
use crate::layers::{LABEL_SEQUENCE, present_of};
use crate::{LayerKind, LayerOutcome, LayerRecord, Result, RuntimeError};

/// Makes a snapshot a root of garbage collection: a layer lives until we remove it, with or without a container.
const LABEL_GC_ROOT: &str = "containerd.io/gc.root";
/// Characters of a bot's id in the names of its layers.
const UUID_LENGTH: usize = 36;

/// A writable layer.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) key: String,
    pub(super) snapshotter: String,
    /// Full name of the image below it, when it is known.
    pub(super) image: Option<String>,
    pub(super) outcome: LayerOutcome,
}

impl ContainerdRuntime {
    /// The layer of a bot without a container, if it has one. Where a crash left only committed ones, a new
    /// active one is made on the newest.
    pub(super) async fn layer_of(&self, bot: &BotId, snapshotter: &str) -> Result<Option<Layer>> {
        let records = self.records_of(bot, snapshotter).await?;
        let Some(present) = present_of(bot, &records) else {
            return Ok(None);
        };
        let key = match present.kind {
            LayerKind::Active => present.name.clone(),
            LayerKind::Committed => self.prepare_on(bot, snapshotter, present).await?,
        };
        Ok(Some(Layer {
            key,
            snapshotter: snapshotter.to_owned(),
            image: present.labels.get(LABEL_IMAGE).cloned(),
            outcome: LayerOutcome::Kept,
        }))
    }

    /// Makes the first layer of a bot above a stack of layers.
    ///
    /// No lease is needed: the label that keeps it is stored in the same transaction as the layer itself, and
    /// the layer keeps its parents.
    pub(super) async fn make_layer(&self, bot: &BotId, snapshotter: &str, image: &str, parent: &str) -> Result<Layer> {
        let key = container_id_for(bot);
        let mut labels = self.layer_labels(bot, Some(image));
        labels.insert(LABEL_SEQUENCE.to_owned(), "1".to_owned());
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels,
        };
        let prepared = self.client.snapshots().prepare(self.client.request(request)).await;
        match prepared {
            Ok(_) => Ok(Layer {
                key,
                snapshotter: snapshotter.to_owned(),
                image: Some(image.to_owned()),
                outcome: LayerOutcome::Made,
            }),
            // Not ours, or it would have been found: never removed, never used.
            Err(status) if status.code() == Code::AlreadyExists => Err(RuntimeError::AlreadyExists {
                what: format!("a layer {key} of another owner"),
            }),
            Err(status) if status.code() == Code::NotFound => Err(RuntimeError::NotFound {
                what: format!("the unpacked layers of image {image}"),
            }),
            Err(status) => Err(failed(format!("making the layer of workspace {bot}"), status)),
        }
    }

    /// What every layer of ours is labelled with.
    pub(super) fn layer_labels(&self, bot: &BotId, image: Option<&str>) -> HashMap<String, String> {
        let mut labels = HashMap::from([
            (LABEL_GC_ROOT.to_owned(), chrono::Utc::now().to_rfc3339()),
            (LABEL_BOT.to_owned(), bot.to_string()),
            (LABEL_DATA_ROOT.to_owned(), self.config.data_root_id.clone()),
        ]);
        labels.extend(image.map(|image| (LABEL_IMAGE.to_owned(), image.to_owned())));
        labels
    }

    /// How a layer is mounted.
    pub(super) async fn layer_mounts(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        let request = containerd_client::services::v1::snapshots::MountsRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let answer = self.client.snapshots().mounts(self.client.request(request)).await;
        let answer = answer.map_err(|status| failed(format!("the mounts of layer {key}"), status))?;
        Ok(answer.into_inner().mounts)
    }

    /// Removes every snapshot of a bot, children first.
    pub(super) async fn remove_layers(&self, bot: &BotId, snapshotter: &str, more: Option<&str>) -> Result<()> {
        let mut infos = self.layers_of(bot, snapshotter).await?;
        if let Some(more) = more.filter(|more| infos.iter().all(|info| info.name != *more)) {
            infos.extend(self.snapshot(snapshotter, more).await?);
        }
        infos.retain(|info| self.is_ours(&info.labels));
        while !infos.is_empty() {
            let parents: BTreeSet<String> = infos.iter().map(|info| info.parent.clone()).collect();
            let (inner, leaves): (Vec<_>, Vec<_>) = infos.into_iter().partition(|info| parents.contains(&info.name));
            if leaves.is_empty() {
                let names: Vec<_> = inner.iter().map(|info| info.name.as_str()).collect();
                return Err(RuntimeError::other(
                    "removing layers",
                    format!("{names:?} stand on each other"),
                ));
            }
            for leaf in leaves {
                self.remove_snapshot(snapshotter, &leaf.name).await?;
            }
            infos = inner;
        }
        Ok(())
    }

    pub(super) async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<()> {
        let request = RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        match self.client.snapshots().remove(self.client.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(failed(format!("removing the layer {key}"), status)),
        }
    }

    /// Bots of this data root that have a layer: by label, and by name those of the reference system.
    pub(super) async fn list_bots_with_layers(&self) -> Result<Vec<BotId>> {
        let infos = self.layers_of_all_bots().await?;
        let bots = infos
            .iter()
            .filter(|info| self.is_ours(&info.labels))
            .filter_map(bot_of_layer);
        Ok(bots.collect::<BTreeSet<BotId>>().into_iter().collect())
    }

    /// By the name of a first layer, which most have; else by all that it has.
    pub(super) async fn has_layer_of(&self, bot: &BotId) -> Result<bool> {
        let is_its = |info: &Info| self.is_ours(&info.labels) && bot_of_layer(info).as_ref() == Some(bot);
        let snapshotter = &self.config.snapshotter;
        let first = self.snapshot(snapshotter, &container_id_for(bot)).await?;
        if first.as_ref().is_some_and(is_its) {
            return Ok(true);
        }
        let infos = self.layers_of(bot, snapshotter).await?;
        Ok(infos.iter().any(is_its))
    }

    /// All layers of a bot that are ours or the reference system's.
    pub(super) async fn records_of(&self, bot: &BotId, snapshotter: &str) -> Result<Vec<LayerRecord>> {
        let mut infos = self.layers_of(bot, snapshotter).await?;
        infos.retain(|info| self.is_ours(&info.labels));
        Ok(infos.into_iter().map(record).collect())
    }

    pub(super) async fn snapshot(&self, snapshotter: &str, name: &str) -> Result<Option<Info>> {
        let request = self.client.request(StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: name.to_owned(),
        });
        let answer = optional(self.client.snapshots().stat(request).await, || format!("layer {name}"))?;
        Ok(answer.and_then(|answer| answer.info))
    }

    pub(super) async fn snapshots(&self, snapshotter: &str, filters: Vec<String>) -> Result<Vec<Info>> {
        let operation = format!("listing the layers in {snapshotter}");
        let request = self.client.request(ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            filters,
        });
        let stream = self.client.snapshots().list(request).await;
        let stream = stream.map_err(|status| failed(&operation, status))?.into_inner();
        let parts = collect(stream, &operation).await?;
        Ok(parts.into_iter().flat_map(|part| part.info).collect())
    }

    /// Without a data root's label it is the reference system's, and ours to take over.
    pub(super) fn is_ours(&self, labels: &HashMap<String, String>) -> bool {
        labels
            .get(LABEL_DATA_ROOT)
            .is_none_or(|id| *id == self.config.data_root_id)
    }
}

/// A layer as it is told.
pub(super) fn record(info: Info) -> LayerRecord {
    LayerRecord {
        name: info.name,
        parent: Some(info.parent).filter(|parent| !parent.is_empty()),
        kind: match info.kind == Kind::Committed as i32 {
            true => LayerKind::Committed,
            false => LayerKind::Active,
        },
        created_at: time(info.created_at),
        updated_at: time(info.updated_at),
        labels: info.labels.into_iter().collect(),
    }
}

/// The label wins over the name.
pub(super) fn bot_of_layer(info: &Info) -> Option<BotId> {
    if let Some(label) = info.labels.get(LABEL_BOT) {
        return label.parse().ok();
    }
    let rest = info.name.strip_prefix(WORKSPACE_PREFIX)?;
    rest.get(..UUID_LENGTH)?.parse().ok()
}

fn time(stamp: Option<Timestamp>) -> DateTime<chrono::Utc> {
    let stamp = stamp.unwrap_or_default();
    DateTime::from_timestamp(stamp.seconds, u32::try_from(stamp.nanos).unwrap_or(0)).unwrap_or_default()
}
