//! The containerd backend: the only place that knows its words (lease, shim, snapshotter, chain id).
//!
//! containerd keeps images, layers and container records and supervises tasks. Ids, namespaces, root file
//! system and socket directory are made by ourselves ([`crate::isolation`]), the network too.

mod bundle;
mod by_label;
mod client;
mod config;
mod container;
pub mod daemon;
mod data;
mod devices;
mod echo;
mod events;
mod fresh;
mod guards;
mod host;
mod layer;
mod layer_names;
mod layers;
mod lease;
mod legacy;
mod lifecycle;
mod many;
mod merge;
mod oci_runtime;
mod pace;
mod picture;
mod records;
mod resolver;
mod shims;
mod shorten;
mod since;
mod task;
mod turns;
mod upper;
mod usage;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1::PluginsRequest;
use futures::stream::BoxStream;
use skep_names::{BotId, ImageReference, SOCKET_FILE_NAME, is_legacy};
use tokio::sync::{OnceCell, broadcast};

pub use config::{ContainerdConfig, IsolationConfig, UserNamespaceMode};

use crate::cdi::Device;
use crate::images::{ImageStore, ImageStoreConfig};
use crate::isolation::{AppArmor, HostPaths};
use crate::layer_access::LayerAccess;
use crate::log::LogPlaces;
use crate::network::{Network, NetworkConfig};
use crate::spec::LimitSupport;
use crate::{
    BridgeEndpoint, Capabilities, Check, CheckStatus, CreateOutcome, ImageArchive, ImageRecord, Instance, InstanceSpec,
    Layers, Limits, PullProgress, Result, Runtime, RuntimeError, RuntimeEvent, Started, StorageHeld, Swept, Usage,
};
use by_label::ByLabel;
use client::Client;
use echo::Echoes;
use layer_names::LayerNames;
use picture::Picture;
use records::Records;
use resolver::Resolving;
use turns::Turns;

/// Events that wait for a slow reader; one that lags lists anew.
const EVENT_QUEUE: usize = 1024;
/// The snapshotter that can do all we ask for.
const OVERLAYFS: &str = "overlayfs";
/// The port of containers made before the bridge existed.
const LEGACY_PORT: u16 = 9090;
/// A readiness probe does not wait as long as a verb.
const CHECK_LIMIT: Duration = Duration::from_secs(5);
/// With CAP_SYS_RESOURCE a hard limit may be raised this far.
const CAP_SYS_RESOURCE: u32 = 24;

/// Workspaces on containerd.
pub struct ContainerdRuntime {
    config: ContainerdConfig,
    client: Client,
    images: ImageStore,
    network: Network,
    paths: Arc<HostPaths>,
    records: Arc<Records>,
    resolving: Resolving,
    turns: Turns,
    picture: Picture,
    by_label: ByLabel,
    layer_names: LayerNames,
    echoes: Echoes,
    events: broadcast::Sender<RuntimeEvent>,
    limit_support: LimitSupport,
    user_namespace_probe: OnceCell<std::result::Result<(), String>>,
    apparmor: AppArmor,
    // Empty: the runtime's own default.
    oci_runtime: OnceCell<PathBuf>,
    parent_cgroup: OnceCell<()>,
    layers_root: OnceCell<PathBuf>,
    /// Since this server began, or containerd's events were lost.
    was_swept: AtomicBool,
    follower: OnceLock<tokio::task::JoinHandle<()>>,
}

impl ContainerdRuntime {
    /// Makes the backend. containerd need not be there: it is reached when it is needed, and its events are
    /// followed from now on.
    ///
    /// # Errors
    /// A configuration that can never work, a resolver that cannot be read or written, or records of the last server that
    /// cannot be listed.
    pub fn new(config: ContainerdConfig) -> Result<Arc<Self>> {
        let client = Client::new(&config.socket, &config.namespace)?;
        let images = ImageStoreConfig {
            namespace: config.namespace.clone(),
            snapshotter: config.snapshotter.clone(),
            data_root_id: config.data_root_id.clone(),
            registries: config.registries.clone(),
        };
        let images = ImageStore::new(client.channel(), images)?;
        let paths = HostPaths {
            run_root: config.run_root.clone(),
            run_dir: config.run_root.join(&config.data_root_id),
            data_root: config.data_root.clone(),
        };
        let records = Records::load(&paths).map_err(host::on_host_failed)?;
        let mut resolving = Resolving::begin(&config, &paths, &records)?;
        let network = Network::new(NetworkConfig {
            resolvers: resolving.open_at_first(),
            ..config.network.clone()
        })?;
        let runtime = Arc::new(Self {
            client: client.clone(),
            images,
            network,
            paths: Arc::new(paths),
            records: Arc::new(records),
            resolving,
            turns: Turns::default(),
            picture: Picture::default(),
            by_label: ByLabel::default(),
            layer_names: LayerNames::default(),
            echoes: Echoes::default(),
            events: broadcast::Sender::new(EVENT_QUEUE),
            limit_support: LimitSupport::of_this_host(),
            user_namespace_probe: OnceCell::new(),
            apparmor: AppArmor::of_this_host(),
            oci_runtime: OnceCell::new(),
            parent_cgroup: OnceCell::new(),
            layers_root: OnceCell::new(),
            was_swept: AtomicBool::new(false),
            follower: OnceLock::new(),
            config,
        });
        let followed = events::follow(Arc::downgrade(&runtime), client, runtime.events.clone());
        runtime.follower.get_or_init(|| tokio::spawn(followed));
        Ok(runtime)
    }

