//! What a [`BotModel`] knows of a backup that is put back into a workspace that is there.

use std::collections::BTreeSet;

use rand::RngExt;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::model::{BotModel, FILES, Files};

/// What becomes of a file that the backup does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Merge,
    Replace,
}

/// How the backup is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// What a create would put back; it is not kept any more then.
    Newest,
    /// The same by its name: it stays.
    Named,
}

impl BotModel {
    pub(crate) async fn restore_any(&mut self) {
        let mode = match self.random.random() {
            true => Mode::Merge,
            false => Mode::Replace,
        };
        let which = match self.random.random() {
            true => Which::Newest,
            false => Which::Named,
        };
        self.restore(which, mode).await;
    }

    /// `false`: it did not come back for certain.
    async fn restore(&mut self, which: Which, mode: Mode) -> bool {
        let mut body = json!({ "mode": if mode == Mode::Merge { "merge" } else { "replace" } });
        if which == Which::Named {
            body["name"] = json!(format!("{}.tar.gz", self.id));
        }
        let path = self.container("/data/restore");
        let answer = self.client.attempt(Method::POST, &path, Some(body)).await;
        self.tell(format!("restore {which:?} {mode:?}: {answer:?}"));
        let after = self.with_kept(mode);
        match answer {
            Some((StatusCode::OK, _)) => {
                self.acknowledged += 1;
                self.files = after;
                match which {
                    Which::Newest => self.kept = vec![None],
                    Which::Named => self.kept.retain(Option::is_some),
                }
                true
            }
            Some((StatusCode::NOT_FOUND, _)) if self.kept.contains(&None) => {
                self.kept = vec![None];
                false
            }
            other => {
                self.not_done("restore", other);
                self.settle().await;
                for (file, contents) in after {
                    self.files
                        .entry(file)
                        .or_insert_with(|| BTreeSet::from([None]))
                        .extend(contents);
                }
                if which == Which::Newest && !self.kept.contains(&None) {
                    self.kept.push(None);
                }
                false
            }
        }
    }

    /// What may be in each file when the backup, which is there, is put back.
    fn with_kept(&self, mode: Mode) -> Files {
        let nothing = BTreeSet::from([None]);
        let mut after = Files::new();
        for file in 0..FILES {
            let present = self.files.get(&file).unwrap_or(&nothing);
            let contents = after.entry(file).or_default();
            for kept in self.kept.iter().flatten() {
                let kept = kept.get(&file).unwrap_or(&nothing);
                contents.extend(kept.iter().filter(|content| content.is_some() || mode == Mode::Replace));
                if mode == Mode::Merge && kept.contains(&None) {
                    contents.extend(present);
                }
            }
        }
        after
    }

    /// The backup holds what it held, which shows when it is put back.
    pub(crate) async fn verify_kept(&mut self) {
        let must_be_there = !self.kept.contains(&None);
        let is_back = self.restore(Which::Newest, Mode::Replace).await;
        assert!(is_back || !must_be_there, "bot {}: {:?}", self.id, self.failures.last());
        for file in 0..FILES {
            assert!(self.verify(file).await, "bot {}: /data/f{file} of the backup", self.id);
        }
    }
}
