//! What metrics tell of workspaces on real containerd: what the kernel counts, and at once. `make soak-metrics` is the
//! long form.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use reqwest::Method;
use serde_json::Value;
use tokio::time::MissedTickBehavior;

use crate::full_disk::detached;
use crate::installation::{Installation, OciRuntime};
use crate::model::{amount, is_soak};

const LIMIT: Duration = Duration::from_secs(120);
const HELD_BYTES: u64 = 150 << 20;
/// Workspaces that are made at a time.
const AT_ONCE: usize = 8;
/// Ten times a second.
const EVERY: Duration = Duration::from_millis(100);
const P99: Duration = Duration::from_millis(50);
const BESIDE_OTHER_TESTS: Duration = Duration::from_millis(500);

/// The kernel's own files of a workspace's control group.
struct Group<'a>(&'a str);

impl Group<'_> {
    /// Of version 1 where the host has that controller there, else of version 2.
    fn read(&self, (controller, one): (&str, &str), two: &str) -> String {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("skep/workspace-{}", self.0);
        let places = [
            root.join(controller).join(&name).join(one),
            root.join(&name).join(two),
            root.join("unified").join(&name).join(two),
        ];
        let found = places.iter().find_map(|place| std::fs::read_to_string(place).ok());
        found.unwrap_or_else(|| panic!("none of {places:?} can be read"))
    }

    fn cpu_nanoseconds(&self) -> u64 {
        let text = self.read(("cpuacct", "cpuacct.usage"), "cpu.stat");
        match field(&text, "usage_usec") {
            Some(microseconds) => microseconds * 1000,
            None => text.trim().parse().expect("a number"),
        }
    }

    /// As the contract counts it: without what the kernel gives up at once.
    fn memory_bytes(&self) -> u64 {
        let used = self.read(("memory", "memory.usage_in_bytes"), "memory.current");
        let stat = self.read(("memory", "memory.stat"), "memory.stat");
        let inactive = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file"));
        used.trim().parse::<u64>().expect("a number") - inactive.expect("it is counted")
    }

    fn pids(&self) -> u64 {
        let text = self.read(("pids", "pids.current"), "pids.current");
        text.trim().parse().expect("a number")
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let of = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(of)
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_what_the_kernel_counts_under_load() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("counted", None).await;
    let group = Group(&bot);
    // One processor's worth of work, and memory that stays: `tail` holds what it may have to show.
    detached(&skep, &bot, "while :; do :; done").await;
    let hold = format!("(head -c {HELD_BYTES} /dev/zero; sleep 600) | tail -c {HELD_BYTES} > /dev/null");
    detached(&skep, &bot, &hold).await;
    let deadline = Instant::now() + LIMIT;
    while group.memory_bytes() < HELD_BYTES {
        assert!(Instant::now() < deadline, "{} bytes are held", group.memory_bytes());
        tokio::time::sleep(EVERY).await;
    }
    let mut before = Sample::take(&skep, &group).await;
    for _ in 0..amount(1, 20) {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let sample = Sample::take(&skep, &group).await;
        sample.check(&before, &group);
        before = sample;
    }
}

/// One answer, and when it was made.
struct Sample {
    asked: Instant,
    told: Value,
    answered: Instant,
    cpu_nanoseconds: u64,
}

impl Sample {
    async fn take(skep: &Installation, group: &Group<'_>) -> Self {
        let (asked, least) = (Instant::now(), (group.cpu_nanoseconds(), group.pids()));
        let path = format!("/bots/{}/container/metrics", group.0);
        let told = skep.client.good(Method::GET, &path, None).await["metrics"].take();
        let (answered, most) = (Instant::now(), (group.cpu_nanoseconds(), group.pids()));
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("not counted: {told}"));
        let (cpu, pids) = (number(&told["cpu"]["usage_nanoseconds"]), number(&told["pids"]));
        assert!((least.0..=most.0).contains(&cpu), "{} <= {cpu} <= {}", least.0, most.0);
        assert!(
            (least.1.min(most.1)..=least.1.max(most.1)).contains(&pids),
            "{least:?} {pids} {most:?}"
        );
        Self {
            asked,
            told,
            answered,
            cpu_nanoseconds: cpu,
        }
    }

    /// Against the kernel's files, and the one before, of which only the bounds of its moment are known.
    fn check(&self, before: &Self, group: &Group<'_>) {
        let worked = (self.cpu_nanoseconds - before.cpu_nanoseconds) as f64 * 100.0;
        let least = worked / (self.answered - before.asked).as_nanos() as f64;
        let most = worked / (self.asked - before.answered).as_nanos() as f64;
        let percent = self.told["cpu"]["usage_percent"].as_f64().expect("it is counted");
        assert!(
            percent >= least * 0.95 && percent <= most * 1.05,
            "{percent} %, not {least} to {most}"
        );
        let (memory, counted) = (self.told["memory"]["usage_bytes"].as_f64(), group.memory_bytes() as f64);
        let memory = memory.expect("it is counted");
        assert!(
            (memory - counted).abs() <= counted * 0.05,
            "{memory} bytes of memory, not {counted}"
        );
        println!("{percent:.2} % of a core for {least:.2} to {most:.2}, {memory} bytes for {counted}");
    }
}

/// The time that 99 of 100 calls take at most, of so many calls of each path, ten in a second.
async fn p99(skep: &Installation, paths: &[String], calls: usize) -> Duration {
    let polls = paths.iter().enumerate().map(|(number, path)| async move {
        // Not all at the same moment, as pollers that know nothing of each other.
        let offset = EVERY * number as u32 / paths.len() as u32;
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + offset, EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut taken = Vec::new();
        for _ in 0..calls {
            // Counted from when it was due: a call that was held up by the one before is late too.
            let due = ticks.tick().await;
            skep.client.good(Method::GET, path, None).await;
            taken.push(due.elapsed());
        }
        taken
    });
    let mut taken: Vec<Duration> = futures::future::join_all(polls).await.concat();
    taken.sort_unstable();
    taken[taken.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn many_workspaces_are_polled_ten_times_a_second_without_delay() {
    let (workspaces, calls) = (amount(20, 200), amount(30, 600));
    // As it is unless somebody sets it: the comparison of all is not to be felt either.
    let usual = [("SKEP_WORKSPACE__RECONCILE_INTERVAL", "60s".to_owned())];
    let skep = Installation::start_with(OciRuntime::Found, &usual).await;
    let bots: Vec<String> = stream::iter(0..workspaces)
        .map(async |number| skep.client.workspace(&format!("polled {number}"), None).await)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let paths: Vec<String> = bots
        .iter()
        .map(|bot| format!("/bots/{bot}/container/metrics"))
        .collect();
    // One window of several is enough, as the machine may have other work; a soak has none.
    for left in (0..amount(6, 1)).rev() {
        let nothing = p99(&skep, &vec!["/health".to_owned(); workspaces], calls / 3).await;
        let metrics = p99(&skep, &paths, calls).await;
        println!("{workspaces} workspaces polled ten times a second: p99 {metrics:?}, of /health {nothing:?}");
        let most = if is_soak() {
            P99
        } else {
            P99 + BESIDE_OTHER_TESTS + nothing * 2
        };
        if metrics < most {
            break;
        }
        assert!(
            left > 0,
            "99 of 100 within {metrics:?}, of nothing at all within {nothing:?}"
        );
    }
}
