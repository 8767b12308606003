//! All processes that callers started: the running ones, and the ended ones whose output is still kept on disk.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use skep_bridge_protocol::workspace::ExecStatus;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::disk_use::DiskUse;
use super::end::{LeftBehind, Target};
use super::listed::{Exec, UNLISTED};
use super::output::Output;
use super::output_log::{LogPolicy, OutputLog};
use super::process::{FirstInput, Holder, Process, Watch};
use super::record;
use super::start::{self, Program};
use super::stored::{self, Stored};
use crate::failure;
use crate::log::tell;
use crate::reaper::Reaper;
use crate::workers::{self, Asked};

/// Kept of one stream unless the caller says otherwise, in bytes.
const DEFAULT_LOG_BYTES: u64 = 64 * 1024 * 1024;
/// A process that ended but whose children keep its output open is put on disk after this, and again at the end.
const EARLY_RECORD: Duration = Duration::from_millis(200);

/// What a caller asks for. Without an id the process is not listed and nothing of it is kept on disk.
pub(crate) struct Request {
    pub(crate) id: Option<String>,
    pub(crate) command: String,
    pub(crate) program: Program,
    pub(crate) watch: Watch,
    pub(crate) first: FirstInput,
    /// 0: the default.
    pub(crate) log_bytes: u64,
    /// How long it is known after its end; 0: a day.
    pub(crate) keep_milliseconds: u64,
}

pub(crate) enum Found {
    Live(Arc<Exec>),
    Stored(String),
}

pub(super) enum Entry {
    Starting,
    Live(Arc<Exec>),
    Stored(Stored),
}

impl Entry {
    /// In nanoseconds since 1970.
    fn started(&self) -> Option<i64> {
        match self {
            Self::Starting => None,
            Self::Live(exec) => Some(exec.process.started_unix_nanos),
            Self::Stored(stored) => Some(stored.started_unix_nanos),
        }
    }
}

