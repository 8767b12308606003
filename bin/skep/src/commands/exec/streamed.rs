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
    let mut written = [0; 2];
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
            Some("stdout") => written[0] = write(&mut std::io::stdout().lock(), &event, written[0])?,
            Some("stderr") => written[1] = write(&mut std::io::stderr().lock(), &event, written[1])?,
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

/// Writes what comes after the `written` bytes before it. Returns how many there are now.
fn write(to: &mut impl Write, event: &Value, written: u64) -> Result<u64> {
    let offset = event.get("offset").and_then(Value::as_u64).unwrap_or(written);
    if offset > written {
        return Err(super::lost(&text(event, "type"), offset - written));
    }
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
    let length = bytes.len() as u64;
    match to.write_all(&bytes).and_then(|()| to.flush()) {
        // Whoever read us has had enough: as for any program, that ends the command line.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::CommandEnded(141)),
        result => result
            .map(|()| offset + length)
            .map_err(|error| Failure::local("cannot print", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_in_the_output_is_a_failure_and_no_end() {
        let piece = |offset: u64| json!({"type": "stdout", "offset": offset, "data": "abc", "encoding": "utf-8"});
        let mut printed = Vec::new();
        let written = write(&mut printed, &piece(0), 0).expect("printed");
        let written = write(&mut printed, &piece(written), written).expect("printed");
        assert_eq!((printed.as_slice(), written), (b"abcabc".as_slice(), 6));
        let failure = write(&mut printed, &piece(10), written).expect_err("4 bytes are missing");
        assert_eq!(
            failure.to_string(),
            "4 bytes of its stdout were dropped before they were read"
        );
        assert_eq!(printed, b"abcabc");
    }
}
