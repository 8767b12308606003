//! Many workspaces made and deleted: nothing of them stays.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};

use crate::installation::{Installation, OciRuntime, resident_bytes};

/// Descriptors that pools of connections may open or close meanwhile.
const POOLED: usize = 8;
const CYCLES: usize = 200;
const AT_ONCE: usize = 8;
const COME_BACK_LIMIT: Duration = Duration::from_secs(55);

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_creates_and_deletes_leave_nothing() {
    let skep = Installation::start(OciRuntime::Found).await;
    // The first few grow what is made once: the bridge, connections, caches.
    cycles(&skep, AT_ONCE * 2).await;
    let before = count_at_rest(&skep).await;
    let memory_before = resident_bytes(skep.server_pid());
    cycles(&skep, CYCLES).await;
    let deadline = Instant::now() + COME_BACK_LIMIT;
    let mut after = count(&skep);
    while !has_come_back(&mut after, &before) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(200)).await;
        after = count(&skep);
    }
    assert_eq!(after, before);
    let grown = resident_bytes(skep.server_pid()).saturating_sub(memory_before);
    assert!(grown < 16 << 20, "the server's memory grew by {} KiB", grown >> 10);
}

/// A pool may open a connection more at any time; what is left of each of two hundred is many more.
fn has_come_back(after: &mut BTreeMap<&'static str, usize>, before: &BTreeMap<&'static str, usize>) -> bool {
    if after["descriptors"].abs_diff(before["descriptors"]) <= POOLED {
        after.insert("descriptors", before["descriptors"]);
    }
    after == before
}

async fn cycles(skep: &Installation, count: usize) {
    stream::iter(0..count)
        .for_each_concurrent(AT_ONCE, |n| async move {
            let bot = skep.client.workspace(&format!("cycle {n}"), None).await;
            assert_eq!(skep.client.output(&bot, "echo made").await, "made\n");
            skep.client.delete_bot(&bot).await;
        })
        .await;
}

/// What is counted when nothing goes any more: the last of what was deleted, or of what containerd collects.
async fn count_at_rest(skep: &Installation) -> BTreeMap<&'static str, usize> {
    let deadline = Instant::now() + COME_BACK_LIMIT;
    let mut last = count(skep);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = count(skep);
        if now == last || Instant::now() >= deadline {
            return now;
        }
        last = now;
    }
}

/// Everything of a workspace that could stay behind, counted.
fn count(skep: &Installation) -> BTreeMap<&'static str, usize> {
    let run = skep.run_directory();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts can be read");
    let ours = |line: &&str| {
        line.contains(run.to_str().expect("UTF-8")) || line.contains(skep.data_root().to_str().expect("UTF-8"))
    };
    BTreeMap::from([
        ("mounts", mounts.lines().filter(ours).count()),
        ("user namespace pins", entries(&run.join("userns"))),
        ("root mounts", entries(&run.join("root"))),
        ("device nodes", entries(&run.join("devices"))),
        ("addresses", files_below(&run.join("cni"))),
        ("socket directories", entries(&skep.data_root().join("run"))),
        ("containers", lines(skep, &["containers", "ls", "-q"])),
        ("tasks", lines(skep, &["tasks", "ls", "-q"])),
        ("layers", lines(skep, &["snapshots", "ls"])),
        ("leases", lines(skep, &["leases", "ls", "-q"])),
        (
            "ports of the bridge",
            entries(&Path::new("/sys/class/net").join(skep.bridge()).join("brif")),
        ),
        (
            "descriptors",
            entries(Path::new(&format!("/proc/{}/fd", skep.server_pid()))),
        ),
        ("threads of child processes", children(skep.server_pid())),
    ])
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

fn files_below(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| {
            if entry.path().is_dir() {
                files_below(&entry.path())
            } else {
                1
            }
        })
        .sum()
}

fn children(pid: u32) -> usize {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("the server lives");
    children.split_whitespace().count()
}

fn lines(skep: &Installation, arguments: &[&str]) -> usize {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(skep.containerd().socket())
        .args(arguments)
        .output()
        .expect("ctr is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().count()
}
