//! One pull from beginning to end.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::stream::{self, TryStreamExt};
use skep_names::ImageReference;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::daemon::Lease;
use super::distribution::{Fetched, Repository};
use super::fetch::Fetcher;
use super::ingest::store_small;
use super::leases::{drop_abandoned_leases_of, end_lease, new_lease};
use super::manifest::{
    BadImage, Descriptor, Digest, Document, ImageConfig, Manifest, child_labels, for_this_host, parse_document,
};
use super::progress::Tracker;
use super::store::Inner;
use super::stored::{Documents, INDEX_DEPTH, missing_layers};
use super::unpack::{Step, Unpacker, written_to_disk};
use crate::{LayerPhase, Result, RuntimeError, failpoint};

/// Layers fetched at once: more would only share the same line.
const PARALLEL_LAYERS: usize = 3;

/// Everything a pull learns before the first layer.
struct Plan {
    /// What the name points to, down to the platform's manifest, with their bytes.
    path: Vec<Fetched>,
    manifest: Manifest,
    config: ImageConfig,
    config_bytes: Vec<u8>,
}

/// Fetches, unpacks and names an image. After a failure that may pass, what was fetched is kept for the next try;
/// after any other nothing stays.
pub(super) async fn pull(
    inner: &Inner,
    reference: &ImageReference,
    tracker: &Tracker,
    cancel: &CancellationToken,
) -> Result<()> {
    let repository = Repository::new(&inner.transport, &inner.registries, reference).await?;
    let cancelled = || RuntimeError::other(format!("pull {reference}"), "nobody waits for it any more");
    let plan = tokio::select! {
        plan = plan(&repository, reference) => plan?,
        () = cancel.cancelled() => return Err(cancelled()),
    };
    let lease = new_lease(inner, Some(reference)).await?;
    let work = Pull {
        inner,
        reference,
        lease: &lease,
        repository: &repository,
        tracker,
    };
    let done = tokio::select! {
        done = work.carry_out(&plan) => done,
        () = cancel.cancelled() => {
            end_lease(inner, &lease, false).await;
            return Err(cancelled());
        }
    };
    // Damaged or refused content is nothing to go on with; what came over a line that broke is.
    if done.is_err() && repository.has_given_up() {
        if let Some(oldest) = inner.interrupted.keep(reference, lease) {
            end_lease(inner, &oldest, false).await;
        }
    } else {
        for lease in inner.interrupted.take(reference).iter().chain([&lease]) {
            end_lease(inner, lease, done.is_ok()).await;
        }
        if done.is_ok() {
            drop_abandoned_leases_of(inner, reference).await;
        }
        failpoint::PULL_LEASE_GONE.passed()?;
    }
    done.map_err(|error| of_the_registry(reference, error))
}

/// What cannot be unpacked came from the registry.
fn of_the_registry(reference: &ImageReference, error: RuntimeError) -> RuntimeError {
    match error {
        RuntimeError::Rejected { reason } => RuntimeError::Registry {
            reason: format!("{reference}: {reason}"),
        },
        other => other,
    }
}

async fn plan(repository: &Repository<'_>, reference: &ImageReference) -> Result<Plan> {
    let bad = |error: BadImage| RuntimeError::Registry {
        reason: format!("{reference}: {error}"),
    };
    let mut path = vec![repository.resolve().await?];
    loop {
        let Some(current) = path.last() else {
            return Err(bad(BadImage("it has no manifest".to_owned())));
        };
        let (document, _) = parse_document(&current.bytes, Some(&current.descriptor.media_type)).map_err(bad)?;
        match document {
            Document::Index(manifests) if path.len() <= INDEX_DEPTH => {
                let child = for_this_host(&manifests).map_err(bad)?;
                path.push(repository.child(child).await?);
            }
            Document::Index(_) => return Err(bad(BadImage("its indexes are nested too deeply".to_owned()))),
            Document::Image(manifest) => {
                let config_bytes = repository.small_blob(&manifest.config).await?;
                let config = ImageConfig::parse(&config_bytes).map_err(bad)?;
                config.check_against(&manifest).map_err(bad)?;
                return Ok(Plan {
                    path,
                    manifest,
                    config,
                    config_bytes,
                });
            }
        }
    }
}

