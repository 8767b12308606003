//! A runtime on plain directories: real bridges, real files and real processes, started in milliseconds.
//!
//! An image is a directory with a static busybox, a layer is a copy of it, process 1 is the bridge this
//! workspace is built with, in a pid and a mount namespace of its own. Needs root, `unshare` and
//! `/bin/busybox`. It isolates nothing and enforces no limit: for the rules above the runtime, not for its walls.
//! Dropping it ends every process and removes every directory.

mod data;
mod devices;
mod faults;
mod images;
mod layers;
mod process;
mod record;
mod tree;
mod usage;
mod verbs;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_names::{BotId, ImageReference, SOCKET_FILE_NAME};
use skep_runtime::log::LogPlaces;
use skep_runtime::{LayerRecord, Result, RuntimeError, RuntimeEvent};
use tokio::sync::broadcast;

pub use faults::{Faults, Hold, Verb};
pub use images::FakeLayer;
use images::Images;
use process::Process;
use record::Record;

use crate::reference_bridge::ReferenceBridge;

/// The image that is stored from the start.
pub const FAKE_IMAGE: &str = "docker.io/library/busybox:latest";

/// Events kept for a receiver that lags.
const EVENTS: usize = 256;

#[derive(Default)]
struct Bot {
    record: Option<Record>,
    layers: Vec<LayerRecord>,
    process: Option<Arc<Process>>,
    /// Counts starts, so that the end of an earlier process is not taken for that of the present one.
    generation: u64,
    argv: Option<Vec<String>>,
    /// Bytes it is said to have written, and how many more at each look.
    written: (u64, u64),
    /// Bytes it is said to hold in files without a name.
    nameless: u64,
    /// How often it is said to have been refused a process.
    refused_processes: u64,
    /// What is said to be missing of its network.
    broken_network: Option<String>,
    /// What the server is shown in the place of the bridge.
    shown: Option<ReferenceBridge>,
    gate: Arc<tokio::sync::Mutex<()>>,
}

struct Shared {
    faults: Faults,
    images: Images,
    // Before the directories in the order of drops: processes end first.
    bots: Mutex<HashMap<BotId, Bot>>,
    events: broadcast::Sender<RuntimeEvent>,
    root: tempfile::TempDir,
    has_no_layers: AtomicBool,
    free_bytes: AtomicU64,
    has_no_devices: AtomicBool,
}

/// The fake backend. Clones are the same runtime.
#[derive(Clone)]
pub struct FakeRuntime {
    shared: Arc<Shared>,
}

