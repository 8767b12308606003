//! The Container Network Interface, runtime's side, versions 0.3.1 to 1.1: configuration lists, the chain of
//! results, ADD, CHECK, DEL and GC. It knows no bots and no rules.

mod answer;
mod configuration;
mod record;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::error::NetworkError;
use super::program::Program;

pub(super) use answer::Answer;
pub(super) use configuration::Configuration;
pub(super) use record::{Record, Records};

/// The interface's name inside.
pub(super) const INTERFACE: &str = "eth0";

/// A DHCP lease may take a while; a plugin that hangs must not hold a workspace for ever.
const PLUGIN_LIMIT: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, NetworkError>;

/// Where the plugins are.
#[derive(Debug, Clone)]
pub(super) struct Plugins {
    directories: Vec<PathBuf>,
}

/// What a call is about: one container and, while it is there, its namespace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) container_id: &'a str,
    pub(super) netns: Option<&'a Path>,
}

impl Plugins {
    /// The configured directory alone, else the usual ones in their order.
    pub(super) fn new(configured: Option<&Path>) -> Self {
        let directories = match configured {
            Some(directory) => vec![directory.to_path_buf()],
            None => vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        };
        Self { directories }
    }

    /// Whether every plugin of a configuration is there, those for addresses included.
    pub(super) fn require(&self, configuration: &Configuration) -> Result<()> {
        configuration
            .plugin_types()
            .try_for_each(|plugin| self.find(plugin).map(drop))
    }

    fn find(&self, plugin: &str) -> Result<PathBuf> {
        let plain = !plugin.is_empty() && !plugin.contains('/') && plugin != "." && plugin != "..";
        let found = self
            .directories
            .iter()
            .map(|directory| directory.join(plugin))
            .find(|path| plain && path.is_file());
        found.ok_or_else(|| {
            NetworkError::Configuration(format!(
                "there is no CNI plugin {plugin:?} in {}; install the CNI plugins or set `workspace.cni_bin_dir`",
                self.search_path()
            ))
        })
    }

    fn search_path(&self) -> String {
        let directories: Vec<_> = self.directories.iter().map(|path| path.display().to_string()).collect();
        directories.join(":")
    }

    /// Attaches: every plugin in turn, each with the result of the one before. The last result is the answer.
    pub(super) async fn add(&self, configuration: &Configuration, target: Target<'_>) -> Result<Answer> {
        let mut previous = None;
        for plugin in &configuration.plugins {
            let input = configuration.input(plugin, previous.as_ref());
            let output = self.call("ADD", &input, Some(target)).await?;
            // A plugin that only watches may say nothing; then the result before it stands.
            previous = output.or(previous);
        }
        previous.map(Answer).ok_or_else(|| NetworkError::Plugin {
            plugin: configuration.name.clone(),
            command: "ADD",
            reason: "no plugin gave a result".into(),
        })
    }

    /// Asks the plugins whether all is as ADD left it. Versions before 0.4.0 cannot be asked.
    pub(super) async fn check(&self, configuration: &Configuration, target: Target<'_>, result: &Answer) -> Result<()> {
        if !configuration.can_check() {
            return Ok(());
        }
        for plugin in &configuration.plugins {
            let input = configuration.input(plugin, Some(&result.0));
            self.call("CHECK", &input, Some(target)).await?;
        }
        Ok(())
    }

    /// Releases, in the reverse order. A namespace that is gone, or one without a result, is no error.
    pub(super) async fn del(
        &self,
        configuration: &Configuration,
        target: Target<'_>,
        result: Option<&Answer>,
    ) -> Result<()> {
        let result = result.filter(|_| configuration.passes_result_to_del());
        let mut first_failure = None;
        for plugin in configuration.plugins.iter().rev() {
            let input = configuration.input(plugin, result.map(|result| &result.0));
            // One that fails must not keep the others from releasing what is theirs.
            if let Err(error) = self.call("DEL", &input, Some(target)).await {
                first_failure.get_or_insert(error);
            }
        }
        first_failure.map_or(Ok(()), Err)
    }

