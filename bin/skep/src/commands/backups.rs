//! `skep backups` and `skep restore`.

use std::path::Path;

use reqwest::Method;
use reqwest::header::{ETAG, HeaderValue};
use serde_json::{Value, json};
use skep_names::BotId;

use super::bots::confirm;
use super::copy::save;
use super::files::write_out;
use crate::arguments::{BackupOf, BackupsCommand, OutputForm, RestoreArguments};
use crate::client::{Bot, Client, find_bot, watched};
use crate::failure::{Failure, Result};
use crate::output::{self, Column, text};
use crate::progress::transfer_bar;

const COLUMNS: &[Column] = &[
    Column {
        title: "NAME",
        read: |backup| text(backup, "name"),
    },
    Column {
        title: "SIZE",
        read: |backup| output::bytes(backup, "size_bytes"),
    },
    Column {
        title: "ENTRIES",
        read: |backup| text(backup, "entries"),
    },
    Column {
        title: "VERIFIED",
        read: |backup| text(backup, "verified"),
    },
    Column {
        title: "CREATED",
        read: |backup| output::time(backup, "created_at"),
    },
];

pub(crate) async fn run(client: &Client, form: OutputForm, command: BackupsCommand) -> Result<()> {
    match command {
        BackupsCommand::Ls { name } => list(client, form, name.as_deref()).await,
        BackupsCommand::Get { of, to } => get(client, form, &of, to.as_deref()).await,
        BackupsCommand::Rm { of, force } => {
            let bot = find_also_gone(client, &of.named.name).await?;
            let meant = meant(client, &bot.id, &of.backup).await?;
            let of_when = output::time(&meant, "created_at");
            confirm(
                &bot,
                &format!("the backup {} of {of_when}", output::printable(&of.backup)),
                force,
            )?;
            let request = client.request(Method::DELETE, &route(&bot.id, &text(&meant, "name"))?);
            let request = match meant.get("sha256").and_then(Value::as_str) {
                Some(sha256) => request.header("if-match", format!("\"{sha256}\"")),
                None => request,
            };
            client.json(request).await?;
            let gone = json!({"name": meant["name"], "deleted": true});
            output::print_for_programs(form, &gone, "name")
        }
    }
}

/// As [`find_bot`]; a bot that is gone by its whole id, for its backups are still there.
async fn find_also_gone(client: &Client, name: &str) -> Result<Bot> {
    match find_bot(client, name).await {
        Err(Failure::Refused { status: 404, .. }) if name.parse::<BotId>().is_ok() => Ok(Bot {
            id: name.to_owned(),
            display_name: String::new(),
            owner_user_id: String::new(),
        }),
        found => found,
    }
}

/// The backup of that name or digest as it is listed: the server refuses another one that has its name by then.
async fn meant(client: &Client, bot_id: &str, backup: &str) -> Result<Value> {
    let answer = client.get(&format!("/bots/{bot_id}/backups")).await?;
    let items: &[Value] = answer.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice);
    let is_it = |item: &&Value| ["name", "sha256"].iter().any(|key| text(item, key) == backup);
    // One that is not there is the server's to refuse.
    Ok(items
        .iter()
        .find(is_it)
        .cloned()
        .unwrap_or_else(|| json!({"name": backup})))
}

pub(crate) async fn restore(client: &Client, form: OutputForm, restore: &RestoreArguments) -> Result<()> {
    let bot = find_bot(client, &restore.named.name).await?;
    let mode = if restore.replace { "replace" } else { "merge" };
    let body = match &restore.backup {
        Some(backup) => {
            let meant = meant(client, &bot.id, backup).await?;
            match meant.get("sha256") {
                Some(sha256) => json!({"name": meant["name"], "sha256": sha256, "mode": mode}),
                None => json!({"name": meant["name"], "mode": mode}),
            }
        }
        None => json!({"mode": mode}),
    };
    let path = format!("/bots/{}/container/data/restore", bot.id);
    let answer = watched(client, form, (&bot.id, "restore"), client.post(&path, &body)).await?;
    match form {
        OutputForm::Json => output::print_json(&answer),
        OutputForm::Table | OutputForm::Name => output::print_text(&format!("{}\n", bot.id)),
    }
}

async fn list(client: &Client, form: OutputForm, name: Option<&str>) -> Result<()> {
    let path = match name {
        Some(name) => format!("/bots/{}/backups", find_also_gone(client, name).await?.id),
        None => "/backups".to_owned(),
    };
    let answer = client.get(&path).await?;
    let items: &[Value] = answer.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice);
    output::print_list(form, items, "name", COLUMNS)
}

fn route(bot_id: &str, backup: &str) -> Result<String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '.' || letter == '-';
    match backup.chars().all(plain) && !backup.is_empty() {
        true => Ok(format!("/bots/{bot_id}/backups/{backup}")),
        false => Err(Failure::Usage(format!("{backup:?} is no name of a backup"))),
    }
}

async fn get(client: &Client, form: OutputForm, of: &BackupOf, to: Option<&Path>) -> Result<()> {
    let bot = find_also_gone(client, &of.named.name).await?;
    let meant = meant(client, &bot.id, &of.backup).await?;
    let name = text(&meant, "name");
    let answer = client
        .send(client.request(Method::GET, &route(&bot.id, &name)?))
        .await?;
    // A new backup moves the others on to other names.
    if !is_it(&meant, answer.headers().get(ETAG)) {
        return Err(Failure::Failed(format!("another backup has the name {name} by now")));
    }
    let Some(to) = to else {
        return write_out(answer).await;
    };
    if to.symlink_metadata().is_ok() {
        return Err(Failure::Failed(format!("{} is there already", to.display())));
    }
    let bar = transfer_bar(form, answer.content_length(), "backup");
    let saved = save(answer, to, &bar, "sending a backup").await;
    bar.finish_and_clear();
    saved?;
    output::print_for_programs(form, &json!({"name": name, "file": to}), "file")
}

/// Whether what is sent is the backup that was listed. One that was not listed is the server's to find.
fn is_it(meant: &Value, etag: Option<&HeaderValue>) -> bool {
    let sha256 = meant.get("sha256").and_then(Value::as_str);
    sha256.is_none_or(|sha256| etag.is_some_and(|etag| *etag == format!("\"{sha256}\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_that_took_the_name_of_another_is_not_taken_for_it() {
        let meant = json!({"name": "bot.tar.gz", "sha256": "ab12"});
        let etag = HeaderValue::from_static;
        assert!(is_it(&meant, Some(&etag("\"ab12\""))));
        assert!(!is_it(&meant, Some(&etag("\"cd34\""))));
        assert!(!is_it(&meant, None));
        assert!(is_it(&json!({"name": "bot.1.tar.gz"}), Some(&etag("\"cd34\""))));
    }
}
