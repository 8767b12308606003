//! What makes, starts, stops, removes and reports workspaces, and nothing that decides.
//!
//! [`Runtime`] is the one trait; [`containerd`](crate::containerd) is the first backend. A backend
//! knows no users and no policy, and keeps its own words (lease, shim, snapshotter) to itself.
//! Exec, files and terminals do not pass here: they go over the bridge.

pub mod cdi;
mod cgroup;
pub mod containerd;
mod counters;
mod error;
pub mod failpoint;
mod free_space;
mod freezer;
pub mod host;
mod image;
pub mod images;
mod instance;
mod isolation;
pub mod layer_access;
pub mod layers;
pub mod log;
mod nameless;
pub mod network;
mod peer;
mod spec;
mod system_calls;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use skep_names::{BotId, ImageReference};
use tokio::sync::broadcast;

pub use error::{Result, RuntimeError};
pub use free_space::free_space;
pub use image::{ImageRecord, LayerPhase, LayerProgress, PullCredentials, PullProgress};
pub use instance::{
    BridgeEndpoint, Capabilities, Check, CheckStatus, CreateOutcome, Instance, InstanceSpec, IoBytes, Isolation,
    LayerOutcome, Limits, NetworkBytes, RuntimeEvent, Started, StorageHeld, Swept, TaskState, Usage,
};
pub use layers::{LayerKind, LayerMount, LayerRecord, LayerTree, Layers};
pub use peer::listener_is_in_cgroup;

