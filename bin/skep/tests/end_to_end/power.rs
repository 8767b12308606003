//! The machine loses its power: server, containerd, shims and workspaces at once, and all that a boot forgets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use skep_testkit::Expected;

use crate::installation::{Installation, OciRuntime};
use crate::model::{amount, converge_limit};

const AT_ONCE: usize = 8;
const MARKS: &str = "echo marked > /data/mark; mkdir -p /srv/deep/er; echo deep > /srv/deep/er/file; ln -s /data/mark \
                     /srv/link; dd if=/dev/urandom of=/data/random bs=64k count=4 2>/dev/null; chmod 640 /data/mark";
const SUM: &str = "find /data /srv | sort | while read f; do stat -c '%n %f %u %g' $f; [ -d $f ] || sha256sum $f; done | \
                   sha256sum";

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_loss_what_should_run_runs_and_every_byte_is_there() {
    let count = amount(6, 100);
    let mut skep = Installation::start(OciRuntime::Found).await;
    let made: Vec<(String, String, Expected)> = stream::iter(0..count)
        .map(|number| make(&skep, number))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let model: BTreeMap<_, _> = made.iter().map(|(bot, _, state)| (bot.clone(), *state)).collect();
    skep.traces().until_as_in(&model, converge_limit()).await;

    skep.lose_power();
    assert_eq!(
        skep.process_ones(),
        Vec::<i32>::new(),
        "a process of a workspace outlived the power"
    );
    skep.containerd_mut()
        .start_again()
        .await
        .expect("containerd starts after a boot");
    let begun = Instant::now();
    skep.start_server_again().await;
    let ready = begun.elapsed();
    let limit = converge_limit() + Duration::from_secs(count as u64);
    skep.traces().until_as_in(&model, limit).await;
    let back = begun.elapsed();
    for (bot, _, state) in &made {
        let expected = match state {
            Expected::Running => (Some("running"), Some(true)),
            _ => (Some("stopped"), Some(false)),
        };
        loop {
            // Its task is there a moment before its bridge has answered.
            let info = skep.client.info(bot).await;
            let shown = (info["status"].as_str(), info["task_running"].as_bool());
            if shown == expected {
                break;
            }
            assert!(begun.elapsed() < limit, "{bot}: {shown:?} in place of {expected:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    stream::iter(&made)
        .for_each_concurrent(AT_ONCE, |(bot, sum, state)| {
            let client = skep.client.clone();
            async move {
                if *state == Expected::Stopped {
                    client.act(bot, "start").await;
                }
                assert_eq!(client.output(bot, SUM).await, *sum, "bot {bot} lost something");
            }
        })
        .await;
    println!("{count} workspaces: the server was ready after {ready:?}, all was as it should be after {back:?}");
}

/// A workspace with something in it; every third is stopped.
async fn make(skep: &Installation, number: usize) -> (String, String, Expected) {
    let bot = skep.client.workspace(&format!("power {number}"), None).await;
    skep.client.output(&bot, MARKS).await;
    let sum = skep.client.output(&bot, SUM).await;
    let state = match number % 3 {
        2 => Expected::Stopped,
        _ => Expected::Running,
    };
    if state == Expected::Stopped {
        skep.client.act(&bot, "stop").await;
    }
    (bot, sum, state)
}
