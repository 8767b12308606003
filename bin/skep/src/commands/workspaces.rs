//! The commands that make, show, start, stop and delete workspaces.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::ACCEPT;
use serde_json::{Value, json};
use skep_api::{CreateWorkspaceRequest, GpuRequest, LimitsRequest};
use skep_names::BotId;

use super::bots::{confirm, preserving, refuse_a_taken_name};
use crate::arguments::{CreateArguments, ListArguments, Named, OutputForm, RemoveArguments, StopArguments};
use crate::client::{Client, all_bots, find_bot, follow_to_the_end, watched};
use crate::failure::{Failure, Result};
use crate::output::{self, Column, text};
use crate::progress::ProgressView;

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
        read: status,
    },
    Column {
        title: "IMAGE",
        read: |bot| text(bot, "container.image"),
    },
    Column {
        title: "ADDRESS",
        read: |bot| text(bot, "container.ip"),
    },
    Column {
        title: "CREATED",
        read: |bot| output::time(bot, "created_at"),
    },
];

pub(crate) async fn list(client: &Client, form: OutputForm, list: ListArguments) -> Result<()> {
    let bots = all_bots(client, list.all).await?;
    let with_workspace: Vec<Value> = bots
        .into_iter()
        .filter(|bot| {
            let there = |field: &str| bot.get(field).is_some_and(Value::is_object);
            there("container") || there("container_error")
        })
        .collect();
    let reasons: BTreeSet<String> = with_workspace
        .iter()
        .filter_map(|bot| bot.pointer("/container_error/message").and_then(Value::as_str))
        .map(output::printable)
        .collect();
    for reason in reasons {
        eprintln!("skep: what is unknown could not be asked: {reason}");
    }
    output::print_list(form, &with_workspace, "display_name", COLUMNS)
}

/// Of one that could not be asked it is not known whether there is a workspace.
fn status(bot: &Value) -> String {
    match bot.get("container_error") {
        Some(Value::Object(_)) => "unknown".to_owned(),
        _ => text(bot, "container.status"),
    }
}

pub(crate) async fn create(client: &Client, form: OutputForm, create: CreateArguments) -> Result<()> {
    // By its id a bot that is there gets its workspace, with what was kept of the one before.
    let is_there = create.name.parse::<BotId>().is_ok();
    let bot = match is_there {
        true => client.get(&format!("/bots/{}", create.name)).await?,
        false => new_bot(client, &create.name).await?,
    };
    let id = text(&bot, "id");
    let complete = match create_workspace(client, form, &id, &request_of(&create)).await {
        Ok(complete) => complete,
        Err(failure) => {
            if !is_there {
                eprintln!("skep: the bot {id} was made, its workspace was not; `skep bots rm {id}` removes it");
            }
            return Err(failure);
        }
    };
    warn_of(&complete);
    let name = text(&bot, "display_name");
    let whole = client.get(&format!("/bots/{id}/container")).await?;
    match form {
        OutputForm::Json => output::print_json(&with_container(bot, whole)),
        OutputForm::Name => output::print_text(&format!("{id}\n")),
        OutputForm::Table => output::print_text(&format!("{} is ready ({id})\n", output::printable(&name))),
    }
}

async fn new_bot(client: &Client, name: &str) -> Result<Value> {
    refuse_a_taken_name(client, name).await?;
    client
        .post("/bots?workspace=false", &json!({ "display_name": name }))
        .await
}

fn request_of(create: &CreateArguments) -> CreateWorkspaceRequest {
    let limits = LimitsRequest {
        cpu_millicores: create.cpus,
        memory_bytes: create.memory,
        ..LimitsRequest::default()
    };
    let env: BTreeMap<String, String> = create.env.iter().cloned().collect();
    CreateWorkspaceRequest {
        image: create.image.clone(),
        gpu: (!create.gpu.is_empty()).then(|| GpuRequest {
            devices: create.gpu.clone(),
        }),
        limits: (limits != LimitsRequest::default()).then_some(limits),
        env: (!env.is_empty()).then_some(env),
        ..CreateWorkspaceRequest::default()
    }
}

