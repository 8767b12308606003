//! What every process of a workspace finds in its environment: the server's, what the bot's settings say, its owner's.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use skep_names::{BotId, ENV_SKILL_ROOTS};

use super::work::Work;
use crate::error::{Error, Result};
use crate::skep::Skep;

/// Where a workspace's skills are looked for in any case: no discovery roots.
const OWN_ROOTS: [&str; 2] = ["/data/skills", "/data/.skills"];
/// The discovery roots of a bot that names none.
const DEFAULT_ROOTS: [&str; 2] = ["/data/.agents/skills", "/root/.agents/skills"];

impl Work {
    /// The environment of a container that is about to be made; `owner` wins over all else.
    pub(crate) async fn environment(&self, owner: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
        let bot = self.store().bot(self.bot()).await?.ok_or(Error::BotNotFound)?;
        let mut environment = self.skep().settings().workspace_env.clone();
        environment.insert(ENV_SKILL_ROOTS.to_owned(), skill_roots(&bot.metadata).join(":"));
        environment.extend(owner.clone());
        Ok(environment)
    }
}

impl Skep {
    /// The owner's part of the environment of a container that has no record: what it has and the server does not say.
    pub(crate) async fn owners_environment(&self, bot: &BotId) -> Result<BTreeMap<String, String>> {
        let mut given = self.runtime().given_environment(bot).await?;
        // The bot's metadata say that, and may say something else by now.
        given.remove(ENV_SKILL_ROOTS);
        given.retain(|name, value| self.settings().workspace_env.get(name) != Some(value));
        Ok(given)
    }
}

/// The bot's skill discovery roots, in their order; an empty list in its metadata means none.
fn skill_roots(metadata: &Map<String, Value>) -> Vec<String> {
    let named = metadata
        .get("workspace")
        .and_then(|workspace| workspace.get("skill_discovery_roots"))
        .and_then(Value::as_array);
    let Some(named) = named else {
        return DEFAULT_ROOTS.map(str::to_owned).to_vec();
    };
    let mut roots: Vec<String> = Vec::new();
    for root in named.iter().filter_map(Value::as_str).filter_map(cleaned) {
        if !OWN_ROOTS.contains(&root.as_str()) && !roots.contains(&root) {
            roots.push(root);
        }
    }
    roots
}

/// An absolute path without `.`, `..` and doubled slashes; `None` for any other, and for one that a list joined by
/// colons cannot name.
fn cleaned(root: &str) -> Option<String> {
    let root = root.trim();
    if !root.starts_with('/') || root.contains([':', '\0']) {
        return None;
    }
    let mut parts = Vec::new();
    for part in root.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(roots: Value) -> Vec<String> {
        let metadata = json!({ "workspace": { "skill_discovery_roots": roots } });
        skill_roots(metadata.as_object().unwrap())
    }

    #[test]
    fn a_bot_that_names_no_roots_has_the_default_ones_and_an_empty_list_is_none() {
        assert_eq!(skill_roots(&Map::new()), DEFAULT_ROOTS);
        assert_eq!(of(json!("/opt/skills")), DEFAULT_ROOTS);
        assert!(of(json!([])).is_empty());
    }

    #[test]
    fn roots_are_trimmed_cleaned_absolute_and_once_in_their_order() {
        let roots = json!([
            " /srv//b/ ",
            "relative",
            "/a/../srv/./b",
            "/data/skills/",
            "/data/.skills",
            7,
            "/a:b",
            "/z"
        ]);
        assert_eq!(of(roots), ["/srv/b", "/z"]);
    }
}
