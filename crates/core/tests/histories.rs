//! Random histories of a workspace: what is asked for, with steps of the runtime that fail and servers that die in
//! the middle, against a model of what `/data`, each version and each backup must hold. On the fake runtime, whose
//! layers are whole directories: all of them are looked into after every step.

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use harness::{World, admin, archive_of, until};
use proptest::prelude::*;
use proptest::sample::Index;
use skep_core::{CreateRequest, DeleteData, OperationHandle, RestoreMode, RestoreRequest, Skep};
use skep_names::BotId;
use skep_runtime::layers::present_of;
use skep_runtime::{LayerKind, Layers, Runtime, RuntimeError};
use skep_testkit::fake_runtime::Verb;

/// Lines are merged over so many layers.
const MERGE_OVER: u64 = 4;
const KEEP_BACKUPS: u32 = 3;

/// What somebody asks for.
#[derive(Debug, Clone)]
enum Ask {
    Snapshot,
    Rollback(Index),
    Forget(Index),
    /// Deletes the workspace, its data kept.
    Preserve,
    /// Makes it again, with what is kept or without.
    Create(bool),
    /// Puts the current backup back, or one by its name.
    Restore(Option<Index>, RestoreMode),
    /// Puts an archive of one file into it.
    Import(u8, u32, RestoreMode),
    Stop,
    Start,
}

/// What goes wrong meanwhile.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Nothing,
    /// The next call of that verb fails.
    Fails(Verb),
    /// The server dies in the next call of that verb.
    Dies(Verb),
}

#[derive(Debug, Clone)]
enum Step {
    Write(u8, u32),
    Remove(u8),
    Ask(Ask, Fault),
    LoseContainer,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..3_u8, any::<u32>()).prop_map(|(file, number)| Step::Write(file, number)),
        1 => (0..3_u8).prop_map(Step::Remove),
        14 => (any_ask(), any_fault()).prop_map(|(ask, fault)| Step::Ask(ask, fault)),
        1 => Just(Step::LoseContainer),
    ]
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let index = any::<Index>;
    let mode = || prop_oneof![Just(RestoreMode::Merge), Just(RestoreMode::Replace)];
    prop_oneof![
        4 => Just(Ask::Snapshot),
        3 => index().prop_map(Ask::Rollback),
        2 => index().prop_map(Ask::Forget),
        2 => Just(Ask::Preserve),
        3 => any::<bool>().prop_map(Ask::Create),
        4 => (prop::option::weighted(0.7, index()), mode()).prop_map(|(index, mode)| Ask::Restore(index, mode)),
        3 => (0..3_u8, any::<u32>(), mode()).prop_map(|(file, number, mode)| Ask::Import(file, number, mode)),
        1 => Just(Ask::Stop),
        1 => Just(Ask::Start),
    ]
}

fn any_fault() -> impl Strategy<Value = Fault> {
    let verb = prop::sample::select(vec![
        Verb::Create,
        Verb::Start,
        Verb::Stop,
        Verb::Remove,
        Verb::RemoveLayers,
        Verb::Commit,
        Verb::Stage,
        Verb::Swap,
        Verb::Merge,
        Verb::RemoveLayer,
        Verb::ListLayers,
        Verb::ReadData,
        Verb::WriteData,
    ])
    .boxed();
    prop_oneof![
        2 => Just(Fault::Nothing),
        1 => verb.clone().prop_map(Fault::Fails),
        1 => verb.prop_map(Fault::Dies),
    ]
}

type Files = BTreeMap<String, String>;

/// All that is kept of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct State {
    /// `None`: there is no workspace.
    present: Option<Files>,
    versions: BTreeMap<u64, Files>,
    /// By name.
    backups: BTreeMap<String, Files>,
}

impl State {
    fn version(&self, index: &Index) -> Option<u64> {
        let numbers: Vec<u64> = self.versions.keys().copied().collect();
        (!numbers.is_empty()).then(|| *index.get(&numbers))
    }

    fn seen(&self) -> Seen {
        let names = self.backups.keys().cloned().collect();
        (self.present.clone(), self.versions.clone(), names)
    }

