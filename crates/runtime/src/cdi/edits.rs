//! What devices add to a workspace: merged from the files, and checked against this host.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path};

use serde::Deserialize;
use skep_names::{DATA_DIRECTORY_INSIDE, IDS_PER_BOT, RUN_DIRECTORY_INSIDE, RUNTIME_DIRECTORY_INSIDE};

use super::spec_file::{EditsEntry, HookEntry, MountEntry, NodeEntry};

/// The most device nodes of one workspace; a machine with sixteen cards has some sixty.
const MOST_NODES: usize = 512;
/// A hook that says nothing of its time: it may hold up a start for no longer.
const HOOK_SECONDS: i64 = 60;
/// A hook without an environment of its own would get that of the container runtime, which may be the workspace's:
/// its `LD_PRELOAD` would run in a program of the host.
const HOOK_ENV: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// As a container runtime makes a node whose mode nobody says.
const NODE_MODE: u32 = 0o666;

/// What a workspace has of ours: nothing may be put onto or above it.
const OURS: [&str; 23] = [
    "/proc",
    "/sys",
    "/sys/fs/cgroup",
    "/dev",
    "/dev/console",
    "/dev/fd",
    "/dev/full",
    "/dev/mqueue",
    "/dev/null",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/random",
    "/dev/shm",
    "/dev/stderr",
    "/dev/stdin",
    "/dev/stdout",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
    "/etc/resolv.conf",
    RUNTIME_DIRECTORY_INSIDE,
    RUN_DIRECTORY_INSIDE,
    DATA_DIRECTORY_INSIDE,
];
/// Nor below it.
const WHOLLY_OURS: [&str; 4] = [
    RUNTIME_DIRECTORY_INSIDE,
    RUN_DIRECTORY_INSIDE,
    "/dev/pts",
    "/dev/mqueue",
];

/// Everything that some devices add.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// Device nodes, each place once.
    pub nodes: Vec<Node>,
    /// Mounts, each place once, those above others first.
    pub mounts: Vec<Mount>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    /// Programs that the container runtime calls, in order.
    pub hooks: Vec<Hook>,
    /// Groups of process 1.
    pub additional_gids: Vec<u32>,
}

/// What kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A character device.
    Character,
    /// A block device.
    Block,
}

/// A device node as the workspace has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Inside.
    pub path: String,
    /// What it is.
    pub kind: NodeKind,
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
    /// Permissions of the file.
    pub mode: u32,
    /// Some of `rwm`.
    pub access: String,
    /// Owner, as seen inside.
    pub uid: u32,
    /// Group, as seen inside.
    pub gid: u32,
}

/// A mount in the words of the runtime specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the host.
    pub source: String,
    /// Inside.
    pub destination: String,
    /// `bind`, `tmpfs`, …
    pub kind: String,
    /// As for `mount -o`.
    pub options: Vec<String>,
}

/// When a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookTime {
    /// On the host, before the first process of the workspace; by its old name.
    Prestart,
    /// On the host, when namespaces are there.
    CreateRuntime,
    /// In the namespaces, before the root file system is entered.
    CreateContainer,
    /// Inside, before process 1.
    StartContainer,
    /// On the host, after process 1 was started.
    Poststart,
    /// On the host, after the end.
    Poststop,
}

impl HookTime {
    /// The word of the runtime specification.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// A program of root's that the container runtime calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// When.
    pub time: HookTime,
    /// The program.
    pub path: String,
    /// All its arguments, its own name included.
    pub args: Vec<String>,
    /// All its environment; never empty.
    pub env: Vec<String>,
    /// For how long it may run.
    pub timeout_seconds: i64,
}

impl Edits {
    /// Adds what one file says, over what was said before.
    pub(super) fn add(&mut self, more: &EditsEntry) -> Result<(), String> {
        if more.net_devices.is_some() {
            return Err("it moves network interfaces (netDevices), which is not supported".to_owned());
        }
        if more.intel_rdt.is_some() {
            return Err("it divides caches (intelRdt), which is not supported".to_owned());
        }
        for entry in more.device_nodes.as_deref().unwrap_or_default() {
            let node = node(entry)?;
            self.nodes.retain(|known| known.path != node.path);
            self.nodes.push(node);
        }
        if self.nodes.len() > MOST_NODES {
            return Err(format!("there are over {MOST_NODES} device nodes"));
        }
        for entry in more.mounts.as_deref().unwrap_or_default() {
            let mount = mount(entry)?;
            self.mounts.retain(|known| known.destination != mount.destination);
            self.mounts.push(mount);
        }
        self.mounts
            .sort_by_key(|mount| Path::new(&mount.destination).components().count());
        set_variables(&mut self.env, more.env.as_deref().unwrap_or_default());
        self.hooks
            .extend(more.hooks.as_deref().unwrap_or_default().iter().map(hook));
        for gid in more.additional_gids.as_deref().unwrap_or_default() {
            // 0 is what it has.
            if *gid != 0 && !self.additional_gids.contains(gid) {
                self.additional_gids.push(*gid);
            }
        }
        Ok(())
    }

