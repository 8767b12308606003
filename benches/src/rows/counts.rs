//! What it costs to have ten, a hundred and five hundred workspaces: it should be the work that counts, not the number.

use std::time::{Duration, Instant};

use reqwest::Method;

use super::{AT_ONCE, all};
use crate::Result;
use crate::process::{listener, private_bytes, processor_seconds, program_bytes, resident_bytes};
use crate::samples::{Goal, Row, Samples};
use crate::stage::{Server, Stage};

const COUNTS: [usize; 3] = [10, 100, 500];
/// At each count the rate of making is that of the last so many at most.
const BATCH: usize = 100;
const ROUNDS: usize = 50;
/// Workspaces whose metrics are asked for ten times a second, for so long.
const POLLED: usize = 200;
const POLLS: usize = 100;
const POLL_EVERY: Duration = Duration::from_millis(100);
/// A server at rest, events of the last creates aside.
const CALM_DOWN: Duration = Duration::from_secs(3);
/// One look at all workspaces falls into it (`workspace.reconcile_interval`).
const IDLE: Duration = Duration::from_secs(60);

pub(crate) async fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let server = stage.another(None).await?;
    let mut rows = vec![Row::alone(
        "server's memory, nothing there",
        "MiB",
        mebibytes(resident_bytes(server.process())?),
        Goal::None,
    )];
    // The first one pulls the image.
    let first = server.bot().await?;
    server.create(&first).await?;
    server.remove(&first).await?;
    let mut bots = Vec::new();
    let mut rates = Vec::new();
    for count in COUNTS {
        rates.push(grow(&server, &mut bots, count).await?);
        tokio::time::sleep(CALM_DOWN).await;
        rows.extend(answers(&server, &bots).await?);
        rows.extend(costs(&server, count).await?);
    }
    rows.push(polled(&server, &bots[..POLLED]).await?);
    rows.extend(rates_beside(&rates));
    rows.extend(bridge(&server, &bots[0])?);
    all(&bots, |bot| server.remove(bot)).await?;
    Ok(rows)
}

/// Makes workspaces until there are so many, and tells how many of the last were made in a second.
async fn grow(server: &Server, bots: &mut Vec<String>, count: usize) -> Result<f64> {
    let mut rate = 0.0;
    while bots.len() < count {
        let mut batch = Vec::new();
        for _ in 0..BATCH.min(count - bots.len()) {
            batch.push(server.bot().await?);
        }
        let begun = Instant::now();
        all(&batch, |bot| server.create(bot)).await?;
        rate = batch.len() as f64 / begun.elapsed().as_secs_f64();
        all(&batch, |bot| server.require_walls(bot)).await?;
        bots.extend(batch);
    }
    Ok(rate)
}

async fn answers(server: &Server, bots: &[String]) -> Result<Vec<Row>> {
    let count = bots.len();
    let mut rows = Vec::new();
    let wanted = [
        (
            format!("list of {count} bots with their workspaces"),
            format!("/bots?limit={count}&include=container"),
        ),
        (
            format!("info, {count} workspaces"),
            format!("/bots/{}/container", bots[count / 2]),
        ),
        (
            format!("metrics, {count} workspaces"),
            format!("/bots/{}/container/metrics", bots[count / 2]),
        ),
    ];
    for (what, path) in wanted {
        let mut samples = Samples::default();
        for _ in 0..ROUNDS {
            samples.time(server.call(Method::GET, &path, None)).await?;
        }
        rows.push(Row::alone(what, "ms", samples.median(), Goal::AtMost(10.0)));
    }
    Ok(rows)
}

async fn polled(server: &Server, bots: &[String]) -> Result<Row> {
    let polls = bots.iter().enumerate().map(|(number, bot)| {
        // Not all at the same moment, as pollers that know nothing of each other.
        let first = Instant::now() + POLL_EVERY * number as u32 / POLLED as u32;
        poll(server, bot, first)
    });
    let mut all = Samples::default();
    for samples in futures::future::try_join_all(polls).await? {
        all.extend(samples);
    }
    let what = format!("metrics of {POLLED} ten times a second, of a hundred 99 within");
    Ok(Row::alone(what, "ms", all.percentile(99), Goal::AtMost(50.0)))
}

/// Each call counts from when it was due: one that is held up by the one before is late too.
async fn poll(server: &Server, bot: &str, first: Instant) -> Result<Samples> {
    let path = format!("/bots/{bot}/container/metrics");
    let mut ticks = tokio::time::interval_at(first.into(), POLL_EVERY);
    let mut samples = Samples::default();
    for _ in 0..POLLS {
        let due = ticks.tick().await;
        server.call(Method::GET, &path, None).await?;
        samples.add(due.elapsed());
    }
    Ok(samples)
}

async fn costs(server: &Server, count: usize) -> Result<Vec<Row>> {
    let before = processor_seconds(server.process())?;
    tokio::time::sleep(IDLE).await;
    let share = (processor_seconds(server.process())? - before) / IDLE.as_secs_f64() * 100.0;
    Ok(vec![
        Row::alone(
            format!("server's memory, {count} workspaces"),
            "MiB",
            mebibytes(resident_bytes(server.process())?),
            Goal::AtMost(150.0),
        ),
        Row::alone(
            format!("idle server, {count} workspaces"),
            "% of a core",
            share,
            Goal::AtMost(1.0),
        ),
    ])
}

/// Ten are too few to tell a rate that others are held against.
fn rates_beside(rates: &[f64]) -> Vec<Row> {
    let [few, some, many] = rates else { return Vec::new() };
    vec![
        Row::alone(
            format!("creates of the first {}, {AT_ONCE} at a time", COUNTS[0]),
            "1/s",
            *few,
            Goal::None,
        ),
        Row::numbers(
            format!("creates of the last {BATCH} of {}", COUNTS[2]),
            "1/s",
            *many,
            (&format!("those before the {}th", COUNTS[1]), *some),
            Goal::AtLeast(0.8),
        ),
    ]
}

fn bridge(server: &Server, bot: &str) -> Result<Vec<Row>> {
    let process = listener(&server.bridge_socket(bot))?;
    Ok(vec![
        Row::alone(
            "the bridge's private memory, idle",
            "MiB",
            mebibytes(private_bytes(process)?),
            Goal::AtMost(2.0),
        ),
        Row::alone(
            "the bridge's size on disk",
            "MiB",
            mebibytes(program_bytes(process)?),
            Goal::AtMost(8.0),
        ),
    ])
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