    /// The network of its workspaces, for preparing it before the first start and for taking it down.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Its images, for what goes beyond the verbs all backends have (pruning).
    pub fn image_store(&self) -> &ImageStore {
        &self.images
    }

    /// Hard limit of open files that tasks can have: what containerd may raise, else its own. Asked of the one that
    /// runs now: the next may be started with less.
    fn open_files_hard(&self) -> Result<u64> {
        Ok(hard_limit_of_open_files(self.daemon_process()?))
    }

    /// containerd, as the host numbers it now.
    fn daemon_process(&self) -> Result<i32> {
        daemon::peer_process(&self.config.socket).ok_or(RuntimeError::Unavailable {
            runtime: "containerd",
            source: None,
        })
    }

    /// Where the snapshotter keeps its layers, as containerd tells.
    async fn snapshotter_root(&self) -> Result<PathBuf> {
        let id = &self.config.snapshotter;
        let request = self.client.request(PluginsRequest {
            filters: vec![format!("type==\"io.containerd.snapshotter.v1\",id==\"{id}\"")],
        });
        let answer = self.client.introspection().plugins(request).await;
        let answer = answer.map_err(|status| client::failed("asking for the snapshotter", status))?;
        let plugin = answer.into_inner().plugins.into_iter().next();
        let root = plugin.and_then(|plugin| plugin.exports.get("root").map(PathBuf::from));
        root.ok_or_else(|| RuntimeError::NotFound {
            what: format!("the snapshotter {id} in containerd"),
        })
    }

    async fn runtime_check(&self) -> Check {
        let asked = self.client.request_within((), CHECK_LIMIT);
        let (status, detail) = match self.client.version().version(asked).await {
            Err(status) => (
                CheckStatus::Error,
                format!("containerd does not answer: {}", status.message()),
            ),
            Ok(version) => match self.same_mounts_as_daemon() {
                Err(error) => (CheckStatus::Error, error.to_string()),
                Ok(()) => (
                    CheckStatus::Ok,
                    format!("containerd {} answers", version.into_inner().version),
                ),
            },
        };
        Check {
            name: "runtime",
            status,
            detail,
        }
    }
}

impl Drop for ContainerdRuntime {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.get() {
            follower.abort();
        }
    }
}

