//! Processes that nobody waits for, while the server is killed: each end and each byte is what it was.
//! `make soak-detached` is the long form.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::client::Client;
use crate::installation::{Installation, OciRuntime, field};
use crate::model::{amount, seed};

const WORKSPACES: usize = 2;
const AT_ONCE: usize = 50;
const LIMIT: Duration = Duration::from_secs(120);
/// Between two attempts while no server answers.
const PAUSE: Duration = Duration::from_millis(20);

/// A process that writes known lines, waits, writes more and ends with a known code.
struct Known {
    bot: String,
    id: String,
    number: usize,
    last_line: usize,
}

impl Known {
    /// Starts it. A start whose answer was cut off is made again: nobody was told of the first one.
    async fn start(client: &Client, bot: &str, number: usize, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
        let last_line = random.random_range(1..2000);
        let (half, tenths) = (last_line / 2, random.random_range(0..20));
        let command = format!(
            "seq {half}; echo error-{number} >&2; sleep {}.{}; seq {} {last_line}; exit {}",
            tenths / 10,
            tenths % 10,
            half + 1,
            number % 256
        );
        let path = format!("/bots/{bot}/container/exec");
        let body = json!({"command": command, "detach": true});
        let deadline = Instant::now() + LIMIT;
        loop {
            match client.attempt(Method::POST, &path, Some(body.clone())).await {
                Some((StatusCode::ACCEPTED, answer)) => {
                    let (bot, id) = (bot.to_owned(), field(&answer, "exec_id").to_owned());
                    return Self {
                        bot,
                        id,
                        number,
                        last_line,
                    };
                }
                // A server that has just begun may not know its workspaces yet.
                Some((StatusCode::SERVICE_UNAVAILABLE, _)) | None => {}
                Some(other) => panic!("not started: {other:?}"),
            }
            assert!(Instant::now() < deadline, "no server answers");
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/bots/{}/container/exec/{}{rest}", self.bot, self.id)
    }

    /// All its output as it comes, over as many connections as that takes.
    async fn follow(&self, client: &Client) -> Vec<u8> {
        let (deadline, mut output) = (Instant::now() + LIMIT, Vec::new());
        loop {
            let path = self.path(&format!("/output?stream=stdout&follow=true&offset={}", output.len()));
            match client.request(Method::GET, &path).send().await {
                Ok(answer) if answer.status() == StatusCode::OK => {
                    let mut pieces = answer.bytes_stream();
                    loop {
                        match pieces.try_next().await {
                            Ok(Some(piece)) => output.extend_from_slice(&piece),
                            Ok(None) => return output,
                            Err(_) => break,
                        }
                    }
                }
                Ok(answer) if answer.status() != StatusCode::SERVICE_UNAVAILABLE => panic!("{answer:?}"),
                Ok(_) | Err(_) => {}
            }
            assert!(Instant::now() < deadline, "{path} does not end");
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn lines(&self) -> String {
        (1..=self.last_line).map(|line| format!("{line}\n")).collect()
    }

    async fn verify(&self, client: &Client) {
        let state = client.good(Method::GET, &self.path(""), None).await;
        assert_eq!(state["state"], "exited", "{state}");
        assert_eq!(state["exit_code"], self.number % 256, "{state}");
        assert_eq!(state["dropped_bytes"], 0, "{state}");
        for (stream, expected) in [("stdout", self.lines()), ("stderr", format!("error-{}\n", self.number))] {
            let request = client.request(Method::GET, &self.path(&format!("/output?stream={stream}&offset=0")));
            let answer = request.send().await.expect("the server answers");
            assert_eq!(answer.headers()["x-next-offset"], expected.len().to_string().as_str());
            let output = answer.bytes().await.expect("the output is whole");
            assert!(output == expected, "{stream} of {}: {output:?}", self.number);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn detached_processes_keep_each_byte_and_code_while_the_server_is_killed() {
    let (count, kills) = (amount(300, 10_000), amount(3, 20));
    let seed = seed();
    let mut skep = Installation::start(OciRuntime::Found).await;
    let mut bots = Vec::new();
    for number in 0..WORKSPACES {
        bots.push(skep.client.workspace(&format!("detached {number}"), None).await);
    }
    let (client, followed) = (skep.client.clone(), AtomicUsize::new(0));
    let begun = Instant::now();
    let work = stream::iter(0..count)
        .map(async |number| {
            let known = Known::start(&client, &bots[number % WORKSPACES], number, seed).await;
            let output = known.follow(&client).await;
            assert!(
                output == known.lines().into_bytes(),
                "of {number} {} bytes were followed",
                output.len()
            );
            followed.fetch_add(1, Ordering::Relaxed);
            known
        })
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<Known>>();
    let killing = async {
        for kill in 1..=kills {
            while followed.load(Ordering::Relaxed) < kill * count / (kills + 1) {
                tokio::time::sleep(PAUSE).await;
            }
            skep.kill_server();
            skep.start_server_again().await;
        }
    };
    let (all, ()) = futures::join!(work, killing);
    println!(
        "{count} detached processes, {kills} kills of the server: followed in {:?}",
        begun.elapsed()
    );
    stream::iter(&all)
        .for_each_concurrent(AT_ONCE, |known| known.verify(&client))
        .await;
    println!("all verified after {:?}", begun.elapsed());
}