pub(crate) struct Registry {
    environment: Vec<(OsString, OsString)>,
    reaper: Arc<Reaper>,
    pub(super) directory: PathBuf,
    pub(crate) tasks: TaskTracker,
    pub(super) entries: Mutex<HashMap<String, Entry>>,
    running: Mutex<HashMap<u32, Target>>,
    pub(super) disk: Arc<DiskUse>,
    /// False until what an earlier bridge left has been read.
    pub(super) loaded: watch::Sender<bool>,
    pub(super) changed: watch::Sender<()>,
    closing: AtomicBool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change below is a single insert or remove, so a poisoned map is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub(crate) fn new(environment: Vec<(OsString, OsString)>, reaper: Arc<Reaper>, directory: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            environment,
            reaper,
            directory,
            tasks: TaskTracker::new(),
            entries: Mutex::default(),
            running: Mutex::default(),
            disk: Arc::new(DiskUse::new(stored::MOST_BYTES)),
            loaded: watch::Sender::new(false),
            changed: watch::Sender::new(()),
            closing: AtomicBool::new(false),
        })
    }

    pub(super) fn directory_of(&self, id: &str) -> PathBuf {
        self.directory.join(id)
    }

    /// Starts a process, or finds the one that already has this id.
    ///
    /// # Errors
    /// InvalidArgument for a bad id or no command, FailedPrecondition for what cannot be started, Unavailable while
    /// the bridge ends.
    pub(crate) async fn start(self: &Arc<Self>, request: Request) -> Result<Found, Status> {
        Ok(self.begin(request, |_| ()).await?.0)
    }

    /// As [`Registry::start`], held from its first moment if it ends with its streams: also when whoever asked is gone by
    /// then, and nobody ever takes the answer.
    pub(crate) async fn open(self: &Arc<Self>, request: Request) -> Result<(Found, Option<Holder>), Status> {
        let tasks = self.tasks.clone();
        let (found, holder) = self.begin(request, move |exec| exec.hold(tasks)).await?;
        let holder = match holder {
            Some(holder) => holder,
            None => self.hold(&found),
        };
        Ok((found, holder))
    }

    /// Keeps one that ends with its streams from ending.
    pub(crate) fn hold(&self, found: &Found) -> Option<Holder> {
        match found {
            Found::Live(exec) => exec.hold(self.tasks.clone()),
            Found::Stored(_) => None,
        }
    }

    /// With what is taken of it, by the task that starts it, if it is new.
    async fn begin<T: Send + 'static>(
        self: &Arc<Self>,
        request: Request,
        take: impl FnOnce(&Arc<Exec>) -> T + Send + 'static,
    ) -> Result<(Found, Option<T>), Status> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(Status::unavailable("the workspace is stopping"));
        }
        if let Some(id) = &request.id {
            check_id("exec_id", id)?;
            if let Some(found) = self.reserve(id).await {
                return Ok((found, None));
            }
        }
        let registry = Arc::clone(self);
        // A task of its own: a caller that goes away must not leave a process that nobody watches. One that has gone before
        // there was a thread for it leaves none at all.
        let (_waiting, asked) = workers::asked();
        let started = self.tasks.spawn(async move {
            let id = request.id.clone();
            let result = registry.start_reserved(request, asked).await;
            if result.is_err() {
                // Not why: the reason names the program.
                tell!("exec {} was not started", id.as_deref().unwrap_or(UNLISTED));
                if let Some(id) = id {
                    lock(&registry.entries).remove(&id);
                }
            }
            registry.changed.send_replace(());
            result.map(|exec| {
                let taken = take(&exec);
                (Found::Live(exec), Some(taken))
            })
        });
        started.await.map_err(|_| failure::worker_gone())?
    }

    /// `None`: the id was free and is now reserved.
    async fn reserve(&self, id: &str) -> Option<Found> {
        let mut changes = self.changed.subscribe();
        loop {
            changes.borrow_and_update();
            {
                let mut entries = lock(&self.entries);
                match entries.get(id) {
                    Some(Entry::Live(exec)) => return Some(Found::Live(Arc::clone(exec))),
                    Some(Entry::Stored(_)) => return Some(Found::Stored(id.into())),
                    Some(Entry::Starting) => {}
                    None if !*self.loaded.borrow() && record::exists(&self.directory_of(id)) => {
                        return Some(Found::Stored(id.into()));
                    }
                    None => {
                        entries.insert(id.into(), Entry::Starting);
                        return None;
                    }
                }
            }
            if changes.changed().await.is_err() {
                return None;
            }
        }
    }

    async fn start_reserved(self: &Arc<Self>, request: Request, asked: Asked) -> Result<Arc<Exec>, Status> {
        let (registry, program) = (Arc::clone(self), request.program);
        let work = move || start::start(&program, &registry.environment, &registry.reaper).map(|ends| (program, ends));
        let (program, started) = workers::blocking_while(asked, work).await?;
        let pid = started.pid;
        let output = Arc::new(Output::new(self.logs(request.id.as_deref(), request.log_bytes), None));
        let taken = Process::take(started, output, request.watch, request.first);
        let (process, watch) = taken.map_err(|error| {
            Target::Group(pid).signal(Signal::KILL.as_raw());
            Status::unavailable(format!("watch process {pid}: {error}"))
        })?;
        let exec = Arc::new(Exec {
            id: request.id.clone().unwrap_or_default(),
            command: request.command,
            argv: program.argv,
            keep_milliseconds: request.keep_milliseconds,
            process,
            ends_with_stream: request.watch.outlives_stream.is_some(),
            removed: AtomicBool::new(false),
            end_told: AtomicBool::new(false),
            is_unstored: AtomicBool::new(false),
        });
        tell!("exec {} started, pid {pid}", exec.name());
        lock(&self.running).insert(pid, exec.process.target);
        if let Some(id) = request.id {
            lock(&self.entries).insert(id, Entry::Live(Arc::clone(&exec)));
        }
        self.tasks
            .spawn(Arc::clone(self).see_to_the_end(Arc::clone(&exec), watch));
        Ok(exec)
    }

    fn logs(&self, id: Option<&str>, log_bytes: u64) -> [OutputLog; 2] {
        let keep_bytes = if log_bytes == 0 { DEFAULT_LOG_BYTES } else { log_bytes };
        ["stdout", "stderr"].map(|name| {
            OutputLog::new(LogPolicy {
                spill: id.map(|id| (self.directory_of(id), name)),
                keep_bytes,
                disk: Arc::clone(&self.disk),
            })
        })
    }

    async fn see_to_the_end(self: Arc<Self>, exec: Arc<Exec>, watch: impl Future<Output = ()>) {
        let mut watch = std::pin::pin!(watch);
        let output = Arc::clone(&exec.process.output);
        let lingering = async {
            output.exited().await;
            exec.tell_end();
            lock(&self.running).remove(&exec.process.pid);
            tokio::time::sleep(EARLY_RECORD).await;
        };
        tokio::select! {
            biased;
            () = &mut watch => {}
            () = lingering => {
                if !exec.id.is_empty() {
                    self.write_record(&exec).await;
                }
                watch.await;
            }
        }
        exec.tell_end();
        lock(&self.running).remove(&exec.process.pid);
        if !exec.id.is_empty() {
            self.store(exec).await;
        }
    }

    /// # Errors
    /// NotFound when no process of this id is known.
    pub(crate) async fn find(&self, id: &str) -> Result<Found, Status> {
        check_id("exec_id", id)?;
        for attempt in 0..2 {
            match lock(&self.entries).get(id) {
                Some(Entry::Live(exec)) => return Ok(Found::Live(Arc::clone(exec))),
                Some(Entry::Stored(_)) => return Ok(Found::Stored(id.into())),
                Some(Entry::Starting) | None => {}
            }
            if attempt == 0 {
                self.wait_until_loaded().await;
            }
        }
        Err(unknown(id))
    }

    /// It runs, is being started, or has run.
    pub(crate) fn is_known(&self, id: &str) -> bool {
        lock(&self.entries).contains_key(id)
    }

    /// It has run, and does no more; or it is known no more.
    pub(crate) fn is_over(&self, id: &str) -> bool {
        match lock(&self.entries).get(id) {
            Some(Entry::Live(exec)) => exec.process.output.outcome().is_some(),
            Some(Entry::Stored(_)) | None => true,
            Some(Entry::Starting) => false,
        }
    }

    async fn wait_until_loaded(&self) {
        // The sender is in self: this can only end by the value.
        drop(self.loaded.subscribe().wait_for(|&loaded| loaded).await);
    }

    pub(crate) async fn status(&self, found: &Found) -> Result<ExecStatus, Status> {
        match found {
            Found::Live(exec) => Ok(exec.status()),
            Found::Stored(id) => self.read_stored(id, record::read_status).await,
        }
    }

    /// Reads what is on disk of an ended process. What no bridge wrote there is forgotten, with whatever lies beside it.
    async fn read_stored<T: Send + 'static>(
        &self,
        id: &str,
        read: fn(&Path) -> std::io::Result<T>,
    ) -> Result<T, Status> {
        let directory = self.directory_of(id);
        match workers::blocking(move || Ok(read(&directory))).await? {
            Err(error) if record::is_torn(&error) => {
                tell!("forget exec {id}: {error}");
                self.remove_stored(id).await;
                Err(unknown(id))
            }
            read => read.map_err(|error| forgotten(id, &error)),
        }
    }

    async fn remove_stored(&self, id: &str) {
        {
            let mut entries = lock(&self.entries);
            // Another one may have that id by now.
            let Some(Entry::Stored(stored)) = entries.get(id) else {
                return;
            };
            self.disk.drop_ended(stored.bytes);
            entries.remove(id);
        }
        stored::remove(self.directory_of(id)).await;
    }

    /// The output of a process, running or not.
    pub(crate) async fn output(&self, found: &Found) -> Result<(Arc<Output>, ExecStatus), Status> {
        match found {
            Found::Live(exec) => Ok((Arc::clone(&exec.process.output), exec.status())),
            Found::Stored(id) => {
                let (output, status) = self.read_stored(id, stored::open).await?;
                Ok((Arc::new(output), status))
            }
        }
    }

    /// Ids of all that are known, the oldest start first.
    pub(crate) async fn ids(&self) -> Vec<String> {
        self.wait_until_loaded().await;
        let entries = lock(&self.entries);
        let mut ids: Vec<(i64, &String)> = entries
            .iter()
            .filter_map(|(id, entry)| Some((entry.started()?, id)))
            .collect();
        ids.sort();
        ids.into_iter().map(|(_, id)| id.clone()).collect()
    }

    /// Ends the group, also what a leader that has ended left in it, and forgets it with its log.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), Status> {
        let started = match self.find(id).await? {
            Found::Live(exec) => {
                exec.removed.store(true, Ordering::Relaxed);
                exec.process.end().await;
                exec.process.started_unix_nanos
            }
            Found::Stored(_) => {
                let Some((started, left_behind)) = self.stored(id) else {
                    return Ok(());
                };
                if let Some(left_behind) = left_behind {
                    left_behind.end().await;
                }
                started
            }
        };
        {
            let mut entries = lock(&self.entries);
            // Somebody else removed it meanwhile, and the id is another one's.
            if entries.get(id).is_some_and(|entry| entry.started() != Some(started)) {
                return Ok(());
            }
            // Also one that ended by itself, and was put on disk, in the same moment.
            match entries.remove(id) {
                Some(Entry::Stored(stored)) => self.disk.drop_ended(stored.bytes),
                // Of one whose end is still being seen to, the output is let go of after that.
                Some(Entry::Live(exec)) if exec.is_unstored.load(Ordering::Relaxed) => exec.forget_output(),
                Some(Entry::Live(_) | Entry::Starting) | None => {}
            }
        }
        stored::remove(self.directory_of(id)).await;
        Ok(())
    }

    fn stored(&self, id: &str) -> Option<(i64, Option<LeftBehind>)> {
        match lock(&self.entries).get(id) {
            Some(Entry::Stored(stored)) => Some((stored.started_unix_nanos, stored.left_behind)),
            _ => None,
        }
    }

    /// From now on nothing is started.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.tasks.close();
    }

    /// The groups and sessions that run now, unlisted ones too.
    pub(crate) fn running(&self) -> Vec<Target> {
        lock(&self.running).values().copied().collect()
    }
}

/// The ids are the caller's and become names of directories.
pub(super) fn check_id(what: &str, id: &str) -> Result<(), Status> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=128).contains(&id.len()) && id.bytes().all(allowed) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("{what}: 1 to 128 of A-Z a-z 0-9 - _")))
}

fn forgotten(id: &str, error: &std::io::Error) -> Status {
    if error.kind() == std::io::ErrorKind::NotFound {
        return unknown(id);
    }
    failure::of_path(error, Path::new(id))
}

fn unknown(id: &str) -> Status {
    Status::not_found(format!("no exec {id}"))
}
