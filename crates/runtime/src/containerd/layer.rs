//! Writable layers: one for each workspace, kept whatever happens to its container.

use std::collections::{BTreeSet, HashMap};

use containerd_client::services::v1::snapshots::{
    Info, Kind, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::types::Mount;
use skep_names::{BotId, LABEL_BOT, LABEL_DATA_ROOT};
use tonic::Code;

use super::ContainerdRuntime;
use super::client::{collect, failed};
use crate::{LayerOutcome, Result, RuntimeError};

/// Makes a snapshot a root of garbage collection: a layer lives until we remove it, with or without a container.
const LABEL_GC_ROOT: &str = "containerd.io/gc.root";
/// The image a layer was made from, so that a container made anew above it says so.
pub(super) const LABEL_IMAGE: &str = "skep.image";

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
    /// The layer of a bot, if it has one.
    pub(super) async fn layer_of(&self, bot: &BotId, snapshotter: &str) -> Result<Option<Layer>> {
        let container_id = skep_names::container_id_for(bot);
        let filters = self.filters_of(bot);
        let mut infos = self.snapshots(snapshotter, filters).await?;
        infos.retain(|info| info.kind == Kind::Active as i32 && self.is_ours(&info.labels));
        // The plain name wins: others are left-overs of a change that was cut short. Then the newest.
        infos.sort_by_key(|info| {
            (
                info.name == container_id,
                info.created_at.map(|at| (at.seconds, at.nanos)),
            )
        });
        Ok(infos.pop().map(|info| Layer {
            key: info.name,
            snapshotter: snapshotter.to_owned(),
            image: info.labels.get(LABEL_IMAGE).cloned(),
            outcome: LayerOutcome::Kept,
        }))
    }

    /// Makes the layer of a bot above a stack of layers.
    ///
    /// No lease is needed: the label that keeps it is stored in the same transaction as the layer itself, and
    /// the layer keeps its parents.
    pub(super) async fn make_layer(&self, bot: &BotId, snapshotter: &str, image: &str, parent: &str) -> Result<Layer> {
        let key = skep_names::container_id_for(bot);
        let labels = HashMap::from([
            (LABEL_GC_ROOT.to_owned(), chrono::Utc::now().to_rfc3339()),
            (LABEL_BOT.to_owned(), bot.to_string()),
            (LABEL_DATA_ROOT.to_owned(), self.config.data_root_id.clone()),
            (LABEL_IMAGE.to_owned(), image.to_owned()),
        ]);
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
        let mut filters = self.filters_of(bot);
        filters.extend(more.map(|key| format!("name=={key}")));
        let mut infos = self.snapshots(snapshotter, filters).await?;
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

    async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<()> {
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

    /// Bots of this data root that have a writable layer.
    pub(super) async fn bots_with_layers(&self) -> Result<Vec<BotId>> {
        let data_root = &self.config.data_root_id;
        let filters = vec![format!("labels.\"{LABEL_DATA_ROOT}\"==\"{data_root}\",kind==active")];
        let infos = self.snapshots(&self.config.snapshotter, filters).await?;
        let bots = infos.iter().filter_map(|info| info.labels.get(LABEL_BOT)?.parse().ok());
        Ok(bots.collect::<BTreeSet<BotId>>().into_iter().collect())
    }

    /// By label, and by name: the reference system's snapshots have no labels of ours.
    fn filters_of(&self, bot: &BotId) -> Vec<String> {
        vec![
            format!("labels.\"{LABEL_BOT}\"==\"{bot}\""),
            format!("name~=\"^{}\"", skep_names::container_id_for(bot)),
        ]
    }

    async fn snapshots(&self, snapshotter: &str, filters: Vec<String>) -> Result<Vec<Info>> {
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
