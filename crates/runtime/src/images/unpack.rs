//! Unpacks layers into a snapshotter, each as soon as it and all below it are there.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::types::Mount;
use tonic::Code;

use super::daemon::{Daemon, Lease, UNPACK_LIMIT, failed, under, wire_descriptor};
use super::keyed_lock::KeyedLock;
use super::manifest::{Descriptor, Digest};
use super::owners;
use crate::{Result, RuntimeError, failpoint};

/// Names the stack that a prepared layer is meant to become.
const LABEL_TARGET: &str = "containerd.io/snapshot.ref";
/// On a layer's blob: the digest of its bare tar.
const LABEL_UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// What the path of containerd's mount of a layer ends in, before a number.
const TEMPORARY_MOUNT: &str = "/containerd-mount";
/// Characters of containerd's words that a caller is told; the log has all.
const CAUSE_LIMIT: usize = 512;

/// Where and in whose name layers are unpacked.
pub(super) struct Unpacker<'a> {
    pub(super) daemon: &'a Daemon,
    pub(super) lease: &'a Lease,
    pub(super) snapshotter: &'a str,
    pub(super) locks: &'a KeyedLock,
}

/// One layer and its place in the stack.
pub(super) struct Step<'a> {
    pub(super) layer: &'a Descriptor,
    /// Digest of its bare tar, as the configuration says.
    pub(super) diff_id: &'a Digest,
    /// The stack it completes.
    pub(super) chain_id: &'a str,
    /// The stack below it; empty for the lowest.
    pub(super) parent: &'a str,
}

impl Unpacker<'_> {
    /// Unpacks one layer on the stack below it; one that is there is left alone. Returns where the files
    /// went, when there were any and that is known: they are not on the disk yet ([`written_to_disk`]).
    pub(super) async fn unpack(&self, step: &Step<'_>) -> Result<Option<PathBuf>> {
        let _only_one = self
            .locks
            .lock(&format!("{} {}", self.snapshotter, step.chain_id))
            .await;
        // Held before it is looked up: what is found then cannot be collected any more.
        self.daemon
            .hold_snapshot(self.lease, self.snapshotter, step.chain_id)
            .await?;
        let written = if self.daemon.has_snapshot(self.snapshotter, step.chain_id).await? {
            None
        } else {
            self.extract(step).await?
        };
        let label = BTreeMap::from([(LABEL_UNCOMPRESSED.to_owned(), step.diff_id.to_string())]);
        self.daemon.label_blob(&step.layer.digest, &label).await?;
        Ok(written)
    }

    async fn extract(&self, step: &Step<'_>) -> Result<Option<PathBuf>> {
        let key = format!("extract-{} {}", uuid::Uuid::new_v4().simple(), step.chain_id);
        let operation = format!("unpack layer {}", step.layer.digest);
        let message = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            key: key.clone(),
            parent: step.parent.to_owned(),
            labels: target_label(step),
        };
        let request = self.daemon.leased_request(message, self.lease);
        let mounts = match self.daemon.snapshots().prepare(request).await {
            Ok(answer) => answer.into_inner().mounts,
            // Another program has finished the same stack meanwhile.
            Err(status) if status.code() == Code::AlreadyExists => {
                return if self.daemon.has_snapshot(self.snapshotter, step.chain_id).await? {
                    Ok(None)
                } else {
                    Err(failed(&operation, status))
                };
            }
            Err(status) => return Err(failed(&operation, status)),
        };
        let upper = upper_directory(&mounts);
        let applied = async {
            failpoint::LAYER_PREPARED.passed()?;
            self.apply(step, mounts).await?;
            failpoint::LAYER_APPLIED.passed()?;
            self.commit(step, &key).await?;
            failpoint::LAYER_COMMITTED.passed()
        };
        let applied = applied.await;
        if let Err(error) = applied {
            self.discard(&key).await;
            return Err(error);
        }
        if let Some(upper) = upper.clone() {
            owners::warn_of_foreign_ids(upper, step.layer.digest.to_string()).await;
        }
        Ok(upper)
    }

    async fn apply(&self, step: &Step<'_>, mounts: Vec<Mount>) -> Result<()> {
        let mut diff = wire_descriptor(step.layer);
        if let Some(known) = known_to_every_version(&diff.media_type) {
            known.clone_into(&mut diff.media_type);
        }
        let message = ApplyRequest {
            diff: Some(diff),
            mounts,
            ..Default::default()
        };
        let mut request = under(self.daemon.unlimited_request(message), self.lease);
        request.set_timeout(UNPACK_LIMIT);
        let applied = self.daemon.diff().apply(request).await;
        let applied = applied.map_err(|status| not_unpacked(step, status))?;
        let got = applied.into_inner().applied.unwrap_or_default().digest;
        if got != step.diff_id.as_str() {
            let (layer, promised) = (&step.layer.digest, step.diff_id);
            return Err(RuntimeError::Rejected {
                reason: format!("layer {layer} unpacks to {got}, the image's configuration says {promised}"),
            });
        }
        Ok(())
    }

    async fn commit(&self, step: &Step<'_>, key: &str) -> Result<()> {
        let message = CommitSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            name: step.chain_id.to_owned(),
            key: key.to_owned(),
            labels: target_label(step),
        };
        let request = self.daemon.leased_request(message, self.lease);
        match self.daemon.snapshots().commit(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                self.discard(key).await;
                Ok(())
            }
            Err(status) => Err(failed(&format!("store unpacked layer {}", step.layer.digest), status)),
        }
    }

    /// Removes a half-unpacked layer. Should it fail, garbage collection does it when the lease is gone.
    async fn discard(&self, key: &str) {
        let message = RemoveSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let removed = self.daemon.snapshots().remove(self.daemon.request(message)).await;
        if let Err(status) = removed.map(drop)
            && status.code() != Code::NotFound
        {
            tracing::warn!(key, %status, "a half-unpacked layer is left to garbage collection");
        }
    }
}