/// One backend. Every verb may be repeated: doing again what is done is a success.
///
/// A cancelled call leaves something a repeat mends, never something a repeat trips over.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// What this backend can do.
    fn capabilities(&self) -> Capabilities;

    /// Real probes by name (`runtime`, `network`, …), for readiness.
    async fn checks(&self) -> Vec<Check>;

    /// All images that are stored.
    async fn images(&self) -> Result<Vec<ImageRecord>>;

    /// The stored image, under its full or its short name; `None` when it is not there or not complete.
    async fn image(&self, reference: &ImageReference) -> Result<Option<ImageRecord>>;

    /// The stored image; one whose content is all here but not unpacked is unpacked first, without asking a
    /// registry. `None` when it is not there or lacks content, so that only a pull can complete it.
    async fn complete_image(&self, reference: &ImageReference) -> Result<Option<ImageRecord>> {
        self.image(reference).await
    }

    /// Fetches and unpacks an image from its registry; what is there already is not fetched again.
    async fn pull(&self, reference: &ImageReference, progress: Arc<dyn PullProgress>) -> Result<ImageRecord>;

    /// Stores an image from an OCI archive, a docker-archive or a tar of an OCI layout.
    /// `name` overrides the name in the archive and is needed when it has none.
    async fn import(&self, archive: ImageArchive, name: Option<&ImageReference>) -> Result<Vec<ImageRecord>>;

    /// Removes an image. `Rejected` while a workspace uses it; a missing one is a success.
    async fn remove_image(&self, reference: &ImageReference) -> Result<()>;

    /// Removes every image that no workspace uses, `kept` excepted, and what pulls that failed have fetched. Returns
    /// what went; what was removed before a failure stays removed.
    async fn prune_images(&self, kept: &[ImageReference]) -> Result<Vec<ImageRecord>>;

    /// Makes the container and its writable layer. An existing layer of this bot is used as it is,
    /// whatever the image; an existing container is kept.
    async fn create(&self, spec: &InstanceSpec) -> Result<CreateOutcome>;

    /// Starts process 1 with its namespaces and network; a running one is left running and its network checked.
    /// On failure all that this call made is undone.
    async fn start(&self, bot: &BotId, limits: &Limits) -> Result<Started>;

    /// SIGTERM, at most `grace`, then SIGKILL of everything; then releases network and namespaces.
    /// Returns only when no process is left.
    async fn stop(&self, bot: &BotId, grace: Duration) -> Result<()>;

    /// Removes task, network, container and every layer of this bot. The image stays.
    async fn remove(&self, bot: &BotId) -> Result<()>;

    /// What there is of this bot now, asked of the backend.
    async fn inspect(&self, bot: &BotId) -> Result<Option<Instance>>;

    /// What there is of each of these bots now, as true as [`Runtime::inspect`] of each, and much cheaper for many.
    async fn inspect_all(&self, bots: &[BotId]) -> Result<HashMap<BotId, Instance>>;

    /// All instances of this data root.
    async fn list(&self) -> Result<Vec<Instance>>;

    /// Bots of this data root that have a layer, those without a container included: their data is there, in an
    /// active layer or in a committed one.
    async fn bots_with_layers(&self) -> Result<Vec<BotId>>;

    /// Whether this bot is one of [`Runtime::bots_with_layers`], without asking for those of all others.
    async fn has_layer(&self, bot: &BotId) -> Result<bool>;

    /// Keeping states of a workspace and going back to them; `None` where the backend cannot.
    fn layers(&self) -> Option<&dyn Layers> {
        None
    }

    /// Task ends and reconnections, as they happen. A receiver that lags lists anew.
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;

    /// Applies limits to a running workspace at once.
    async fn apply_limits(&self, bot: &BotId, limits: &Limits) -> Result<()>;

    /// What of these limits a start puts in force on this host; 0 for what it does not limit. Storage is the rules'
    /// own matter: they measure it, and refuse what would add to it.
    fn limits_in_force(&self, limits: &Limits) -> Limits {
        Limits {
            storage_bytes: 0,
            ..*limits
        }
    }

    /// Counters of a running workspace; `NotFound` when it does not run. Needs no daemon: local state only.
    async fn usage(&self, bot: &BotId) -> Result<Usage>;

    /// What all layers of this bot hold, the image's excepted. Counts files, so it may take long: nobody who waits for
    /// an answer calls it. `NotFound` when the bot has no layer.
    async fn storage_held(&self, bot: &BotId) -> Result<StorageHeld>;

    /// The same of many, one after the other, in their order, as far as the stream is read. Costs less than a question
    /// about each.
    fn storage_held_by<'a>(&'a self, bots: &'a [BotId]) -> BoxStream<'a, Result<StorageHeld>> {
        futures::stream::iter(bots)
            .then(move |bot| self.storage_held(bot))
            .boxed()
    }

    /// What [`free_space`] tells of the file system that holds the layers of all workspaces. Cheap: asked twice a second.
    async fn free_bytes(&self) -> Result<u64>;

    /// Bytes that the processes of a running workspace have written to files since its start, those included that
    /// are not on the disk yet or have no name any more; `NotFound` when it does not run. Needs no daemon.
    async fn written_bytes(&self, bot: &BotId) -> Result<u64>;

    /// Bytes on a disk of files that the processes of a running workspace hold open, or mapped, and that have no name
    /// any more; `NotFound` when it does not run. Needs no daemon.
    async fn nameless_bytes(&self, bot: &BotId) -> Result<u64>;

    /// How often the kernel has refused each of these workspaces a process or thread since its start, as it had as many
    /// as it may; those that do not run are not in it. 0 where the host does not count this. Needs no daemon.
    async fn refused_processes(&self, bots: &[BotId]) -> Result<HashMap<BotId, u64>>;

    /// Where the bridge of a running workspace listens. Needs no daemon: local state only.
    fn bridge_endpoint(&self, bot: &BotId) -> Result<BridgeEndpoint>;

    /// Where the log of this bot's bridge is, whether the workspace runs or not. Needs no daemon: local state only.
    /// The backend keeps a copy at each end of a workspace, and removes it with the workspace.
    fn log_places(&self, bot: &BotId) -> log::LogPlaces;

    /// Removes what a crash left on the host (mounts, namespaces, addresses, rules, claims) of bots
    /// that have no live task, and sees to it that those that run are kept apart as they were at their start. Called at
    /// start, and by reconcile.
    async fn sweep(&self) -> Result<Swept>;

    /// `/data` of workspaces that do not run, where a backend can reach it from outside.
    fn layer_access(&self) -> Option<&dyn layer_access::LayerAccess> {
        None
    }

    /// The devices of this host that a workspace can be given, by name; none where the backend gives none.
    async fn devices(&self) -> Result<Vec<cdi::Device>>;

    /// Whether a workspace that is made now could be given all of these. `Rejected` says what is in the way.
    async fn check_devices(&self, names: &[String]) -> Result<()>;

    /// What was given to the processes of a bot's container when it was made, beside what its image says and what every
    /// workspace has: for a record that is lost. Empty without a container, and for a legacy one, whose environment is
    /// its own.
    async fn given_environment(&self, bot: &BotId) -> Result<BTreeMap<String, String>>;

    /// The address of a running workspace, when it has one.
    async fn address(&self, bot: &BotId) -> Result<Option<IpAddr>>;
}

/// An archive to import, read once from its start.
pub type ImageArchive = Box<dyn tokio::io::AsyncRead + Send + Unpin>;
