//! Keeping a version and going back to one, beside the same four calls made by hand: stop, commit, prepare, start.
//! Both under runc, with a filter of system calls and as much changed; by hand without a network that changes.

use reqwest::Method;
use serde_json::json;

use crate::Result;
use crate::by_hand::ByHand;
use crate::samples::{Goal, Row, Samples};
use crate::stage::{Server, Stage};

const ROUNDS: usize = 8;
const BESIDE: &str = "stop, commit, prepare, start by hand, runc";
const GOAL: Goal = Goal::AtMost(1.2);

pub(crate) async fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let by_hand = ByHand::prepare(stage).await?;
    let server = stage.another(Some("runc")).await?;
    let mut rows = Vec::new();
    for megabytes in [1, 500] {
        rows.extend(changed(&server, &by_hand, megabytes).await?);
    }
    Ok(rows)
}

async fn changed(server: &Server, by_hand: &ByHand<'_>, megabytes: u32) -> Result<[Row; 2]> {
    let bot = server.bot().await?;
    server.create(&bot).await?;
    let base = format!("/bots/{bot}/container");
    let write = |place: &str| format!("dd if=/dev/urandom of={place}/changed bs=1M count={megabytes} 2>/dev/null");
    let (of_ours, of_hands) = (write("/data"), write(""));
    let hand = format!("versions-{megabytes}");
    by_hand.create_filtered(&hand).await?;
    let (mut hands, mut snapshot, mut rollback) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        by_hand
            .exec(&hand, &format!("write-{round}"), &["sh", "-c", &of_hands])
            .await?;
        hands.add(by_hand.snapshot(&hand, &format!("{hand}-{round}")).await?);
        server.exec(&bot, &["sh", "-c", &of_ours]).await?;
        let taken = snapshot
            .time(server.call(Method::POST, &format!("{base}/snapshots"), Some(json!({}))))
            .await?;
        server.exec(&bot, &["sh", "-c", &of_ours]).await?;
        let version = json!({ "version": taken["version"] });
        rollback
            .time(server.call(Method::POST, &format!("{base}/snapshots/rollback"), Some(version)))
            .await?;
    }
    by_hand.remove(&hand).await?;
    server.remove(&bot).await?;
    let row = |what: &str, samples: &Samples| {
        let what = format!("{what}, {megabytes} MB changed");
        Row::times(&what, samples, (BESIDE, &hands), GOAL)
    };
    Ok([row("snapshot", &snapshot), row("rollback", &rollback)])
}
