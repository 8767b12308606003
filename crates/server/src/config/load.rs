//! Where values come from: defaults, a file, the environment; the last one that speaks wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Table;

use crate::config::keys::{self, KEYS, Key, REGISTRY_KEYS};
use crate::config::value::{self, Value};
use crate::config::{ConfigError, reference};

/// Where the file is looked for when nobody names one.
const PLACES: [&str; 2] = ["skep.toml", "/etc/skep/skep.toml"];
/// Variables of the reference system that are honoured.
const ALIASES: [(&str, &str, &str); 3] = [
    ("HTTP_ADDR", "server", "addr"),
    ("CONTAINERD_SOCKET", "containerd", "socket_path"),
    ("CONTAINER_BACKEND", "workspace", "backend"),
];

/// Who said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody.
    Default,
    /// This file.
    File(PathBuf),
    /// This variable.
    Environment(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => write!(f, "env {name}"),
        }
    }
}

/// One value and who said it.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The key.
    pub key: &'static Key,
    /// The value.
    pub value: Value,
    /// Who said it.
    pub origin: Origin,
}

/// The values of one `[registry."host"]`, by key name.
pub(crate) type RegistrySettings = BTreeMap<&'static str, Setting>;

/// All values, before they are made into a [`Config`](crate::config::Config).
#[derive(Debug)]
pub struct Settings {
    values: BTreeMap<(&'static str, &'static str), Setting>,
    /// By host.
    pub registries: BTreeMap<String, RegistrySettings>,
    /// The reference file's top-level `timezone`, or `TZ`.
    pub timezone: Option<String>,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

impl Settings {
    /// Reads defaults, the file and the environment.
    ///
    /// # Errors
    /// A file that is named and not there, that does not parse, a key nobody knows, a value that does not fit.
    pub fn read(named: Option<&Path>, environment: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut settings = Self::defaults()?;
        if let Some(path) = find_file(named)? {
            let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Unreadable {
                path: path.clone(),
                source,
            })?;
            settings.take_file(&path, &text)?;
        }
        settings.take_environment(environment)?;
        Ok(settings)
    }

    /// The value of a key. Every key of [`KEYS`] has one.
    pub fn get(&self, section: &'static str, name: &'static str) -> Option<&Setting> {
        self.values.get(&(section, name))
    }

    /// All values, in the order of the keys.
    pub fn all(&self) -> impl Iterator<Item = &Setting> {
        KEYS.iter().filter_map(|key| self.values.get(&(key.section, key.name)))
    }

    fn defaults() -> Result<Self, ConfigError> {
        let mut values = BTreeMap::new();
        for key in KEYS {
            let value =
                value::from_text(key, key.default).map_err(|expected| invalid(key, &Origin::Default, expected))?;
            values.insert(
                (key.section, key.name),
                Setting {
                    key,
                    value,
                    origin: Origin::Default,
                },
            );
        }
        Ok(Self {
            values,
            registries: BTreeMap::new(),
            timezone: None,
            warnings: Vec::new(),
            file: None,
        })
    }

