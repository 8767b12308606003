//! A hundred workspaces: how they are made, what they cost, and how a server takes them up.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use reqwest::Method;

use crate::Result;
use crate::by_hand::ByHand;
use crate::samples::{Goal, Row, Samples};
use crate::stage::{Server, Stage};

const COUNT: usize = 100;
const AT_ONCE: usize = 8;
const ROUNDS: usize = 50;
/// What /proc counts in, whatever the kernel's own tick.
const TICKS_PER_SECOND: f64 = 100.0;
const IDLE: Duration = Duration::from_secs(10);

pub(crate) async fn hundred(stage: &Stage) -> Result<Vec<Row>> {
    let mut server = stage.another(None).await?;
    let idle_bytes = resident_bytes(server.process())?;
    // The first one pulls the image.
    let first = server.bot().await?;
    server.create(&first).await?;
    server.remove(&first).await?;
    let (bots, ours) = make_all(&server).await?;
    let hands = by_hand(stage).await?;
    let mut rows = vec![
        Row::numbers(
            format!("{COUNT} workspaces, {AT_ONCE} at a time"),
            "s",
            ours.whole,
            ("`ctr run -d` with runc, CNI ADD", hands.whole),
            Goal::AtMost(1.0),
        ),
        Row::numbers(
            "of these the last quarter",
            "1/s",
            ours.last_rate,
            ("the first quarter", ours.first_rate),
            Goal::AtLeast(1.0),
        ),
    ];
    rows.extend(answers(&server, &bots[0]).await?);
    rows.extend(costs(&server, idle_bytes).await?);
    let (answered, ready) = server.restart().await?;
    let begun = Instant::now();
    all(&bots, |bot| server.exec(bot, &["true"])).await?;
    let checked = ready + begun.elapsed();
    rows.push(Row::alone(
        "server start: answers",
        "ms",
        milliseconds(answered),
        Goal::AtMost(1000.0),
    ));
    rows.push(Row::alone(
        format!("server start: {COUNT} workspaces answered a command"),
        "ms",
        milliseconds(checked),
        Goal::AtMost(2000.0),
    ));
    all(&bots, |bot| server.remove(bot)).await?;
    Ok(rows)
}

struct Made {
    whole: f64,
    first_rate: f64,
    last_rate: f64,
}

impl Made {
    fn new(mut ends: Vec<Duration>) -> Self {
        ends.sort();
        let quarter = ends.len() / 4;
        let seconds = |index: usize| ends[index - 1].as_secs_f64();
        let last = seconds(ends.len()) - seconds(ends.len() - quarter);
        Self {
            whole: seconds(ends.len()),
            first_rate: quarter as f64 / seconds(quarter),
            last_rate: quarter as f64 / last,
        }
    }
}

async fn make_all(server: &Server) -> Result<(Vec<String>, Made)> {
    let mut bots = Vec::new();
    for _ in 0..COUNT {
        bots.push(server.bot().await?);
    }
    let begun = Instant::now();
    let ends = all(&bots, async |bot| {
        server.create(bot).await?;
        server.exec(bot, &["true"]).await?;
        Ok(begun.elapsed())
    })
    .await?;
    Ok((bots, Made::new(ends)))
}

async fn by_hand(stage: &Stage) -> Result<Made> {
    let by_hand = ByHand::prepare(stage).await?;
    let names: Vec<String> = (0..COUNT).map(|number| format!("hundred-{number}")).collect();
    let begun = Instant::now();
    let ends = all(&names, async |name| {
        by_hand.create(name).await?;
        Ok(begun.elapsed())
    })
    .await?;
    all(&names, |name| by_hand.remove(name)).await?;
    Ok(Made::new(ends))
}

/// All, so many at a time.
async fn all<'a, T, F>(of: &'a [String], one: impl Fn(&'a String) -> F) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>>,
{
    futures::stream::iter(of)
        .map(one)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

async fn answers(server: &Server, bot: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let wanted = [
        (
            format!("list of {COUNT} bots with their workspaces"),
            format!("/bots?limit={COUNT}&include=container"),
        ),
        ("info".to_owned(), format!("/bots/{bot}/container")),
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

async fn costs(server: &Server, idle_bytes: u64) -> Result<Vec<Row>> {
    let before = processor_seconds(server.process())?;
    tokio::time::sleep(IDLE).await;
    let share = (processor_seconds(server.process())? - before) / IDLE.as_secs_f64() * 100.0;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(vec![
        Row::alone(
            "server's memory, nothing there",
            "MiB",
            mebibytes(idle_bytes),
            Goal::None,
        ),
        Row::alone(
            format!("server's memory, {COUNT} workspaces"),
            "MiB",
            mebibytes(resident_bytes(server.process())?),
            Goal::AtMost(150.0),
        ),
        Row::alone(
            format!("idle server, {COUNT} workspaces"),
            "% of a core",
            share,
            Goal::AtMost(1.0),
        ),
    ])
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn resident_bytes(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kibibytes.ok_or("a process has no VmRSS")?.parse::<u64>()? * 1024)
}

/// User and system time so far.
fn processor_seconds(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name in parentheses may hold anything.
    let (_, fields) = stat.rsplit_once(')').ok_or("an unreadable /proc file")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / TICKS_PER_SECOND)
}
