//! A hundred workspaces: how they are made, and how a server takes them up.

use std::time::{Duration, Instant};

use super::{AT_ONCE, all};
use crate::Result;
use crate::by_hand::ByHand;
use crate::samples::{Goal, Row};
use crate::stage::{Server, Stage};

const COUNT: usize = 100;

pub(crate) async fn hundred(stage: &Stage) -> Result<Vec<Row>> {
    let mut server = stage.another(None).await?;
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

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
