//! `skep bots`.

use std::io::{BufRead, IsTerminal};

use reqwest::Method;
use serde_json::json;

use crate::arguments::{BotsCommand, ListArguments, OutputForm, RemoveArguments};
use crate::client::{Bot, Client, all_bots, find_bot};
use crate::failure::{Failure, Result};
use crate::output::{self, Column, text};

const COLUMNS: &[Column] = &[
    Column {
        title: "NAME",
        read: |bot| text(bot, "display_name"),
    },
    Column {
        title: "ID",
        read: |bot| text(bot, "id"),
    },
    Column {
        title: "STATUS",
        read: |bot| text(bot, "status"),
    },
    Column {
        title: "CHECKS",
        read: |bot| text(bot, "check_state"),
    },
    Column {
        title: "OWNER",
        read: |bot| text(bot, "owner_user_id"),
    },
    Column {
        title: "CREATED",
        read: |bot| output::time(bot, "created_at"),
    },
];

pub(crate) async fn run(client: &Client, form: OutputForm, command: BotsCommand) -> Result<()> {
    match command {
        BotsCommand::Ls(ListArguments { all }) => {
            output::print_list(form, &all_bots(client, all).await?, "display_name", COLUMNS)
        }
        BotsCommand::Create {
            name,
            no_workspace,
            restore_backup,
        } => {
            refuse_a_taken_name(client, &name).await?;
            let path = if no_workspace { "/bots?workspace=false" } else { "/bots" };
            let body = match restore_backup {
                Some(backup) => json!({"display_name": name, "restore_backup": backup}),
                None => json!({"display_name": name}),
            };
            let bot = client.post(path, &body).await?;
            output::print_one(form, &bot, "id")
        }
        BotsCommand::Rm(remove) => delete(client, form, remove).await,
    }
}

/// `create` of a name that is taken is an error that shows the bot.
pub(crate) async fn refuse_a_taken_name(client: &Client, name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Failure::Usage("a bot needs a name".into()));
    }
    let taken = client.all_items("/bots?limit=100").await?;
    match taken.iter().find(|bot| text(bot, "display_name") == name) {
        None => Ok(()),
        Some(bot) => Err(Failure::Failed(format!(
            "the name {name:?} is taken by the bot {0} ({1}, made {2}); `skep create {0}` makes its workspace",
            text(bot, "id"),
            text(bot, "status"),
            output::time(bot, "created_at"),
        ))),
    }
}

async fn delete(client: &Client, form: OutputForm, remove: RemoveArguments) -> Result<()> {
    let bot = find_bot(client, &remove.named.name).await?;
    let what = match remove.preserve_data {
        true => "the bot and its workspace (its data is kept as a backup)",
        false => "the bot, its workspace and all its files",
    };
    confirm(&bot, what, remove.force)?;
    let path = format!("/bots/{}{}", bot.id, preserving(&remove));
    let answer = client.json(client.request(Method::DELETE, &path)).await?;
    output::print_one(form, &answer, "id")
}

/// The query of a removal.
pub(crate) fn preserving(remove: &RemoveArguments) -> &'static str {
    match remove.preserve_data {
        true => "?preserve_data=true",
        false => "",
    }
}

/// Asks on a terminal; without one, `--force` has to say it.
pub(crate) fn confirm(bot: &Bot, what: &str, force: bool) -> Result<()> {
    if force {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::Usage(format!(
            "this deletes {what}: say --force where nobody can be asked"
        )));
    }
    let name = if bot.display_name.is_empty() {
        &bot.id
    } else {
        &bot.display_name
    };
    eprint!("Delete {what} of {}? [y/N] ", output::printable(name));
    let mut answer = String::new();
    stdin
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::local("cannot read an answer", error))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::Failed("nothing was deleted".into()))
}
