//! Versions on real containerd: many of them, one after the other and on eight workspaces at once, while garbage is
//! collected all the time. Nothing fails, nothing is lost, and nothing grows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use skep_testkit::containerd_view::ContainerdView;

use crate::client::Client;
use crate::installation::{Installation, OciRuntime, field};
use crate::model::{amount, converge_limit, is_soak, seed};

/// As `snapshots.max` is by default.
const MOST: usize = 64;
const AT_ONCE: usize = 8;

/// What a workspace and its versions must hold.
struct Workspace {
    client: Client,
    bot: String,
    random: StdRng,
    present: String,
    versions: BTreeMap<u64, String>,
    written: u64,
}

impl Workspace {
    async fn new(skep: &Installation, name: &str, seed: u64) -> Self {
        let client = skep.client.clone();
        let bot = client.workspace(name, None).await;
        let mut workspace = Self {
            client,
            bot,
            random: StdRng::seed_from_u64(seed),
            present: String::new(),
            versions: BTreeMap::new(),
            written: 0,
        };
        workspace.write().await;
        workspace
    }

    fn path(&self, rest: &str) -> String {
        format!("/bots/{}/container/snapshots{rest}", self.bot)
    }

    async fn write(&mut self) {
        self.written += 1;
        let text = format!("{}", self.written);
        let command = format!(
            "mkdir -p /data/some && echo {text} > /data/state && rm -rf /data/some/* && echo x > /data/some/{text}"
        );
        self.client.output(&self.bot, &command).await;
        self.present = text;
    }

    /// The file, and the one name that there is beside it: a whiteout that is lost shows as a second name.
    async fn check(&self) {
        let seen = self.client.output(&self.bot, "cat /data/state; ls /data/some").await;
        assert_eq!(seen, format!("{0}\n{0}\n", self.present), "{}", self.bot);
    }

    async fn snapshot(&mut self) -> u64 {
        let taken = self.client.good(Method::POST, &self.path(""), Some(json!({}))).await;
        let version = taken["version"].as_u64().expect("a version");
        assert!(self.versions.insert(version, self.present.clone()).is_none());
        version
    }

    async fn roll_back(&mut self, version: u64) {
        let body = json!({ "version": version });
        let done = self
            .client
            .good(Method::POST, &self.path("/rollback"), Some(body))
            .await;
        let saved = done["saved_version"].as_u64().expect("a version");
        let kept = self.versions.entry(saved).or_insert_with(|| self.present.clone());
        assert_eq!(*kept, self.present, "version {saved} holds what was there");
        self.present = self.versions[&version].clone();
        // Those that rollbacks make are dropped, the oldest first.
        let listed = self.listed().await;
        self.versions.retain(|version, _| listed.contains(version));
        self.check().await;
    }

    async fn delete(&mut self, version: u64) {
        self.client
            .good(Method::DELETE, &self.path(&format!("/{version}")), None)
            .await;
        self.versions.remove(&version);
    }

    async fn listed(&self) -> Vec<u64> {
        let list = self.client.good(Method::GET, &self.path(""), None).await;
        let items = list["snapshots"].as_array().expect("a list");
        items.iter().filter_map(|item| item["version"].as_u64()).collect()
    }

    /// Snapshots and rollbacks, deletes as the limit asks.
    async fn live(&mut self, operations: usize) {
        for _ in 0..operations {
            if self.random.random_range(0..3) > 0 || self.versions.is_empty() {
                while self.versions.len() >= MOST - 8 {
                    let any = self.random.random_range(0..self.versions.len());
                    let version = *self.versions.keys().nth(any).expect("a version");
                    self.delete(version).await;
                }
                self.write().await;
                self.snapshot().await;
                self.check().await;
            } else {
                if self.random.random_range(0..2) == 0 {
                    self.write().await;
                }
                let any = self.random.random_range(0..self.versions.len());
                let version = *self.versions.keys().nth(any).expect("a version");
                self.roll_back(version).await;
            }
        }
    }

    async fn every_version_holds_what_it_held(&mut self) {
        for version in self.listed().await {
            // Going back may have dropped one that a rollback made.
            if self.versions.contains_key(&version) {
                self.roll_back(version).await;
            }
        }
    }