    fn current(&self) -> Option<&Files> {
        let current = |name: &&String| name.matches('.').count() == 2;
        self.backups.keys().find(current).map(|name| &self.backups[name])
    }

    fn backup(&self, index: &Index) -> Option<String> {
        let names: Vec<String> = self.backups.keys().cloned().collect();
        (!names.is_empty()).then(|| index.get(&names).clone())
    }

    fn with_version(&self, number: u64) -> Self {
        let mut after = self.clone();
        after.versions.insert(number, self.present.clone().unwrap_or_default());
        after
    }

    fn with_backup(&self, bot: &BotId) -> Self {
        let mut after = self.clone();
        let name = |number: u32| match number {
            0 => format!("{bot}.tar.gz"),
            number => format!("{bot}.{number}.tar.gz"),
        };
        // The oldest makes room only when all before it are there.
        let free = (0..=KEEP_BACKUPS).find(|number| !self.backups.contains_key(&name(*number)));
        for number in (0..free.unwrap_or(KEEP_BACKUPS)).rev() {
            if let Some(files) = after.backups.remove(&name(number)) {
                after.backups.insert(name(number + 1), files);
            }
        }
        after.backups.insert(name(0), self.present.clone().unwrap_or_default());
        after
    }

    fn with_files(&self, files: Files, mode: RestoreMode) -> Self {
        let mut after = self.clone();
        let present = after.present.get_or_insert_default();
        if mode == RestoreMode::Replace {
            present.clear();
        }
        present.extend(files);
        after
    }

    fn without_workspace(&self) -> Self {
        Self {
            backups: self.backups.clone(),
            ..Self::default()
        }
    }
}

/// A step as it is asked for, what it is about chosen.
#[derive(Debug, Clone)]
enum Request {
    Snapshot,
    Rollback(u64),
    Forget(u64),
    Preserve,
    Create(bool),
    Restore(RestoreRequest),
    Import(u8, u32, RestoreMode),
    Stop,
    Start,
}

impl Request {
    /// `None`: there is nothing that it could be about.
    fn of(ask: &Ask, state: &State) -> Option<Self> {
        let there = state.present.is_some();
        Some(match ask {
            Ask::Create(restore) => Self::Create(*restore),
            _ if !there => return None,
            Ask::Snapshot => Self::Snapshot,
            Ask::Rollback(index) => Self::Rollback(state.version(index)?),
            Ask::Forget(index) => Self::Forget(state.version(index)?),
            Ask::Preserve => Self::Preserve,
            Ask::Restore(Some(index), mode) => Self::Restore(RestoreRequest {
                name: Some(state.backup(index)?),
                sha256: None,
                mode: *mode,
            }),
            Ask::Restore(None, _) if state.current().is_none() => return None,
            Ask::Restore(None, mode) => Self::Restore(RestoreRequest {
                name: None,
                sha256: None,
                mode: *mode,
            }),
            Ask::Import(file, number, mode) => Self::Import(*file, *number, *mode),
            Ask::Stop => Self::Stop,
            Ask::Start => Self::Start,
        })
    }

    async fn begin(&self, skep: &Skep, bot: &BotId) -> skep_core::Result<OperationHandle> {
        match self.clone() {
            Self::Snapshot => skep.take_snapshot(bot, ("", ""), &admin()).await,
            Self::Rollback(version) => skep.roll_back(bot, version, &admin()).await,
            Self::Forget(version) => skep.delete_version(bot, version, &admin()).await,
            Self::Preserve => skep.delete_workspace(bot, DeleteData::Preserve, &admin()).await,
            Self::Create(restore) => {
                let request = CreateRequest {
                    restore_data: Some(restore),
                    ..CreateRequest::default()
                };
                skep.create_workspace(bot, request, &admin()).await
            }
            Self::Restore(request) => skep.restore_data(bot, request, &admin()).await,
            Self::Import(file, number, mode) => {
                let archive = archive_of(&name_of(file), &number.to_string());
                let received = skep.receive_archive(bot, archive).await?;
                skep.import_data(bot, (received, mode), &admin()).await
            }
            Self::Stop => skep.stop_workspace(bot, None, &admin()).await,
            Self::Start => skep.start_workspace(bot, &admin()).await,
        }
    }