/// Makes or takes up the workspace of a bot, showing how far it is, and returns `complete`.
pub(crate) async fn create_workspace(
    client: &Client,
    form: OutputForm,
    bot_id: &str,
    request: &CreateWorkspaceRequest,
) -> Result<Value> {
    let path = format!("/bots/{bot_id}/container");
    let request = client
        .request(Method::POST, &path)
        .header(ACCEPT, "text/event-stream")
        .json(request);
    let answer = client.send(request).await?;
    follow_to_the_end(answer, &mut ProgressView::new(form)).await
}

fn warn_of(complete: &Value) {
    let warnings = complete.pointer("/container/warnings").and_then(Value::as_array);
    for warning in warnings.into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("skep: warning: {}", output::printable(warning));
    }
}

fn with_container(mut bot: Value, container: Value) -> Value {
    if let Value::Object(fields) = &mut bot {
        fields.insert("container".into(), container);
    }
    bot
}

pub(crate) async fn inspect(client: &Client, form: OutputForm, named: Named) -> Result<()> {
    let id = find_bot(client, &named.name).await?.id;
    let bot = client.get(&format!("/bots/{id}")).await?;
    let container = match client.get(&format!("/bots/{id}/container")).await {
        Ok(container) => container,
        Err(Failure::Refused { status: 404, .. }) => Value::Null,
        Err(other) => return Err(other),
    };
    let checks = client.get(&format!("/bots/{id}/checks")).await?;
    let mut whole = with_container(bot, container);
    if let (Value::Object(fields), Some(items)) = (&mut whole, checks.get("items")) {
        fields.insert("checks".into(), items.clone());
    }
    output::print_one(form, &whole, "id")
}

pub(crate) async fn start(client: &Client, form: OutputForm, named: Named) -> Result<()> {
    change(client, form, &named, "start").await
}

pub(crate) async fn restart(client: &Client, form: OutputForm, named: Named) -> Result<()> {
    change(client, form, &named, "restart").await
}

pub(crate) async fn stop(client: &Client, form: OutputForm, stop: StopArguments) -> Result<()> {
    let verb = match stop.timeout {
        Some(timeout) if timeout > Duration::from_secs(300) => {
            return Err(Failure::Usage("--timeout is at most 300s".into()));
        }
        // Less than a second is no kill at once.
        Some(timeout) => format!("stop?timeout={}", timeout.as_millis().div_ceil(1000)),
        None => "stop".to_owned(),
    };
    change(client, form, &stop.named, &verb).await
}

async fn change(client: &Client, form: OutputForm, named: &Named, verb: &str) -> Result<()> {
    let bot = find_bot(client, &named.name).await?;
    let answer = client
        .post(&format!("/bots/{}/container/{verb}", bot.id), &json!({}))
        .await?;
    match form {
        OutputForm::Json => output::print_json(&answer),
        OutputForm::Table | OutputForm::Name => output::print_text(&format!("{}\n", bot.id)),
    }
}

pub(crate) async fn remove(client: &Client, form: OutputForm, remove: RemoveArguments) -> Result<()> {
    let bot = find_bot(client, &remove.named.name).await?;
    let what = match remove.preserve_data {
        true => "the workspace (its data is kept as a backup)",
        false => "the workspace and all its files",
    };
    confirm(&bot, what, remove.force)?;
    let path = format!("/bots/{}/container{}", bot.id, preserving(&remove));
    watched(client, form, (&bot.id, "delete"), client.delete(&path)).await?;
    match form {
        OutputForm::Json => output::print_json(&json!({"id": bot.id, "deleted": true})),
        OutputForm::Table | OutputForm::Name => output::print_text(&format!("{}\n", bot.id)),
    }
}
