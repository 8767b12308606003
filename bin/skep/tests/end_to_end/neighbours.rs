//! One workspace at its limits: the others and the server answer nearly as fast as when all is quiet.
//!
//! `make soak-neighbours` runs it alone and for longer, against the goal; beside other tests, which use the processors
//! too, an answer may take [`BESIDE_OTHER_TESTS`] more, and one of [`windows`] is enough.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::full_disk::{SmallDisk, clean_up, detached, fill, start_on, until_stopped};
use crate::installation::{Installation, OciRuntime};
use crate::model::{amount, is_soak};

/// The goal: within twice the idle time and this.
const MORE: Duration = Duration::from_millis(10);
const BESIDE_OTHER_TESTS: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(10);
/// Of one that fills the disk: it is full while the others are looked at.
const BETWEEN_MEGABYTES: Duration = Duration::from_millis(40);

const FORK_BOMB: &str = "bomb() { bomb | bomb & }; bomb; sleep 600";

/// How long one of them is looked at.
fn window() -> Duration {
    Duration::from_secs(amount(5, 60) as u64)
}

/// How often it is looked at before it is taken for too slow: each time is counted by those that are left.
fn windows() -> impl Iterator<Item = usize> {
    (0..amount(6, 1)).rev()
}

/// Half of the answers came within this.
#[derive(Debug, Clone, Copy)]
struct Medians {
    server: Duration,
    neighbour: Duration,
}

impl Medians {
    async fn measure(skep: &Installation, neighbour: &str, window: Duration) -> Self {
        let (begun, mut server, mut inside) = (Instant::now(), Vec::new(), Vec::new());
        while begun.elapsed() < window {
            let asked = Instant::now();
            let info = skep.client.info(neighbour).await;
            server.push(asked.elapsed());
            assert_eq!(info["task_running"], true, "{info}");
            let asked = Instant::now();
            skep.client.output(neighbour, "true").await;
            inside.push(asked.elapsed());
            tokio::time::sleep(PAUSE).await;
        }
        Self {
            server: median(server),
            neighbour: median(inside),
        }
    }

    async fn measure_idle(skep: &Installation, neighbour: &str) -> Self {
        Self::measure(skep, neighbour, Duration::from_secs(3)).await
    }

    /// Whether they are within the goal; fails when they are not, and no window is left.
    fn check(self, idle: Self, what: &str, windows_left: usize) -> bool {
        println!("{what}: {self:?}, idle {idle:?}");
        let more = if is_soak() { MORE } else { MORE + BESIDE_OTHER_TESTS };
        let within = self.server <= idle.server * 2 + more && self.neighbour <= idle.neighbour * 2 + more;
        assert!(within || windows_left > 0, "beside {what}: {self:?}, idle {idle:?}");
        within
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_a_memory_hog_and_endless_output_are_not_felt_by_others() {
    let skep = Installation::start(OciRuntime::Found).await;
    let neighbour = skep.client.workspace("neighbour", None).await;
    let hog = skep.client.workspace("hog", None).await;
    let limits = json!({"memory_bytes": 256 << 20, "pids": 512});
    let path = format!("/bots/{hog}/container/limits");
    skep.client.good(Method::PUT, &path, Some(limits)).await;
    Medians::measure(&skep, &neighbour, Duration::from_secs(1)).await;
    for (what, command) in [
        ("endless output", "yes"),
        (
            "a memory hog",
            "while :; do head -c 2000000000 /dev/zero | tail -c 1900000000 > /dev/null; done",
        ),
        ("a fork bomb", FORK_BOMB),
    ] {
        for left in windows() {
            let idle = Medians::measure_idle(&skep, &neighbour).await;
            detached(&skep, &hog, command).await;
            let busy = Medians::measure(&skep, &neighbour, window()).await;
            skep.client.act(&hog, "restart").await;
            if busy.check(idle, what, left) {
                break;
            }
        }
    }
}

/// A bridge that has had nothing to do for so long keeps no thread that it does not need.
const QUIET: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_at_its_limit_of_processes_is_still_reached() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("full", None).await;
    let path = format!("/bots/{bot}/container/limits");
    skep.client.good(Method::PUT, &path, Some(json!({"pids": 64}))).await;
    let first = skep.process_ones();
    detached(&skep, &bot, FORK_BOMB).await;
    tokio::time::sleep(QUIET).await;
    let files = format!("/bots/{bot}/container/fs/list?path=/data");
    let listed = skep.client.good(Method::GET, &files, None).await;
    assert_eq!(listed["entries"], json!([]), "{listed}");
    assert_eq!(skep.process_ones(), first, "process 1 is the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_not_felt_by_others() {
    let disk = SmallDisk::mount();
    let skep = start_on(&disk.place()).await;
    let neighbour = skep.client.workspace("neighbour", None).await;
    let hog = skep.client.workspace("hog", None).await;
    Medians::measure(&skep, &neighbour, Duration::from_secs(1)).await;
    for left in windows() {
        let idle = Medians::measure_idle(&skep, &neighbour).await;
        detached(&skep, &hog, &fill(">> /data/big", BETWEEN_MEGABYTES)).await;
        // While it fills, and while it is full.
        let busy = Medians::measure(&skep, &neighbour, Duration::from_secs(8)).await;
        until_stopped(&skep, &disk, &hog).await;
        if busy.check(idle, "a full disk", left) {
            break;
        }
        clean_up(&skep, &disk, &hog).await;
    }
}
