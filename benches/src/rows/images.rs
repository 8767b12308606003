//! Pulls of one image from one registry, by us and by `ctr image pull`.

use reqwest::Method;
use serde_json::json;
use skep_testkit::images::random_image;

use crate::Result;
use crate::by_hand::ByHand;
use crate::samples::{Goal, Row, Samples};
use crate::stage::Stage;

const ROUNDS: usize = 5;

pub(crate) async fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (what, layers, mebibytes) in [("1 × 1 MiB", 1, 1), ("1 × 200 MiB", 1, 200), ("5 × 40 MiB", 5, 40)] {
        rows.push(one(stage, what, (layers, mebibytes << 20)).await?);
    }
    Ok(rows)
}

async fn one(stage: &Stage, what: &str, (layers, bytes): (usize, usize)) -> Result<Row> {
    let by_hand = ByHand::prepare(stage).await?;
    let repository = format!("bench/random-{layers}-{bytes}");
    let image = stage.push(&random_image(layers, bytes), &repository).await;
    let (mut ours, mut hands) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let body = json!({ "image": image });
        ours.time(stage.skep.until_complete("/images/pull", &body)).await?;
        stage
            .skep
            .call(Method::DELETE, &format!("/images/{image}"), None)
            .await?;
        // What the other one pulled would be here already.
        by_hand.collect_garbage().await?;
        hands.time(by_hand.pull(&image)).await?;
        by_hand.forget(&image).await?;
    }
    let what = format!("pull of {what}");
    Ok(Row::times(what, &ours, ("`ctr image pull`", &hands), Goal::AtMost(1.0)))
}
