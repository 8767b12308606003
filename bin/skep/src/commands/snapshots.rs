//! `skep snapshot`.

use std::future::Future;

use reqwest::Method;
use serde_json::{Value, json};

use crate::arguments::{OutputForm, SnapshotCommand};
use crate::client::{Client, find_bot};
use crate::failure::Result;
use crate::output::{self, Column, text};
use crate::progress::ProgressView;

const COLUMNS: &[Column] = &[
    Column {
        title: "VERSION",
        read: |snapshot| text(snapshot, "version"),
    },
    Column {
        title: "NAME",
        read: |snapshot| text(snapshot, "name"),
    },
    Column {
        title: "SOURCE",
        read: |snapshot| text(snapshot, "source"),
    },
    Column {
        title: "CREATED",
        read: |snapshot| output::time(snapshot, "created_at"),
    },
];

const LAYER_COLUMNS: &[Column] = &[
    Column {
        title: "LAYER",
        read: |snapshot| text(snapshot, "runtime_snapshot_name"),
    },
    Column {
        title: "ON",
        read: |snapshot| text(snapshot, "parent"),
    },
    Column {
        title: "KIND",
        read: |snapshot| text(snapshot, "kind"),
    },
    Column {
        title: "VERSION",
        read: |snapshot| text(snapshot, "version"),
    },
];

pub(crate) async fn run(client: &Client, form: OutputForm, command: SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Create { named, label } => {
            let path = snapshots_of(client, &named.name).await?;
            let body = json!({ "snapshot_name": label });
            let taken = waited(form, "taking a snapshot", client.post(&path, &body)).await?;
            print(form, &taken, &format!("{} is kept", text(&taken, "snapshot_name")))
        }
        SnapshotCommand::Ls { named, layers } => {
            let list = client.get(&snapshots_of(client, &named.name).await?).await?;
            let items = list
                .get("snapshots")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            if layers {
                return output::print_list(form, &items, "runtime_snapshot_name", LAYER_COLUMNS);
            }
            let versions: Vec<Value> = items.into_iter().filter(|item| item["managed"] == true).collect();
            output::print_list(form, &versions, "version", COLUMNS)
        }
        SnapshotCommand::Rollback { named, number } => {
            let path = format!("{}/rollback", snapshots_of(client, &named.name).await?);
            let body = json!({ "version": number });
            let done = waited(form, "rolling back", client.post(&path, &body)).await?;
            let saved = text(&done, "saved_version");
            let told = format!("on version {number} again; what was there is version {saved}");
            print(form, &done, &told)
        }
        SnapshotCommand::Rename { named, number, label } => {
            let path = format!("{}/{number}", snapshots_of(client, &named.name).await?);
            let request = client
                .request(Method::PATCH, &path)
                .json(&json!({ "snapshot_name": label }));
            let renamed = client.json(request).await?;
            print(form, &renamed, &text(&renamed, "snapshot_name"))
        }
        SnapshotCommand::Rm { named, numbers } => {
            let path = snapshots_of(client, &named.name).await?;
            let (is_one, mut gone) = (numbers.len() == 1, Vec::new());
            let mut ended = Ok(());
            for number in numbers {
                ended = client.delete(&format!("{path}/{number}")).await.map(drop);
                if ended.is_err() {
                    break;
                }
                gone.push(json!({ "version": number, "deleted": true }));
                if form != OutputForm::Json {
                    print(form, &gone[gone.len() - 1], &format!("version {number} is gone"))?;
                }
            }
            // One document for all of them, also of those before one that failed.
            if form == OutputForm::Json {
                match is_one {
                    true => gone.iter().try_for_each(output::print_json)?,
                    false => output::print_json(&gone.into())?,
                }
            }
            ended
        }
    }
}

async fn snapshots_of(client: &Client, name: &str) -> Result<String> {
    let bot = find_bot(client, name).await?;
    Ok(format!("/bots/{}/container/snapshots", bot.id))
}

/// Shows that something is done as long as it is waited for.
async fn waited(form: OutputForm, what: &str, work: impl Future<Output = Result<Value>>) -> Result<Value> {
    let mut view = ProgressView::new(form);
    view.step(what);
    let done = work.await;
    match done.is_ok() {
        true => view.finish(),
        false => view.abandon(),
    }
    done
}

fn print(form: OutputForm, value: &Value, told: &str) -> Result<()> {
    match form {
        OutputForm::Json => output::print_json(value),
        OutputForm::Name => {
            let version = ["rolled_back_to", "version"]
                .into_iter()
                .find(|field| value.get(field).is_some());
            output::print_text(&format!("{}\n", text(value, version.unwrap_or("version"))))
        }
        OutputForm::Table => output::print_text(&format!("{}\n", output::printable(told))),
    }
}
