//! What a person calls a bot: an id, the beginning of one, or its display name.

use serde::Deserialize;
use serde_json::Value;
use skep_names::BotId;

use super::{Client, typed};
use crate::failure::{Failure, Result};
use crate::output::text;

/// As much of a bot as the command line decides by.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Bot {
    /// Its id.
    pub(crate) id: String,
    /// Its name for people; need not be unique.
    #[serde(default)]
    pub(crate) display_name: String,
    /// Whose it is.
    #[serde(default)]
    pub(crate) owner_user_id: String,
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
/// Our own go first, then all that we may see; for an administrator those of all users: whoever shares a bot with us calls
/// it as he likes, and must not take the place of another.
///
/// # Errors
/// None fits, or several do.
pub(crate) async fn find_bot(client: &Client, name: &str) -> Result<Bot> {
    if name.parse::<BotId>().is_ok() {
        return typed(client.get(&format!("/bots/{name}")).await?, "reading a bot");
    }
    let seen = names_of(client.all_items("/bots?limit=100").await?)?;
    if !fitting(&seen, name).is_empty() {
        let me = text(&client.get("/users/me").await?, "id");
        match pick_own(&seen, &me, name) {
            Err(Failure::NoSuchBot(_)) => {}
            decided => return decided,
        }
    }
    let all = match client.all_items("/bots?limit=100&all=true").await {
        Ok(all) => names_of(all)?,
        Err(Failure::Refused { status: 403, .. }) => seen,
        Err(other) => return Err(other),
    };
    pick(&fitting(&all, name), name)
}

fn names_of(items: Vec<Value>) -> Result<Vec<Bot>> {
    items.into_iter().map(|item| typed(item, "listing bots")).collect()
}

/// Those of that name, and those whose ids begin with it.
fn fitting<'a>(bots: impl IntoIterator<Item = &'a Bot>, name: &str) -> Vec<&'a Bot> {
    let fits = |bot: &&Bot| !name.is_empty() && (bot.display_name == name || bot.id.starts_with(name));
    bots.into_iter().filter(fits).collect()
}

/// Of our own an exact name goes before the beginning of an id, so that one called `ab` can always be meant.
fn pick_own(bots: &[Bot], me: &str, name: &str) -> Result<Bot> {
    let own = fitting(bots.iter().filter(|bot| bot.owner_user_id == me), name);
    let named: Vec<&Bot> = own.iter().copied().filter(|bot| bot.display_name == name).collect();
    pick(if named.is_empty() { &own } else { &named }, name)
}

fn pick(fitting: &[&Bot], name: &str) -> Result<Bot> {
    match fitting {
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

    const ME: &str = "me";

    fn bots() -> Vec<Bot> {
        [
            ("aa11", "demo", ME),
            ("aa22", "other", ME),
            ("bb33", "twin", ME),
            ("cc44", "twin", ME),
            ("dd55", "aa", ME),
            ("ee66", "aa1", "other"),
            ("ee77", "ff", "other"),
            ("ff88", "shared", "other"),
        ]
        .map(|(id, name, owner)| Bot {
            id: id.into(),
            display_name: name.into(),
            owner_user_id: owner.into(),
        })
        .to_vec()
    }

    fn own(name: &str) -> Result<Bot> {
        pick_own(&bots(), ME, name)
    }

    fn seen(name: &str) -> Result<Bot> {
        pick(&fitting(&bots(), name), name)
    }

    #[test]
    fn a_bot_is_found_by_name_and_by_the_beginning_of_its_id() {
        assert_eq!(own("demo").unwrap().id, "aa11");
        assert_eq!(own("aa2").unwrap().id, "aa22");
        assert_eq!(own("aa").unwrap().id, "dd55");
        assert_eq!(seen("shared").unwrap().id, "ff88");
    }

    #[test]
    fn a_bot_of_another_takes_the_place_of_none() {
        assert_eq!(own("aa1").unwrap().id, "aa11", "it is the beginning of our own");
        assert!(matches!(seen("ff"), Err(Failure::AmbiguousBot { count: 2, .. })));
    }

    #[test]
    fn what_fits_several_or_none_is_refused() {
        assert!(matches!(own("twin"), Err(Failure::AmbiguousBot { count: 2, .. })));
        assert!(matches!(own("zz"), Err(Failure::NoSuchBot(_))));
        assert!(matches!(own("ff"), Err(Failure::NoSuchBot(_))));
        assert!(matches!(seen(""), Err(Failure::NoSuchBot(_))));
    }
}