    async fn restart_time(&self) -> Duration {
        let begun = Instant::now();
        self.client.act(&self.bot, "restart").await;
        begun.elapsed()
    }
}

/// The least that a restart of each takes, of five in turn: what else the machine does is felt by both.
async fn restart_times(one: &Workspace, other: &Workspace) -> (Duration, Duration) {
    let mut least = (Duration::MAX, Duration::MAX);
    for _ in 0..5 {
        least.0 = least.0.min(one.restart_time().await);
        least.1 = least.1.min(other.restart_time().await);
    }
    least
}

/// Forces containerd's garbage collection again and again, as long as the work goes on.
async fn while_garbage_is_collected<T>(skep: &Installation, work: impl Future<Output = T>) -> T {
    let over = Arc::new(AtomicBool::new(false));
    let containerd = ContainerdView::new(skep.containerd().socket());
    let ended = over.clone();
    let collecting = tokio::spawn(async move {
        while !ended.load(Ordering::Relaxed) {
            containerd.collect_garbage().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let done = work.await;
    over.store(true, Ordering::Relaxed);
    collecting.await.expect("garbage is collected all the while");
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn many_snapshots_and_rollbacks_lose_nothing_and_slow_nothing_down() {
    let more = [
        // So that a short run meets merges too.
        ("SKEP_SNAPSHOTS__MERGE_OVER", amount(12, 100).to_string()),
    ];
    let skep = Installation::start_with(OciRuntime::Found, &more).await;
    let seed = seed();
    while_garbage_is_collected(&skep, async {
        let mut one = Workspace::new(&skep, "alone", seed).await;
        let without = Workspace::new(&skep, "without versions", seed).await;
        let (first, _) = restart_times(&one, &without).await;
        one.live(amount(30, 500)).await;
        one.every_version_holds_what_it_held().await;
        let (last, beside) = restart_times(&one, &without).await;
        println!("a restart took {first:?} at first and {last:?} at last, {beside:?} without versions");
        // What slows both down alike is seen by this alone.
        assert!(
            beside < first * 4 + Duration::from_secs(1),
            "{first:?}, then {beside:?} without versions"
        );
        // Other tests may have made both slower by then.
        let least = if is_soak() { first.min(beside) } else { beside };
        assert!(
            last < least * 2 + Duration::from_millis(100),
            "{first:?}, then {last:?}, without versions {beside:?}"
        );
        let line = skep.client.good(Method::GET, &one.path(""), None).await;
        let layers = line["snapshots"].as_array().expect("a list").len();
        assert!(layers < 2 * amount(12, 100) + MOST, "{layers} layers");
        join_all((0..AT_ONCE).map(|number| {
            let skep = &skep;
            async move {
                let mut workspace = Workspace::new(skep, &format!("at once {number}"), seed + number as u64).await;
                workspace.live(amount(4, 63)).await;
                workspace.every_version_holds_what_it_held().await;
            }
        }))
        .await;
    })
    .await;
}

/// All that there is when a version is taken becomes a lower layer, whose directories the kernel does not rename.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_renamed_and_a_deep_tree_deleted_after_a_version_was_taken() {
    let skep = Installation::start(OciRuntime::Found).await;
    let mut workspace = Workspace::new(&skep, "renames", 1).await;
    let (client, bot) = (skep.client.clone(), workspace.bot.clone());
    let made = "cd /data && mkdir -p old/in full && echo kept > old/in/file && ln old/in/file old/second \
        && chmod 2750 old/in && chown 1000:1000 old/in/file && touch -d @1600000000 old/in/file old && echo x > full/x \
        && d=deep; for i in 1 2 3 4 5 6 7 8 9 10; do d=$d/a/b/c/d/e/f/g/h/i/j; done; mkdir -p $d";
    client.output(&bot, made).await;
    let told = "cd /data/$1 && stat -c '%n %a %u:%g %Y %h' in in/file second && stat -c %Y . && cat in/file";
    let before = client.output(&bot, &told.replace("$1", "old")).await;
    workspace.snapshot().await;
    let rename = async |from: &str, to: &str| {
        let body = json!({"oldPath": from, "newPath": to});
        let path = format!("/bots/{bot}/container/fs/rename");
        client.call(Method::POST, &path, Some(body)).await
    };
    let (status, body) = rename("/data/old", "/data/full").await;
    assert_eq!(status, StatusCode::CONFLICT, "{body}");
    let (status, body) = rename("/data/old", "/data/new").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(client.output(&bot, &told.replace("$1", "new")).await, before);
    // The resolver's file in it is a mount, which cannot come along.
    let everything = client.output(&bot, "ls -la /etc").await;
    let (status, body) = rename("/etc", "/etc.old").await;
    assert_eq!(status, StatusCode::CONFLICT, "{body}");
    assert_eq!(
        client
            .output(&bot, "ls -la /etc; ls -d /.skep-* 2> /dev/null || true")
            .await,
        everything
    );
    let path = format!("/bots/{bot}/container/fs/delete");
    let deep = json!({"path": "/data/deep", "recursive": true});
    client.good(Method::POST, &path, Some(deep)).await;
    let gone = "ls -d /data/old /data/deep /data/.skep-* 2> /dev/null || true";
    assert_eq!(client.output(&bot, gone).await, "");
}

/// What the reference system did, and lost workspaces by.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_layers_keeps_the_container_its_row_and_every_layer_referenced() {
    let skep = Installation::start(OciRuntime::Found).await;
    let mut workspace = Workspace::new(&skep, "kept", seed()).await;
    let id = format!("workspace-{}", workspace.bot);
    let container = || {
        let told = skep.ctr(&["containers", "info", &id]);
        serde_json::from_slice::<Value>(&told.stdout).expect("a container")
    };
    let made = container()["CreatedAt"].clone();
    let row = |info: Value| ["status", "namespace", "created_at", "image"].map(|field| info[field].clone());
    let before = row(skep.client.info(&workspace.bot).await);
    let mut keys = vec![container()["SnapshotKey"].clone()];
    let first = workspace.snapshot().await;
    keys.push(container()["SnapshotKey"].clone());
    workspace.write().await;
    workspace.roll_back(first).await;
    keys.push(container()["SnapshotKey"].clone());
    assert_eq!(
        container()["CreatedAt"],
        made,
        "it was put onto another layer, and never made anew"
    );
    assert!(keys[0] != keys[1] && keys[1] != keys[2], "{keys:?}");
    assert_eq!(row(skep.client.info(&workspace.bot).await), before);
    let list = skep.client.good(Method::GET, &workspace.path(""), None).await;
    let layers = list["snapshots"].as_array().expect("a list").iter();
    let own: Vec<&Value> = layers
        .filter(|layer| field(layer, "runtime_snapshot_name").starts_with(&id))
        .collect();
    // The first version, what was saved of the state that was left, and the one that is written to.
    assert_eq!(own.len(), 3, "{own:?}");
    for layer in &own {
        assert!(layer["labels"]["containerd.io/gc.root"].is_string(), "{layer}");
    }
    assert_eq!(own.iter().filter(|layer| layer["kind"] == "Active").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_answered_at_every_moment_of_a_change() {
    let skep = Installation::start(OciRuntime::Found).await;
    let mut workspace = Workspace::new(&skep, "listed", seed()).await;
    let (client, path) = (skep.client.clone(), workspace.path(""));
    let first = workspace.snapshot().await;
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    let asking = tokio::spawn(async move {
        let mut asked = 0;
        while !ended.load(Ordering::Relaxed) {
            let list = client.good(Method::GET, &path, None).await;
            let layers = list["snapshots"].as_array().expect("a list");
            assert!(layers.iter().any(|layer| layer["version"] == first), "{list}");
            asked += 1;
        }
        asked
    });
    for _ in 0..8 {
        workspace.write().await;
        let version = workspace.snapshot().await;
        workspace.write().await;
        workspace.roll_back(version).await;
    }
    over.store(true, Ordering::Relaxed);
    let asked = asking.await.expect("each list is answered");
    assert!(asked > 16, "only {asked} lists");
    // Nothing of it is guessed: without the layer that is written to, there is none to tell of.
    skep.client.act(&workspace.bot, "stop").await;
    let listed = skep.ctr(&["snapshots", "ls"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let own = format!("workspace-{}", workspace.bot);
    let mut left: Vec<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    left.retain(|name| name.starts_with(&own));
    for _ in 0..left.len() {
        // What something stands on is refused until that is gone.
        for name in &left {
            skep.ctr(&["snapshots", "rm", name]);
        }
    }
    let (status, body) = skep.client.call(Method::GET, &workspace.path(""), None).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{body}");
    assert_eq!(body["message"], "container snapshot chain not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_is_refused_and_every_version_up_to_it_is_whole() {
    let most = amount(10, MOST);
    let more = [("SKEP_SNAPSHOTS__MAX", most.to_string())];
    let skep = Installation::start_with(OciRuntime::Found, &more).await;
    let mut workspace = Workspace::new(&skep, "full", 1).await;
    for _ in 0..most {
        workspace.write().await;
        workspace.snapshot().await;
    }
    let (status, body) = skep
        .client
        .call(Method::POST, &workspace.path(""), Some(json!({})))
        .await;
    assert_eq!(
        (status, body["code"].as_str()),
        (StatusCode::CONFLICT, Some("snapshot_limit"))
    );
    workspace.check().await;
    for version in 1..=most as u64 {
        workspace.roll_back(version).await;
    }
    for version in (2..most as u64).step_by(2) {
        workspace.delete(version).await;
    }
    for version in (1..=most as u64).step_by(2) {
        workspace.roll_back(version).await;
    }
    skep.client.delete_bot(&workspace.bot).await;
    let layers = skep.ctr(&["snapshots", "ls"]);
    let layers = String::from_utf8_lossy(&layers.stdout).into_owned();
    assert!(!layers.contains("workspace-"), "{layers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_at_any_moment_loses_no_version() {
    let more = [
        ("SKEP_SNAPSHOTS__MERGE_OVER", "6".to_owned()),
        // Nothing is dropped unasked: what was there must be there.
        ("SKEP_SNAPSHOTS__KEEP_ROLLBACK", "1000".to_owned()),
    ];
    let mut skep = Installation::start_with(OciRuntime::Found, &more).await;
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut workspace = Workspace::new(&skep, "killed", seed).await;
    for _ in 0..amount(5, 60) {
        workspace.live(3).await;
        workspace.write().await;
        let request = match random.random_range(0..2) {
            0 => (workspace.path(""), json!({})),
            _ => {
                let any = random.random_range(0..workspace.versions.len());
                let version = workspace.versions.keys().nth(any).expect("a version");
                (workspace.path("/rollback"), json!({ "version": version }))
            }
        };
        let client = skep.client.clone();
        let asked = tokio::spawn(async move { client.attempt(Method::POST, &request.0, Some(request.1)).await });
        tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
        skep.kill_server();
        // Answered or cut off: what is there is looked at below.
        drop(asked.await.expect("the request ends"));
        skep.start_server_again().await;
        skep.wait_until_ready().await;
        workspace.take_up().await;
    }
    workspace.every_version_holds_what_it_held().await;
}

impl Workspace {
    /// After a crash: the versions of before are there, a new one holds what was there, and the present is that or
    /// a version.
    async fn take_up(&mut self) {
        let deadline = Instant::now() + converge_limit();
        loop {
            let path = format!("/bots/{}/operations", self.bot);
            let operations = self.client.good(Method::GET, &path, None).await;
            let items = operations["items"].as_array().expect("a list");
            if items.iter().all(|item| item["finished_at"].is_string()) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "an operation does not come to its end: {operations}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let listed = self.listed().await;
        for version in listed
            .iter()
            .filter(|version| **version > self.highest())
            .copied()
            .collect::<Vec<_>>()
        {
            self.versions.insert(version, self.present.clone());
        }
        let lost: Vec<u64> = self
            .versions
            .keys()
            .filter(|version| !listed.contains(version))
            .copied()
            .collect();
        assert!(lost.is_empty(), "{lost:?} are gone");
        let seen = self.client.output(&self.bot, "cat /data/state").await;
        let seen = seen.trim().to_owned();
        assert!(
            seen == self.present || self.versions.values().any(|held| *held == seen),
            "{seen} was never there"
        );
        self.present = seen;
        self.check().await;
    }

    fn highest(&self) -> u64 {
        self.versions.keys().max().copied().unwrap_or(0)
    }
}
