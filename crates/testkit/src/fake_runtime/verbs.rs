//! The verbs of [`Runtime`], on directories.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use skep_names::{BotId, ImageReference, SOCKET_FILE_NAME};
use skep_runtime::cdi::Device;
use skep_runtime::layer_access::LayerAccess;
use skep_runtime::log::LogPlaces;
use skep_runtime::{
    BridgeEndpoint, Capabilities, Check, CheckStatus, CreateOutcome, ImageArchive, ImageRecord, Instance, InstanceSpec,
    Layers, Limits, PullProgress, Result, Runtime, RuntimeError, RuntimeEvent, Started, StorageHeld, Swept, TaskState,
    Usage,
};
use tokio::io::AsyncReadExt;
use tokio::sync::broadcast;

use super::faults::Verb;
use super::layers::SNAPSHOTTER;
use super::process::{Launch, Process, tail_of};
use super::record::{self, Record};
use super::{Bot, FakeRuntime, blocking, usage};

/// The largest archive the fake takes: it holds it in memory.
const MAX_ARCHIVE_BYTES: u64 = 64 << 20;

#[async_trait]
impl Runtime for FakeRuntime {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: "fake",
            snapshots: self.layers().is_some(),
            gpu: self.has_devices(),
            snapshotters: vec![SNAPSHOTTER.to_owned()],
        }
    }

    async fn checks(&self) -> Vec<Check> {
        let (status, detail) = if self.faults().is_unavailable() {
            (CheckStatus::Error, "the fake runtime is away".to_owned())
        } else {
            let fine = || (CheckStatus::Ok, "the fake runtime answers".to_owned());
            self.faults().check().unwrap_or_else(fine)
        };
        vec![Check {
            name: "runtime",
            status,
            detail,
        }]
    }

    async fn images(&self) -> Result<Vec<ImageRecord>> {
        self.faults().enter(Verb::Images).await?;
        Ok(self
            .shared
            .images
            .all()
            .into_iter()
            .map(|image| self.with_use(image))
            .collect())
    }

    async fn image(&self, reference: &ImageReference) -> Result<Option<ImageRecord>> {
        self.faults().enter(Verb::Images).await?;
        Ok(self.shared.images.stored(reference).map(|image| self.with_use(image)))
    }

    async fn pull(&self, reference: &ImageReference, progress: Arc<dyn PullProgress>) -> Result<ImageRecord> {
        self.faults().enter(Verb::Pull).await?;
        self.shared.images.pull(reference, progress.as_ref()).await
    }

    async fn import(&self, archive: ImageArchive, name: Option<&ImageReference>) -> Result<Vec<ImageRecord>> {
        self.faults().enter(Verb::Import).await?;
        let mut bytes = Vec::new();
        let read = archive.take(MAX_ARCHIVE_BYTES).read_to_end(&mut bytes).await;
        read.map_err(|error| RuntimeError::other("read the archive", error))?;
        self.shared.images.import(&bytes, name)
    }

    async fn remove_image(&self, reference: &ImageReference) -> Result<()> {
        self.faults().enter(Verb::RemoveImage).await?;
        if self.is_used(reference) {
            return Err(RuntimeError::Rejected {
                reason: format!("image {} is in use", reference.as_str()),
            });
        }
        self.shared.images.remove(reference);
        Ok(())
    }

    async fn prune_images(&self, kept: &[ImageReference]) -> Result<Vec<ImageRecord>> {
        let mut removed = Vec::new();
        for image in self.images().await? {
            if !image.in_use && !kept.contains(&image.name) {
                self.remove_image(&image.name).await?;
                removed.push(image);
            }
        }
        Ok(removed)
    }

    async fn create(&self, spec: &InstanceSpec) -> Result<CreateOutcome> {
        let _alone = self.alone(&spec.bot).await;
        self.faults().enter(Verb::Create).await?;
        let image = self
            .shared
            .images
            .stored(&spec.image)
            .ok_or_else(|| RuntimeError::ImageNotFound {
                reference: spec.image.as_str().to_owned(),
            })?;
        let (name, layer) = self.make_layer(&spec.bot).await?;
        let mut bots = self.lock();
        let state = bots.entry(spec.bot.clone()).or_default();
        let task = task_state(state);
        let record = state
            .record
            .get_or_insert_with(|| Record::new(spec, name, Some(image.digest)));
        let instance = record.instance(&spec.bot, task);
        Ok(CreateOutcome { instance, layer })
    }

    async fn start(&self, bot: &BotId, limits: &Limits) -> Result<Started> {
        let _alone = self.alone(bot).await;
        self.faults().enter(Verb::Start).await?;
        let record = self.record_of(bot)?;
        let already_running = self.task_of(bot) == TaskState::Running;
        if !already_running {
            self.end_process(bot, Duration::ZERO).await?;
            let process = self.launch(bot, &record).await?;
            let mut bots = self.lock();
            let state = bots.entry(bot.clone()).or_default();
            state.process = Some(Arc::new(process));
            if let Some(record) = &mut state.record {
                record.started_at = Some(Utc::now());
                record.limits = *limits;
            }
        }
        Ok(Started {
            address: None,
            isolation: record::isolation(),
            already_running,
        })
    }

    async fn stop(&self, bot: &BotId, grace: Duration) -> Result<()> {
        let _alone = self.alone(bot).await;
        self.faults().enter(Verb::Stop).await?;
        self.end_process(bot, grace).await
    }

    async fn remove(&self, bot: &BotId) -> Result<()> {
        let _alone = self.alone(bot).await;
        self.faults().enter(Verb::Remove).await?;
        self.end_process(bot, Duration::ZERO).await?;
        if let Some(state) = self.lock().get_mut(bot) {
            state.record = None;
        }
        self.remove_layers(bot).await?;
        let (directory, log) = (self.directory_of(bot), self.log_of(bot));
        blocking("remove the directories", move || {
            skep_runtime::log::forget(&log)?;
            match std::fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn inspect(&self, bot: &BotId) -> Result<Option<Instance>> {
        self.faults().enter(Verb::Inspect).await?;
        Ok(self.lock().get(bot).and_then(|state| instance_of(bot, state)))
    }

    async fn inspect_all(&self, bots: &[BotId]) -> Result<HashMap<BotId, Instance>> {
        self.faults().enter(Verb::Inspect).await?;
        let states = self.lock();
        let found = bots.iter().filter_map(|bot| instance_of(bot, states.get(bot)?));
        Ok(found.map(|instance| (instance.bot.clone(), instance)).collect())
    }

    async fn list(&self) -> Result<Vec<Instance>> {
        self.faults().enter(Verb::List).await?;
        Ok(self
            .lock()
            .iter()
            .filter_map(|(bot, state)| instance_of(bot, state))
            .collect())
    }

    async fn bots_with_layers(&self) -> Result<Vec<BotId>> {
        self.faults().enter(Verb::BotsWithLayers).await?;
        let bots = self.lock();
        let with_layers = bots.iter().filter(|(_, state)| !state.layers.is_empty());
        Ok(with_layers.map(|(bot, _)| bot.clone()).collect())
    }

    async fn has_layer(&self, bot: &BotId) -> Result<bool> {
        self.faults().enter(Verb::HasLayer).await?;
        Ok(self.lock().get(bot).is_some_and(|state| !state.layers.is_empty()))
    }

    fn layers(&self) -> Option<&dyn Layers> {
        self.has_layers().then_some(self as _)
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.shared.events.subscribe()
    }

    async fn devices(&self) -> Result<Vec<Device>> {
        Ok(self.registry().devices())
    }

    async fn check_devices(&self, names: &[String]) -> Result<()> {
        self.edits_for(names).map(drop)
    }

    async fn apply_limits(&self, bot: &BotId, limits: &Limits) -> Result<()> {
        self.faults().enter(Verb::ApplyLimits).await?;
        let mut bots = self.lock();
        let record = bots.get_mut(bot).and_then(|state| state.record.as_mut());
        record.ok_or_else(|| not_found(bot))?.limits = *limits;
        Ok(())
    }

    async fn usage(&self, bot: &BotId) -> Result<Usage> {
        self.faults().enter(Verb::Usage).await?;
        let record = self.record_of(bot)?;
        let pid = self.host_pid(bot).ok_or_else(|| not_found(bot))?;
        let counted = usage::of_process(pid).map_err(|error| RuntimeError::other("read its counters", error))?;
        Ok(Usage {
            memory_limit_bytes: Some(record.limits.memory_bytes).filter(|limit| *limit > 0),
            started_at: record.started_at,
            ..counted
        })
    }

    async fn storage_held(&self, bot: &BotId) -> Result<StorageHeld> {
        self.faults().enter(Verb::StorageHeld).await?;
        self.size_of_layers(bot).await
    }

    async fn free_bytes(&self) -> Result<u64> {
        self.faults().enter(Verb::FreeBytes).await?;
        Ok(self.free())
    }

    async fn written_bytes(&self, bot: &BotId) -> Result<u64> {
        let mut bots = self.lock();
        let state = bots
            .get_mut(bot)
            .filter(|state| task_state(state) == TaskState::Running);
        let written = &mut state.ok_or_else(|| not_found(bot))?.written;
        written.0 = written.0.saturating_add(written.1);
        Ok(written.0)
    }

    async fn nameless_bytes(&self, bot: &BotId) -> Result<u64> {
        let bots = self.lock();
        let running = bots.get(bot).filter(|state| task_state(state) == TaskState::Running);
        running.map(|state| state.nameless).ok_or_else(|| not_found(bot))
    }

    async fn refused_processes(&self, bots: &[BotId]) -> Result<HashMap<BotId, u64>> {
        let known = self.lock();
        let running = bots.iter().filter_map(|bot| {
            let state = known.get(bot).filter(|state| task_state(state) == TaskState::Running);
            Some((bot.clone(), state?.refused_processes))
        });
        Ok(running.collect())
    }

    fn bridge_endpoint(&self, bot: &BotId) -> Result<BridgeEndpoint> {
        if self.task_of(bot) == TaskState::None {
            return Err(not_found(bot));
        }
        if let Some(shown) = self.lock().get(bot).and_then(|state| state.shown.as_ref()) {
            return Ok(BridgeEndpoint::Tcp(shown.address()));
        }
        Ok(BridgeEndpoint::Unix {
            directory: self.socket_directory_of(bot),
            file_name: SOCKET_FILE_NAME.to_owned(),
            owner_uid: rustix::process::geteuid().as_raw(),
            cgroup: None,
        })
    }

    fn log_places(&self, bot: &BotId) -> LogPlaces {
        self.log_of(bot)
    }

    async fn sweep(&self) -> Result<Swept> {
        self.faults().enter(Verb::Sweep).await?;
        let bots = self.lock();
        let broken = bots.iter().filter_map(|(bot, state)| {
            let why = state.broken_network.clone().filter(|_| state.process.is_some())?;
            Some((bot.clone(), why))
        });
        Ok(Swept {
            broken_networks: broken.collect(),
        })
    }

    fn layer_access(&self) -> Option<&dyn LayerAccess> {
        self.has_layers().then_some(self as _)
    }

    async fn given_environment(&self, bot: &BotId) -> Result<BTreeMap<String, String>> {
        self.faults().enter(Verb::Inspect).await?;
        let bots = self.lock();
        let record = bots.get(bot).and_then(|state| state.record.as_ref());
        Ok(record.map(|record| record.spec.env.clone()).unwrap_or_default())
    }

    async fn address(&self, _bot: &BotId) -> Result<Option<IpAddr>> {
        self.faults().enter(Verb::Address).await.map(|()| None)
    }
}

impl FakeRuntime {
    async fn launch(&self, bot: &BotId, record: &Record) -> Result<Process> {
        let (replaced, generation) = {
            let mut bots = self.lock();
            let state = bots.entry(bot.clone()).or_default();
            state.generation += 1;
            (state.argv.clone(), state.generation)
        };
        let mut env = environment(&record.spec.env);
        env.extend(self.give_devices(bot, &record.spec.cdi_devices).await?);
        let launch = Launch {
            root: self.layer_path(bot),
            socket_directory: self.socket_directory_of(bot),
            runtime_directory: self.root().join("runtime"),
            log: self.log_path(bot),
            env,
            argv: replaced.unwrap_or_else(|| vec![skep_names::BRIDGE_PATH_INSIDE.to_owned()]),
        };
        let weak = Arc::downgrade(&self.shared);
        let ended = bot.clone();
        let on_end = move |exit_status| {
            if let Some(shared) = weak.upgrade() {
                FakeRuntime { shared }.tell_end(&ended, generation, exit_status);
            }
        };
        let log = launch.log.clone();
        let started = blocking("start process 1", move || Process::launch(&launch, on_end)).await;
        started.map_err(|error| match error {
            RuntimeError::Other { source, .. } => {
                RuntimeError::other(format!("start process 1 ({})", tail_of(&log)), source)
            }
            other => other,
        })
    }

    /// An end that was not asked for is an event.
    fn tell_end(&self, bot: &BotId, generation: u64, exit_status: u32) {
        let asked_for = self.lock().get(bot).is_none_or(|state| state.generation != generation);
        if !asked_for {
            self.tell(RuntimeEvent::TaskExited {
                bot: bot.clone(),
                exit_status,
            });
        }
    }

    pub(super) fn record_of(&self, bot: &BotId) -> Result<Record> {
        let record = self.lock().get(bot).and_then(|state| state.record.clone());
        record.ok_or_else(|| not_found(bot))
    }

    pub(super) fn task_of(&self, bot: &BotId) -> TaskState {
        self.lock().get(bot).map_or(TaskState::None, task_state)
    }

    fn is_used(&self, reference: &ImageReference) -> bool {
        let bots = self.lock();
        bots.values().any(|state| {
            state
                .record
                .as_ref()
                .is_some_and(|record| record.spec.image == *reference)
        })
    }

    fn with_use(&self, image: ImageRecord) -> ImageRecord {
        let in_use = self.is_used(&image.name);
        ImageRecord { in_use, ..image }
    }
}

fn task_state(state: &Bot) -> TaskState {
    match &state.process {
        None => TaskState::None,
        Some(process) if process.ended().is_some() => TaskState::Dead,
        Some(_) => TaskState::Running,
    }
}

fn instance_of(bot: &BotId, state: &Bot) -> Option<Instance> {
    state
        .record
        .as_ref()
        .map(|record| record.instance(bot, task_state(state)))
}

fn not_found(bot: &BotId) -> RuntimeError {
    RuntimeError::NotFound {
        what: format!("container {}", skep_names::container_id_for(bot)),
    }
}

fn environment(given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let own = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        (skep_names::ENV_SOCKET_PATH, skep_names::SOCKET_PATH_INSIDE),
    ];
    let mut all: BTreeMap<String, String> = own.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    all.extend(given.clone());
    all
}
