//! Commands in a workspace, over HTTP, by the bridge's own call, and by `ctr task exec`.

use std::time::Instant;

use futures::{StreamExt, TryStreamExt};

use crate::Result;
use crate::bridge::Bridge;
use crate::by_hand::ByHand;
use crate::samples::{Goal, Row, Samples};
use crate::stage::Stage;

const ROUNDS: usize = 300;
const SLOW_ROUNDS: usize = 20;
const AT_ONCE: usize = 50;
const MANY: usize = 2000;

pub(crate) async fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let by_hand = ByHand::prepare(stage).await?;
    let bot = stage.skep.bot().await?;
    stage.skep.create(&bot).await?;
    by_hand.create("exec").await?;
    let bridge = Bridge::connect(stage.skep.bridge_socket(&bot)).await?;
    let (mut http, mut call, mut ctr) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        http.time(stage.skep.exec(&bot, &["true"])).await?;
        call.time(bridge.exec(format!("bench-{round}"), &["true"])).await?;
        if round < SLOW_ROUNDS {
            ctr.time(by_hand.exec("exec", &format!("e{round}"), &["true"])).await?;
        }
    }
    let over_http = many(|_| stage.skep.exec(&bot, &["true"])).await?;
    let over_bridge = many(|number| {
        let bridge = bridge.clone();
        async move { bridge.exec(format!("many-{number}"), &["true"]).await }
    })
    .await?;
    by_hand.remove("exec").await?;
    stage.skep.remove(&bot).await?;
    Ok(vec![
        Row::times(
            "exec of `true`",
            &http,
            ("the bridge's gRPC call", &call),
            Goal::AtMost(2.0),
        ),
        Row::times(
            "exec of `true`",
            &http,
            ("`ctr task exec`, runc", &ctr),
            Goal::AtMost(1.0 / 15.0),
        ),
        Row::numbers(
            "execs, 50 at a time",
            "1/s",
            over_http,
            ("the bridge's gRPC call", over_bridge),
            Goal::AtLeast(0.5),
        ),
    ])
}

/// How many there are in a second.
async fn many<F: Future<Output = Result<()>>>(one: impl Fn(usize) -> F) -> Result<f64> {
    let begun = Instant::now();
    futures::stream::iter(0..MANY)
        .map(&one)
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(MANY as f64 / begun.elapsed().as_secs_f64())
}