    /// What of it a workspace with ids of its own cannot have.
    ///
    /// # Errors
    /// A sentence that says so.
    pub fn check_mapped_ids(&self) -> Result<(), String> {
        let is_mapped = |id: u32| id < IDS_PER_BOT;
        if let Some(node) = self
            .nodes
            .iter()
            .find(|node| !is_mapped(node.uid) || !is_mapped(node.gid))
        {
            return Err(format!(
                "{} is to belong to {}:{}, and a workspace with a user namespace has no ids over {}",
                node.path,
                node.uid,
                node.gid,
                IDS_PER_BOT - 1
            ));
        }
        match self.additional_gids.iter().find(|gid| !is_mapped(**gid)) {
            Some(gid) => Err(format!(
                "it needs the group {gid}, and a workspace with a user namespace has none over {}",
                IDS_PER_BOT - 1
            )),
            None => Ok(()),
        }
    }
}

/// Adds variables in place of those of the same name.
pub(crate) fn set_variables(env: &mut Vec<String>, more: &[String]) {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    for entry in more {
        env.retain(|known| name(known) != name(entry));
        env.push(entry.clone());
    }
}

/// What the file does not say of the device is what the host's node is.
fn node(entry: &NodeEntry) -> Result<Node, String> {
    let path = place(&entry.path)?;
    let said = |number: Option<u32>| number.filter(|number| *number != 0);
    let (kind, major, minor) = match (entry.kind.as_deref(), said(entry.major)) {
        (Some("p"), _) => return Err(format!("{path} is a pipe, which is not supported")),
        (Some(kind), Some(major)) => (kind_named(kind), major, entry.minor.unwrap_or(0)),
        (kind, major) => {
            let host_path = entry.host_path.as_deref().unwrap_or(&entry.path);
            let (found, number) = device_at(host_path)?;
            if kind.is_some_and(|kind| kind_named(kind) != found) {
                return Err(format!("{host_path} of this host is another type of device"));
            }
            let minor = said(entry.minor).filter(|_| major.is_some());
            (
                found,
                major.unwrap_or_else(|| rustix::fs::major(number)),
                minor.unwrap_or_else(|| rustix::fs::minor(number)),
            )
        }
    };
    Ok(Node {
        path,
        kind,
        major,
        minor,
        mode: entry.file_mode.map_or(NODE_MODE, |mode| mode & 0o777),
        access: entry.permissions.clone().unwrap_or_else(|| "rwm".to_owned()),
        uid: entry.uid.unwrap_or(0),
        gid: entry.gid.unwrap_or(0),
    })
}

fn kind_named(kind: &str) -> NodeKind {
    match kind {
        "b" => NodeKind::Block,
        _ => NodeKind::Character,
    }
}

fn device_at(path: &str) -> Result<(NodeKind, u64), String> {
    let found = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("this host has no {path}"),
        _ => format!("{path} of this host cannot be looked at: {error}"),
    })?;
    match found.file_type() {
        kind if kind.is_char_device() => Ok((NodeKind::Character, found.rdev())),
        kind if kind.is_block_device() => Ok((NodeKind::Block, found.rdev())),
        _ => Err(format!("{path} of this host is no device")),
    }
}

fn mount(entry: &MountEntry) -> Result<Mount, String> {
    let destination = place(&entry.container_path)?;
    let mut options = entry.options.clone().unwrap_or_default();
    let binds = options.iter().any(|option| option == "bind" || option == "rbind");
    let kind = entry.kind.clone().filter(|kind| !kind.is_empty());
    let is_bind = binds || kind.as_deref().is_none_or(|kind| kind == "bind");
    if is_bind && !binds {
        options.push("bind".to_owned());
    }
    if is_bind && !Path::new(&entry.host_path).exists() {
        return Err(format!("this host has no {}", entry.host_path));
    }
    Ok(Mount {
        source: entry.host_path.clone(),
        destination,
        kind: kind.unwrap_or_else(|| "bind".to_owned()),
        options,
    })
}

fn hook(entry: &HookEntry) -> Hook {
    let args = entry.args.clone().filter(|args| !args.is_empty());
    let env = entry.env.clone().filter(|env| !env.is_empty());
    Hook {
        time: entry.hook_name,
        path: entry.path.clone(),
        args: args.unwrap_or_else(|| vec![entry.path.clone()]),
        env: env.unwrap_or_else(|| vec![HOOK_ENV.to_owned()]),
        timeout_seconds: entry.timeout.unwrap_or(HOOK_SECONDS),
    }
}

/// A place inside that a device may take.
fn place(path: &str) -> Result<String, String> {
    let plain = |component: Component<'_>| matches!(component, Component::RootDir | Component::Normal(_));
    if !Path::new(path).components().all(plain) {
        return Err(format!("{path} leads through .."));
    }
    let path: std::path::PathBuf = Path::new(path).components().collect();
    let hides = OURS.iter().find(|ours| Path::new(ours).starts_with(&path));
    let enters = WHOLLY_OURS.iter().find(|ours| path.starts_with(ours));
    match hides.or(enters) {
        Some(ours) => Err(format!("{} is or would hide {ours} of every workspace", path.display())),
        None => Ok(path.to_string_lossy().into_owned()),
    }
}
