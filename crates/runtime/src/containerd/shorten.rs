//! A line of layers made shorter: those that nobody needs are merged into the one above each, and what stands on
//! them is made anew the same way. Nothing that is there is changed; the caller puts the workspace onto the result.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use containerd_client::services::v1::snapshots::{CommitSnapshotRequest, PrepareSnapshotRequest};
use containerd_client::types::Mount;
use skep_names::BotId;
use tokio_util::sync::CancellationToken;

use super::client::failed;
use super::lease::Lease;
use super::merge::merge;
use super::turns::Turn;
use super::usage::COUNT_LIMIT;
use super::{ContainerdRuntime, OVERLAYFS};
use crate::images::LABEL_IMAGE;
use crate::layers::{LABEL_RELEASED, LABEL_SEQUENCE, LABEL_SET, LABEL_STAGED, Merge, plan_of_merges};
use crate::{Result, RuntimeError, failpoint};

/// Where a new layer goes and what becomes of it.
struct Wanted<'a> {
    name: &'a str,
    on: &'a str,
    labels: HashMap<String, String>,
}

impl ContainerdRuntime {
    /// The layers that took the place of others: old name, new name. Those whose state nobody needs are not told,
    /// but the highest always is.
    pub(super) async fn shorten_leased(
        &self,
        (turn, lease): (&Arc<Turn>, &Lease),
        bot: &BotId,
        (operation, top): (&str, &str),
    ) -> Result<Vec<(String, String)>> {
        let records = self.records_of(bot, OVERLAYFS).await?;
        let merges = plan_of_merges(bot, operation, (top, &records));
        if merges.is_empty() {
            return Ok(Vec::new());
        }
        let looking = format!("{}-{operation}-looking", skep_names::container_id_for(bot));
        let directories = self.directories_below(lease, bot, (&looking, top)).await?;
        for one in &merges {
            let sources = one
                .layers
                .iter()
                .map(|name| directory_of(&directories, name))
                .collect::<Result<Vec<_>>>()?;
            let image = records
                .iter()
                .find(|record| record.name == one.top())
                .and_then(|record| record.labels.get(LABEL_IMAGE));
            let mut labels = self.layer_labels(bot, image.map(String::as_str));
            if one.released {
                labels.insert(LABEL_RELEASED.to_owned(), LABEL_SET.to_owned());
            }
            let wanted = Wanted {
                name: &one.name,
                on: &one.on,
                labels,
            };
            self.make_merged((turn, lease), bot, &wanted, sources).await?;
        }
        let highest = merges.last().map(|one| one.name.clone());
        let told = |one: &Merge| !one.released || Some(&one.name) == highest.as_ref();
        Ok(merges
            .into_iter()
            .filter(told)
            .map(|one| (one.top().to_owned(), one.name))
            .collect())
    }

    /// The same layer on another one that means the same as what it stands on.
    pub(super) async fn rebase_leased(
        &self,
        (turn, lease): (&Arc<Turn>, &Lease),
        bot: &BotId,
        (name, on, copy): (&str, &str, &str),
    ) -> Result<()> {
        let looking = format!("{copy}-looking");
        let directories = self.directories_below(lease, bot, (&looking, name)).await?;
        let source = directory_of(&directories, name)?;
        let records = self.records_of(bot, OVERLAYFS).await?;
        let copied = records.iter().find(|record| record.name == name);
        let label = |key: &str| copied.and_then(|record| record.labels.get(key));
        let mut labels = self.layer_labels(bot, label(LABEL_IMAGE).map(String::as_str));
        // As new a state as the one that it copies, and no newer one: what is written above that comes after both.
        if let Some(sequence) = label(LABEL_SEQUENCE) {
            labels.insert(LABEL_SEQUENCE.to_owned(), sequence.clone());
        }
        let wanted = Wanted { name: copy, on, labels };
        self.make_merged((turn, lease), bot, &wanted, vec![source]).await
    }

    async fn make_merged(
        &self,
        (turn, lease): (&Arc<Turn>, &Lease),
        bot: &BotId,
        wanted: &Wanted<'_>,
        sources: Vec<PathBuf>,
    ) -> Result<()> {
        let records = self.records_of(bot, OVERLAYFS).await?;
        if records.iter().any(|record| record.name == wanted.name) {
            return Ok(());
        }
        let key = format!("{}-making", wanted.name);
        // Half of it may be there from a try that was cut off.
        self.remove_snapshot(OVERLAYFS, &key).await?;
        let made = self.merge_into((turn, lease), bot, wanted, (&key, sources)).await;
        if made.is_err() {
            self.remove_snapshot(OVERLAYFS, &key).await?;
        }
        made
    }

