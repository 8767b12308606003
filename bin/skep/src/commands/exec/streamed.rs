//! A command without standard input: one request, its output as events.

use std::io::Write;

use base64::Engine;
use reqwest::Method;
use reqwest::header::ACCEPT;
use serde_json::{Value, json};

use super::ended;
use crate::client::{Client, EventReader};
use crate::failure::{Failure, Result};
use crate::output::text;

pub(super) async fn run(client: &Client, route: &str, body: Value) -> Result<()> {
    let request = client
        .request(Method::POST, route)
        .header(ACCEPT, "text/event-stream")
        .json(&body);
    let answer = client.send(request).await?;
    let mut events = EventReader::new(answer.bytes_stream()).without_silence_limit();
    let mut exec_id = String::new();
    let mut interrupts = 0;
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            pressed = tokio::signal::ctrl_c() => {
                pressed.map_err(|error| Failure::local("cannot wait for Ctrl-C", error))?;
                interrupts += 1;
                interrupt(client, route, &exec_id, interrupts).await?;
                continue;
            }
        };
        let Some(event) = event else {
            return Err(Failure::CutOff("a command ran"));
        };
        match event.get("type").and_then(Value::as_str) {
            Some("start") => exec_id = text(&event, "exec_id"),
            Some("stdout") => write(&mut std::io::stdout().lock(), &event)?,
            Some("stderr") => write(&mut std::io::stderr().lock(), &event)?,
            Some("exit") => return ended(&event),
            Some("error") => {
                let code = Some(text(&event, "code")).filter(|code| !code.is_empty());
                return Err(Failure::StreamFailed {
                    code,
                    message: text(&event, "message"),
                });
            }
            _ => {}
        }
    }
}

/// The first Ctrl-C is the command's; the second one ends it and us.
pub(super) async fn interrupt(client: &Client, route: &str, exec_id: &str, count: u32) -> Result<()> {
    if exec_id.is_empty() {
        return Err(Failure::CommandEnded(130));
    }
    if count == 1 {
        client
            .post(&format!("{route}/{exec_id}/signal"), &json!({"signal": "SIGINT"}))
            .await?;
        return Ok(());
    }
    client.delete(&format!("{route}/{exec_id}")).await?;
    Err(Failure::CommandEnded(130))
}

fn write(to: &mut impl Write, event: &Value) -> Result<()> {
    let data = text(event, "data");
    let bytes = match text(event, "encoding").as_str() {
        "base64" => base64::engine::general_purpose::STANDARD
            .decode(&data)
            .map_err(|error| Failure::Unexpected {
                doing: "sending output",
                what: error.to_string(),
            })?,
        _ => data.into_bytes(),
    };
    match to.write_all(&bytes).and_then(|()| to.flush()) {
        // Whoever read us has had enough: as for any program, that ends the command line.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::CommandEnded(141)),
        result => result.map_err(|error| Failure::local("cannot print", error)),
    }
}
