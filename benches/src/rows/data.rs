//! `/data` as an archive and back, beside `tar` and `gzip` on the same tree and the same disk.

use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::{Body, Method};
use tempfile::TempDir;
use tokio::process::Command;

use crate::Result;
use crate::samples::{Goal, Row, Samples};
use crate::stage::{Server, Stage};

const ROUNDS: usize = 3;
/// Half of each file is noise and half repeats itself, as binaries beside text do.
const FILES: usize = 256;
const HALF: usize = 512 * 1024;

pub(crate) async fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let tree = TempDir::with_prefix_in("skep-bench-", "/var/tmp")?;
    let (files, archive) = (tree.path().join("files"), tree.path().join("archive.tar.gz"));
    std::fs::create_dir(&files)?;
    for file in 0..FILES {
        by_hand(&format!(
            "{{ head -c {HALF} /dev/urandom; yes 'line {file} of a text' | head -c {HALF}; }} > {}",
            files.join(file.to_string()).display()
        ))
        .await?;
    }
    let pack = format!("tar -C {} -c . | gzip -1", files.display());
    by_hand(&format!("{pack} > {}", archive.display())).await?;
    let server = &stage.skep;
    let bot = server.bot().await?;
    server.create(&bot).await?;
    let (imported, downtime, unpacked) = imports(server, &bot, &archive).await?;
    let (mut exported, mut packed) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        packed.time(by_hand(&format!("{pack} > /dev/null"))).await?;
        exported.time(export(server, &bot)).await?;
    }
    server.remove(&bot).await?;
    let speed = |samples: &Samples| (FILES * 2 * HALF) as f64 / 1e6 / (samples.median() / 1000.0);
    let beside = "`tar -xzf`, `sync -f`";
    Ok(vec![
        Row::numbers(
            "export of 256 MiB, tar.gz",
            "MB/s",
            speed(&exported),
            ("`tar -c`, `gzip -1`", speed(&packed)),
            Goal::AtLeast(0.9),
        ),
        Row::numbers(
            "import of the same",
            "MB/s",
            speed(&imported),
            (beside, speed(&unpacked)),
            Goal::None,
        ),
        Row::times(
            "of this without an answer",
            &downtime,
            (beside, &unpacked),
            Goal::AtMost(1.0),
        ),
    ])
}

/// How long imports took, how long the workspace did not answer meanwhile, and the same unpacked by hand.
async fn imports(server: &Server, bot: &str, archive: &Path) -> Result<(Samples, Samples, Samples)> {
    let (mut imported, mut downtime, mut unpacked) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let place = archive.with_file_name(format!("unpacked-{round}"));
        std::fs::create_dir(&place)?;
        let unpack = format!("tar -C {0} -xzf {1} && sync -f {0}", place.display(), archive.display());
        unpacked.time(by_hand(&unpack)).await?;
        let over = AtomicBool::new(false);
        let (done, gap) = futures::join!(
            async {
                let done = imported.time(import(server, bot, archive)).await;
                over.store(true, Ordering::Relaxed);
                done
            },
            longest_silence(server, bot, &over)
        );
        done?;
        downtime.add(gap);
    }
    Ok((imported, downtime, unpacked))
}

async fn import(server: &Server, bot: &str, archive: &Path) -> Result<()> {
    let bytes = tokio::fs::read(archive).await?;
    let request = server.request(Method::POST, &format!("/bots/{bot}/container/data/import?mode=replace"));
    let answer = request.body(Body::from(bytes)).send().await?;
    answer.error_for_status()?;
    Ok(())
}

async fn export(server: &Server, bot: &str) -> Result<()> {
    let path = format!("/bots/{bot}/container/data/export?format=tar.gz");
    let answer = server.request(Method::POST, &path).send().await?.error_for_status()?;
    let mut pieces = answer.bytes_stream();
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        bytes += piece?.len();
    }
    match bytes > FILES * HALF {
        true => Ok(()),
        false => Err(format!("an export had {bytes} bytes").into()),
    }
}

/// Between two commands that were answered.
async fn longest_silence(server: &Server, bot: &str, over: &AtomicBool) -> Duration {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        let is_last = over.load(Ordering::Relaxed);
        if server.exec(bot, &["true"]).await.is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if is_last {
                return longest;
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn by_hand(command: &str) -> Result<()> {
    let ended = Command::new("bash")
        .args(["-o", "pipefail", "-c", command])
        .stdin(Stdio::null())
        .status()
        .await?;
    // `head` ends whatever writes to it.
    match ended.code() {
        Some(0 | 141) => Ok(()),
        _ => Err(format!("{command}: {ended}").into()),
    }
}