    /// Fills a staged layer and commits it. The thread that fills it ends soon after this is dropped, and until then the bot's
    /// turn is not over.
    async fn merge_into(
        &self,
        (turn, lease): (&Arc<Turn>, &Lease),
        bot: &BotId,
        wanted: &Wanted<'_>,
        (key, sources): (&str, Vec<PathBuf>),
    ) -> Result<()> {
        let mounts = self.prepare_staged(lease, bot, (key, wanted.on), None).await?;
        failpoint::MERGE_PREPARED.passed()?;
        let destination = option_of(&mounts, "upperdir=").ok_or_else(|| not_overlay(key))?;
        let operation = format!("merging layers into {}", wanted.name);
        let (turn, unwanted) = (Arc::clone(turn), CancellationToken::new());
        let ends = unwanted.clone();
        let _ended_with_this = unwanted.drop_guard();
        let merging = tokio::task::spawn_blocking(move || {
            let merged = merge(&sources, &PathBuf::from(destination), &|| !ends.is_cancelled());
            drop(turn);
            merged
        });
        let merged = merging.await;
        let merged = merged.map_err(|panicked| RuntimeError::other(&operation, panicked))?;
        merged.map_err(|error| RuntimeError::other(operation, error))?;
        failpoint::LAYERS_MERGED.passed()?;
        let request = CommitSnapshotRequest {
            snapshotter: OVERLAYFS.to_owned(),
            name: wanted.name.to_owned(),
            key: key.to_owned(),
            labels: wanted.labels.clone(),
        };
        let request = lease.under(self.client.request_within(request, COUNT_LIMIT));
        let committed = self.client.snapshots().commit(request).await;
        committed.map_err(|status| failed(format!("committing the layer {}", wanted.name), status))?;
        failpoint::MERGE_COMMITTED.passed()
    }

    pub(super) async fn prepare_staged(
        &self,
        lease: &Lease,
        bot: &BotId,
        (key, on): (&str, &str),
        image: Option<&str>,
    ) -> Result<Vec<Mount>> {
        let mut labels = self.layer_labels(bot, image);
        labels.insert(LABEL_STAGED.to_owned(), LABEL_SET.to_owned());
        let request = self.client.request(PrepareSnapshotRequest {
            snapshotter: OVERLAYFS.to_owned(),
            key: key.to_owned(),
            parent: on.to_owned(),
            labels,
        });
        let prepared = self.client.snapshots().prepare(lease.under(request)).await;
        let prepared = prepared.map_err(|status| failed(format!("making a layer on {on}"), status))?;
        Ok(prepared.into_inner().mounts)
    }

    /// Where the bot's layers from `top` down are on the host. containerd tells it of a layer made on them alone, which is
    /// called `key` meanwhile.
    async fn directories_below(
        &self,
        lease: &Lease,
        bot: &BotId,
        (key, top): (&str, &str),
    ) -> Result<HashMap<String, PathBuf>> {
        let records = self.records_of(bot, OVERLAYFS).await?;
        self.remove_snapshot(OVERLAYFS, key).await?;
        let mounts = self.prepare_staged(lease, bot, (key, top), None).await?;
        self.remove_snapshot(OVERLAYFS, key).await?;
        let lower = option_of(&mounts, "lowerdir=").ok_or_else(|| not_overlay(top))?;
        let mut found = HashMap::new();
        let mut next = Some(top.to_owned());
        for directory in lower.split(':') {
            let Some(record) = next.and_then(|name| records.iter().find(|record| record.name == name)) else {
                break;
            };
            found.insert(record.name.clone(), PathBuf::from(directory));
            next = record.parent.clone();
        }
        Ok(found)
    }
}

fn directory_of(directories: &HashMap<String, PathBuf>, name: &str) -> Result<PathBuf> {
    directories.get(name).cloned().ok_or_else(|| RuntimeError::NotFound {
        what: format!("the directory of the layer {name}"),
    })
}

fn option_of(mounts: &[Mount], name: &str) -> Option<String> {
    let [mount] = mounts else { return None };
    mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix(name))
        .map(str::to_owned)
}

fn not_overlay(name: &str) -> RuntimeError {
    RuntimeError::other(
        format!("looking for the directory of the layer {name}"),
        "it is no overlay",
    )
}
