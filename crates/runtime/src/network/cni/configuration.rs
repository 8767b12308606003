//! A network's configuration: a list of plugins, however it was written down.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::error::NetworkError;

/// What we speak, oldest first.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A configuration list; kept with each attachment, so that DEL sees what ADD saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::network) struct Configuration {
    /// The network's name.
    pub(in crate::network) name: String,
    /// One of [`VERSIONS`].
    pub(in crate::network) version: String,
    /// Where it was read, for messages.
    pub(in crate::network) source: String,
    /// In the order of ADD.
    pub(in crate::network) plugins: Vec<Map<String, Value>>,
    disable_check: bool,
    disable_garbage_collection: bool,
}

impl Configuration {
    /// The first configuration of a directory: the least name that ends in `.conflist`, `.conf` or `.json`.
    pub(in crate::network) fn first_in(directory: &Path) -> Result<Self, NetworkError> {
        let reading = || format!("reading `workspace.cni_conf_dir` {}", directory.display());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(NetworkError::other(reading()))? {
            let path = entry.map_err(NetworkError::other(reading()))?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if matches!(extension, Some("conflist" | "conf" | "json")) && path.is_file() {
                files.push(path);
            }
        }
        let first = files.into_iter().min().ok_or_else(|| {
            NetworkError::Configuration(format!(
                "`workspace.cni_conf_dir` {} has no .conflist, .conf or .json file",
                directory.display()
            ))
        })?;
        let text = std::fs::read(&first).map_err(NetworkError::other(format!("reading {}", first.display())))?;
        Self::parse(&text, &first.display().to_string())
    }

    /// Reads a configuration list, or a configuration of a single plugin.
    pub(in crate::network) fn parse(text: &[u8], source: &str) -> Result<Self, NetworkError> {
        let refused = |reason: String| NetworkError::Configuration(format!("CNI configuration {source} {reason}"));
        let whole: Map<String, Value> =
            serde_json::from_slice(text).map_err(|error| refused(format!("is not a JSON object: {error}")))?;
        let name = whole.get("name").and_then(Value::as_str).unwrap_or_default();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) || !name.bytes().all(fits) {
            return Err(refused(format!("has the name {name:?}, which is none")));
        }
        let plugins = match whole.get("plugins") {
            None => vec![whole.clone()],
            Some(plugins) => serde_json::from_value(plugins.clone())
                .map_err(|error| refused(format!("has `plugins` that are no list of objects: {error}")))?,
        };
        if plugins.is_empty()
            || plugins
                .iter()
                .any(|plugin| !plugin.get("type").is_some_and(Value::is_string))
        {
            return Err(refused("has no plugin, or one without a type".into()));
        }
        let flag = |name| matches!(whole.get(name), Some(Value::Bool(true))) || whole.get(name) == Some(&json!("true"));
        Ok(Self {
            name: name.to_owned(),
            version: version_of(&whole).map_err(refused)?,
            source: source.to_owned(),
            disable_check: flag("disableCheck"),
            disable_garbage_collection: flag("disableGC"),
            plugins,
        })
    }

    /// What a plugin gets on its standard input.
    pub(super) fn input(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Map<String, Value> {
        let mut input = plugin.clone();
        input.insert("name".into(), json!(self.name));
        input.insert("cniVersion".into(), json!(self.version));
        input.remove("prevResult");
        // Which of the runtime's data a plugin wants is between it and us; we have none to give.
        input.remove("capabilities");
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        input
    }

    /// Types of all plugins, those for addresses included.
    pub(super) fn plugin_types(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().flat_map(|plugin| {
            let own = plugin.get("type").and_then(Value::as_str);
            let addresses = plugin.get("ipam").and_then(|ipam| ipam.get("type")?.as_str());
            own.into_iter().chain(addresses.filter(|kind| !kind.is_empty()))
        })
    }

    /// Bridges its `bridge` plugins use; that plugin's own default is `cni0`.
    pub(in crate::network) fn bridges(&self) -> impl Iterator<Item = &str> {
        self.plugins
            .iter()
            .filter(|plugin| plugin.get("type").and_then(Value::as_str) == Some("bridge"))
            .map(|plugin| {
                plugin
                    .get("bridge")
                    .and_then(Value::as_str)
                    .filter(|name| !name.is_empty())
            })
            .map(|name| name.unwrap_or("cni0"))
    }

    pub(super) fn can_check(&self) -> bool {
        self.version != "0.3.1" && !self.disable_check
    }

    /// From 0.4.0 on.
    pub(super) fn passes_result_to_del(&self) -> bool {
        self.version != "0.3.1"
    }

    pub(super) fn can_collect_garbage(&self) -> bool {
        self.version == "1.1.0" && !self.disable_garbage_collection
    }
}

/// The newest version that both sides speak: `cniVersions` (from 1.1 on) offers several.
fn version_of(whole: &Map<String, Value>) -> Result<String, String> {
    let offered = whole.get("cniVersions").and_then(Value::as_array);
    let single = whole.get("cniVersion").and_then(Value::as_str);
    let offered: Vec<&str> = offered
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .chain(single)
        .collect();
    let spoken = VERSIONS.iter().rev().find(|version| offered.contains(version));
    spoken.map(|version| (*version).to_owned()).ok_or_else(|| {
        format!(
            "has the cniVersion {:?}; supported are {}",
            offered.join(", "),
            VERSIONS.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Configuration, NetworkError> {
        Configuration::parse(text.as_bytes(), "test")
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let read = parse(r#"{"cniVersion":"0.3.1","name":"n","type":"ptp","ipam":{"type":"host-local"}}"#).unwrap();
        assert_eq!(read.plugin_types().collect::<Vec<_>>(), ["ptp", "host-local"]);
        assert!(!read.can_check() && !read.passes_result_to_del() && !read.can_collect_garbage());
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let read = parse(r#"{"cniVersions":["1.0.0","1.1.0","2.0.0"],"name":"n","plugins":[{"type":"bridge"}]}"#);
        let read = read.unwrap();
        assert_eq!(read.version, "1.1.0");
        assert!(read.can_check() && read.can_collect_garbage());
        assert_eq!(read.bridges().collect::<Vec<_>>(), ["cni0"]);
    }

    #[test]
    fn checks_can_be_disabled() {
        let read = parse(
            r#"{"cniVersion":"1.1.0","name":"n","disableCheck":true,"disableGC":"true","plugins":[{"type":"x"}]}"#,
        );
        let read = read.unwrap();
        assert!(!read.can_check() && !read.can_collect_garbage());
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_place() {
        for text in [
            "",
            "[]",
            r#"{"name":"n","type":"x"}"#,
            r#"{"cniVersion":"0.2.0","name":"n","type":"x"}"#,
            r#"{"cniVersion":"1.0.0","type":"x"}"#,
            r#"{"cniVersion":"1.0.0","name":"../n","type":"x"}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":7}"#,
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains("CNI configuration test"), "{error}");
        }
    }

    #[test]
    fn the_first_file_by_name_counts() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, network: &str| {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"{network}","type":"x"}}"#);
            std::fs::write(directory.path().join(name), text).unwrap();
        };
        assert!(Configuration::first_in(directory.path()).is_err());
        write("00-notes.txt", "notes");
        write("20-b.conflist", "b");
        write("10-a.conf", "a");
        assert_eq!(Configuration::first_in(directory.path()).unwrap().name, "a");
        write("05-c.json", "c");
        assert_eq!(Configuration::first_in(directory.path()).unwrap().name, "c");
    }
}
