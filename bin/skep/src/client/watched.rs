//! How far an operation is, while its answer is waited for.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::Client;
use super::events::EventReader;
use crate::arguments::OutputForm;
use crate::failure::Result;
use crate::output::text;
use crate::progress::ProgressView;

/// What takes less than this is not worth a line; also between two looks for the operation.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// Waits for the answer of a request that does an operation of `kind` on a bot's workspace, and shows its steps.
///
/// # Errors
/// Those of the answer alone.
pub(crate) async fn watched<T>(
    client: &Client,
    form: OutputForm,
    (bot_id, kind): (&str, &str),
    answer: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut view = None;
    let answer = tokio::select! {
        answer = answer => answer,
        never = show(client, (bot_id, kind), || view.insert(ProgressView::new(form))) => match never {},
    };
    match (&mut view, &answer) {
        (Some(view), Ok(_)) => view.finish(),
        (Some(view), Err(_)) => view.abandon(),
        (None, _) => {}
    }
    answer
}

/// What cannot be shown is no failure of what is waited for.
async fn show<'a>(client: &Client, of: (&str, &str), view: impl FnOnce() -> &'a mut ProgressView) -> Infallible {
    if let Err(failure) = follow(client, of, view).await {
        tracing::debug!(%failure, "the steps of an operation cannot be shown");
    }
    std::future::pending().await
}

async fn follow<'a>(
    client: &Client,
    (bot_id, kind): (&str, &str),
    view: impl FnOnce() -> &'a mut ProgressView,
) -> Result<()> {
    let path = format!("/bots/{bot_id}/operations?limit=50");
    let is_it = |operation: &&Value| {
        text(operation, "kind") == kind && ["queued", "running"].contains(&text(operation, "state").as_str())
    };
    let id = loop {
        tokio::time::sleep(WORTH_TELLING).await;
        let listed = client.get(&path).await?;
        let items = listed.get("items").and_then(Value::as_array);
        if let Some(operation) = items.into_iter().flatten().find(is_it) {
            break text(operation, "id");
        }
    };
    let events = client.request(Method::GET, &format!("/operations/{id}/events"));
    let mut events = EventReader::new(client.send(events).await?.bytes_stream());
    let view = view();
    while let Some(event) = events.next().await? {
        view.show(&event);
    }
    Ok(())
}
