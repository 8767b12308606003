//! Keeping a version and going back to one, beside the stop and the start that both consist of besides.

use reqwest::Method;
use serde_json::json;

use crate::Result;
use crate::samples::{Goal, Row, Samples};
use crate::stage::Stage;

const ROUNDS: usize = 8;
const BESIDE: &str = "stop and start of the same workspace, as much changed";

pub(crate) async fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for megabytes in [1, 500] {
        rows.extend(changed(stage, megabytes).await?);
    }
    Ok(rows)
}

async fn changed(stage: &Stage, megabytes: u32) -> Result<[Row; 2]> {
    let server = &stage.skep;
    let bot = server.bot().await?;
    server.create(&bot).await?;
    let base = format!("/bots/{bot}/container");
    let write = format!("dd if=/dev/urandom of=/data/changed bs=1M count={megabytes} 2>/dev/null");
    let (mut restart, mut snapshot, mut rollback) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        server.exec(&bot, &["sh", "-c", &write]).await?;
        restart
            .time(server.call(Method::POST, &format!("{base}/restart"), None))
            .await?;
        server.exec(&bot, &["sh", "-c", &write]).await?;
        let taken = snapshot
            .time(server.call(Method::POST, &format!("{base}/snapshots"), Some(json!({}))))
            .await?;
        server.exec(&bot, &["sh", "-c", &write]).await?;
        let version = json!({ "version": taken["version"] });
        rollback
            .time(server.call(Method::POST, &format!("{base}/snapshots/rollback"), Some(version)))
            .await?;
    }
    server.remove(&bot).await?;
    let row = |what: &str, samples: &Samples| {
        let what = format!("{what}, {megabytes} MB changed");
        Row::times(&what, samples, (BESIDE, &restart), Goal::AtMost(1.5))
    };
    Ok([row("snapshot", &snapshot), row("rollback", &rollback)])
}
