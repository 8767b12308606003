//! How the bot of the trials comes into the state that a trial begins in.

use std::path::Path;

use reqwest::Method;
use serde_json::json;
use skep_names::LEGACY_PREFIX;

use crate::database::Database;
use crate::model::{self, State};
use crate::stage::{LONG_LINE, Stage};
use crate::written::{FILE_BYTES, Written, digest_of};

impl Stage {
    /// Brings the subject into a state, the shortest way, and writes bytes where it can have some.
    pub(crate) async fn prepare(&mut self, wanted: State) {
        let client = self.installation.client.clone();
        let now = match &self.subject {
            None => State::NoBot,
            Some(subject) => match (subject.state, wanted) {
                // Numbers of versions are never used again: one that is to have them begins with the first.
                (Some(now @ (State::Running | State::Stopped | State::Bare)), to)
                    if to != State::NoBot && !to.has_versions() =>
                {
                    now
                }
                (Some(State::GoneAndPreserved), _) => {
                    let bot = subject.bot.clone();
                    self.remove_backups(&bot).await;
                    self.subject_is(State::NoBot);
                    State::NoBot
                }
                _ => {
                    let (bot, has_pulled) = (subject.bot.clone(), subject.state.is_some_and(State::has_pulled));
                    self.remove_backups(&bot).await;
                    client.delete_bot(&bot).await;
                    self.settle().await;
                    self.subject_is(State::NoBot);
                    if has_pulled {
                        self.forget_pulled().await;
                    }
                    State::NoBot
                }
            },
        };
        if wanted == State::NoBot {
            return;
        }
        if now == State::NoBot {
            let name = self.new_name();
            let bot = client.bot(&name).await;
            self.take_up(&bot);
        }
        let bot = self.subject.as_ref().expect("there is one now").bot.clone();
        match (now, wanted) {
            (State::NoBot | State::Bare, State::Bare | State::Legacy | State::RunningLegacy) => {}
            (_, State::Bare | State::Legacy | State::RunningLegacy) => {
                client
                    .good(Method::DELETE, &format!("/bots/{bot}/container"), None)
                    .await;
            }
            (State::NoBot | State::Bare, _) => {
                let events = client.create(&bot, json!({})).await;
                assert_eq!(events.last().expect("events")["type"], "complete", "{events:?}");
            }
            (State::Stopped, _) => drop(client.act(&bot, "start").await),
            _ => {}
        }
        if matches!(wanted, State::Bare | State::Legacy | State::RunningLegacy) {
            self.subject_is(State::Bare);
            if wanted != State::Bare {
                self.write_legacy(&bot);
            }
            if wanted == State::RunningLegacy {
                self.run_legacy(&bot).await;
            }
            return self.subject_is(wanted);
        }
        self.subject_is(State::Running);
        self.write(&bot).await;
        let versions = match wanted {
            State::LongLine => LONG_LINE,
            wanted => i64::from(wanted.has_versions()),
        };
        self.keep_versions(&bot, versions).await;
        self.leave_running(&bot, wanted).await;
        self.subject_is(wanted);
    }

    /// So many versions with bytes written after each; those between the first and the last are deleted.
    async fn keep_versions(&mut self, bot: &str, count: i64) {
        let client = self.installation.client.clone();
        let snapshots = format!("/bots/{bot}/container/snapshots");
        for _ in 0..count {
            let taken = client.good(Method::POST, &snapshots, Some(json!({}))).await;
            let version = taken["version"].as_i64().expect("a number");
            self.versions.insert(version, self.written.clone());
            self.write(bot).await;
        }
        let between = self
            .versions
            .keys()
            .copied()
            .filter(|version| (2..count).contains(version));
        for version in between.collect::<Vec<_>>() {
            client
                .good(Method::DELETE, &format!("{snapshots}/{version}"), None)
                .await;
            self.versions.remove(&version);
        }
    }

    /// They would outlive their bot.
    pub(crate) async fn remove_backups(&self, bot: &str) {
        let client = &self.installation.client;
        let listed = client.good(Method::GET, &format!("/bots/{bot}/backups"), None).await;
        for backup in listed["items"].as_array().into_iter().flatten() {
            let name = backup["name"].as_str().expect("a name");
            client
                .good(Method::DELETE, &format!("/bots/{bot}/backups/{name}"), None)
                .await;
        }
    }

