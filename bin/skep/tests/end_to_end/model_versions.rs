//! What a [`BotModel`] knows of versions and exports: each version holds what was there when it was made, for as long
//! as it is listed, and an export is what is there.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::RngExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::whole_answer;
use crate::model::{BotModel, FILES, content_of, converge_limit};

/// Over so many, one is forgotten before another is made.
const MOST: usize = 10;

impl BotModel {
    /// Something with versions, or an export, of a workspace that runs.
    pub(crate) async fn versions_step(&mut self) {
        match self.random.random_range(0..10) {
            0..4 if self.versions.len() >= MOST => self.forget_version().await,
            0..4 => self.snapshot().await,
            4..6 if !self.versions.is_empty() => self.roll_back().await,
            6 if !self.versions.is_empty() => self.forget_version().await,
            _ => self.export().await,
        }
    }

    fn any_version(&mut self) -> u64 {
        let any = self.random.random_range(0..self.versions.len());
        *self.versions.keys().nth(any).expect("there is one")
    }

    fn snapshots(&self, rest: &str) -> String {
        format!("/bots/{}/container/snapshots{rest}", self.id)
    }

    async fn snapshot(&mut self) {
        let path = self.snapshots("");
        let answer = self.client.attempt(Method::POST, &path, Some(json!({}))).await;
        self.tell(format!("snapshot: {answer:?}"));
        match answer {
            Some((StatusCode::OK, taken)) => {
                self.acknowledged += 1;
                let version = taken["version"].as_u64().expect("a version is a number");
                let known = self.versions.insert(version, self.files.clone());
                assert!(known.is_none(), "bot {}: version {version} is given twice", self.id);
            }
            other => self.cut_off_with_versions("snapshot", other).await,
        }
    }

    pub(crate) async fn roll_back_to(&mut self, version: u64) -> bool {
        let (path, body) = (self.snapshots("/rollback"), json!({ "version": version }));
        let answer = self.client.attempt(Method::POST, &path, Some(body)).await;
        self.tell(format!("rollback to {version}: {answer:?}"));
        match answer {
            Some((StatusCode::OK, done)) => {
                self.acknowledged += 1;
                let saved = done["saved_version"].as_u64().expect("a version is a number");
                let present = self.files.clone();
                self.versions.entry(saved).or_insert(present);
                self.files = self.versions[&version].clone();
                true
            }
            other => {
                // It may have come as far as going back.
                let target = self.versions[&version].clone();
                self.cut_off_with_versions("rollback", other).await;
                for file in 0..FILES {
                    let nothing = BTreeSet::from([None]);
                    let back = target.get(&file).cloned().unwrap_or_else(|| nothing.clone());
                    self.files.entry(file).or_insert(nothing).extend(back);
                }
                false
            }
        }
    }

    async fn roll_back(&mut self) {
        let version = self.any_version();
        self.roll_back_to(version).await;
    }

    async fn forget_version(&mut self) {
        let version = self.any_version();
        let path = self.snapshots(&format!("/{version}"));
        let answer = self.client.attempt(Method::DELETE, &path, None).await;
        self.tell(format!("delete of version {version}: {answer:?}"));
        match answer {
            Some((StatusCode::NO_CONTENT, _)) => {
                self.acknowledged += 1;
                self.versions.remove(&version);
            }
            other => {
                self.cut_off_with_versions("delete of a version", other).await;
                let listed = self.listed_versions().await;
                self.versions
                    .retain(|known, _| *known != version || listed.contains(known));
            }
        }
    }

    /// A version that nobody told of holds what was there when it was asked for.
    async fn cut_off_with_versions(&mut self, what: &str, answer: Option<(StatusCode, Value)>) {
        self.not_done(what, answer);
        self.settle().await;
        let present = self.files.clone();
        let listed = self.listed_versions().await;
        self.tell(format!("versions: {listed:?}"));
        for version in listed {
            self.versions.entry(version).or_insert_with(|| present.clone());
        }
    }

    /// Those that are listed now; the server may be away for a while.
    async fn listed_versions(&mut self) -> BTreeSet<u64> {
        let path = self.snapshots("");
        let (mut kills, mut deadline) = (0, Instant::now() + converge_limit());
        loop {
            let now = self.kills.load(Ordering::Relaxed);
            if now != std::mem::replace(&mut kills, now) {
                deadline = Instant::now() + converge_limit();
            }
            match self.client.attempt(Method::GET, &path, None).await {
                Some((StatusCode::OK, list)) => {
                    let items = list["snapshots"].as_array().expect("snapshots are a list");
                    return items.iter().filter_map(|item| item["version"].as_u64()).collect();
                }
                other => assert!(Instant::now() < deadline, "bot {}: {other:?}", self.id),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A whole archive holds what is there; one that is cut off is never taken for that.
    async fn export(&mut self) {
        let path = format!("/bots/{}/container/data/export?format=tar", self.id);
        let answer = whole_answer(self.client.request(Method::POST, &path)).await;
        self.tell(format!("export: {:?}", answer.as_ref().map(|(status, _)| status)));
        match answer {
            Some((StatusCode::OK, archive)) => {
                self.acknowledged += 1;
                self.compare_with_archive(&archive);
            }
            other => {
                let other =
                    other.map(|(status, bytes)| (status, Value::String(String::from_utf8_lossy(&bytes).into())));
                self.not_done("export", other);
                self.settle().await;
            }
        }
    }

    fn compare_with_archive(&mut self, archive: &[u8]) {
        let mut seen = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().expect("it is an archive") {
            let mut entry = entry.expect("it is whole");
            let name = entry.path().expect("it has a name").to_string_lossy().into_owned();
            let Some(file) = name.trim_start_matches("./").strip_prefix('f') else {
                continue;
            };
            // One that was about to take the place of another when its command was cut off.
            let Ok(file) = file.parse::<u32>() else { continue };
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("it is whole");
            seen.insert(file, content_of(&bytes));
        }
        for file in 0..FILES {
            self.saw(file, seen.get(&file).copied());
        }
    }

    /// Each version is listed and holds what it held. Leaves the workspace on the last of them.
    pub(crate) async fn verify_versions(&mut self) {
        let listed = self.listed_versions().await;
        let known: BTreeSet<u64> = self.versions.keys().copied().collect();
        assert_eq!(listed, known, "bot {}: versions", self.id);
        for version in known {
            assert!(self.roll_back_to(version).await, "bot {}: version {version}", self.id);
            for file in 0..FILES {
                assert!(
                    self.verify(file).await,
                    "bot {}: /data/f{file} of version {version}",
                    self.id
                );
            }
        }
    }
}
