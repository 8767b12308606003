//! `skep files`.

use futures::StreamExt;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::place::Place;
use crate::arguments::{At, FilesCommand, OutputForm};
use crate::client::{Client, find_bot};
use crate::failure::{Failure, Result};
use crate::output::{self, Column, text};

/// The workspace reads all names of the directory for each page: few large ones.
const PAGE_LENGTH: &str = "10000";

const COLUMNS: &[Column] = &[
    Column {
        title: "MODE",
        read: |file| text(file, "mode"),
    },
    Column {
        title: "UID",
        read: |file| text(file, "uid"),
    },
    Column {
        title: "SIZE",
        read: |file| text(file, "size"),
    },
    Column {
        title: "MODIFIED",
        read: |file| output::time(file, "modTime"),
    },
    Column {
        title: "NAME",
        read: name_with_target,
    },
];

fn name_with_target(file: &Value) -> String {
    match text(file, "target") {
        target if target.is_empty() => text(file, "name"),
        target => format!("{} -> {target}", text(file, "name")),
    }
}

pub(crate) async fn run(client: &Client, form: OutputForm, command: FilesCommand) -> Result<()> {
    match command {
        FilesCommand::Ls { at } => list(client, form, &at).await,
        FilesCommand::Cat { at } => {
            let (id, path) = find(client, &at).await?;
            let request = client
                .request(Method::GET, &route(&id, "download"))
                .query(&[("path", path)]);
            write_out(client.send(request).await?).await
        }
        FilesCommand::Rm { at, recursive } => {
            let (id, path) = find(client, &at).await?;
            done(client, &id, "delete", &json!({"path": path, "recursive": recursive})).await?;
            output::print_for_programs(form, &json!({"path": path, "deleted": true}), "path")
        }
        FilesCommand::Mkdir { at } => {
            let (id, path) = find(client, &at).await?;
            done(client, &id, "mkdir", &json!({"path": path})).await?;
            output::print_for_programs(form, &json!({"path": path, "made": true}), "path")
        }
        FilesCommand::Mv { at, to } => {
            let (id, path) = find(client, &at).await?;
            // `NAME:/new` is understood too, for the same workspace.
            let to = match Place::parse(&to)? {
                Place::Inside { bot, path } if find_bot(client, &bot).await?.id == id => path,
                Place::Here(path) if path.starts_with('/') => path,
                _ => return Err(Failure::Usage(format!("{to:?} is not a path of the same workspace"))),
            };
            done(client, &id, "rename", &json!({"oldPath": path, "newPath": to})).await?;
            output::print_for_programs(form, &json!({"path": to, "moved_from": path}), "path")
        }
    }
}

/// A route of the file manager.
pub(crate) fn route(bot_id: &str, verb: &str) -> String {
    format!("/bots/{bot_id}/container/fs/{verb}")
}

async fn find(client: &Client, at: &At) -> Result<(String, String)> {
    let (bot, path) = Place::parse_inside(&at.at)?;
    Ok((find_bot(client, &bot).await?.id, path))
}

async fn done(client: &Client, id: &str, verb: &str, body: &Value) -> Result<()> {
    client.post(&route(id, verb), body).await.map(|_| ())
}

async fn list(client: &Client, form: OutputForm, at: &At) -> Result<()> {
    let (id, path) = find(client, at).await?;
    let mut entries = Vec::new();
    let mut cursor = String::new();
    loop {
        let mut query = vec![("path", path.clone()), ("limit", PAGE_LENGTH.to_owned())];
        if !cursor.is_empty() {
            query.push(("cursor", cursor.clone()));
        }
        let page = client
            .read(client.request(Method::GET, &route(&id, "list")).query(&query))
            .await?;
        let more = page.get("entries").and_then(Value::as_array);
        entries.extend(more.into_iter().flatten().cloned());
        match text(&page, "next_cursor") {
            next if next.is_empty() || next == cursor => break,
            next => cursor = next,
        }
    }
    output::print_list(form, &entries, "name", COLUMNS)
}

/// The bytes of an answer, to standard output.
pub(super) async fn write_out(answer: Response) -> Result<()> {
    let mut body = answer.bytes_stream();
    let mut stdout = tokio::io::stdout();
    let failed = |error| Failure::local("cannot write to standard output", error);
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| Failure::CutOff("sending a file"))?;
        match stdout.write_all(&piece).await {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.map_err(failed)?,
        }
    }
    stdout.flush().await.map_err(failed)
}