    /// What may be there when it failed or was cut off at some place, from before it to its success, which is last.
    fn after(&self, state: &State, (bot, new): (&BotId, Option<u64>)) -> Vec<State> {
        let kept = |state: &State| match new {
            Some(number) => state.with_version(number),
            None => state.clone(),
        };
        let mut all = vec![state.clone()];
        match self {
            Self::Snapshot => all.push(kept(state)),
            Self::Rollback(version) => {
                let mut back = kept(state);
                all.push(back.clone());
                back.present = Some(state.versions[version].clone());
                all.push(back);
            }
            Self::Forget(version) => {
                let mut after = state.clone();
                after.versions.remove(version);
                all.push(after);
            }
            Self::Preserve => {
                let kept = state.with_backup(bot);
                all.extend([kept.clone(), kept.without_workspace()]);
                if is_kept(state) {
                    all.push(state.without_workspace());
                }
            }
            Self::Create(_) if state.present.is_some() => {}
            Self::Create(restore) => {
                let mut made = state.clone();
                made.present = Some(state.current().filter(|_| *restore).cloned().unwrap_or_default());
                all.push(made.clone());
                if *restore {
                    made.backups.remove(&current(bot));
                    all.push(made);
                }
            }
            Self::Restore(request) => {
                let name = request.name.clone().unwrap_or_else(|| current(bot));
                let mut after = state.with_files(state.backups[&name].clone(), request.mode);
                all.push(after.clone());
                if request.name.is_none() {
                    after.backups.remove(&name);
                    all.push(after);
                }
            }
            Self::Import(file, number, mode) => {
                all.push(state.with_files([(name_of(*file), number.to_string())].into(), *mode));
            }
            Self::Stop | Self::Start => {}
        }
        all
    }
}

impl Request {
    /// How many of the last of [`Self::after`] are successes.
    fn successes(&self, state: &State) -> usize {
        match self {
            Self::Preserve if is_kept(state) => 2,
            _ => 1,
        }
    }
}

/// The very same archive is not kept twice; the same files with other times are another.
fn is_kept(state: &State) -> bool {
    state.current().is_some() && state.current() == state.present.as_ref()
}

fn current(bot: &BotId) -> String {
    format!("{bot}.tar.gz")
}

fn name_of(file: u8) -> String {
    format!("f{file}")
}

fn files_below(directory: &Path) -> std::io::Result<Files> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Files::new()),
        entries => entries?,
    };
    let mut files = Files::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.insert(name, fs::read_to_string(entry.path())?);
    }
    Ok(files)
}

/// What can be seen: the present, the versions, the names of the backups.
type Seen = (Option<Files>, BTreeMap<u64, Files>, Vec<String>);

struct Life {
    world: World,
    bot: BotId,
    /// All that what was seen can be. What backups hold is seen only when they are put back.
    possible: Vec<State>,
    /// The highest number that was given in this workspace.
    highest: u64,
}

impl Life {
    async fn new() -> Self {
        let world = World::with(|settings| {
            settings.versions.merge_over = MERGE_OVER;
            // Nothing is dropped unasked: what is listed is what the model says.
            settings.versions.keep_rollback = 1000;
            settings.keep_backups = u64::from(KEEP_BACKUPS);
        })
        .await;
        let bot = world.running_bot().await;
        let made = State {
            present: Some(Files::new()),
            ..State::default()
        };
        Self {
            world,
            bot,
            possible: vec![made],
            highest: 0,
        }
    }

