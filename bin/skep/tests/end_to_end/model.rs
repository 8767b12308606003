//! A bot as those know it who asked for something: what was acknowledged is certain, what was cut off is one of two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use skep_testkit::Expected;

use crate::client::{Client, whole_answer};

pub(crate) const FILES: u32 = 6;

/// A soak runs alone, and for longer.
pub(crate) fn is_soak() -> bool {
    std::env::var_os("SKEP_SOAK").is_some()
}

/// The run's size: short as a part of all tests, whole in a soak.
pub(crate) fn amount(short: usize, whole: usize) -> usize {
    if is_soak() { whole } else { short }
}

/// How long all may take to be as it must be, after the last crash too: 30 s are promised, the rest is for a machine
/// that has other work. Less than the first pause after starts that failed.
pub(crate) fn converge_limit() -> Duration {
    Duration::from_secs(amount(55, 30) as u64)
}

/// A seed of this run, told so that it can be given again as `SKEP_SEED`.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("SKEP_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| rand::rng().random());
    println!("SKEP_SEED={seed}");
    seed
}

/// What a file holds, by number; `None`: it is not there.
pub(crate) type Content = Option<u32>;

/// What may be in each file; of one that is not named, nothing.
pub(crate) type Files = BTreeMap<u32, BTreeSet<Content>>;

/// One bot, and the one client that works on it.
pub(crate) struct BotModel {
    pub(crate) id: String,
    pub(crate) client: Client,
    pub(crate) random: StdRng,
    /// What may be there: one when it is known.
    pub(crate) possible: Vec<Expected>,
    pub(crate) files: Files,
    /// What each version must hold; none that is made unasked is dropped.
    pub(crate) versions: BTreeMap<u64, Files>,
    /// What the current backup may hold: one when it is known; `None`: there is none.
    pub(crate) kept: Vec<Option<Files>>,
    /// The create that was asked for last was to leave the backup aside.
    pub(crate) leaves_kept: bool,
    /// The last removal, acknowledged or cut off, was to keep the data.
    preserving: bool,
    /// Other answers than those that every state explains.
    pub(crate) failures: Vec<String>,
    /// What it did, the last thing last: told when what is seen is not what must be.
    story: Vec<String>,
    pub(crate) acknowledged: usize,
    pub(crate) cut_off: usize,
    next: u32,
    /// How often something was killed, for all bots: what a crash cuts off begins again after it.
    pub(crate) kills: Arc<AtomicUsize>,
}

impl BotModel {
    pub(crate) async fn new(client: &Client, seed: u64) -> Self {
        Self {
            id: client.bot("modelled").await,
            client: client.clone(),
            random: StdRng::seed_from_u64(seed),
            possible: vec![Expected::Nothing],
            files: Files::new(),
            versions: BTreeMap::new(),
            kept: vec![None],
            leaves_kept: false,
            preserving: false,
            failures: Vec::new(),
            story: Vec::new(),
            acknowledged: 0,
            cut_off: 0,
            next: 0,
            kills: Arc::default(),
        }
    }

    pub(crate) fn container(&self, rest: &str) -> String {
        format!("/bots/{}/container{rest}", self.id)
    }

    /// Asks for something, whatever it is.
    pub(crate) async fn step(&mut self) {
        let pause = Duration::from_millis(self.random.random_range(0..40));
        tokio::time::sleep(pause).await;
        if self.possible.len() > 1 || self.possible == [Expected::Nothing] {
            self.leaves_kept = self.possible == [Expected::Nothing] && self.random.random_bool(0.5);
            self.change("", Method::POST, Expected::Running).await;
            self.leaves_kept = false;
            return;
        }
        match self.random.random_range(0..100) {
            0..12 => self.change("/stop", Method::POST, Expected::Stopped).await,
            12..20 => self.change("/start", Method::POST, Expected::Running).await,
            20..26 => self.change("/restart", Method::POST, Expected::Running).await,
            26..29 => self.delete("").await,
            29..38 => self.delete("?preserve_data=true").await,
            38..41 => self.change("", Method::POST, Expected::Running).await,
            _ if self.possible == [Expected::Stopped] => self.change("/start", Method::POST, Expected::Running).await,
            41..53 => self.write_by_exec().await,
            53..64 => self.upload().await,
            64..70 => self.import().await,
            // There seldom is one in a run that is short.
            70..94 if self.kept.iter().any(Option::is_some) => self.restore_any().await,
            70..88 => self.versions_step().await,
            _ => self.verify_one().await,
        }
    }