/// containerd 1.6 unpacks zstd, yet not under the name that docker gave it later.
fn known_to_every_version(media_type: &str) -> Option<&'static str> {
    (media_type == "application/vnd.docker.image.rootfs.diff.tar.zstd")
        .then_some("application/vnd.oci.image.layer.v1.tar+zstd")
}

fn target_label(step: &Step<'_>) -> HashMap<String, String> {
    HashMap::from([(LABEL_TARGET.to_owned(), step.chain_id.to_owned())])
}

/// What a layer holds is a stranger's work: a tar that cannot be unpacked is its fault, not containerd's.
fn not_unpacked(step: &Step<'_>, status: tonic::Status) -> RuntimeError {
    let digest = &step.layer.digest;
    let cause = without_host_paths(status.message());
    match failed(&format!("unpack layer {digest}"), status) {
        RuntimeError::Other { source, .. } => {
            tracing::warn!(layer = %digest, %source, "a layer cannot be unpacked");
            RuntimeError::Rejected {
                reason: format!("layer {digest} cannot be unpacked: {cause}"),
            }
        }
        known => known,
    }
}

/// containerd's words for a caller: paths below its temporary mount as the layer has them, the names in them cut
/// where a stranger made them long.
fn without_host_paths(message: &str) -> String {
    let words = message.split(' ').map(|word| match word.split_once(TEMPORARY_MOUNT) {
        Some((_, rest)) => match rest.trim_start_matches(|character: char| character.is_ascii_digit()) {
            inside if inside.starts_with('/') => inside.to_owned(),
            after => format!("/{after}"),
        },
        None => word.to_owned(),
    });
    let text = words.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(CAUSE_LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Waits until all that was written to a directory's file system is on its disk. A directory out of our reach
/// (another mount namespace) is left to containerd.
///
/// Once for all layers of an image, not for each: every wait would be for the layers still arriving, too.
pub(super) async fn written_to_disk(directory: PathBuf) -> Result<()> {
    let synced = tokio::task::spawn_blocking(move || match std::fs::File::open(&directory) {
        Ok(opened) => rustix::fs::syncfs(opened).map_err(std::io::Error::from),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::debug!(directory = %directory.display(), "the layer is out of reach and was not synced");
            Ok(())
        }
        Err(error) => Err(error),
    });
    let operation = "write an unpacked layer to the disk";
    let synced = synced.await.map_err(|error| RuntimeError::other(operation, error))?;
    synced.map_err(|error| RuntimeError::other(operation, error))
}

/// Where the layer's own files land, when the snapshotter keeps them in a directory.
fn upper_directory(mounts: &[Mount]) -> Option<PathBuf> {
    let [mount] = mounts else { return None };
    match mount.r#type.as_str() {
        "bind" => Some(PathBuf::from(&mount.source)),
        "overlay" => mount
            .options
            .iter()
            .find_map(|option| option.strip_prefix("upperdir="))
            .map(PathBuf::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_not_told_where_containerd_mounts_a_layer() {
        let told = without_host_paths(
            "mount callback failed on /var/lib/c/tmpmounts/containerd-mount2603267886: \
             link /var/lib/c/tmpmounts/containerd-mount2603267886/etc/shadow: no such file or directory",
        );
        assert_eq!(
            told,
            "mount callback failed on /: link /etc/shadow: no such file or directory"
        );
    }

    #[test]
    fn a_long_name_in_a_layer_is_cut_in_the_answer() {
        let told = without_host_paths(&"ä".repeat(10_000));
        assert_eq!(told.chars().count(), CAUSE_LIMIT + 1);
    }
}