    fn take_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let file: Table = text.parse().map_err(|source: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_of(text, &source),
            message: source.message().to_owned(),
        })?;
        self.file = Some(path.to_owned());
        if reference::has_old_mcp(&file) {
            return Err(ConfigError::OldMcp { path: path.to_owned() });
        }
        let origin = Origin::File(path.to_owned());
        let of_reference = reference::is_reference(&file);
        let mut passed_over = Vec::new();
        for (section, content) in &file {
            match (section.as_str(), content) {
                ("postgres", _) => {}
                ("timezone", toml::Value::String(zone)) => self.timezone = Some(zone.clone()),
                ("registry", toml::Value::Table(hosts)) => self.take_registries(hosts, &origin)?,
                (_, toml::Value::Table(content)) => {
                    passed_over.extend(self.take_section(section, content, &origin)?);
                }
                (other, _) => passed_over.push(other.to_owned()),
            }
        }
        if let Some(url) = reference::database_url(&file).map_err(|reason| ConfigError::Reference { reason })? {
            self.set("database", "url", Value::Text(url), origin);
        }
        match passed_over.first() {
            None => {}
            Some(_) if of_reference => self.warnings.push(format!(
                "{} is a file of the reference system; these keys of it mean nothing here: {}",
                path.display(),
                passed_over.join(", ")
            )),
            Some(unknown) => return Err(ConfigError::unknown(unknown, &Origin::File(path.to_owned()))),
        }
        Ok(())
    }

    /// Takes what is known of a section, and returns the full names of what is not.
    fn take_section(&mut self, section: &str, content: &Table, origin: &Origin) -> Result<Vec<String>, ConfigError> {
        let mut unknown = Vec::new();
        for (name, value) in content {
            match keys::find(section, name) {
                Some(key) => {
                    let value = value::from_toml(key, value).map_err(|expected| invalid(key, origin, expected))?;
                    self.set(key.section, key.name, value, origin.clone());
                }
                None => unknown.push(format!("{section}.{name}")),
            }
        }
        if content.is_empty() && !KEYS.iter().any(|key| key.section == section) {
            unknown.push(section.to_owned());
        }
        Ok(unknown)
    }

    fn take_registries(&mut self, hosts: &Table, origin: &Origin) -> Result<(), ConfigError> {
        for (host, content) in hosts {
            let Some(content) = content.as_table() else {
                return Err(ConfigError::RegistryForm { host: host.clone() });
            };
            for (name, value) in content {
                let key = registry_key(host, name, origin)?;
                let value = value::from_toml(key, value).map_err(|expected| invalid(key, origin, expected))?;
                self.set_registry(host, key, value, origin.clone());
            }
        }
        Ok(())
    }

    fn take_environment(&mut self, environment: &[(String, String)]) -> Result<(), ConfigError> {
        self.take_aliases(environment)?;
        for (name, text) in environment {
            let origin = Origin::Environment(name.clone());
            if let Some((section, rest)) = name.strip_prefix("SKEP_").and_then(|rest| rest.split_once("__")) {
                self.take_variable(&section.to_ascii_lowercase(), rest, text, &origin)?;
            }
        }
        Ok(())
    }

    /// Before our own variables, wherever they stand in the environment: ours win.
    fn take_aliases(&mut self, environment: &[(String, String)]) -> Result<(), ConfigError> {
        for (name, text) in environment {
            let origin = Origin::Environment(name.clone());
            if name == "TZ" && !text.is_empty() {
                self.timezone = Some(text.clone());
            } else if let Some((_, section, key)) = ALIASES.iter().find(|alias| alias.0 == name) {
                let key = keys::find(section, key).ok_or_else(|| ConfigError::unknown(name, &origin))?;
                self.take_text(key, text, origin)?;
            }
        }
        Ok(())
    }

    fn take_variable(&mut self, section: &str, rest: &str, text: &str, origin: &Origin) -> Result<(), ConfigError> {
        if section == "registry"
            && let Some((host, name)) = rest.rsplit_once("__")
        {
            let host = host.to_ascii_lowercase();
            let key = registry_key(&host, &name.to_ascii_lowercase(), origin)?;
            let value = value::from_text(key, text).map_err(|expected| invalid(key, origin, expected))?;
            self.set_registry(&host, key, value, origin.clone());
            return Ok(());
        }
        let name = rest.to_ascii_lowercase();
        let key =
            keys::find(section, &name).ok_or_else(|| ConfigError::unknown(&format!("{section}.{name}"), origin))?;
        self.take_text(key, text, origin.clone())
    }

    fn take_text(&mut self, key: &'static Key, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let value = value::from_text(key, text).map_err(|expected| invalid(key, &origin, expected))?;
        self.set(key.section, key.name, value, origin);
        Ok(())
    }

    fn set(&mut self, section: &'static str, name: &'static str, value: Value, origin: Origin) {
        if let Some(setting) = self.values.get_mut(&(section, name)) {
            setting.value = value;
            setting.origin = origin;
        }
    }

    fn set_registry(&mut self, host: &str, key: &'static Key, value: Value, origin: Origin) {
        self.registries
            .entry(host.to_owned())
            .or_default()
            .insert(key.name, Setting { key, value, origin });
    }
}

/// Where a mistake stands, counted from 1.
fn line_of(text: &str, mistake: &toml::de::Error) -> usize {
    let before = mistake.span().map_or(0, |at| at.start).min(text.len());
    text.as_bytes()[..before].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn registry_key(host: &str, name: &str, origin: &Origin) -> Result<&'static Key, ConfigError> {
    REGISTRY_KEYS
        .iter()
        .find(|key| key.name == name)
        .ok_or_else(|| ConfigError::UnknownKey {
            key: format!("registry.{host:?}.{name}"),
            origin: origin.to_string(),
            nearest: format!("registry.{host:?}.{}", nearest_registry_key(name)),
        })
}

fn nearest_registry_key(wrong: &str) -> &'static str {
    REGISTRY_KEYS
        .iter()
        .map(|key| key.name)
        .max_by(|left, right| strsim::jaro_winkler(wrong, left).total_cmp(&strsim::jaro_winkler(wrong, right)))
        .unwrap_or("plain_http")
}

fn find_file(named: Option<&Path>) -> Result<Option<PathBuf>, ConfigError> {
    if let Some(path) = named {
        return Ok(Some(path.to_owned()));
    }
    for place in PLACES {
        let path = PathBuf::from(place);
        match std::fs::metadata(&path) {
            Ok(_) => return Ok(Some(path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(ConfigError::Unreadable { path, source }),
        }
    }
    Ok(None)
}

fn invalid(key: &Key, origin: &Origin, expected: String) -> ConfigError {
    ConfigError::Invalid {
        key: format!("{}.{}", key.section, key.name),
        origin: origin.to_string(),
        expected,
    }
}