    async fn delete(&mut self, query: &str) {
        self.preserving = !query.is_empty();
        self.change(query, Method::DELETE, Expected::Nothing).await;
        if self.preserving && self.possible != [Expected::Nothing] {
            // It may have come as far as keeping the data.
            self.kept.push(Some(self.files.clone()));
        }
        self.preserving = false;
    }

    /// The workspace is in that state now, whatever it was before.
    fn became(&mut self, state: Expected, before: &[Expected]) {
        let was_gone = before.contains(&Expected::Nothing);
        if state == Expected::Nothing {
            // They go with their workspace.
            self.versions.clear();
        }
        match state {
            Expected::Nothing if self.preserving => {
                self.kept = vec![Some(std::mem::take(&mut self.files))];
                self.preserving = false;
            }
            Expected::Nothing => self.files.clear(),
            _ if was_gone && self.leaves_kept => {}
            _ if was_gone => self.began(),
            _ => {}
        }
        self.possible = vec![state];
    }

    /// A new workspace begins with what was kept, which is not kept any more.
    fn began(&mut self) {
        let kept = std::mem::replace(&mut self.kept, vec![None]);
        for file in 0..FILES {
            let nothing = BTreeSet::from([None]);
            let of = |files: &Option<Files>| files.as_ref().and_then(|files| files.get(&file)).cloned();
            let possible: BTreeSet<Content> = kept
                .iter()
                .flat_map(|files| of(files).unwrap_or_else(|| nothing.clone()))
                .collect();
            self.files.insert(file, possible);
        }
    }

    /// An operation after which the workspace is in that state.
    async fn change(&mut self, rest: &str, method: Method, after: Expected) {
        let body = match self.leaves_kept {
            true => json!({ "restore_data": false }),
            false => json!({}),
        };
        let body = (method == Method::POST && rest.is_empty()).then_some(body);
        let path = self.container(rest);
        let answer = self.client.attempt(method.clone(), &path, body).await;
        self.tell(format!("{method} {rest:?}: {answer:?}"));
        match answer {
            Some((status, _)) if status.is_success() => {
                self.acknowledged += 1;
                let before = self.possible.clone();
                self.became(after, &before);
            }
            other => {
                self.not_done(&format!("{method} {path}"), other);
                if !self.possible.contains(&after) {
                    self.possible.push(after);
                }
                self.settle().await;
            }
        }
    }

    async fn write_by_exec(&mut self) {
        let (file, content) = self.new_content();
        let command = format!("echo {content} > /data/f{file}.new && mv /data/f{file}.new /data/f{file}");
        let path = self.container("/exec");
        let answer = self
            .client
            .attempt(Method::POST, &path, Some(json!({ "command": command })))
            .await;
        self.tell(format!("exec that writes {content} to f{file}: {answer:?}"));
        match answer {
            Some((StatusCode::OK, value)) if value["exit_code"] == 0 => self.wrote(file, content),
            other => self.maybe_wrote(file, content, "exec", other).await,
        }
    }

    async fn upload(&mut self) {
        let (file, content) = self.new_content();
        let path = self.container(&format!("/fs/upload?path=/data/f{file}"));
        let request = self.client.request(Method::PUT, &path).body(body_of(content));
        let answer = whole_answer(request).await;
        self.tell(format!("upload of {content} to f{file}: {:?}", told(&answer)));
        match answer {
            Some((StatusCode::OK, _)) => self.wrote(file, content),
            other => {
                let other =
                    other.map(|(status, bytes)| (status, Value::String(String::from_utf8_lossy(&bytes).into())));
                self.maybe_wrote(file, content, "upload", other).await;
            }
        }
    }

