//! The server stopped between any two side effects of every operation, and started again: nothing is lost, nothing
//! is left, what was begun is brought to its end.
//!
//! The points are not listed here: the program records those an operation passes (`skep_runtime::failpoint`). Adding
//! an operation is one line in `scenarios.rs`.

#[path = "../end_to_end/client.rs"]
#[allow(dead_code, reason = "shared with end_to_end, which uses all of it")]
mod client;
mod contents;
mod database;
mod held;
#[path = "../end_to_end/installation.rs"]
#[allow(dead_code, reason = "shared with end_to_end, which uses all of it")]
mod installation;
mod model;
mod points;
mod prepared;
mod probe;
mod report;
mod runner;
mod scenarios;
mod stage;
mod written;

use std::collections::BTreeSet;

use points::{Choice, Trial};
use report::{Report, say};
use scenarios::SCENARIOS;

/// Trials that fail in the same way tell nothing new.
const FAILURES_TOLD: usize = 20;
/// A point that is passed only when something else has failed.
const NOT_IN_THE_TABLE: &str = "layers.staged_gone";
/// Installations that are worked with at a time. A trial waits for others (containerd, runc, the disk) half of its time.
const LANES: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_at_any_point_of_any_operation_loses_nothing_and_leaves_nothing() {
    let choice = Choice::of_environment();
    say(&choice.describe());
    let report = Report::default();
    let trials = points::record_all(&choice, &report).await;
    every_point_and_kind_is_reached(&choice, &trials);
    let chosen: Vec<Trial> = trials.into_iter().filter(|trial| choice.takes(trial)).collect();
    assert!(!chosen.is_empty(), "nothing is to be tried: {}", choice.describe());
    let queue = points::Queue::new(chosen);
    let lanes = (0..LANES).map(|_| runner::work_off(&queue, &report));
    futures::future::join_all(lanes).await;
    say(&report.summary());
    let failures = report.failures();
    assert!(
        failures.is_empty(),
        "{} of the trials failed. Repeat one with\n  {}\n\n{}",
        failures.len(),
        points::how_to_repeat(&failures[0].0),
        failures
            .iter()
            .take(FAILURES_TOLD)
            .map(|(trial, why)| format!("== {trial}\n{why}\n"))
            .collect::<String>()
    );
}

/// A point that no scenario passes would never be tried, and a kind without a scenario neither.
fn every_point_and_kind_is_reached(choice: &Choice, trials: &[Trial]) {
    if choice.is_one_scenario() {
        return;
    }
    let passed: BTreeSet<&str> = trials.iter().map(|trial| trial.point.as_str()).collect();
    let missing: Vec<&str> = skep_runtime::failpoint::ALL
        .iter()
        .map(|point| point.name())
        .filter(|name| !passed.contains(name) && *name != NOT_IN_THE_TABLE)
        .collect();
    assert!(
        missing.is_empty(),
        "no scenario passes {missing:?}: add one that does, or remove the point"
    );
    let kinds: BTreeSet<&str> = SCENARIOS.iter().flat_map(|scenario| scenario.kinds).copied().collect();
    let missing: Vec<&str> = skep_core::OperationKind::ALL
        .iter()
        .map(|kind| kind.as_str())
        .filter(|kind| !kinds.contains(kind))
        .collect();
    assert!(
        missing.is_empty(),
        "no scenario for {missing:?}: add one to scenarios.rs"
    );
}
