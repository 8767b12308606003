//! How fast a pull is beside containerd's own client, from the same registry. A measurement and no
//! test: `cargo bench -p skep-runtime --bench pull_speed`.

// The tests' own setting; they use more of it.
#[allow(dead_code)]
#[path = "../tests/images/setting.rs"]
mod setting;

use std::process::Command;
use std::time::{Duration, Instant};

use skep_testkit::images::random_image;
use skep_testkit::registry::Registry;

use setting::{NAMESPACE, Setting, named};

const ROUNDS: usize = 5;

#[tokio::main]
async fn main() {
    for (layers, mebibytes) in [(5, 40), (1, 200), (40, 1)] {
        compare(layers, mebibytes).await;
    }
}

async fn compare(layers: usize, mebibytes: usize) {
    let registry = Registry::start();
    let image = random_image(layers, mebibytes << 20);
    let reference = image.push(&registry, "bench/big", "latest").await;
    let setting = Setting::on(&registry).await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let before = processor_seconds();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        setting.pull(&reference).await.unwrap();
        ours.push(begun.elapsed());
        setting.store.remove(&named(&reference)).await.unwrap();
        setting.assert_nothing_left().await;

        let begun = Instant::now();
        let status = Command::new("ctr")
            .arg("--address")
            .arg(setting.containerd.socket())
            .args(["--namespace", NAMESPACE, "images", "pull", "--plain-http", &reference])
            .stdout(std::process::Stdio::null())
            .status()
            .expect("run ctr");
        assert!(status.success());
        theirs.push(begun.elapsed());
        setting.store.remove(&named(&reference)).await.unwrap();
        setting.assert_nothing_left().await;
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    let after = processor_seconds();
    let own = (after.0 - before.0) / ROUNDS as f64;
    let ctr = (after.1 - before.1) / ROUNDS as f64;
    println!("processor seconds of the client in each: ours {own:.2}, ctr (all its calls) {ctr:.2}");
    println!("pull of {layers} layers of {mebibytes} MiB: ours {ours:?}, ctr {theirs:?}, ratio {ratio:.2}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Of this process, and of the programs it ran that have ended.
fn processor_seconds() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("read /proc/self/stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |place: usize| fields[place].parse::<f64>().expect("a number of ticks") / 100.0;
    (ticks(11) + ticks(12), ticks(13) + ticks(14))
}
