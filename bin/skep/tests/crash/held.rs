//! Everything that is held anywhere for an installation, as lines of text that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use skep_names::{LEGACY_PREFIX, WORKSPACE_PREFIX};
use skep_testkit::containerd_view::Layer;
use skep_testkit::mounts_below;

use crate::stage::{BOT_ID_BYTES, LOOK_AGAIN, Stage, converge_limit};

const PORT_OF_NOBODY: &str = "port of the bridge of nobody";

/// Lines, each with how often it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held(BTreeMap<String, i64>);

impl Held {
    pub(crate) fn add(&mut self, line: impl Into<String>) {
        *self.0.entry(line.into()).or_default() += 1;
    }

    pub(crate) fn extend(&mut self, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            self.add(line);
        }
    }

    pub(crate) fn add_all(&mut self, other: &Self) {
        for (line, times) in &other.0 {
            *self.0.entry(line.clone()).or_default() += times;
        }
    }

    /// What this has beyond another.
    pub(crate) fn beyond(&self, other: &Self) -> Self {
        Self(self.against(other).leaked)
    }

    /// Nothing of another is in this.
    pub(crate) fn without(&self, other: &Self) -> bool {
        !other.0.keys().any(|line| self.0.contains_key(line))
    }

    /// What this has beyond `expected`, and what it lacks: the leaks and the losses.
    pub(crate) fn against(&self, expected: &Self) -> Difference {
        let count = |held: &Self, line: &str| held.0.get(line).copied().unwrap_or(0);
        let mut difference = Difference::default();
        for line in self.0.keys().chain(expected.0.keys()) {
            let more = count(self, line) - count(expected, line);
            match more {
                0 => {}
                1.. => difference.leaked.insert(line.clone(), more).map_or((), drop),
                _ => difference.missing.insert(line.clone(), -more).map_or((), drop),
            }
        }
        difference
    }
}

/// Between what is held and what should be.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    pub(crate) leaked: BTreeMap<String, i64>,
    pub(crate) missing: BTreeMap<String, i64>,
}

impl Difference {
    pub(crate) fn is_empty(&self) -> bool {
        self.leaked.is_empty() && self.missing.is_empty()
    }

    pub(crate) fn describe(&self) -> String {
        let lines = |sign: &str, lines: &BTreeMap<String, i64>| -> String {
            let line = |(line, times): (&String, &i64)| match times {
                1 => format!("  {sign} {line}\n"),
                times => format!("  {sign} {line} ({times} times)\n"),
            };
            lines.iter().map(line).collect()
        };
        format!("{}{}", lines("+", &self.leaked), lines("-", &self.missing))
    }
}

/// What is held now, with the ids of bots replaced by what they are to the trial.
pub(crate) async fn capture(stage: &Stage) -> Held {
    let mut raw = stage.database().lines().await;
    on_disk(stage, &mut raw);
    in_the_kernel(stage, &mut raw);
    in_containerd(stage, &mut raw).await;
    layers(stage, &mut raw).await;
    let mut held = Held::default();
    held.extend(stage.with_names(&raw.join("\n")).lines().map(str::to_owned));
    held
}