    async fn take(&mut self, step: &Step) {
        let there = self.possible[0].present.is_some();
        match step {
            Step::Write(file, number) if there => {
                let data = self.world.runtime.layer_path(&self.bot).join("data");
                fs::create_dir_all(&data).unwrap();
                fs::write(data.join(name_of(*file)), number.to_string()).unwrap();
                for present in self.possible.iter_mut().filter_map(|state| state.present.as_mut()) {
                    present.insert(name_of(*file), number.to_string());
                }
            }
            Step::Remove(file) if there => {
                for present in self.possible.iter_mut().filter_map(|state| state.present.as_mut()) {
                    if present.remove(&name_of(*file)).is_some() {
                        let data = self.world.runtime.layer_path(&self.bot).join("data");
                        fs::remove_file(data.join(name_of(*file))).ok();
                    }
                }
            }
            Step::LoseContainer if there => {
                self.world.stop(&self.bot).await.unwrap();
                self.world.runtime.forget_container(&self.bot);
                self.world.start(&self.bot).await.unwrap();
            }
            Step::Ask(ask, fault) => self.ask(ask, *fault).await,
            Step::Write(..) | Step::Remove(_) | Step::LoseContainer => {}
        }
        self.narrow(self.possible.clone(), &format!("{step:?}")).await;
    }

    async fn ask(&mut self, ask: &Ask, fault: Fault) {
        let Some(request) = Request::of(ask, &self.possible[0]) else {
            return;
        };
        let mut ended = self.done(&request, fault).await;
        // What it left half-way is no workspace; its repeat removes the rest.
        if ended.is_err() && matches!((&request, fault), (Request::Preserve, Fault::Fails(Verb::RemoveLayers))) {
            ended = self.done(&request, Fault::Nothing).await;
        }
        let new = self.new_version().await;
        let mut candidates: Vec<State> = Vec::new();
        for state in &self.possible {
            let mut after = request.after(state, (&self.bot, new));
            if let Fault::Nothing = fault {
                let first = after.len() - request.successes(state);
                after.drain(..first);
            }
            candidates.extend(after);
        }
        if let (Fault::Nothing, Err(error)) = (fault, ended) {
            panic!("{request:?}: {error}");
        }
        self.narrow(candidates, &format!("{request:?} {fault:?}")).await;
        self.highest = self.highest.max(new.unwrap_or(0));
        if self.possible[0].present.is_none() {
            self.highest = 0;
        } else if !matches!(fault, Fault::Nothing) {
            self.world.start(&self.bot).await.unwrap();
        }
    }

    /// Asks, lets that go wrong, and waits until nothing is under way.
    async fn done(&mut self, request: &Request, fault: Fault) -> skep_core::Result<()> {
        let faults = self.world.runtime.faults().clone();
        let hold = match fault {
            Fault::Dies(verb) => Some((verb, faults.calls(verb), faults.hold(verb))),
            Fault::Fails(verb) => {
                faults.fail_next(verb, RuntimeError::other("a step", std::io::Error::other("told to")));
                None
            }
            Fault::Nothing => None,
        };
        let (skep, bot, asked) = (self.world.skep.clone(), self.bot.clone(), request.clone());
        let task = tokio::spawn(async move { asked.begin(&skep, &bot).await?.outcome().await.map(drop) });
        if let Some((verb, calls, hold)) = hold {
            until(|| async {
                match task.is_finished() || faults.calls(verb) > calls {
                    true => Ok(()),
                    false => Err(format!("{request:?} neither ends nor calls {verb:?}")),
                }
            })
            .await;
            self.world.crash().await;
            drop(hold);
        }
        let ended = tokio::time::timeout(harness::LIMIT, task)
            .await
            .expect("it ends")
            .expect("no panic");
        faults.forget();
        let store = self.world.skep.store();
        until(|| async {
            match store.unfinished_operations().await.unwrap().as_slice() {
                [] => Ok(()),
                left => Err(format!("{left:?} do not come to their end")),
            }
        })
        .await;
        ended
    }

    async fn new_version(&self) -> Option<u64> {
        let row = self.world.skep.store().container(&self.bot).await.unwrap()?;
        let versions = self.world.skep.store().versions(&row.container_id).await.unwrap();
        let known = &self.possible[0].versions;
        let mut new = versions
            .iter()
            .map(|row| row.version)
            .filter(|number| !known.contains_key(number));
        let number = new.next()?;
        assert!(
            number > self.highest && new.next().is_none(),
            "version {number} is no new one"
        );
        Some(number)
    }