    /// Of an archive with one file, beside those that are there.
    async fn import(&mut self) {
        let (file, content) = self.new_content();
        let path = self.container("/data/import");
        let archive = archive_of(&format!("f{file}"), &body_of(content));
        let answer = whole_answer(self.client.request(Method::POST, &path).body(archive)).await;
        self.tell(format!("import of {content} as f{file}: {:?}", told(&answer)));
        match answer {
            Some((StatusCode::OK, _)) => self.wrote(file, content),
            other => {
                let other =
                    other.map(|(status, bytes)| (status, Value::String(String::from_utf8_lossy(&bytes).into())));
                self.maybe_wrote(file, content, "import", other).await;
            }
        }
    }

    fn new_content(&mut self) -> (u32, u32) {
        self.next += 1;
        (self.random.random_range(0..FILES), self.next)
    }

    fn wrote(&mut self, file: u32, content: u32) {
        self.acknowledged += 1;
        self.files.insert(file, BTreeSet::from([Some(content)]));
    }

    async fn maybe_wrote(&mut self, file: u32, content: u32, what: &str, answer: Option<(StatusCode, Value)>) {
        self.not_done(what, answer);
        let possible = self.files.entry(file).or_insert_with(|| BTreeSet::from([None]));
        possible.insert(Some(content));
        self.settle().await;
    }

    /// Counts what was not acknowledged; a refusal that nothing explains is kept.
    pub(crate) fn not_done(&mut self, what: &str, answer: Option<(StatusCode, Value)>) {
        match answer {
            None | Some((StatusCode::SERVICE_UNAVAILABLE, _)) => self.cut_off += 1,
            Some((status, value)) => self.failures.push(format!("{what}: {status} {value}")),
        }
    }

    async fn verify_one(&mut self) {
        let file = self.random.random_range(0..FILES);
        self.verify(file).await;
    }

