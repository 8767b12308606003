//! Server and containerd are killed while eight bots are worked on: what was acknowledged is true afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skep_testkit::Expected;
use skep_testkit::containerd_view::ContainerdView;

use crate::installation::{Installation, OciRuntime};
use crate::model::{BotModel, amount, converge_limit, expected, seed};

const BOTS: u64 = 8;
/// Between two kills so much is acknowledged on an average, if it comes in this time.
const EACH: usize = 2;
const MORE_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_true_after_kills_of_server_and_containerd() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let more = [
        // Versions that a rollback makes are in the model too.
        ("SKEP_SNAPSHOTS__KEEP_ROLLBACK", "1000".to_owned()),
        ("SKEP_SNAPSHOTS__MERGE_OVER", "6".to_owned()),
    ];
    let mut skep = Installation::start_with(OciRuntime::Found, &more).await;
    let stop = Arc::new(AtomicBool::new(false));
    let kills = Arc::new(AtomicUsize::new(0));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let mut workers = Vec::new();
    for number in 0..BOTS {
        let mut bot = BotModel::new(&skep.client, seed.wrapping_add(number)).await;
        bot.kills = kills.clone();
        let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
        workers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let before = bot.acknowledged;
                bot.step().await;
                acknowledged.fetch_add(bot.acknowledged - before, Ordering::Relaxed);
            }
            bot
        }));
    }
    let collecting = tokio::spawn(collect_garbage(
        ContainerdView::new(skep.containerd().socket()),
        stop.clone(),
    ));
    let (servers, daemons) = (amount(16, 160), amount(4, 40));
    for kill in 0..servers + daemons {
        // A busy machine does little between two of them.
        let deadline = Instant::now() + MORE_WITHIN;
        while acknowledged.load(Ordering::Relaxed) < EACH * kill && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..2500))).await;
        // Spread evenly among the others.
        if (kill + 1) % ((servers + daemons) / daemons) == 0 {
            skep.containerd_mut().kill().expect("containerd can be killed");
            skep.containerd_mut()
                .start_again()
                .await
                .expect("containerd starts again");
        } else {
            skep.kill_server();
            skep.start_server_again().await;
        }
        kills.fetch_add(1, Ordering::Relaxed);
        assert!(
            !workers.iter().any(tokio::task::JoinHandle::is_finished),
            "a worker gave up"
        );
    }
    stop.store(true, Ordering::Relaxed);
    let mut bots = Vec::new();
    for worker in join_all(workers).await {
        bots.push(worker.expect("a worker found what it knew"));
    }
    let collections = collecting.await.expect("the collector ends");
    for bot in &mut bots {
        bot.settle().await;
    }
    let took = skep.traces().until_as_in(&expected(&bots), converge_limit()).await;
    for bot in &mut bots {
        bot.verify_all().await;
    }
    one_layer_is_written_to(&skep, &bots);
    let sum = |count: fn(&BotModel) -> usize| bots.iter().map(count).sum::<usize>();
    println!(
        "{servers} kills of the server, {daemons} of containerd, {collections} collections: {} acknowledged, {} cut \
         off, {} failed; as in the model after {took:?}",
        sum(|bot| bot.acknowledged),
        sum(|bot| bot.cut_off),
        sum(|bot| bot.failures.len())
    );
    for bot in &bots {
        for failure in &bot.failures {
            println!("bot {}: {failure}", bot.id);
        }
    }
    assert!(
        sum(|bot| bot.acknowledged) > 3 * BOTS as usize,
        "hardly anything was done"
    );
}

/// Each workspace writes into one layer; one that was made and left would be another.
fn one_layer_is_written_to(skep: &Installation, bots: &[BotModel]) {
    let listed = skep.ctr(&["snapshots", "ls"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for bot in bots {
        let of_bot = |line: &&str| line.starts_with(&format!("workspace-{}", bot.id));
        let active = listed
            .lines()
            .filter(of_bot)
            .filter(|line| line.trim_end().ends_with("Active"));
        let expected = usize::from(bot.possible != [Expected::Nothing]);
        let active: Vec<&str> = active.collect();
        assert_eq!(active.len(), expected, "bot {}: {active:?}", bot.id);
    }
}

/// Has containerd collect what nothing refers to, again and again; it may be away. Says how often it did.
async fn collect_garbage(containerd: ContainerdView, stop: Arc<AtomicBool>) -> usize {
    let mut collections = 0;
    while !stop.load(Ordering::Relaxed) {
        collections += usize::from(containerd.try_to_collect_garbage().await.is_ok());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Cut off between the two, its lease would be taken for one of ours.
    containerd.collect_garbage().await;
    collections
}
