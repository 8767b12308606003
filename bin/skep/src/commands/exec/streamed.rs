//! A command without standard input: one request, its output as events.

use std::ops::Range;
use std::time::Duration;

use base64::Engine;
use futures::Stream;
use reqwest::Method;
use reqwest::header::ACCEPT;
use serde_json::Value;
use tokio::io::AsyncWrite;

use super::attended::Interrupts;
use super::followed::follow;
use super::{ended, print};
use crate::client::{Client, EventReader};
use crate::failure::{Failure, Result};
use crate::output::text;

const CUT_OFF: Failure = Failure::CutOff("a command ran");
/// A disk that has stood still is waited for so long once more.
const REST_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn run(client: &Client, route: &str, body: Value) -> Result<()> {
    let mut interrupts = Interrupts::new()?;
    let starting = async {
        let request = client
            .request(Method::POST, route)
            .header(ACCEPT, "text/event-stream")
            .json(&body);
        let answer = client.send(request).await?;
        let mut events = EventReader::new(answer.bytes_stream()).without_silence_limit();
        let start = events.next().await?.ok_or(CUT_OFF)?;
        match text(&start, "type").as_str() {
            "start" => Ok((events, text(&start, "exec_id"))),
            "error" => Err(stream_failed(&start)),
            other => Err(Failure::Unexpected {
                doing: "starting a command",
                what: format!("an event {other:?} before its start"),
            }),
        }
    };
    let (mut events, exec_id) = interrupts.until_started(starting).await?;
    let at = format!("{route}/{exec_id}");
    let work = async {
        let (exit, written) = show(&mut events).await?;
        let bytes = |name: &str, written: u64| written..exit.get(name).and_then(Value::as_u64).unwrap_or(written);
        tokio::try_join!(
            rest(
                client,
                &at,
                ("stdout", tokio::io::stdout()),
                bytes("stdout_bytes", written[0])
            ),
            rest(
                client,
                &at,
                ("stderr", tokio::io::stderr()),
                bytes("stderr_bytes", written[1])
            ),
        )?;
        Ok(exit)
    };
    let exit = interrupts.attend(client, &at, work).await?;
    ended(&exit)
}

/// What a command wrote by its end and was not among the events, as its disk stood still, or as its children wrote it since.
/// It comes in the log when the disk takes it.
async fn rest(
    client: &Client,
    at: &str,
    (stream, to): (&str, impl AsyncWrite + Unpin),
    missing: Range<u64>,
) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let (from, end) = (missing.start, missing.end);
    match tokio::time::timeout(REST_WITHIN, follow(client, at, (stream, to), missing)).await {
        Ok(Ok(reached)) if reached >= end => Ok(()),
        Ok(Err(failure)) => Err(failure),
        Ok(Ok(reached)) => Err(super::lost(stream, end - reached)),
        Err(_) => Err(super::lost(stream, end - from)),
    }
}

/// Prints what the command prints until its end, which is returned with how much of each output was.
async fn show<S, E>(events: &mut EventReader<S>) -> Result<(Value, [u64; 2])>
where
    S: Stream<Item = std::result::Result<bytes::Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let mut written = [0; 2];
    loop {
        let event = events.next().await?.ok_or(CUT_OFF)?;
        match event.get("type").and_then(Value::as_str) {
            Some("stdout") => written[0] = write(&mut stdout, &event, written[0]).await?,
            Some("stderr") => written[1] = write(&mut stderr, &event, written[1]).await?,
            Some("exit") => return Ok((event, written)),
            Some("error") => return Err(stream_failed(&event)),
            _ => {}
        }
    }
}

fn stream_failed(event: &Value) -> Failure {
    Failure::StreamFailed {
        code: Some(text(event, "code")).filter(|code| !code.is_empty()),
        message: text(event, "message"),
    }
}

/// Writes what comes after the `written` bytes before it. Returns how many there are now.
async fn write(to: &mut (impl AsyncWrite + Unpin), event: &Value, written: u64) -> Result<u64> {
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
    print(to, &bytes).await?;
    Ok(offset + bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_gap_in_the_output_is_a_failure_and_no_end() {
        let piece = |offset: u64| json!({"type": "stdout", "offset": offset, "data": "abc", "encoding": "utf-8"});
        let mut printed = Vec::new();
        let written = write(&mut printed, &piece(0), 0).await.expect("printed");
        let written = write(&mut printed, &piece(written), written).await.expect("printed");
        assert_eq!((printed.as_slice(), written), (b"abcabc".as_slice(), 6));
        let failure = write(&mut printed, &piece(10), written)
            .await
            .expect_err("4 bytes are missing");
        assert_eq!(
            failure.to_string(),
            "4 bytes of its stdout were dropped before they were read"
        );
        assert_eq!(printed, b"abcabc");
    }
}
