//! Where trials are made: an installation with two bystanders, one running and one stopped, and the bot that is
//! tried on.

use std::collections::{BTreeMap, HashSet};
use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::Method;
use skep_store::Store;
use skep_testkit::containerd_view::{ContainerdView, NAMESPACE};
use skep_testkit::images::random_image;
use tempfile::TempDir;

use crate::database::Database;
use crate::held::{Held, capture, capture_at_rest};
use crate::installation::{Installation, OciRuntime};
use crate::model::{self, State};
use crate::points::Exit;
use crate::written::{Written, digest_of};

/// A workspace on so many layers has some merged.
pub(crate) const LONG_LINE: i64 = 3;
/// Long enough for the server to ask for something and to fail.
const CONTAINERD_AWAY: Duration = Duration::from_millis(300);
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(30);
pub(crate) const BOT_ID_BYTES: usize = 36;
/// Layers of the image that is pulled, besides one that is there, and bytes of each.
const PULLED: (usize, usize) = (2, 300_000);

/// After a crash everything must be as it should be within this time: 30 s are promised, the rest is for a machine that
/// has other work. Less than the first pause after starts that failed.
pub(crate) fn converge_limit() -> Duration {
    let alone = std::env::var("CRASH_POINTS").is_ok_and(|points| points == "all");
    Duration::from_secs(if alone { 30 } else { 55 })
}

/// The bot of the trials.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) bot: String,
    /// `None`: not known; it is made anew.
    pub(crate) state: Option<State>,
}

pub(crate) struct Stage {
    pub(crate) installation: Installation,
    view: ContainerdView,
    failpoints: TempDir,
    aborts: bool,
    store: Store,
    database: Database,
    /// Two bots and what they are called in comparisons.
    bystanders: [(String, &'static str, State); 2],
    bystander_process: u32,
    pub(crate) subject: Option<Subject>,
    /// What its workspace holds of what trials wrote.
    pub(crate) written: Vec<Written>,
    /// The same of each of its versions.
    pub(crate) versions: BTreeMap<i64, Vec<Written>>,
    every_bot: HashSet<String>,
    /// What is held without any bot.
    without_bots: Held,
    image: Made,
    /// The image that is pulled by a trial.
    pulled: Made,
    names_given: u32,
    giver: Giver,
}

/// A bot that is gone and left a backup.
#[derive(Debug, Clone, Default)]
struct Giver {
    bot: String,
    /// Of the file.
    digest: String,
    written: Vec<Written>,
}

/// What a workspace is made from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Made {
    pub(crate) image: String,
    /// What is held for it alone, workspaces of it aside.
    pub(crate) held: Held,
}

impl Stage {
    pub(crate) async fn start() -> Self {
        let failpoints = tempfile::tempdir().expect("a directory can be made");
        let directory = failpoints.path().to_str().expect("UTF-8").to_owned();
        let installation = Installation::start_with(
            OciRuntime::Found,
            &[
                ("SKEP_FAILPOINTS", directory),
                ("SKEP_SNAPSHOTS__MERGE_OVER", LONG_LINE.to_string()),
            ],
        )
        .await;
        let store = Store::open(&installation.data_root().join("skep.db"))
            .await
            .expect("the store can be opened");
        let database = Database::open(&installation.data_root().join("skep.db")).await;
        let image = Made {
            image: installation.registry.reference("test/busybox", "1"),
            ..Made::default()
        };
        let pulled = Made {
            image: installation
                .push(&random_image(PULLED.0, PULLED.1), "test/pulled")
                .await,
            ..Made::default()
        };
        let mut stage = Self {
            view: ContainerdView::new(installation.containerd().socket()),
            installation,
            failpoints,
            aborts: false,
            store,
            database,
            bystanders: [
                (String::new(), "<runner>", State::Running),
                (String::new(), "<sleeper>", State::Stopped),
            ],
            bystander_process: 0,
            subject: None,
            written: Vec::new(),
            versions: BTreeMap::new(),
            every_bot: HashSet::new(),
            without_bots: Held::default(),
            image,
            pulled,
            names_given: 0,
            giver: Giver::default(),
        };
        stage.set_up().await;
        stage
    }

    async fn set_up(&mut self) {
        // The first workspace makes what is made once: the image's layers, directories.
        let client = self.installation.client.clone();
        let first = client.workspace("first", None).await;
        self.every_bot.insert(first.clone());
        self.write(&first).await;
        client
            .good(Method::DELETE, &format!("/bots/{first}?preserve_data=true"), None)
            .await;
        client.wait_until_gone(&first).await;
        self.written.retain(Written::is_in_data);
        self.giver = Giver {
            written: std::mem::take(&mut self.written),
            digest: self.digest_of_backup(&first),
            bot: first,
        };
        std::fs::create_dir_all(self.installation.data_root().join("bots")).expect("a directory can be made");
        self.settle().await;
        self.view.make_layers_of_others(NAMESPACE).await;
        self.without_bots = capture_at_rest(self).await;
        self.learn_pulled().await;
        for index in 0..self.bystanders.len() {
            let bot = client.workspace(self.bystanders[index].1, None).await;
            self.every_bot.insert(bot.clone());
            self.bystanders[index].0 = bot;
        }
        client.act(&self.bystanders[1].0, "stop").await;
        self.bystander_process = self.first_process(&self.bystanders[0].0).await;
        if let Err(difference) = self.until(&[State::NoBot]).await {
            panic!("the model does not fit two workspaces that nothing happened to:\n{difference}");
        }
    }