impl FakeRuntime {
    /// A runtime below a temporary directory, with [`FAKE_IMAGE`] stored.
    ///
    /// # Errors
    /// When the host lacks busybox or the rights to make device nodes.
    pub fn new() -> io::Result<Self> {
        let root = tempfile::Builder::new().prefix("skep-fake-").tempdir()?;
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755))?;
        for directory in ["image", "bots", "cdi", "runtime", "runtime/templates"] {
            std::fs::create_dir(root.path().join(directory))?;
        }
        let bridge = root.path().join("runtime/bridge");
        std::fs::write(&bridge, skep_bridge_binary::BRIDGE)?;
        std::fs::set_permissions(&bridge, std::fs::Permissions::from_mode(0o755))?;
        skep_bridge_binary::unpack_layer_program(root.path())?;
        tree::make_busybox_root(&root.path().join("image"))?;
        let shared = Shared {
            images: Images::with_stored(FAKE_IMAGE),
            root,
            faults: Faults::default(),
            bots: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            has_no_layers: AtomicBool::new(false),
            free_bytes: AtomicU64::new(u64::MAX),
            has_no_devices: AtomicBool::new(false),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// From now on it is a backend that neither keeps states nor lets data be reached from outside.
    pub fn go_without_layers(&self) {
        self.shared.has_no_layers.store(true, Ordering::Relaxed);
    }

    /// From now on so much is free for all layers together; a host without end until then.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.shared.free_bytes.store(bytes, Ordering::Relaxed);
    }

    /// From now on this workspace has written so many bytes more at each look, whether they can be found or not.
    pub fn write_on(&self, bot: &BotId, bytes_per_look: u64) {
        self.lock().entry(bot.clone()).or_default().written.1 = bytes_per_look;
    }

    /// This workspace has written so many bytes in all until now.
    pub fn written_in_all(&self, bot: &BotId, bytes: u64) {
        self.lock().entry(bot.clone()).or_default().written.0 = bytes;
    }

    /// From now on this workspace holds so many bytes in files that have no name any more.
    pub fn hold_nameless(&self, bot: &BotId, bytes: u64) {
        self.lock().entry(bot.clone()).or_default().nameless = bytes;
    }

    /// From now on it is a backend that gives no devices.
    pub fn go_without_devices(&self) {
        self.shared.has_no_devices.store(true, Ordering::Relaxed);
    }

    /// From now on this workspace was refused a process so many times since its start.
    pub fn set_refused_processes(&self, bot: &BotId, times: u64) {
        self.lock().entry(bot.clone()).or_default().refused_processes = times;
    }

    /// From now on this is missing of the network of this workspace, whenever it runs; `None`: nothing.
    pub fn set_broken_network(&self, bot: &BotId, missing: Option<&str>) {
        self.lock().entry(bot.clone()).or_default().broken_network = missing.map(str::to_owned);
    }

    /// What goes wrong, waits or is counted.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Offers an image in the "registry" of this runtime, to be pulled with these layers.
    pub fn offer_image(&self, reference: &ImageReference, layers: Vec<FakeLayer>) {
        self.shared.images.offer(reference, layers);
    }

    /// The daemon stops answering; running workspaces go on.
    pub fn go_away(&self) {
        self.faults().set_unavailable(true);
        self.tell(RuntimeEvent::Disconnected);
    }

    /// The daemon answers again.
    pub fn come_back(&self) {
        self.faults().set_unavailable(false);
        self.tell(RuntimeEvent::Reconnected);
    }

    /// Kills process 1 as the kernel or a tenant would; the event tells it. Says whether there was one.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn kill_process_one(&self, bot: &BotId) -> io::Result<bool> {
        let process = self.lock().get(bot).and_then(|state| state.process.clone());
        match process {
            Some(process) => process.signal(rustix::process::Signal::KILL).map(|()| true),
            None => Ok(false),
        }
    }

    /// Tells that the kernel killed a process of the workspace for want of memory, which the fake never has.
    pub fn tell_out_of_memory(&self, bot: &BotId) {
        self.tell(RuntimeEvent::OutOfMemory { bot: bot.clone() });
    }

    /// Takes container and layers away at once, as no verb does.
    ///
    /// # Errors
    /// When its processes cannot be ended, or its files not be removed.
    pub async fn lose(&self, bot: &BotId) -> Result<()> {
        let _alone = self.alone(bot).await;
        self.end_process(bot, Duration::ZERO).await?;
        if let Some(state) = self.lock().get_mut(bot) {
            state.record = None;
            state.layers.clear();
        }
        let layers = self.directory_of(bot).join("layers");
        blocking("remove the layers", move || match std::fs::remove_dir_all(&layers) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }

    /// Forgets the container and keeps its layer, as if someone had removed it with the daemon's own tools.
    pub fn forget_container(&self, bot: &BotId) {
        if let Some(state) = self.lock().get_mut(bot) {
            state.record = None;
        }
    }

    /// What the next starts of this bot run as process 1 in place of the bridge.
    pub fn replace_process_one(&self, bot: &BotId, argv: &[&str]) {
        let argv = argv.iter().map(|&part| part.to_owned()).collect();
        self.lock().entry(bot.clone()).or_default().argv = Some(argv);
    }

    /// From the next connection on the server reaches the reference's service alone, on TCP.
    ///
    /// # Errors
    /// When no address of the loopback is free.
    pub async fn show_only_the_reference(&self, bot: &BotId) -> io::Result<()> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let socket = self.socket_directory_of(bot).join(SOCKET_FILE_NAME);
        let shown = ReferenceBridge::serve(listener, socket)?;
        self.lock().entry(bot.clone()).or_default().shown = Some(shown);
        Ok(())
    }

    /// How many connections were made to what [`Self::show_only_the_reference`] shows.
    pub fn connections_to_the_reference(&self, bot: &BotId) -> usize {
        let bots = self.lock();
        let shown = bots.get(bot).and_then(|state| state.shown.as_ref());
        shown.map_or(0, ReferenceBridge::connections)
    }

    /// The next starts of this bot run the bridge again.
    pub fn restore_process_one(&self, bot: &BotId) {
        self.lock().entry(bot.clone()).or_default().argv = None;
    }

    /// Process 1 as the host sees it, while it runs.
    pub fn host_pid(&self, bot: &BotId) -> Option<i32> {
        let process = self.lock().get(bot).and_then(|state| state.process.clone())?;
        process.ended().is_none().then(|| process.host_pid()).flatten()
    }

    /// The root file system of a bot on the host, that of its present layer; it exists while that does.
    pub fn layer_path(&self, bot: &BotId) -> PathBuf {
        let present = self.lock().get(bot).and_then(|state| state.present(bot));
        let name = present.unwrap_or_else(|| skep_names::container_id_for(bot));
        self.layer_directory(bot, &name)
    }

    /// The root file system of the image that layers are copied from, on the host.
    pub fn image_path(&self) -> PathBuf {
        self.root().join("image")
    }

    /// What a bot's process 1 said on its stderr.
    pub fn log_path(&self, bot: &BotId) -> PathBuf {
        self.directory_of(bot).join("bridge.log")
    }

    fn free(&self) -> u64 {
        self.shared.free_bytes.load(Ordering::Relaxed)
    }

    fn has_devices(&self) -> bool {
        !self.shared.has_no_devices.load(Ordering::Relaxed)
    }

    fn has_layers(&self) -> bool {
        !self.shared.has_no_layers.load(Ordering::Relaxed)
    }

    fn directory_of(&self, bot: &BotId) -> PathBuf {
        self.root().join("bots").join(bot.as_str())
    }

    fn socket_directory_of(&self, bot: &BotId) -> PathBuf {
        self.directory_of(bot).join("run")
    }

    fn root(&self) -> &Path {
        self.shared.root.path()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BotId, Bot>> {
        self.shared.bots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: RuntimeEvent) {
        // An error means only that nobody listens.
        if self.shared.events.send(event).is_err() {
            tracing::trace!("an event of the fake runtime had no listener");
        }
    }

    /// One verb at a time per bot, as a real backend's locks have it.
    async fn alone(&self, bot: &BotId) -> tokio::sync::OwnedMutexGuard<()> {
        let gate = Arc::clone(&self.lock().entry(bot.clone()).or_default().gate);
        gate.lock_owned().await
    }

    /// Takes the present process out, so that its end is not told as an event, and ends it.
    async fn end_process(&self, bot: &BotId, grace: Duration) -> Result<()> {
        let taken = self.lock().get_mut(bot).and_then(|state| {
            state.generation += 1;
            state.process.take()
        });
        let Some(process) = taken else { return Ok(()) };
        blocking("stop process 1", move || {
            process.signal(rustix::process::Signal::TERM)?;
            if !process.wait(grace) {
                process.signal(rustix::process::Signal::KILL)?;
            }
            process.wait(Duration::from_secs(60));
            Ok(())
        })
        .await?;
        let places = self.log_of(bot);
        blocking("keep the log", move || skep_runtime::log::keep(&places)).await
    }

    fn log_of(&self, bot: &BotId) -> LogPlaces {
        LogPlaces {
            live_directory: self.socket_directory_of(bot),
            kept_file: self.root().join("logs").join(format!("{bot}.log")),
        }
    }
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(|error| RuntimeError::other(operation, error)),
        Err(error) => Err(RuntimeError::other(operation, error)),
    }
}