struct Pull<'a> {
    inner: &'a Inner,
    reference: &'a ImageReference,
    lease: &'a Lease,
    repository: &'a Repository<'a>,
    tracker: &'a Tracker,
}

impl Pull<'_> {
    async fn carry_out(&self, plan: &Plan) -> Result<()> {
        failpoint::PULL_LEASED.passed()?;
        let missing = missing_layers(&self.inner.daemon, &plan.manifest).await?;
        if !missing.is_empty() {
            self.tracker
                .begin(&plan.manifest.layers, |digest| !missing.contains(digest));
        }
        let (arrived, arrivals) = watch::channel(HashSet::new());
        let stack = Stack {
            lease: self.lease,
            manifest: &plan.manifest,
            config: &plan.config,
            snapshotter: &self.inner.snapshotter,
        };
        let told = |digest: &Digest, phase| self.tracker.phase(digest, phase);
        tokio::try_join!(
            self.fetch_layers(plan, &missing, arrived),
            unpack_layers(self.inner, &stack, &told, arrivals),
        )?;
        self.store_documents(plan).await?;
        failpoint::DOCUMENTS_STORED.passed()?;
        let target = plan.path.first().map(|fetched| &fetched.descriptor);
        let target = target.ok_or_else(|| RuntimeError::other("pull", "no manifest"))?;
        self.inner.daemon.put_image(self.reference.as_str(), target).await?;
        failpoint::IMAGE_NAMED.passed()
    }

    async fn fetch_layers(
        &self,
        plan: &Plan,
        missing: &HashSet<Digest>,
        arrived: watch::Sender<HashSet<Digest>>,
    ) -> Result<()> {
        let fetcher = Fetcher {
            daemon: &self.inner.daemon,
            lease: self.lease,
            repository: self.repository,
            tracker: self.tracker,
            locks: &self.inner.locks,
        };
        let mut seen = HashSet::new();
        let distinct = plan.manifest.layers.iter().filter(|layer| seen.insert(&layer.digest));
        let (fetcher, arrived) = (&fetcher, &arrived);
        stream::iter(distinct.map(Ok))
            .try_for_each_concurrent(PARALLEL_LAYERS, |layer: &Descriptor| async move {
                let labels = self.source_label(&layer.digest).await?;
                if missing.contains(&layer.digest) {
                    fetcher.fetch(layer, &labels).await?;
                    failpoint::BLOB_STORED.passed()?;
                } else {
                    self.hold(layer, &labels).await?;
                }
                arrived.send_modify(|arrived| {
                    arrived.insert(layer.digest.clone());
                });
                Ok(())
            })
            .await
    }

    /// Takes content that is there under our lease, so that it stays until it has a name.
    async fn hold(&self, layer: &Descriptor, labels: &BTreeMap<String, String>) -> Result<()> {
        self.inner.daemon.hold_blob(self.lease, &layer.digest).await?;
        self.inner.daemon.label_blob(&layer.digest, labels).await
    }

    /// Where content comes from, beside where else it came from before.
    async fn source_label(&self, digest: &Digest) -> Result<BTreeMap<String, String>> {
        let key = format!("containerd.io/distribution.source.{}", self.reference.host());
        let known = self.inner.daemon.blob_info(digest).await?;
        let known = known
            .and_then(|info| info.labels.get(&key).cloned())
            .unwrap_or_default();
        let mut sources: Vec<&str> = known.split(',').filter(|source| !source.is_empty()).collect();
        if !sources.contains(&self.reference.repository()) {
            sources.push(self.reference.repository());
        }
        Ok(BTreeMap::from([(key, sources.join(","))]))
    }

    async fn store_documents(&self, plan: &Plan) -> Result<()> {
        let mut labels = self.source_label(&plan.manifest.config.digest).await?;
        labels.extend(snapshot_label(&plan.config, &self.inner.snapshotter));
        store_small(&self.inner.daemon, self.lease, &plan.config_bytes, &labels).await?;
        // The lowest first: no document is ever stored before what it points to.
        for fetched in plan.path.iter().rev() {
            let (document, _) = parse_document(&fetched.bytes, Some(&fetched.descriptor.media_type))
                .map_err(super::stored::rejected)?;
            let mut labels = self.source_label(&fetched.descriptor.digest).await?;
            labels.extend(child_labels(&document));
            store_small(&self.inner.daemon, self.lease, &fetched.bytes, &labels).await?;
        }
        Ok(())
    }
}