    pub(crate) fn view(&self) -> &ContainerdView {
        &self.view
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Whether the id of a bot that this installation ever had is in a name.
    pub(crate) fn names_a_bot(&self, name: &str) -> bool {
        let ids = name.as_bytes().windows(BOT_ID_BYTES);
        ids.filter_map(|id| std::str::from_utf8(id).ok())
            .any(|id| self.every_bot.contains(id))
    }

    /// Ids of bots of now become names; one of before stays, and is seen.
    pub(crate) fn with_names(&self, lines: &str) -> String {
        let mut lines = lines.to_owned();
        for (bot, name, _) in &self.bystanders {
            if !bot.is_empty() {
                lines = lines.replace(bot.as_str(), name);
            }
        }
        match &self.subject {
            Some(subject) => lines.replace(&subject.bot, "<bot>"),
            None => lines,
        }
    }

    /// What must be held when the subject is in a state.
    pub(crate) fn expected(&self, state: State) -> Held {
        let mut held = self.without_bots.clone();
        for (_, name, state) in &self.bystanders {
            model::add(&mut held, *state, name, &self.image);
        }
        let made = match state.has_pulled() {
            true => &self.pulled,
            false => &self.image,
        };
        held.add_all(&made.held);
        model::add(&mut held, state, "<bot>", made);
        held
    }

    /// The one that workspaces are made from by default.
    pub(crate) fn image(&self) -> &str {
        &self.image.image
    }

    /// The image that is pulled by a trial, and not there otherwise.
    pub(crate) fn pulled_image(&self) -> &str {
        &self.pulled.image
    }

    /// Pulls it once to see what is held for it, with a workspace to see the layer that those stand on.
    async fn learn_pulled(&mut self) {
        let client = self.installation.client.clone();
        let image = self.pulled.image.clone();
        let bot = client.workspace("first of the pulled", Some(&image)).await;
        self.every_bot.insert(bot.clone());
        client.delete_bot(&bot).await;
        self.settle().await;
        self.pulled.held = capture_at_rest(self).await.beyond(&self.without_bots);
        self.forget_pulled().await;
    }

    /// Removes the image, and waits until nothing of it is held.
    pub(crate) async fn forget_pulled(&mut self) {
        let path = format!("/images/{}", self.pulled.image);
        self.installation.client.good(Method::DELETE, &path, None).await;
        let deadline = Instant::now() + converge_limit();
        let is_held = |held: &Held, pulled: &Held| !held.without(pulled);
        while is_held(&capture(self).await, &self.pulled.held) {
            assert!(Instant::now() < deadline, "an image that was removed is still held");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The name of the giver's backup.
    pub(crate) fn given_backup(&self) -> String {
        format!("{}.tar.gz", self.giver.bot)
    }

    /// Others begin with it, and it stays as it was.
    pub(crate) fn giver_is_whole(&self) -> bool {
        self.digest_of_backup(&self.giver.bot) == self.giver.digest
    }

    /// Of the current one; empty: there is none.
    fn digest_of_backup(&self, bot: &str) -> String {
        let path = self.installation.data_root().join(format!("backups/{bot}.tar.gz"));
        std::fs::read(path).map_or_else(|_| String::new(), |bytes| digest_of(&bytes))
    }

    /// The running bystander was never touched.
    pub(crate) async fn bystander_runs_on(&self) -> bool {
        self.first_process(&self.bystanders[0].0).await == self.bystander_process
    }

    /// Takes up a bot as the one that is tried on.
    pub(crate) fn take_up(&mut self, bot: &str) {
        self.every_bot.insert(bot.to_owned());
        self.subject = Some(Subject {
            bot: bot.to_owned(),
            state: None,
        });
    }

    pub(crate) fn subject_is(&mut self, state: State) {
        if !state.has_versions() {
            self.versions.clear();
        }
        match state {
            State::NoBot => {
                self.subject = None;
                self.written.clear();
            }
            _ => {
                if let Some(subject) = &mut self.subject {
                    subject.state = Some(state);
                }
                match (state.has_data(), state.is_preserved()) {
                    (true, _) => {}
                    (false, true) => self.written.retain(Written::is_in_data),
                    (false, false) => self.written.clear(),
                }
            }
        }
    }

    /// A name that no bot has had.
    pub(crate) fn new_name(&mut self) -> String {
        self.names_given += 1;
        format!("bot {}", self.names_given)
    }

    /// What the giver left.
    pub(crate) fn given(&self) -> &[Written] {
        &self.giver.written
    }

    /// Digests of what the subject's backup, or its legacy directory, holds.
    pub(crate) fn preserved(&self) -> BTreeMap<String, String> {
        let bot = self.subject.as_ref().map_or("", |subject| subject.bot.as_str());
        let data_root = self.installation.data_root();
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(data_root.join("bots").join(bot))
            .into_iter()
            .flatten()
            .flatten()
        {
            // The bridge of a legacy container has its socket there.
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let bytes = std::fs::read(entry.path()).expect("a file of ours can be read");
            let name = format!("data/{}", entry.file_name().to_string_lossy());
            found.insert(name, digest_of(&bytes));
        }
        if let Ok(file) = std::fs::File::open(data_root.join(format!("backups/{bot}.tar.gz"))) {
            let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
            for entry in archive.entries().expect("a backup is an archive") {
                let mut entry = entry.expect("a backup is whole");
                let name = entry.path().expect("names are text").display().to_string();
                let mut bytes = Vec::new();
                std::io::copy(&mut entry, &mut bytes).expect("a backup is whole");
                found.insert(format!("data/{name}"), digest_of(&bytes));
            }
        }
        found
    }

    /// On the host.
    pub(crate) async fn first_process(&self, bot: &str) -> u32 {
        let id = model::container_of(bot);
        let tasks = self.view.tasks().await;
        let task = tasks.iter().find(|task| task.id == id);
        task.unwrap_or_else(|| panic!("{bot} has no task: {tasks:?}")).pid
    }

    pub(crate) fn ctr(&self, arguments: &[&str]) -> String {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.installation.containerd().socket())
            .args(arguments)
            .output()
            .expect("ctr is needed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Arms one point, and begins a new record of those that are passed.
    pub(crate) fn arm(&mut self, armed: Option<(&str, usize, Exit)>) {
        self.aborts = armed.is_some_and(|(_, _, exit)| exit.ends_the_server());
        if armed.is_some_and(|(_, _, exit)| exit == Exit::Containerd) {
            std::fs::write(self.failpoints.path().join("held"), "").expect("it can be written");
        }
        let directory = self.failpoints.path();
        for file in ["passed", "fired"] {
            std::fs::write(directory.join(file), "").expect("it can be written");
        }
        let line = armed.map_or(String::new(), |(point, times, exit)| {
            format!("{point} {times} {}\n", exit.word())
        });
        std::fs::write(directory.join("armed"), line).expect("it can be written");
    }

    pub(crate) fn passed(&self) -> Vec<String> {
        self.lines("passed")
    }

    pub(crate) fn has_fired(&self) -> bool {
        !self.lines("fired").is_empty()
    }

    /// The server waits at the point that was armed: containerd is killed there, and starts again when the server
    /// has gone on for a while.
    pub(crate) async fn end_containerd(&mut self) {
        let containerd = self.installation.containerd_mut();
        containerd.kill().expect("containerd can be killed");
        std::fs::remove_file(self.failpoints.path().join("held")).expect("the server is held");
        tokio::time::sleep(CONTAINERD_AWAY).await;
        let containerd = self.installation.containerd_mut();
        containerd.start_again().await.expect("containerd starts again");
        self.view.collect_garbage().await;
    }

    pub(crate) fn is_armed_to_abort(&self) -> bool {
        self.aborts
    }

    /// Nothing is armed, or what was has fired.
    pub(crate) fn is_disarmed(&self) -> bool {
        self.lines("armed").is_empty()
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.failpoints.path().join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until what is held is what must be held in one of these states, and returns which.
    ///
    /// # Errors
    /// The difference to the first of them, at the end of the limit.
    pub(crate) async fn until(&mut self, states: &[State]) -> Result<State, String> {
        let deadline = Instant::now() + converge_limit();
        loop {
            if self.is_settled().await || Instant::now() >= deadline {
                let held = capture(self).await;
                for state in states {
                    if held.against(&self.expected(*state)).is_empty() {
                        return Ok(*state);
                    }
                }
                if Instant::now() >= deadline {
                    let first = states.first().expect("a state is expected");
                    return Err(format!(
                        "expected {states:?}; to {first:?} (+ too much, - lacking):\n{}",
                        held.against(&self.expected(*first)).describe()
                    ));
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The last word of an operation follows what it did.
    pub(crate) async fn settle(&self) {
        let deadline = Instant::now() + converge_limit();
        while !self.is_settled().await {
            assert!(Instant::now() < deadline, "an operation does not come to its end");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Nothing is under way as far as the store tells, which is asked before the rest as it is cheap.
    async fn is_settled(&self) -> bool {
        let unfinished = self.store.unfinished_operations().await;
        unfinished.is_ok_and(|unfinished| unfinished.is_empty())
    }
}