    /// From a workspace that runs.
    async fn leave_running(&mut self, bot: &str, wanted: State) {
        let client = self.installation.client.clone();
        match wanted {
            State::Preserved => {
                let path = format!("/bots/{bot}/container?preserve_data=true");
                client.good(Method::DELETE, &path, None).await;
            }
            State::Restorable => {
                let path = format!("/bots/{bot}/container?preserve_data=true");
                client.good(Method::DELETE, &path, None).await;
                let events = client.create(bot, json!({ "restore_data": false })).await;
                assert_eq!(events.last().expect("events")["type"], "complete", "{events:?}");
                self.written.retain(Written::is_in_data);
                self.write(bot).await;
            }
            State::Lost => {
                let path = format!("/bots/{bot}/container?preserve_data=true");
                client.good(Method::DELETE, &path, None).await;
                let events = client.create(bot, json!({ "restore_data": false })).await;
                assert_eq!(events.last().expect("events")["type"], "complete", "{events:?}");
                client.act(bot, "stop").await;
                // Its layer goes with it.
                self.ctr(&["containers", "rm", &model::container_of(bot)]);
            }
            State::Unrecorded | State::UnrecordedLayer => {
                client.act(bot, "stop").await;
                self.settle().await;
                Database::forget_workspace(&self.installation.data_root().join("skep.db"), bot).await;
                if wanted == State::UnrecordedLayer {
                    self.ctr(&["containers", "rm", "--keep-snapshot", &model::container_of(bot)]);
                }
            }
            State::Stopped | State::VersionedStopped => drop(client.act(bot, "stop").await),
            State::Orphaned => {
                client.act(bot, "stop").await;
                self.ctr(&["containers", "rm", "--keep-snapshot", &model::container_of(bot)]);
            }
            _ => {}
        }
    }

    /// A directory as a legacy container had it.
    fn write_legacy(&mut self, bot: &str) {
        let token = self.new_name().replace(' ', "-");
        let directory = self.installation.data_root().join("bots").join(bot);
        let bytes: Vec<u8> = token.bytes().cycle().take(FILE_BYTES).collect();
        std::fs::create_dir_all(&directory).expect("a directory can be made");
        std::fs::write(directory.join(format!("kept-{token}")), &bytes).expect("a file can be written");
        self.written.push(Written {
            name: format!("data/kept-{token}"),
            digest: digest_of(&bytes),
            size: FILE_BYTES as u64,
        });
    }

    /// A legacy container on the bot's legacy directory. Its bridge is one of today, which listens on the loopback alone.
    async fn run_legacy(&self, bot: &str) {
        let data_root = self.installation.data_root();
        let data = data_root.join("bots").join(bot);
        let serve = "trap 'exit 0' TERM\nBRIDGE_TCP_ADDR=127.0.0.1:9091 /opt/old/bridge &\n\
                     nc -ll -p 9090 -e nc 127.0.0.1 9091 &\nwait\n";
        std::fs::write(data.join("serve"), serve).expect("a script can be written");
        let mount = |source: &Path, place: &str, options: &str| {
            format!("type=bind,src={},dst={place},options={options}", source.display())
        };
        let (data, runtime) = (
            mount(&data, "/data", "rbind:rw"),
            mount(&data_root.join("runtime"), "/opt/old", "rbind:ro"),
        );
        let container = format!("{LEGACY_PREFIX}{bot}");
        // Not in its data: what it writes beside it would be another data each time it runs.
        let socket = "BRIDGE_SOCKET_PATH=/bridge.sock";
        let made_of = [
            "containers",
            "create",
            "--mount",
            &data,
            "--mount",
            &runtime,
            "--env",
            socket,
        ];
        self.ctr(&[&made_of[..], &[self.image(), &container, "/bin/sh", "/data/serve"]].concat());
        self.installation.client.act(bot, "start").await;
    }

    /// Bytes in the data directory and outside of it.
    pub(crate) async fn write(&mut self, bot: &str) {
        let token = self.new_name().replace(' ', "-");
        let command = format!(
            "head -c {FILE_BYTES} /dev/urandom > /data/kept-{token} && cp /data/kept-{token} /etc/also-kept-{token} && \
             sha256sum < /data/kept-{token}"
        );
        let digest = self.installation.client.output(bot, &command).await;
        let digest = digest.split_whitespace().next().expect("a digest").to_owned();
        for name in [format!("data/kept-{token}"), format!("etc/also-kept-{token}")] {
            self.written.push(Written {
                name,
                digest: digest.clone(),
                size: FILE_BYTES as u64,
            });
        }
    }
}