    /// Reads a file of a workspace that runs: `false` when nobody answered.
    pub(crate) async fn verify(&mut self, file: u32) -> bool {
        let path = self.container(&format!("/fs/download?path=/data/f{file}"));
        let answer = whole_answer(self.client.request(Method::GET, &path)).await;
        self.tell(format!("download of f{file}: {:?}", told(&answer)));
        let read = match answer {
            Some((StatusCode::OK, bytes)) => Some(content_of(&bytes)),
            Some((StatusCode::NOT_FOUND, _)) => None,
            Some((StatusCode::SERVICE_UNAVAILABLE, _)) | None => return false,
            Some((status, bytes)) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                self.not_done("download", Some((status, Value::String(text))));
                return false;
            }
        };
        self.saw(file, read);
        true
    }

    /// Writes down what was done, with the time of the server's log.
    pub(crate) fn tell(&mut self, what: String) {
        let at = chrono::Utc::now().format("%H:%M:%S%.3f");
        self.story.push(format!("{at} {what}"));
    }

    /// What was read is what may be there, and it is certain from now on.
    pub(crate) fn saw(&mut self, file: u32, read: Content) {
        let possible = self.files.entry(file).or_insert_with(|| BTreeSet::from([None]));
        assert!(
            possible.contains(&read),
            "bot {}: /data/f{file} holds {read:?}, which is none of {possible:?}; it did:\n{}",
            self.id,
            self.story.join("\n")
        );
        *possible = BTreeSet::from([read]);
    }

    /// Waits until nothing is under way, and sees what became of the workspace.
    pub(crate) async fn settle(&mut self) {
        self.tell("settling".to_owned());
        let (mut kills, mut deadline) = (0, Instant::now() + converge_limit());
        loop {
            let now = self.kills.load(Ordering::Relaxed);
            if now != std::mem::replace(&mut kills, now) {
                deadline = Instant::now() + converge_limit();
            }
            let last = match self.look().await {
                Ok(seen) => {
                    assert!(
                        self.possible.contains(&seen),
                        "bot {} is {seen:?}, which is none of {:?}; failures so far: {:?}; it did:\n{}",
                        self.id,
                        self.possible,
                        self.failures,
                        self.story.join("\n")
                    );
                    self.tell(format!("settled: {seen:?}"));
                    let before = match self.possible.as_slice() {
                        // What was cut off did not happen, or was undone.
                        [first, ..] if *first == seen => Vec::new(),
                        before => before.to_vec(),
                    };
                    if before.is_empty() {
                        self.possible = vec![seen];
                    } else {
                        self.became(seen, &before);
                    }
                    return;
                }
                Err(seen) => seen,
            };
            assert!(
                Instant::now() < deadline,
                "bot {} did not settle within {:?}: {last}",
                self.id,
                converge_limit()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn look(&self) -> Result<Expected, String> {
        let operations = self
            .client
            .attempt(Method::GET, &format!("/bots/{}/operations", self.id), None)
            .await;
        let Some((StatusCode::OK, operations)) = operations else {
            return Err(format!("{operations:?}"));
        };
        let items = operations["items"].as_array().expect("operations are a list");
        if let Some(open) = items.iter().find(|one| one["finished_at"].is_null()) {
            return Err(format!("an operation is under way: {open}"));
        }
        match self.client.attempt(Method::GET, &self.container(""), None).await {
            Some((StatusCode::NOT_FOUND, _)) => Ok(Expected::Nothing),
            Some((StatusCode::OK, info)) => match (info["desired"].as_str(), info["task_running"].as_bool()) {
                (Some("running"), Some(true)) if info["status"] == "running" => Ok(Expected::Running),
                (Some("stopped"), Some(false)) if info["status"] == "stopped" => Ok(Expected::Stopped),
                _ => Err(info.to_string()),
            },
            other => Err(format!("{other:?}")),
        }
    }

    /// Reads every file; a workspace that is stopped is started for it.
    pub(crate) async fn verify_all(&mut self) {
        if self.possible == [Expected::Nothing] {
            if self.kept == [None] {
                return;
            }
            // What was kept is seen when it is put back.
            self.change("", Method::POST, Expected::Running).await;
        }
        if self.possible == [Expected::Stopped] {
            self.client.act(&self.id, "start").await;
            self.possible = vec![Expected::Running];
        }
        for file in 0..FILES {
            assert!(self.verify(file).await, "bot {}: /data/f{file} cannot be read", self.id);
        }
        self.verify_versions().await;
        self.verify_kept().await;
    }
}

/// The beginning of an answer.
pub(crate) fn told(answer: &Option<(StatusCode, Vec<u8>)>) -> Option<(StatusCode, String)> {
    let (status, bytes) = answer.as_ref()?;
    Some((
        *status,
        String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned(),
    ))
}

/// Large enough that a kill meets it on its way, now and then.
fn body_of(content: u32) -> String {
    let mut body = format!("{content}\n");
    let filler = "skep ".repeat(content as usize % 7 * 4096);
    body.push_str(&filler);
    body
}

fn archive_of(name: &str, content: &str) -> Vec<u8> {
    let tree = tempfile::tempdir().expect("a directory can be made");
    std::fs::write(tree.path().join(name), content).expect("a file can be written");
    let packed = std::process::Command::new("tar")
        .args(["--create", "--directory"])
        .arg(tree.path())
        .arg(name)
        .output();
    packed.expect("tar is installed").stdout
}

/// Its number, when all that belongs to it is there.
pub(crate) fn content_of(bytes: &[u8]) -> u32 {
    let text = std::str::from_utf8(bytes).expect("the file is text");
    let (number, rest) = text.split_once('\n').expect("the file has a first line");
    let number: u32 = number.parse().expect("the first line is a number");
    assert!(
        rest.is_empty() || text == body_of(number),
        "the file of content {number} is {} bytes long, not {}",
        bytes.len(),
        body_of(number).len()
    );
    number
}

/// What the host should have of them all.
pub(crate) fn expected(bots: &[BotModel]) -> BTreeMap<String, Expected> {
    bots.iter()
        .map(|bot| {
            assert_eq!(bot.possible.len(), 1, "bot {} is not settled", bot.id);
            (bot.id.clone(), bot.possible[0])
        })
        .collect()
}
