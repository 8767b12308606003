//! `skep logs`.

use futures::StreamExt;
use reqwest::Method;

use crate::arguments::LogsArguments;
use crate::client::{Client, find_bot};
use crate::failure::{Failure, Result};
use crate::output::print_text;

pub(crate) async fn run(client: &Client, logs: LogsArguments) -> Result<()> {
    let bot = find_bot(client, &logs.named.name).await?;
    let mut query = Vec::new();
    if let Some(tail) = logs.tail {
        query.push(("tail", tail.to_string()));
    }
    if logs.follow {
        query.push(("follow", "true".to_owned()));
    }
    let request = client
        .request(Method::GET, &format!("/bots/{}/container/logs", bot.id))
        .query(&query);
    let mut body = client.send(request).await?.bytes_stream();
    // Bytes of one letter may come in two pieces: what is not whole waits for the rest.
    let mut held: Vec<u8> = Vec::new();
    while let Some(piece) = body.next().await {
        held.extend_from_slice(&piece.map_err(|_| Failure::CutOff("sending a log"))?);
        let whole = match std::str::from_utf8(&held) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => held.len(),
        };
        let text: Vec<u8> = held.drain(..whole).collect();
        print_text(&harmless(&String::from_utf8_lossy(&text)))?;
    }
    print_text(&harmless(&String::from_utf8_lossy(&held)))
}

/// A log must not steer the terminal; its lines and tabs stay.
fn harmless(text: &str) -> String {
    text.chars()
        .map(|letter| {
            if letter.is_control() && !matches!(letter, '\n' | '\t') {
                '\u{fffd}'
            } else {
                letter
            }
        })
        .collect()
}
