//! A command with standard input: started detached, fed and followed until it ends.

use std::time::Duration;

use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{ended, streamed};
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
    let exec_id = text(&client.post(route, &body).await?, "exec_id");
    let at = format!("{route}/{exec_id}");
    // Dropped with this function: a read that waits for a key must not keep us.
    let feeding = AbortOnDrop(tokio::spawn(feed(client.clone(), at.clone())));
    let work = async {
        tokio::try_join!(
            follow(client, &at, "stdout", tokio::io::stdout()),
            follow(client, &at, "stderr", tokio::io::stderr())
        )?;
        wait_for_the_end(client, &at).await
    };
    tokio::pin!(work);
    let mut interrupts = 0;
    let exit = loop {
        tokio::select! {
            exit = &mut work => break exit?,
            pressed = tokio::signal::ctrl_c() => {
                pressed.map_err(|error| Failure::local("cannot wait for Ctrl-C", error))?;
                interrupts += 1;
                streamed::interrupt(client, route, &exec_id, interrupts).await?;
            }
        }
    };
    drop(feeding);
    ended(&exit)
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Passes standard input on until it ends or the command has.
async fn feed(client: Client, at: String) {
    let mut stdin = tokio::io::stdin();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let (bytes, eof) = match stdin.read(&mut piece).await {
            Ok(0) => (Vec::new(), true),
            Ok(count) => (piece[..count].to_vec(), false),
            Err(error) => {
                eprintln!("skep: cannot read standard input: {error}");
                (Vec::new(), true)
            }
        };
        let request = client
            .request(Method::POST, &format!("{at}/stdin?eof={eof}"))
            .body(bytes);
        match client
            .json(request.header("content-type", "application/octet-stream"))
            .await
        {
            Ok(_) if !eof => {}
            Ok(_) => return,
            // The command has ended, or reads no more: its exit code says the rest.
            Err(Failure::Refused { status: 404 | 409, .. }) => return,
            Err(failure) => {
                eprintln!("skep: standard input was not passed on: {failure}");
                return;
            }
        }
    }
}

/// Writes one of its outputs, taking up where it was when the connection breaks.
async fn follow(client: &Client, at: &str, stream: &str, mut to: impl AsyncWrite + Unpin) -> Result<()> {
    let mut offset = 0_u64;
    let mut broken = 0;
    loop {
        let request = client.request(Method::GET, &format!("{at}/output")).query(&[
            ("stream", stream),
            ("offset", &offset.to_string()),
            ("follow", "true"),
        ]);
        let answer = client.send(request).await?;
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
                    to.write_all(&bytes)
                        .await
                        .map_err(|error| Failure::local("cannot print", error))?;
                    to.flush()
                        .await
                        .map_err(|error| Failure::local("cannot print", error))?;
                }
            }
        };
        if whole {
            return Ok(());
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
        let exec = client.get(at).await?;
        if text(&exec, "state") == "exited" {
            return Ok(exec);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ASK_AGAIN_AT_MOST);
    }
}
