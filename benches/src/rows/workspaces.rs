//! From nothing to a first answered command.

use std::time::Duration;

use reqwest::Method;

use crate::Result;
use crate::by_hand::ByHand;
use crate::samples::{Goal, Row, Samples};
use crate::stage::{Server, Stage};

const ROUNDS: usize = 20;
const BESIDE: &str = "`ctr run -d` with runc, CNI ADD";

pub(crate) async fn create(stage: &Stage) -> Result<Vec<Row>> {
    let by_hand = ByHand::prepare(stage).await?;
    let runc = stage.another(Some("runc")).await?;
    let (mut with_crun, mut with_runc, mut hands) = (Samples::default(), Samples::default(), Samples::default());
    let mut life = Life::default();
    for round in 0..=ROUNDS {
        let name = format!("create-{round}");
        if round == 0 {
            // The first of each pulls the image.
            one(&stage.skep, &mut Samples::default(), &mut Life::default()).await?;
            one(&runc, &mut Samples::default(), &mut Life::default()).await?;
            continue;
        }
        one(&stage.skep, &mut with_crun, &mut life).await?;
        one(&runc, &mut with_runc, &mut Life::default()).await?;
        hands.time(by_hand.create(&name)).await?;
        life.hand_removed.time(by_hand.remove(&name)).await?;
    }
    let removed = ("`ctr task rm -f`, `ctr c rm`, CNI DEL", &life.hand_removed);
    Ok(vec![
        Row::times(
            "create → first command, crun",
            &with_crun,
            (BESIDE, &hands),
            Goal::AtMost(0.7),
        ),
        Row::times(
            "create → first command, runc",
            &with_runc,
            (BESIDE, &hands),
            Goal::AtMost(0.85),
        ),
        Row::times("stop", &life.stop, removed, Goal::None),
        Row::times("start", &life.start, (BESIDE, &hands), Goal::None),
        Row::times("delete", &life.delete, removed, Goal::None),
    ])
}

#[derive(Default)]
struct Life {
    stop: Samples,
    start: Samples,
    delete: Samples,
    hand_removed: Samples,
}

/// A workspace's whole life.
async fn one(server: &Server, created: &mut Samples, life: &mut Life) -> Result<()> {
    let bot = server.bot().await?;
    created
        .time(async {
            server.create(&bot).await?;
            server.exec(&bot, &["true"]).await
        })
        .await?;
    server.require_walls(&bot).await?;
    let base = format!("/bots/{bot}/container");
    life.stop
        .time(server.call(Method::POST, &format!("{base}/stop"), None))
        .await?;
    life.start
        .time(server.call(Method::POST, &format!("{base}/start"), None))
        .await?;
    life.delete.time(server.call(Method::DELETE, &base, None)).await?;
    server.remove(&bot).await?;
    // What was put off until after the answer must not weigh on the next one.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}