    /// Releases addresses alone, by the plugins that gave them: what else there is goes with the namespace.
    pub(super) async fn release_addresses(&self, configuration: &Configuration, target: Target<'_>) -> Result<()> {
        for plugin in &configuration.plugins {
            if let Some(of_addresses) = plugin.get("ipam").and_then(|ipam| ipam.get("type")?.as_str()) {
                let input = configuration.input(plugin, None);
                self.call_plugin(of_addresses, "DEL", &input, Some(target)).await?;
            }
        }
        Ok(())
    }

    /// Tells the plugins which attachments there are, so that they release all others (from 1.1 on).
    pub(super) async fn collect_garbage(&self, configuration: &Configuration, valid: &[String]) -> Result<()> {
        if !configuration.can_collect_garbage() {
            return Ok(());
        }
        let valid: Vec<Value> = valid
            .iter()
            .map(|id| json!({"containerID": id, "ifname": INTERFACE}))
            .collect();
        for plugin in &configuration.plugins {
            let mut input = configuration.input(plugin, None);
            input.insert("cni.dev/valid-attachments".into(), Value::Array(valid.clone()));
            self.call("GC", &input, None).await?;
        }
        Ok(())
    }

    async fn call(
        &self,
        command: &'static str,
        input: &Map<String, Value>,
        target: Option<Target<'_>>,
    ) -> Result<Option<Value>> {
        let plugin = input.get("type").and_then(Value::as_str).unwrap_or_default();
        self.call_plugin(plugin, command, input, target).await
    }

    async fn call_plugin(
        &self,
        plugin: &str,
        command: &'static str,
        input: &Map<String, Value>,
        target: Option<Target<'_>>,
    ) -> Result<Option<Value>> {
        let failed = |reason| NetworkError::Plugin {
            plugin: plugin.to_owned(),
            command,
            reason,
        };
        let mut environment = vec![("CNI_COMMAND", command.to_owned()), ("CNI_PATH", self.search_path())];
        if let Some(target) = target {
            let netns = target.netns.map(|path| path.display().to_string()).unwrap_or_default();
            environment.extend([
                ("CNI_CONTAINERID", target.container_id.to_owned()),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", INTERFACE.to_owned()),
                ("CNI_ARGS", "IgnoreUnknown=1".to_owned()),
            ]);
        }
        let finished = Program {
            path: self.find(plugin)?,
            arguments: &[],
            environment: &environment,
            input: &serde_json::to_vec(input).map_err(|error| failed(error.to_string()))?,
            limit: PLUGIN_LIMIT,
        }
        .run()
        .await?;
        let answer = serde_json::from_slice::<Value>(&finished.output);
        if !finished.succeeded {
            return Err(failed(refusal(answer.ok(), &finished.output, &finished.errors)));
        }
        match (command, answer) {
            ("ADD", Ok(value)) if value.is_object() => Ok(Some(value)),
            ("ADD", _) if finished.output.trim_ascii().is_empty() => Ok(None),
            ("ADD", _) => Err(failed(refusal(None, &finished.output, &finished.errors))),
            _ => Ok(None),
        }
    }
}

/// What a plugin's error says, in one line: `code 11: message: details (standard error)`.
fn refusal(answer: Option<Value>, output: &[u8], errors: &str) -> String {
    let text = |name| {
        let answer = answer.as_ref()?;
        answer.get(name)?.as_str().filter(|text| !text.is_empty())
    };
    let code = answer.as_ref().and_then(|answer| answer.get("code")?.as_u64());
    let mut parts = Vec::new();
    parts.extend(code.map(|code| format!("code {code}")));
    parts.extend(text("msg").map(str::to_owned));
    parts.extend(text("details").map(str::to_owned));
    if parts.is_empty() {
        let output = String::from_utf8_lossy(output);
        parts.push(output.trim().chars().take(500).collect());
    }
    let mut reason = parts.join(": ");
    if !errors.is_empty() {
        reason.push_str(" (");
        reason.extend(errors.chars().take(1000));
        reason.push(')');
    }
    reason
}