/// What is held once the kernel has removed the interfaces of those that are gone, which it does in its own time.
pub(crate) async fn capture_at_rest(stage: &Stage) -> Held {
    let deadline = Instant::now() + converge_limit();
    loop {
        let held = capture(stage).await;
        if !held.0.contains_key(PORT_OF_NOBODY) {
            return held;
        }
        assert!(Instant::now() < deadline, "an interface of nobody stays");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Numbers of processes, which differ from start to start, and the random ends of the names of leases are left out.
async fn in_containerd(stage: &Stage, raw: &mut Vec<String>) {
    let view = stage.view();
    let containers = view.containers().await.into_iter();
    raw.extend(containers.map(|(id, image, runtime)| format!("container {id} {image} {runtime}")));
    let tasks = view.tasks().await.into_iter();
    raw.extend(tasks.map(|task| format!("task {} {}", task.id, task.status().as_str_name())));
    let named = |kind: &'static str| move |name: String| format!("{kind} {name}");
    raw.extend(view.images().await.into_iter().map(named("image")));
    raw.extend(view.content().await.into_iter().map(named("content")));
    let leases = view.leases().await.into_iter();
    let without_its_end = |id: String| id.trim_end_matches(|c: char| c.is_ascii_hexdigit()).to_owned();
    raw.extend(leases.map(without_its_end).map(named("lease")));
}

/// In place of the names of workspaces' layers, which hold ids of operations: one active layer each, a committed one
/// for every version, and none that no version is and on which nothing stands.
async fn layers(stage: &Stage, raw: &mut Vec<String>) {
    let (layers, others): (Vec<Layer>, Vec<Layer>) = stage
        .view()
        .layers()
        .await
        .into_iter()
        .partition(|layer| bot_of_layer(&layer.name).is_some());
    let others = others.into_iter();
    raw.extend(others.map(|layer| format!("snapshot {} {} {}", layer.name, layer.parent, layer.kind)));
    let mut versions = BTreeSet::new();
    for (bot, version, name) in stage.database().versions().await {
        if !layers
            .iter()
            .any(|layer| layer.name == name && layer.kind == "Committed")
        {
            raw.push(format!("version {version} of {bot} without its layer"));
        }
        versions.insert(name);
    }
    for layer in &layers {
        let bot = bot_of_layer(&layer.name).unwrap_or_default();
        let is_needed =
            |layer: &Layer| versions.contains(&layer.name) || layers.iter().any(|above| above.parent == layer.name);
        match layer.kind {
            "Active" => raw.push(format!("active layer of {bot}")),
            _ if is_needed(layer) => {}
            _ => raw.push(format!("layer of {bot} that nobody needs")),
        }
    }
}

/// Of a layer of ours, or of a legacy container's.
pub(crate) fn bot_of_layer(name: &str) -> Option<&str> {
    let rest = [WORKSPACE_PREFIX, LEGACY_PREFIX]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
    rest.get(..BOT_ID_BYTES)
}

/// Files and directories. What is inside a socket directory is the bridge's own matter.
fn on_disk(stage: &Stage, raw: &mut Vec<String>) {
    let data_root = stage.installation.data_root();
    for entry in names_in(data_root) {
        // The log and the database with its side files come and go by themselves; kept logs are looked at below.
        if !entry.starts_with("server.log") && !entry.starts_with("skep.db") && entry != "logs" {
            raw.push(format!("file <data root>/{entry}"));
        }
    }
    for directory in ["run", "backups", "bots", "spool"] {
        for entry in names_in(&data_root.join(directory)) {
            raw.push(format!("file <data root>/{directory}/{entry}"));
        }
    }
    for entry in names_in(&data_root.join("imports")) {
        raw.push(format!("file <data root>/imports/{entry}"));
    }
    // Whether there is one of a workspace depends on its past; of no workspace there is none.
    let has_row = |file: &String| raw.iter().any(|line| is_row_of(line, file.trim_end_matches(".log")));
    let logs: Vec<String> = names_in(&data_root.join("logs"));
    let logs: Vec<String> = logs.into_iter().filter(|file| !has_row(file)).collect();
    raw.extend(logs.iter().map(|file| format!("file <data root>/logs/{file}")));
    let run = stage.installation.run_directory();
    // A root file system that is still mounted is one line, not its thousand files.
    let mounts = mounts_below(&run).expect("the mount table can be read");
    for file in files_below(&run, &mounts) {
        let file = file.strip_prefix(&run).expect("it is below").display().to_string();
        raw.push(format!("file <run>/{}", without_addresses(&file)));
    }
    let id = run.file_name().expect("it has a name").to_string_lossy().into_owned();
    for entry in names_in(Path::new("/run/skep/ids")) {
        let text = std::fs::read_to_string(Path::new("/run/skep/ids").join(&entry)).unwrap_or_default();
        // The claim names whom it is for; a draft of a claim is named after its data root.
        if entry.contains(&id) {
            raw.push(format!(
                "draft of a claim of ids: {}",
                entry.replace(&id, "<data root>")
            ));
        } else if text.contains(&id) {
            raw.push(format!("claim of ids: {}", text.replace(&id, "<data root>")));
        }
    }
}

fn is_row_of(line: &str, bot: &str) -> bool {
    line.strip_prefix("row of workspace ")
        .is_some_and(|rest| rest.starts_with(bot))
}

fn in_the_kernel(stage: &Stage, raw: &mut Vec<String>) {
    let installation = &stage.installation;
    let places = [
        (installation.data_root().to_owned(), "<data root>"),
        (installation.run_directory(), "<run>"),
        (installation.containerd().directory().to_owned(), "<containerd>"),
    ];
    for (place, name) in places {
        for mount in mounts_below(&place).expect("the mount table can be read") {
            let mount = mount.strip_prefix(&place).expect("it is below").display().to_string();
            raw.push(format!("mount {name}/{mount}"));
        }
    }
    let ours = |name: &String| stage.names_a_bot(name);
    let pins = names_in(Path::new("/run/netns"));
    raw.extend(
        pins.into_iter()
            .filter(ours)
            .map(|name| format!("network namespace {name}")),
    );
    let mounts = mounts_below(Path::new("/run/netns")).expect("the mount table can be read");
    // `ip netns`, used by anybody on this host, mounts the directory over itself, with all that is in it.
    let mounts: BTreeSet<PathBuf> = mounts.into_iter().collect();
    for mount in mounts {
        let name = mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if ours(&name) {
            raw.push(format!("mount /run/netns/{name}"));
        }
    }
    let ports = Path::new("/sys/class/net").join(installation.bridge()).join("brif");
    let attached = attached_interfaces(&installation.run_directory().join("cni/attachments"));
    raw.extend(names_in(&ports).iter().map(|port| match attached.get(port) {
        Some(bot) => format!("port of the bridge of {bot}"),
        None => PORT_OF_NOBODY.to_owned(),
    }));
    // One line whatever the number of hierarchies the host has.
    for parent in ["/sys/fs/cgroup/pids/skep", "/sys/fs/cgroup/skep"] {
        let cgroups = names_in(Path::new(parent)).into_iter().filter(ours);
        raw.extend(cgroups.map(|name| format!("cgroup {name}")));
    }
    let rules = Command::new("nft")
        .args(["-s", "list", "table", "inet", installation.table()])
        .output()
        .expect("nft is needed");
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    raw.extend(rules.lines().map(|line| {
        let line = line.trim().replace(installation.bridge(), "<bridge>");
        format!("rule {}", without_addresses(&line))
    }));
}

/// Interfaces on the host's side, and the bots they were made for.
fn attached_interfaces(directory: &Path) -> BTreeMap<String, String> {
    let mut interfaces = BTreeMap::new();
    for file in names_in(directory) {
        // One that is being removed has none.
        let Ok(text) = std::fs::read(directory.join(&file)) else {
            continue;
        };
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        if let (Some(interface), Some(bot)) = (record["host_interface"].as_str(), record["bot"].as_str()) {
            interfaces.insert(interface.to_owned(), bot.to_owned());
        }
    }
    interfaces
}

/// Addresses are given out in turn.
fn without_addresses(text: &str) -> String {
    let is_address = |word: &str| word.parse::<std::net::Ipv4Addr>().is_ok();
    text.split('/')
        .map(|part| if is_address(part) { "<address>" } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// But for what is in a mount.
fn files_below(directory: &Path, mounts: &[PathBuf]) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !mounts.contains(&path) {
            found.extend(files_below(&path, mounts));
        }
        found.push(path);
    }
    found
}
