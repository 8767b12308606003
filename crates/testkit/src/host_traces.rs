//! What the workspaces of one data root have on this host and in their containerd, by bot, and how that differs
//! from what a model says they should have. For tests that kill, delete and count.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::mounts_below;

/// What a running workspace has, no more and no less.
const OF_RUNNING: &[&str] = &[
    "address",
    "attachment",
    "cgroup",
    "container",
    "ids",
    "layer",
    "network namespace",
    "record",
    "socket directory",
    "socket mount",
    "task",
    "user namespace",
];
/// What a stopped workspace has, no more and no less.
const OF_STOPPED: &[&str] = &["container", "layer"];
/// Characters of a bot's id.
const BOT_ID_LENGTH: usize = 36;
/// The bot's name of what belongs to none.
const NOBODY: &str = "(no bot)";

/// What should be there of a bot's workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// All that a running workspace has, its network included.
    Running,
    /// Its container and its layer.
    Stopped,
    /// Nothing: it was deleted, or never made.
    Nothing,
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct HostTraces {
    /// The data root.
    pub data_root: PathBuf,
    /// `/run/skep/<data root id>`.
    pub run_directory: PathBuf,
    /// containerd's.
    pub socket: PathBuf,
    /// containerd's.
    pub namespace: String,
    /// The cgroup above all workspaces, `/skep`.
    pub cgroup_parent: String,
    /// The bridge that no other data root uses.
    pub bridge: String,
    /// Bots of other data roots in the same containerd.
    pub others: BTreeSet<String>,
}

/// Kinds of things by bot.
pub type Traces = BTreeMap<String, BTreeSet<String>>;

impl HostTraces {
    /// The same, in a containerd that has workspaces of these bots of another data root too.
    #[must_use]
    pub fn beside(mut self, others: BTreeSet<String>) -> Self {
        self.others = others;
        self
    }

