//! Bot ids and the container ids made from them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Prefix of a workspace's container id.
pub const WORKSPACE_PREFIX: &str = "workspace-";
/// Prefix of a container made before the bridge existed.
pub const LEGACY_PREFIX: &str = "mcp-";

/// A bot's id: a UUID in the canonical lower-case form, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BotId(String);

/// The text is not an id of the form asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a UUID in lower-case form")]
pub struct InvalidId(pub String);

impl BotId {
    /// A new random id.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BotId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match uuid::Uuid::try_parse(text) {
            Ok(id) if id.to_string() == text => Ok(Self(text.to_owned())),
            _ => Err(InvalidId(text.to_owned())),
        }
    }
}

impl TryFrom<String> for BotId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<BotId> for String {
    fn from(id: BotId) -> Self {
        id.0
    }
}

impl fmt::Display for BotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The container id of a bot's workspace.
pub fn container_id_for(bot: &BotId) -> String {
    format!("{WORKSPACE_PREFIX}{bot}")
}

/// Legacy means exactly: the container's id starts with `mcp-`.
pub fn is_legacy(container_id: &str) -> bool {
    container_id.starts_with(LEGACY_PREFIX)
}

/// Which bot a container belongs to: its label wins over its id; an id that is only a prefix
/// belongs to no bot.
pub fn derive_bot_id(container_id: &str, label: Option<&str>) -> Option<String> {
    if let Some(label) = label.filter(|label| !label.is_empty()) {
        return Some(label.to_owned());
    }
    [WORKSPACE_PREFIX, LEGACY_PREFIX]
        .iter()
        .find_map(|prefix| container_id.strip_prefix(prefix))
        .filter(|rest| !rest.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_uuids_are_bot_ids() {
        assert!("0191f3c2-8f0e-7d3a-9c56-0123456789ab".parse::<BotId>().is_ok());
        for bad in [
            "",
            "x",
            "0191F3C2-8F0E-7D3A-9C56-0123456789AB",
            "0191f3c28f0e7d3a9c560123456789ab",
        ] {
            assert!(bad.parse::<BotId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_label_wins_over_the_id() {
        assert_eq!(derive_bot_id("workspace-a", Some("b")), Some("b".into()));
        assert_eq!(derive_bot_id("workspace-a", None), Some("a".into()));
        assert_eq!(derive_bot_id("mcp-a", None), Some("a".into()));
        assert_eq!(derive_bot_id("workspace-", None), None);
        assert_eq!(derive_bot_id("other", None), None);
    }
}
