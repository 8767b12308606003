//! A command with standard input: started detached, fed and followed until it ends.

use std::convert::Infallible;
use std::ops::Range;
use std::time::Duration;

use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::attended::Interrupts;
use super::{ended, patiently, print};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output::text;

/// As much of standard input as goes in one request.
const PIECE_BYTES: usize = 64 << 10;
/// How often it is asked whether a command that closed its outputs has ended.
const ASK_AGAIN: Duration = Duration::from_millis(50);
const ASK_AGAIN_AT_MOST: Duration = Duration::from_secs(1);

pub(super) async fn run(client: &Client, route: &str, mut body: Value) -> Result<()> {
    body["detach"] = json!(true);
    // Open, to be fed from now on.
    body["stdin"] = json!(true);
    let mut interrupts = Interrupts::new()?;
    let started = interrupts.until_started(client.post(route, &body)).await?;
    let at = &format!("{route}/{}", text(&started, "exec_id"));
    let following = async {
        tokio::try_join!(
            follow(client, at, ("stdout", tokio::io::stdout()), 0..u64::MAX),
            follow(client, at, ("stderr", tokio::io::stderr()), 0..u64::MAX)
        )?;
        wait_for_the_end(client, at).await
    };
    let work = async {
        tokio::select! {
            exit = following => exit,
            failed = feed(client, at) => match failed? {},
        }
    };
    let exit = interrupts.attend(client, at, work).await?;
    ended(&exit)
}

/// Passes standard input on until it ends or the command has; then waits to be dropped.
async fn feed(client: &Client, at: &str) -> Result<Infallible> {
    let mut stdin = tokio::io::stdin();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = stdin.read(&mut piece).await;
        let count = count.map_err(|error| Failure::local("cannot read standard input", error))?;
        let eof = count == 0;
        let request = client
            .request(Method::POST, &format!("{at}/stdin?eof={eof}"))
            .body(piece[..count].to_vec());
        match client
            .json(request.header("content-type", "application/octet-stream"))
            .await
        {
            Ok(_) if !eof => {}
            // The command has ended, or reads no more: its exit code says the rest.
            Ok(_) | Err(Failure::Refused { status: 404 | 409, .. }) => return std::future::pending().await,
            // How much of it was taken is not known: it cannot be sent again, and the command would wait for it for ever.
            Err(failure) => {
                return Err(Failure::Failed(format!("standard input was not passed on: {failure}")));
            }
        }
    }
}

/// Writes one of its outputs from a byte on, taking up where it was when the connection breaks, to its end or past another
/// byte. Returns how far it came.
pub(super) async fn follow(
    client: &Client,
    at: &str,
    (stream, mut to): (&str, impl AsyncWrite + Unpin),
    wanted: Range<u64>,
) -> Result<u64> {
    let mut offset = wanted.start;
    let mut broken = 0;
    loop {
        let from = offset.to_string();
        let ask = async || {
            let query = [("stream", stream), ("offset", &from), ("follow", "true")];
            let request = client.request(Method::GET, &format!("{at}/output")).query(&query);
            client.send(request).await
        };
        let answer = patiently(ask).await?;
        let start = answer
            .headers()
            .get("x-offset")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let start: u64 = start.unwrap_or(offset);
        if start > offset {
            return Err(super::lost(stream, start - offset));
        }
        let mut body = answer.bytes_stream();
        let whole = loop {
            match body.next().await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(bytes)) => {
                    broken = 0;
                    offset += bytes.len() as u64;
                    print(&mut to, &bytes).await?;
                    if offset >= wanted.end {
                        return Ok(offset);
                    }
                }
            }
        };
        if whole {
            return Ok(offset);
        }
        broken += 1;
        if broken > 3 {
            return Err(Failure::CutOff("a command ran"));
        }
    }
}

async fn wait_for_the_end(client: &Client, at: &str) -> Result<Value> {
    let mut pause = ASK_AGAIN;
    loop {
        let exec = patiently(async || client.get(at).await).await?;
        if text(&exec, "state") == "exited" {
            return Ok(exec);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ASK_AGAIN_AT_MOST);
    }
}