    /// Everything there is of this data root; of the bots in `known` also what does not name its data root.
    ///
    /// # Errors
    /// When something cannot be listed.
    pub fn look<'a>(&self, known: impl IntoIterator<Item = &'a str>) -> io::Result<Traces> {
        let mut traces = Traces::new();
        self.look_in_containerd(&mut traces)?;
        traces.retain(|bot, _| !self.others.contains(bot));
        self.look_in_directories(&mut traces)?;
        self.look_at_mounts(&mut traces)?;
        for bot in known {
            if Path::new("/run/netns").join(format!("skep-{bot}")).exists() {
                add(&mut traces, bot, "network namespace");
            }
            if self.cgroups_of(bot)? {
                add(&mut traces, bot, "cgroup");
            }
        }
        let ports = names_in(&Path::new("/sys/class/net").join(&self.bridge).join("brif"))?.len();
        if ports > 0 {
            add(&mut traces, NOBODY, &format!("{ports} ports of the bridge"));
        }
        Ok(traces)
    }

    /// How what there is differs from the model, a line each; none when all is as it should be.
    ///
    /// # Errors
    /// When something cannot be listed.
    pub fn differences(&self, model: &BTreeMap<String, Expected>) -> io::Result<Vec<String>> {
        let mut expected = Traces::new();
        for (bot, of_bot) in model {
            let kinds = match of_bot {
                Expected::Running => OF_RUNNING,
                Expected::Stopped => OF_STOPPED,
                Expected::Nothing => &[],
            };
            for kind in kinds {
                add(&mut expected, bot, kind);
            }
        }
        let running = model.values().filter(|one| **one == Expected::Running).count();
        if running > 0 {
            add(&mut expected, NOBODY, &format!("{running} ports of the bridge"));
        }
        let found = self.look(model.keys().map(String::as_str))?;
        let mut lines = Vec::new();
        let nothing = BTreeSet::new();
        for bot in expected.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
            let (wanted, there) = (
                expected.get(bot).unwrap_or(&nothing),
                found.get(bot).unwrap_or(&nothing),
            );
            lines.extend(wanted.difference(there).map(|kind| format!("{bot}: {kind} is missing")));
            lines.extend(there.difference(wanted).map(|kind| format!("{bot}: {kind} is left")));
        }
        Ok(lines)
    }

    /// Waits until all is as in the model, and says how long that took.
    ///
    /// # Panics
    /// When it is not within the limit, with every difference.
    pub async fn until_as_in(&self, model: &BTreeMap<String, Expected>, limit: Duration) -> Duration {
        let begun = Instant::now();
        loop {
            let differences = match self.differences(model) {
                Ok(differences) if differences.is_empty() => return begun.elapsed(),
                Ok(differences) => differences,
                Err(error) => vec![error.to_string()],
            };
            assert!(
                begun.elapsed() < limit,
                "after {limit:?} not all is as in the model:\n{}",
                differences.join("\n")
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn look_in_containerd(&self, traces: &mut Traces) -> io::Result<()> {
        let container = |name: &str| name.strip_prefix("workspace-").map(str::to_owned);
        // Layers are called after their bot, and most of them after the operation that made them too.
        let of_layer = |name: &str| container(name)?.get(..BOT_ID_LENGTH).map(str::to_owned);
        for name in self.ctr(&["containers", "ls", "-q"])? {
            let bot = container(&name);
            add(traces, bot.as_deref().unwrap_or(&name), "container");
        }
        for name in self.ctr(&["tasks", "ls", "-q"])? {
            let bot = container(&name);
            add(traces, bot.as_deref().unwrap_or(&name), "task");
        }
        for line in self.ctr(&["snapshots", "ls"])?.iter().skip(1) {
            let mut words = line.split_whitespace();
            let (Some(key), Some(kind)) = (words.next(), words.next_back()) else {
                continue;
            };
            // Those of pulls have names of their own, and go with the lease that lets the pull go on.
            if (kind == "Active" && !key.starts_with("extract-")) || key.starts_with("workspace-") {
                let bot = of_layer(key);
                add(traces, bot.as_deref().unwrap_or(key), "layer");
            }
        }
        // One that ends by itself lets an interrupted pull go on where it stopped.
        let leases = self.ctr(&["leases", "ls"])?;
        let lasting = leases
            .iter()
            .skip(1)
            .filter(|line| !line.contains("containerd.io/gc.expire"));
        for lease in lasting {
            add(traces, NOBODY, &format!("lease {lease}"));
        }
        Ok(())
    }

    fn look_in_directories(&self, traces: &mut Traces) -> io::Result<()> {
        for (directory, kind) in [
            (self.run_directory.join("running"), "record"),
            (self.run_directory.join("userns"), "user namespace"),
            (self.run_directory.join("root"), "root"),
            (self.run_directory.join("devices"), "device nodes"),
            (self.run_directory.join("cni/attachments"), "attachment"),
            (self.data_root.join("run"), "socket directory"),
        ] {
            for name in names_in(&directory)? {
                add(traces, name.strip_suffix(".json").unwrap_or(&name), kind);
            }
        }
        let leases = self.run_directory.join("cni/leases/skep");
        for name in names_in(&leases)?.iter().filter(|name| name.starts_with("10.")) {
            // It may be released while we look.
            let Some(text) = read_if_there(&leases.join(name))? else {
                continue;
            };
            let holder = text.lines().next().unwrap_or_default().trim();
            add(traces, holder.strip_prefix("workspace-").unwrap_or(holder), "address");
        }
        let claims = self.run_directory.with_file_name("ids");
        let id = self.run_directory.file_name().unwrap_or_default().to_string_lossy();
        for name in names_in(&claims)? {
            let Some(text) = read_if_there(&claims.join(&name))?.filter(|text| text.contains(&*id)) else {
                continue;
            };
            let claim: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let kind = if name.starts_with('.') {
                "draft of a claim"
            } else {
                "ids"
            };
            add(traces, claim["bot"].as_str().unwrap_or(NOBODY), kind);
        }
        Ok(())
    }

    fn look_at_mounts(&self, traces: &mut Traces) -> io::Result<()> {
        for (directory, kind) in [
            (self.data_root.join("run"), "socket mount"),
            (self.run_directory.join("root"), "root mount"),
        ] {
            for mount in mounts_below(&directory)? {
                let bot = mount.file_name().unwrap_or_default().to_string_lossy();
                add(traces, &bot, kind);
            }
        }
        Ok(())
    }

    fn cgroups_of(&self, bot: &str) -> io::Result<bool> {
        let name = Path::new(self.cgroup_parent.trim_start_matches('/')).join(format!("workspace-{bot}"));
        let root = Path::new("/sys/fs/cgroup");
        let mut hierarchies = vec![root.to_owned()];
        hierarchies.extend(names_in(root)?.iter().map(|controller| root.join(controller)));
        Ok(hierarchies.iter().any(|hierarchy| hierarchy.join(&name).is_dir()))
    }

    fn ctr(&self, arguments: &[&str]) -> io::Result<Vec<String>> {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", &self.namespace])
            .args(arguments)
            .output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("ctr {arguments:?}: {error}")));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().map(str::to_owned).collect())
    }
}

fn add(traces: &mut Traces, bot: &str, kind: &str) {
    traces.entry(bot.to_owned()).or_default().insert(kind.to_owned());
}

fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn read_if_there(file: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
