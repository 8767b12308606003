//! Small files and long streams, over HTTP and by the bridge's own calls.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use reqwest::{Body, Method};
use serde_json::json;

use crate::Result;
use crate::bridge::Bridge;
use crate::samples::{Goal, Row, Samples};
use crate::stage::Stage;

const ROUNDS: usize = 300;
const SMALL_BYTES: usize = 4096;
const PIECE_BYTES: usize = 256 * 1024;
const PIECES: u64 = 4096;
const STREAMS: usize = 3;

pub(crate) async fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let bot = stage.skep.bot().await?;
    stage.skep.create(&bot).await?;
    let bridge = Bridge::connect(stage.skep.bridge_socket(&bot)).await?;
    let mut rows = small(stage, &bot, &bridge).await?;
    rows.extend(streams(stage, &bot, &bridge).await?);
    stage.skep.remove(&bot).await?;
    Ok(rows)
}

async fn small(stage: &Stage, bot: &str, bridge: &Bridge) -> Result<Vec<Row>> {
    let base = format!("/bots/{bot}/container/fs");
    let (write_path, read_path) = (format!("{base}/write"), format!("{base}/read?path=/data/small"));
    let text = "x".repeat(SMALL_BYTES);
    let body = json!({"path": "/data/small", "content": text});
    let (mut write, mut read) = (Samples::default(), Samples::default());
    let (mut bare_write, mut bare_read) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let wanted = stage.skep.call(Method::POST, &write_path, Some(body.clone()));
        write.time(wanted).await?;
        bare_write
            .time(bridge.write("/data/bare", Bytes::from(text.clone()), 1))
            .await?;
        let wanted = stage.skep.call(Method::GET, &read_path, None);
        read.time(wanted).await?;
        bare_read.time(bridge.read("/data/bare")).await?;
    }
    let goal = |bare: &Samples| Goal::AtMost(f64::max(4.0, 1.0 / bare.median()));
    let beside = "the bridge's gRPC call";
    Ok(vec![
        Row::times("write of 4 KiB", &write, (beside, &bare_write), goal(&bare_write)),
        Row::times("read of 4 KiB", &read, (beside, &bare_read), goal(&bare_read)),
    ])
}

async fn streams(stage: &Stage, bot: &str, bridge: &Bridge) -> Result<Vec<Row>> {
    let piece = Bytes::from(vec![b'x'; PIECE_BYTES]);
    let (mut up, mut bare_up) = (Samples::default(), Samples::default());
    let (mut down, mut bare_down, mut first) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..STREAMS {
        bare_up.time(bridge.write("/data/large", piece.clone(), PIECES)).await?;
        up.time(upload(stage, bot, piece.clone())).await?;
        bare_down.time(bridge.read("/data/large")).await?;
        let begun = Instant::now();
        first.add(download(stage, bot).await?);
        down.add(begun.elapsed());
    }
    let speed = |samples: &Samples| (PIECES * PIECE_BYTES as u64) as f64 / 1e6 / (samples.median() / 1000.0);
    let beside = "the bridge's gRPC stream";
    let row = |what: &str, ours: &Samples, bare: &Samples| {
        Row::numbers(what, "MB/s", speed(ours), (beside, speed(bare)), Goal::AtLeast(0.6))
    };
    Ok(vec![
        row("upload of 1 GiB", &up, &bare_up),
        row("download of 1 GiB", &down, &bare_down),
        Row::alone("download, first byte", "ms", first.median(), Goal::AtMost(5.0)),
    ])
}

async fn upload(stage: &Stage, bot: &str, piece: Bytes) -> Result<()> {
    let pieces = futures::stream::iter((0..PIECES).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
    let answer = stage
        .skep
        .request(
            Method::PUT,
            &format!("/bots/{bot}/container/fs/upload?path=/data/large"),
        )
        .header("content-type", "application/octet-stream")
        .body(Body::wrap_stream(pieces))
        .send()
        .await?;
    answer.error_for_status()?;
    Ok(())
}

/// Reads a whole file; how long its first byte took.
async fn download(stage: &Stage, bot: &str) -> Result<Duration> {
    let begun = Instant::now();
    let path = format!("/bots/{bot}/container/fs/download?path=/data/large");
    let answer = stage
        .skep
        .request(Method::GET, &path)
        .send()
        .await?
        .error_for_status()?;
    let mut pieces = answer.bytes_stream();
    let mut first = None;
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        first.get_or_insert_with(|| begun.elapsed());
        bytes += piece?.len() as u64;
    }
    if bytes == PIECES * PIECE_BYTES as u64 {
        first.ok_or_else(|| "a download was empty".into())
    } else {
        Err(format!("a download had {bytes} bytes").into())
    }
}
