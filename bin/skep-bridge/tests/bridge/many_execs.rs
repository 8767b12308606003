//! Many processes at once, with orphans reaped all the while: no status lost, no zombie, no descriptor left.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::calls::{Reference, command, run, until};
use crate::workspace::Workspace;

async fn run_many(client: &Reference, count: u32, text: fn(u32) -> String) {
    let at_once = Arc::new(Semaphore::new(50));
    let mut runs = JoinSet::new();
    for number in 0..count {
        let (client, at_once) = (client.clone(), Arc::clone(&at_once));
        runs.spawn(async move {
            let _place = at_once.acquire_owned().await.expect("never closed");
            let finished = run(&client, command(&text(number))).await;
            assert_eq!(finished.exit_code, (number % 256).cast_signed(), "exec {number}");
            assert_eq!(finished.text(), format!("{number}\n"), "exec {number}");
        });
    }
    while let Some(result) = runs.join_next().await {
        result.expect("a right answer");
    }
}

/// Processes whose parents leave them, so that the bridge has orphans to reap.
async fn make_orphans(client: &Reference) {
    let text = "i=0; while [ $i -lt 400 ]; do (sleep 0.05 &) ; i=$((i+1)); done; echo 0";
    let finished = run(client, command(text)).await;
    assert_eq!(finished.exit_code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_processes_lose_no_status_and_leave_nothing() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    run_many(&client, 20, |number| format!("echo {number}; exit {number}")).await;
    let descriptors = workspace.open_descriptors();
    let orphans = tokio::spawn({
        let client = client.clone();
        async move { make_orphans(&client).await }
    });
    run_many(&client, 3000, |number| format!("echo {number}; exit {}", number % 256)).await;
    run_many(&client, 1000, |number| {
        format!("echo {number}; sleep 0.3; exit {}", number % 256)
    })
    .await;
    orphans.await.expect("orphans were made");
    until("nobody is left, no zombie either", || workspace.processes().is_empty()).await;
    until("no descriptor is left", || workspace.open_descriptors() <= descriptors).await;
}
