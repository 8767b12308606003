//! Deletes at any moment and in any state: nothing of the workspace stays.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::json;
use skep_testkit::Expected;
use tokio::sync::oneshot;

use crate::client::events_of;
use crate::installation::{Installation, OciRuntime, process_one};
use crate::model::{amount, seed};

/// 20 s are promised, the rest is for a machine that has other work.
fn gone_within() -> Duration {
    Duration::from_secs(amount(55, 20) as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_in_the_middle_of_a_create_leaves_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let skep = Installation::start(OciRuntime::Found).await;
    let begun = Instant::now();
    let first = skep.client.workspace("measured", None).await;
    let whole = u64::try_from(begun.elapsed().as_micros()).expect("a create takes no ages");
    skep.client.delete_bot(&first).await;
    let image = skep.registry.reference("test/busybox", "1");
    let mut model = BTreeMap::new();
    let mut cancelled = 0;
    let moments = amount(8, 50);
    for moment in 0..moments {
        let bot = skep.client.bot("cut short").await;
        if moment % 3 == 0 {
            // With the pull in it. A create that was cut short may have left no image.
            let (status, answer) = skep
                .client
                .call(Method::DELETE, &format!("/images/{image}"), None)
                .await;
            assert!(status.is_success() || status == StatusCode::NOT_FOUND, "{answer}");
        }
        let (begun, has_begun) = oneshot::channel();
        let creating = tokio::spawn({
            let (client, bot) = (skep.client.clone(), bot.clone());
            async move {
                let stream = client.create_stream(&bot, json!({})).await;
                begun
                    .send(())
                    .expect("the test holds the other end until this has ended");
                events_of(stream).await
            }
        });
        if moment % 2 == 0 {
            // A machine that is busy now and idle then makes all random moments come before a create or after it.
            has_begun.await.expect("the create is answered");
            if moment % 4 == 0 {
                tokio::time::sleep(Duration::from_micros(random.random_range(0..whole))).await;
            }
        } else {
            tokio::time::sleep(Duration::from_micros(random.random_range(0..whole))).await;
        }
        let path = format!("/bots/{bot}/container");
        let (status, answer) = skep.client.call(Method::DELETE, &path, None).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{answer}");
        let events = creating.await.expect("the create's stream ends");
        let last = events.last().expect("a create tells something");
        match last["type"].as_str() {
            // It came before the delete, or after it.
            Some("complete") => {}
            _ => {
                assert_eq!(last["code"], "operation_cancelled", "{events:?}");
                cancelled += 1;
            }
        }
        // One that was asked for after the delete was answered makes a workspace, and that is right.
        let (status, _) = skep.client.call(Method::GET, &path, None).await;
        if status == StatusCode::OK {
            skep.client.good(Method::DELETE, &path, None).await;
        }
        model.insert(bot, Expected::Nothing);
    }
    let took = skep.traces().until_as_in(&model, gone_within()).await;
    println!("{moments} creates deleted on their way, {cancelled} of them cancelled; nothing left after {took:?}");
    assert!(cancelled > 0, "no delete came in the middle of a create");
    // And the next create works.
    let bot = skep.client.workspace("after all", None).await;
    assert_eq!(skep.client.output(&bot, "echo made").await, "made\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_in_any_state_leaves_nothing() {
    let skep = Installation::start(OciRuntime::Found).await;
    let cycles = amount(16, 200);
    let bots: Vec<String> = stream::iter(0..cycles)
        .map(|cycle| make_and_delete(&skep, cycle))
        .buffer_unordered(4)
        .collect()
        .await;
    let model = bots.into_iter().map(|bot| (bot, Expected::Nothing)).collect();
    let took = skep.traces().until_as_in(&model, gone_within()).await;
    println!("{cycles} deletes: running, stopped, process 1 dead, task gone; nothing left after {took:?}");
}

async fn make_and_delete(skep: &Installation, cycle: usize) -> String {
    let bot = skep.client.workspace(&format!("cycle {cycle}"), None).await;
    skep.client
        .output(&bot, "echo data > /data/file; sleep 1000 & true")
        .await;
    match cycle % 4 {
        0 => {}
        1 => {
            skep.client.act(&bot, "stop").await;
        }
        2 => {
            let process = process_one(&bot).expect("the workspace's process 1 is seen");
            rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("it can be killed");
        }
        _ => {
            let container = format!("workspace-{bot}");
            // The server may start it again meanwhile: what counts is that the delete ends it all the same.
            skep.ctr(&["tasks", "delete", "--force", &container]);
        }
    }
    skep.client
        .good(Method::DELETE, &format!("/bots/{bot}/container"), None)
        .await;
    bot
}