fn hard_limit_of_open_files(pid: i32) -> u64 {
    let wanted = crate::spec::OPEN_FILES.1;
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let capabilities = read("status");
    let effective = capabilities.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if effective.is_some_and(|effective| effective & (1 << CAP_SYS_RESOURCE) != 0) {
        return wanted;
    }
    let limits = read("limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    hard.unwrap_or(crate::spec::OPEN_FILES.0)
}

#[async_trait]
impl Runtime for ContainerdRuntime {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: "containerd",
            snapshots: self.layers().is_some(),
            gpu: self.gives_devices(),
            snapshotters: vec![self.config.snapshotter.clone()],
        }
    }

    async fn checks(&self) -> Vec<Check> {
        let (runtime, users, apparmor, network) = tokio::join!(
            self.runtime_check(),
            self.user_namespace_check(),
            self.apparmor_check(),
            self.network.readiness()
        );
        vec![runtime, users, self.seccomp_check(), apparmor, network]
    }

    async fn images(&self) -> Result<Vec<ImageRecord>> {
        self.images.images().await
    }

    async fn image(&self, reference: &ImageReference) -> Result<Option<ImageRecord>> {
        self.images.image(reference).await
    }

    async fn complete_image(&self, reference: &ImageReference) -> Result<Option<ImageRecord>> {
        self.images.complete(reference).await
    }

    async fn pull(&self, reference: &ImageReference, progress: Arc<dyn PullProgress>) -> Result<ImageRecord> {
        self.images.pull(reference, progress).await
    }

    async fn import(&self, archive: ImageArchive, name: Option<&ImageReference>) -> Result<Vec<ImageRecord>> {
        self.images.import(archive, name).await
    }

    async fn remove_image(&self, reference: &ImageReference) -> Result<()> {
        self.images.remove(reference).await
    }

    async fn prune_images(&self, kept: &[ImageReference]) -> Result<Vec<ImageRecord>> {
        self.images.prune(kept).await
    }

    async fn create(&self, spec: &InstanceSpec) -> Result<CreateOutcome> {
        let _changing = self.picture.changing(&spec.bot);
        self.create_container(spec).await
    }

    async fn start(&self, bot: &BotId, limits: &Limits) -> Result<Started> {
        let _changing = self.picture.changing(bot);
        self.start_workspace(bot, limits).await
    }

    async fn stop(&self, bot: &BotId, grace: Duration) -> Result<()> {
        let _changing = self.picture.changing(bot);
        self.stop_workspace(bot, grace).await
    }

    async fn remove(&self, bot: &BotId) -> Result<()> {
        let _changing = self.picture.changing(bot);
        self.remove_workspace(bot).await
    }

    async fn inspect(&self, bot: &BotId) -> Result<Option<Instance>> {
        match self.find_container(bot).await? {
            Some(container) => Ok(Some(self.with_task(bot.clone(), container).await?)),
            None => Ok(None),
        }
    }

    async fn inspect_all(&self, bots: &[BotId]) -> Result<HashMap<BotId, Instance>> {
        self.instances_of(bots).await
    }

    async fn list(&self) -> Result<Vec<Instance>> {
        self.list_instances().await
    }

    async fn bots_with_layers(&self) -> Result<Vec<BotId>> {
        self.list_bots_with_layers().await
    }

    async fn has_layer(&self, bot: &BotId) -> Result<bool> {
        self.has_layer_of(bot).await
    }

    fn layers(&self) -> Option<&dyn Layers> {
        // Another one's layers cannot be looked into, nor be merged.
        (self.config.snapshotter == OVERLAYFS).then_some(self)
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    async fn apply_limits(&self, bot: &BotId, limits: &Limits) -> Result<()> {
        let _turn = self.turns.take(bot).await;
        let container = self.required_container(bot).await?;
        if self.config.isolation.without_limits {
            return Ok(());
        }
        self.update_task(&container.id, limits).await
    }

    fn limits_in_force(&self, limits: &Limits) -> Limits {
        if self.config.isolation.without_limits {
            return Limits::default();
        }
        Limits {
            storage_bytes: 0,
            ..*limits
        }
    }

    async fn usage(&self, bot: &BotId) -> Result<Usage> {
        self.counted(bot).await
    }

    async fn storage_held(&self, bot: &BotId) -> Result<StorageHeld> {
        self.measured_layers(bot).await
    }

    fn storage_held_by<'a>(&'a self, bots: &'a [BotId]) -> BoxStream<'a, Result<StorageHeld>> {
        self.measured_layers_of(bots)
    }

    async fn free_bytes(&self) -> Result<u64> {
        self.free_for_layers().await
    }

    async fn written_bytes(&self, bot: &BotId) -> Result<u64> {
        self.written(bot).await
    }

    async fn nameless_bytes(&self, bot: &BotId) -> Result<u64> {
        self.nameless(bot).await
    }

    async fn refused_processes(&self, bots: &[BotId]) -> Result<HashMap<BotId, u64>> {
        self.refused(bots).await
    }

    fn bridge_endpoint(&self, bot: &BotId) -> Result<BridgeEndpoint> {
        let running = self.records.get(bot).ok_or_else(|| not_running(bot))?;
        if is_legacy(&running.container_id) {
            if !running.is_still_there() {
                return Err(not_running(bot));
            }
            let address = self.known_address(bot)?.ok_or_else(|| not_running(bot))?;
            return Ok(BridgeEndpoint::Tcp(SocketAddr::new(address, LEGACY_PORT)));
        }
        Ok(BridgeEndpoint::Unix {
            directory: self.paths.socket_directory(bot),
            file_name: SOCKET_FILE_NAME.to_owned(),
            owner_uid: running.root_uid(),
            // Without ids of its own a workspace's root is the host's and every other workspace's.
            cgroup: running.ids.is_none().then(|| running.cgroup.clone()),
        })
    }

    fn log_places(&self, bot: &BotId) -> LogPlaces {
        self.paths.log(bot)
    }

    async fn sweep(&self) -> Result<Swept> {
        self.sweep_host().await
    }

    fn layer_access(&self) -> Option<&dyn LayerAccess> {
        Some(self)
    }

    async fn devices(&self) -> Result<Vec<Device>> {
        self.list_devices().await
    }

    async fn check_devices(&self, names: &[String]) -> Result<()> {
        self.devices_can_be_given(names).await
    }

    async fn given_environment(&self, bot: &BotId) -> Result<BTreeMap<String, String>> {
        self.environment_given_to(bot).await
    }

    async fn address(&self, bot: &BotId) -> Result<Option<IpAddr>> {
        self.known_address(bot)
    }
}

fn not_running(bot: &BotId) -> RuntimeError {
    RuntimeError::NotFound {
        what: format!("a running workspace of bot {bot}"),
    }
}
