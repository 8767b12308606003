//! The bot `demo`: made once, and from then on shown as it was left.

use std::time::Duration;

use serde_json::{Value, json};
use skep_api::CreateWorkspaceRequest;
use tokio::time::Instant;

use crate::arguments::OutputForm;
use crate::client::{Bot, Client, find_bot};
use crate::commands::workspaces::create_workspace;
use crate::failure::{Failure, Result};
use crate::output::{printable, tell, text};

const NAME: &str = "demo";
/// A workspace that ran is started by the server itself; it is waited for this long.
const START_LIMIT: Duration = Duration::from_secs(60);
const SHOWN: &str = "id; grep PRETTY /etc/os-release; cat /proc/self/uid_map; date >> visits; wc -l visits";

/// Makes it when it is missing, runs a command in it and prints what it said.
pub(super) async fn show(client: &Client) -> Result<()> {
    let bot = match find_bot(client, NAME).await {
        Ok(bot) => bot,
        Err(Failure::NoSuchBot(_)) => {
            tell(format_args!("making the bot {NAME}"));
            let made = client
                .post("/bots?workspace=false", &json!({"display_name": NAME}))
                .await?;
            Bot {
                id: text(&made, "id"),
                display_name: NAME.into(),
                owner_user_id: text(&made, "owner_user_id"),
            }
        }
        Err(other) => return Err(other),
    };
    match client.get(&format!("/bots/{}/container", bot.id)).await {
        Ok(info) if text(&info, "desired") == "stopped" => {
            tell(format_args!(
                "the workspace of {NAME} is stopped, and stays so; `skep start {NAME}` starts it"
            ));
            return Ok(());
        }
        Ok(_) => wait_until_running(client, &bot).await?,
        Err(Failure::Refused { status: 404, .. }) => {
            tell(format_args!("making its workspace"));
            create_workspace(client, OutputForm::Table, &bot.id, &CreateWorkspaceRequest::default()).await?;
        }
        Err(other) => return Err(other),
    }
    run_in(client, &bot).await
}

async fn wait_until_running(client: &Client, bot: &Bot) -> Result<()> {
    let limit = Instant::now() + START_LIMIT;
    loop {
        let info = client.get(&format!("/bots/{}/container", bot.id)).await?;
        if info.get("task_running") == Some(&Value::Bool(true)) {
            return Ok(());
        }
        if Instant::now() >= limit {
            return Err(Failure::Failed(format!(
                "the workspace of {NAME} does not start: it is {} {}",
                text(&info, "status"),
                text(&info, "reason")
            )));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn run_in(client: &Client, bot: &Bot) -> Result<()> {
    tell(format_args!("\n$ skep exec {NAME} -- sh -c '{SHOWN}'"));
    let result = client
        .post(&format!("/bots/{}/container/exec", bot.id), &json!({"command": SHOWN}))
        .await?;
    for line in text(&result, "stdout").lines().chain(text(&result, "stderr").lines()) {
        tell(format_args!("  {}", printable(line)));
    }
    match result.get("exit_code").and_then(Value::as_i64) {
        Some(0) => Ok(()),
        code => Err(Failure::Failed(format!(
            "the command in the workspace of {NAME} ended with {code:?}"
        ))),
    }
}
