//! One specification file: read, and what can be told without looking at the host checked.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{HookTime, name};

/// A file of a machine with many devices has some hundred KiB.
const MOST_BYTES: u64 = 8 << 20;
/// Those of <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md> whose every field is known here.
const VERSIONS: [&str; 9] = [
    "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];

/// What it says, in its own words. A field that is not known might be one that matters, so the file is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SpecFile {
    cdi_version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: Option<IgnoredAny>,
    devices: Vec<DeviceEntry>,
    #[serde(default)]
    container_edits: Option<EditsEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DeviceEntry {
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: Option<IgnoredAny>,
    pub(super) container_edits: EditsEntry,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct EditsEntry {
    pub(super) env: Option<Vec<String>>,
    pub(super) device_nodes: Option<Vec<NodeEntry>>,
    pub(super) mounts: Option<Vec<MountEntry>>,
    pub(super) hooks: Option<Vec<HookEntry>>,
    pub(super) additional_gids: Option<Vec<u32>>,
    /// Moves network interfaces of the host: told when it is asked for.
    pub(super) net_devices: Option<IgnoredAny>,
    /// Divides caches: told when it is asked for.
    pub(super) intel_rdt: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NodeEntry {
    pub(super) path: String,
    pub(super) host_path: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct MountEntry {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) options: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct HookEntry {
    pub(super) hook_name: HookTime,
    pub(super) path: String,
    pub(super) args: Option<Vec<String>>,
    pub(super) env: Option<Vec<String>>,
    pub(super) timeout: Option<i64>,
}

/// Other files may lie there too.
pub(super) fn is_named_like_one(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("json" | "yaml"))
}

impl SpecFile {
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let file = Self::parse(path)?;
        file.check()?;
        Ok(file)
    }

    fn parse(path: &Path) -> Result<Self, String> {
        // Not opened when it is a pipe, which would wait for its writer.
        let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
        if !metadata.is_file() {
            return Err("it is no regular file".to_owned());
        }
        let mut text = String::new();
        let opened = File::open(path).map_err(|error| error.to_string())?;
        let read = opened.take(MOST_BYTES + 1).read_to_string(&mut text);
        if read.map_err(|error| error.to_string())? as u64 > MOST_BYTES {
            return Err(format!("it is longer than {} MiB", MOST_BYTES >> 20));
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            return serde_json::from_str(&text).map_err(|error| error.to_string());
        }
        // As those who write these files read them: `fileMode: 0660` is octal.
        let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
        serde_saphyr::from_str_with_options(&text, options).map_err(|error| error.to_string())
    }

    fn check(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cdi_version.as_str()) {
            return Err(format!("cdiVersion {:?} is not known here", self.cdi_version));
        }
        if name::kind(&self.kind).is_none() {
            return Err(format!("kind {:?} is not vendor/class", self.kind));
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            if !name::is_device(&device.name) {
                return Err(format!("{:?} is no name of a device", device.name));
            }
            if !names.insert(&device.name) {
                return Err(format!("it names the device {:?} twice", device.name));
            }
            check_edits(&device.container_edits)?;
        }
        check_edits(self.common_edits())
    }

    pub(super) fn devices(&self) -> &[DeviceEntry] {
        &self.devices
    }

    /// For whoever gets any of its devices.
    pub(super) fn common_edits(&self) -> &EditsEntry {
        const NONE: &EditsEntry = &EditsEntry {
            env: None,
            device_nodes: None,
            mounts: None,
            hooks: None,
            additional_gids: None,
            net_devices: None,
            intel_rdt: None,
        };
        self.container_edits.as_ref().unwrap_or(NONE)
    }

    pub(super) fn full_name(&self, device: &DeviceEntry) -> String {
        format!("{}={}", self.kind, device.name)
    }

    pub(super) fn vendor(&self) -> &str {
        name::kind(&self.kind).map_or("", |(vendor, _)| vendor)
    }

    pub(super) fn class(&self) -> &str {
        name::kind(&self.kind).map_or("", |(_, class)| class)
    }
}

fn check_edits(edits: &EditsEntry) -> Result<(), String> {
    let hooks = edits.hooks.as_deref().unwrap_or_default();
    let hooks_env = hooks.iter().flat_map(|hook| hook.env.as_deref().unwrap_or_default());
    for entry in edits.env.as_deref().unwrap_or_default().iter().chain(hooks_env) {
        if entry.find('=').is_none_or(|at| at == 0) || entry.contains('\0') {
            // A value may be a secret: only the name is told.
            let name = entry.split('=').next().unwrap_or_default();
            return Err(format!("env {name:?} is not NAME=value"));
        }
    }
    for hook in hooks {
        if !is_absolute(&hook.path) || hook.timeout.is_some_and(|seconds| seconds <= 0) {
            return Err(format!("the hook {:?} has no absolute path or no time", hook.path));
        }
    }
    for mount in edits.mounts.as_deref().unwrap_or_default() {
        if mount.host_path.is_empty() || !is_absolute(&mount.container_path) {
            return Err(format!("the mount at {:?} is not whole", mount.container_path));
        }
    }
    for node in edits.device_nodes.as_deref().unwrap_or_default() {
        let host_path = node.host_path.as_deref().unwrap_or(&node.path);
        if !is_absolute(&node.path) || !is_absolute(host_path) {
            return Err(format!("the device node {:?} has no absolute path", node.path));
        }
        let kind = node.kind.as_deref().unwrap_or("c");
        if !matches!(kind, "b" | "c" | "u" | "p") {
            return Err(format!("the device node {} has the unknown type {kind:?}", node.path));
        }
        let access = node.permissions.as_deref().unwrap_or("rwm");
        if !access.chars().all(|one| "rwm".contains(one)) {
            return Err(format!("the device node {} has the permissions {access:?}", node.path));
        }
    }
    Ok(())
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0')
}
