//! What a person calls a bot: an id, the beginning of one, or its display name.

use serde::Deserialize;
use serde_json::Value;
use skep_names::BotId;

use super::{Client, typed};
use crate::failure::{Failure, Result};

/// As much of a bot as the command line decides by.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Bot {
    /// Its id.
    pub(crate) id: String,
    /// Its name for people; need not be unique.
    #[serde(default)]
    pub(crate) display_name: String,
}

/// Every bot we may see, as the server tells it. `include` adds `container`.
pub(crate) async fn all_bots(client: &Client, of_all_users: bool) -> Result<Vec<Value>> {
    let path = if of_all_users {
        "/bots?include=container&limit=100&all=true"
    } else {
        "/bots?include=container&limit=100"
    };
    client.all_items(path).await
}

/// The one bot that is meant.
///
/// Looks among our own and shared bots first, then, for an administrator, among all.
///
/// # Errors
/// None fits, or several do.
pub(crate) async fn find_bot(client: &Client, name: &str) -> Result<Bot> {
    if name.parse::<BotId>().is_ok() {
        return typed(client.get(&format!("/bots/{name}")).await?, "reading a bot");
    }
    let own = names_of(client.all_items("/bots?limit=100").await?)?;
    match pick(&own, name) {
        Err(Failure::NoSuchBot(_)) => {}
        decided => return decided,
    }
    match client.all_items("/bots?limit=100&all=true").await {
        Ok(all) => pick(&names_of(all)?, name),
        Err(Failure::Refused { status: 403, .. }) => Err(Failure::NoSuchBot(name.to_owned())),
        Err(other) => Err(other),
    }
}

fn names_of(items: Vec<Value>) -> Result<Vec<Bot>> {
    items.into_iter().map(|item| typed(item, "listing bots")).collect()
}

/// An exact name goes before the beginning of an id, so that a bot called `ab` can always be meant.
fn pick(bots: &[Bot], name: &str) -> Result<Bot> {
    let named: Vec<&Bot> = bots.iter().filter(|bot| bot.display_name == name).collect();
    let fitting = if named.is_empty() && !name.is_empty() {
        bots.iter().filter(|bot| bot.id.starts_with(name)).collect()
    } else {
        named
    };
    match fitting.as_slice() {
        [] => Err(Failure::NoSuchBot(name.to_owned())),
        [one] => Ok((*one).clone()),
        several => Err(Failure::AmbiguousBot {
            name: name.to_owned(),
            count: several.len(),
            list: several
                .iter()
                .map(|bot| format!("\n  {}  {}", bot.id, bot.display_name))
                .collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bots() -> Vec<Bot> {
        [
            ("aa11", "demo"),
            ("aa22", "other"),
            ("bb33", "twin"),
            ("cc44", "twin"),
            ("dd55", "aa"),
        ]
        .map(|(id, name)| Bot {
            id: id.into(),
            display_name: name.into(),
        })
        .to_vec()
    }

    #[test]
    fn a_bot_is_found_by_name_and_by_the_beginning_of_its_id() {
        assert_eq!(pick(&bots(), "demo").unwrap().id, "aa11");
        assert_eq!(pick(&bots(), "aa2").unwrap().id, "aa22");
        assert_eq!(pick(&bots(), "aa").unwrap().id, "dd55");
    }

    #[test]
    fn what_fits_several_or_none_is_refused() {
        assert!(matches!(
            pick(&bots(), "twin"),
            Err(Failure::AmbiguousBot { count: 2, .. })
        ));
        assert!(matches!(pick(&bots(), "zz"), Err(Failure::NoSuchBot(_))));
        assert!(matches!(pick(&bots(), ""), Err(Failure::NoSuchBot(_))));
    }
}