/// On a configuration: the unpacked image lives as long as it.
pub(super) fn snapshot_label(config: &ImageConfig, snapshotter: &str) -> Option<(String, String)> {
    let top = config.chain_ids().pop()?;
    Some((format!("containerd.io/gc.ref.snapshot.{snapshotter}"), top))
}

/// A stack of layers to unpack.
struct Stack<'a> {
    lease: &'a Lease,
    manifest: &'a Manifest,
    config: &'a ImageConfig,
    snapshotter: &'a str,
}

/// Unpacks a stack in order, each layer once it has arrived. Ends early when nothing arrives any more.
async fn unpack_layers(
    inner: &Inner,
    stack: &Stack<'_>,
    told: &(dyn Fn(&Digest, LayerPhase) + Sync),
    mut arrivals: watch::Receiver<HashSet<Digest>>,
) -> Result<()> {
    let unpacker = Unpacker {
        daemon: &inner.daemon,
        lease: stack.lease,
        snapshotter: stack.snapshotter,
        locks: &inner.locks,
    };
    let chain = stack.config.chain_ids();
    let layers = stack.manifest.layers.iter().zip(&stack.config.rootfs.diff_ids);
    let mut to_come: HashMap<&Digest, usize> = HashMap::new();
    for layer in &stack.manifest.layers {
        *to_come.entry(&layer.digest).or_insert(0) += 1;
    }
    let mut written = None;
    let mut parent = "";
    for ((layer, diff_id), chain_id) in layers.zip(&chain) {
        let here = arrivals
            .wait_for(|arrived| arrived.contains(&layer.digest))
            .await
            .is_ok();
        if !here {
            // The fetching side has failed and tells why.
            return Ok(());
        }
        told(&layer.digest, LayerPhase::Extracting);
        let step = Step {
            layer,
            diff_id,
            chain_id,
            parent,
        };
        written = unpacker.unpack(&step).await?.or(written);
        let left = to_come.entry(&layer.digest).or_insert(1);
        *left -= 1;
        if *left == 0 {
            told(&layer.digest, LayerPhase::Done);
        }
        parent = chain_id;
    }
    match written {
        Some(directory) => written_to_disk(directory).await,
        None => Ok(()),
    }
}

/// Unpacks an image whose content is all there.
pub(super) async fn unpack_stored(inner: &Inner, documents: &Documents, snapshotter: &str) -> Result<()> {
    let lease = new_lease(inner, None).await?;
    let done = unpack_under(inner, &lease, documents, snapshotter).await;
    end_lease(inner, &lease, done.is_ok()).await;
    done
}

/// Unpacks under a lease and lets the configuration hold the result.
pub(super) async fn unpack_under(inner: &Inner, lease: &Lease, documents: &Documents, snapshotter: &str) -> Result<()> {
    let stack = Stack {
        lease,
        manifest: &documents.manifest,
        config: &documents.config,
        snapshotter,
    };
    let all = documents
        .manifest
        .layers
        .iter()
        .map(|layer| layer.digest.clone())
        .collect();
    let (_sender, arrivals) = watch::channel(all);
    unpack_layers(inner, &stack, &|_, _| {}, arrivals).await?;
    let label: BTreeMap<String, String> = snapshot_label(&documents.config, snapshotter).into_iter().collect();
    if label.is_empty() {
        return Ok(());
    }
    inner.daemon.label_blob(&documents.manifest.config.digest, &label).await
}
