//! `skep ops`.

use reqwest::Method;
use serde_json::Value;

use crate::arguments::{OperationsCommand, OutputForm};
use crate::client::{Client, encode, find_bot, follow_to_the_end};
use crate::failure::Result;
use crate::output::{self, Column, text};
use crate::progress::ProgressView;

const COLUMNS: &[Column] = &[
    Column {
        title: "ID",
        read: |operation| text(operation, "id"),
    },
    Column {
        title: "KIND",
        read: |operation| text(operation, "kind"),
    },
    Column {
        title: "STATE",
        read: |operation| text(operation, "state"),
    },
    Column {
        title: "STEP",
        read: |operation| text(operation, "step"),
    },
    Column {
        title: "STARTED",
        read: |operation| output::time(operation, "started_at"),
    },
    Column {
        title: "ERROR",
        read: |operation| text(operation, "error.message"),
    },
];

pub(crate) async fn run(client: &Client, form: OutputForm, command: OperationsCommand) -> Result<()> {
    match command {
        OperationsCommand::Ls(named) => {
            let bot = find_bot(client, &named.name).await?;
            let items: Vec<Value> = client.all_items(&format!("/bots/{}/operations", bot.id)).await?;
            output::print_list(form, &items, "id", COLUMNS)
        }
        OperationsCommand::Watch { operation } => {
            let path = format!("/operations/{}", encode(&operation));
            let answer = client
                .send(client.request(Method::GET, &format!("{path}/events")))
                .await?;
            follow_to_the_end(answer, &mut ProgressView::new(form)).await?;
            output::print_one(form, &client.get(&path).await?, "id")
        }
    }
}