    async fn seen(&self) -> Result<Seen, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let (runtime, skep) = (&self.world.runtime, &self.world.skep);
        let backups = skep.backups(&self.bot).await.map_err(|error| text(&error))?;
        if let Some(bad) = backups.iter().find(|backup| !backup.verified) {
            return Err(format!("{bad:?} does not verify"));
        }
        let mut names: Vec<String> = backups.into_iter().map(|backup| backup.name).collect();
        names.sort();
        let with_layers = runtime.bots_with_layers().await.map_err(|error| text(&error))?;
        if !with_layers.contains(&self.bot) {
            return Ok((None, BTreeMap::new(), names));
        }
        let row = skep.store().container(&self.bot).await.map_err(|error| text(&error))?;
        let row = row.ok_or("there is a layer and no record")?;
        let tree = Layers::list(runtime, &self.bot).await.map_err(|error| text(&error))?;
        let all: Vec<_> = tree.line.iter().chain(&tree.side).cloned().collect();
        let active = all.iter().filter(|layer| layer.kind == LayerKind::Active).count();
        let newest = present_of(&self.bot, &all).map(|layer| &layer.name);
        if active != 1 || newest != tree.line.first().map(|layer| &layer.name) {
            return Err(format!("{active} active layers, the newest is {newest:?} of {all:?}"));
        }
        let present = runtime.layer_path(&self.bot);
        let read = |layer: &Path| files_below(&layer.join("data")).map_err(|error| text(&error));
        let mut versions = BTreeMap::new();
        for version in skep
            .store()
            .versions(&row.container_id)
            .await
            .map_err(|error| text(&error))?
        {
            let layer = present.with_file_name(&version.runtime_snapshot_name);
            if !layer.is_dir() {
                return Err(format!("the layer of version {} is gone", version.version));
            }
            versions.insert(version.version, read(&layer)?);
        }
        let most = versions.len() + usize::try_from(MERGE_OVER).unwrap() + 6;
        if all.len() > most {
            return Err(format!("{} layers for {} versions", all.len(), versions.len()));
        }
        Ok((Some(read(&present)?), versions, names))
    }

    /// What each backup holds shows when it is put back.
    async fn every_backup_holds_what_it_held(&mut self) {
        if self.possible[0].present.is_none() {
            self.ask(&Ask::Create(false), Fault::Nothing).await;
        }
        for name in self.possible[0].backups.keys().cloned().collect::<Vec<_>>() {
            let request = Request::Restore(RestoreRequest {
                name: Some(name.clone()),
                sha256: None,
                mode: RestoreMode::Replace,
            });
            self.done(&request, Fault::Nothing).await.unwrap();
            let candidates = self
                .possible
                .iter()
                .map(|state| request.after(state, (&self.bot, None)));
            let candidates = candidates.filter_map(|mut after| after.pop()).collect();
            self.narrow(candidates, &name).await;
        }
    }

    /// What is there must be one of these, soon: a failed removal is finished a little later.
    async fn narrow(&mut self, candidates: Vec<State>, what: &str) {
        let (this, candidates, fitting) = (&*self, &candidates, std::sync::Mutex::new(Vec::new()));
        until(|| async {
            let seen = this.seen().await?;
            let is_seen = |state: &&State| seen == state.seen();
            *fitting.lock().unwrap() = candidates.iter().filter(is_seen).cloned().collect::<Vec<_>>();
            match fitting.lock().unwrap().is_empty() {
                false => Ok(()),
                true => Err(format!(
                    "after {what} there is {seen:?}, which is none of {candidates:?}"
                )),
            }
        })
        .await;
        let mut fitting = fitting.into_inner().unwrap();
        fitting.dedup();
        self.possible = fitting;
    }
}

/// Few as a part of all tests, many in `make soak-histories`.
fn cases() -> u32 {
    match std::env::var_os("SKEP_SOAK") {
        Some(_) => 300,
        None => 12,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn after_any_history_with_faults_nothing_that_was_kept_is_lost(steps in prop::collection::vec(any_step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut life = Life::new().await;
            for step in &steps {
                life.take(step).await;
            }
            life.every_backup_holds_what_it_held().await;
        });
    }
}
