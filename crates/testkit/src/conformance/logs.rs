//! The log of a workspace's bridge as the host reads it.

use skep_runtime::log::{LOG_BYTES, LogFollower, LogPlaces};

use super::{Subject, Workspace};
use crate::containerd_rig::until;

/// The live log, then the kept one, then both; nothing after the removal.
pub async fn a_log_outlives_each_run_and_goes_with_its_workspace(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    let places = subject.runtime().log_places(&workspace.bot);
    assert_eq!(workspace.sh("exit 3").await.exit_code, 3);
    // The end is told beside the answer, not before it.
    let live = read_until(&places, ", exit code 3\n").await;
    for part in [" started as process 1\n", " exec - started, pid "] {
        assert!(live.contains(part), "no {part:?} in {live}");
    }
    assert!(!live.contains("exit 3"), "a command is in the log: {live}");
    let (told, mut follower) = LogFollower::begin(places.clone()).unwrap();
    assert_eq!(told, live);
    workspace.stop().await;
    let kept = places.read().unwrap();
    assert!(
        kept.starts_with(&live) && kept.ends_with(" skep-bridge: ended\n"),
        "{kept}"
    );
    assert_eq!(follower.added().unwrap(), kept[live.len()..]);
    workspace.start().await;
    let both = places.read().unwrap();
    assert!(both.starts_with(&kept), "the earlier run is gone: {both}");
    assert_eq!(both.matches("started as process 1\n").count(), 2, "{both}");
    assert_eq!(follower.added().unwrap(), both[kept.len()..]);
    workspace.remove().await;
    assert_eq!(places.read().unwrap(), "");
    assert!(!places.kept_file.exists() && !places.live_directory.exists());
}

async fn read_until(places: &LogPlaces, wanted: &str) -> String {
    until(wanted, async || match places.read().unwrap() {
        text if text.contains(wanted) => Ok(text),
        text => Err(text),
    })
    .await
}

/// What root inside can put in the place of its log.
pub async fn a_tenants_tricks_with_its_log_lead_nowhere(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    let places = subject.runtime().log_places(&workspace.bot);
    let log = "/run/memoh/bridge.log";
    for trick in ["ln -s /etc/shadow", "ln -s /proc/self/environ", "mkdir", "mkfifo"] {
        // The bridge may make a new log between any two steps.
        let step = format!("rm -rf {log} {log}.1 && {trick} {log} && {trick} {log}.1");
        workspace.output(&format!("until {step}; do :; done 2>/dev/null")).await;
        assert_eq!(places.read().unwrap(), "", "{trick}");
    }
    let place = format!("rm -rf {log} {log}.1");
    workspace
        .output(&format!(
            "{place} && truncate -s 1000G {log} && printf '\\n\\033[2Jx\\n' >> {log}"
        ))
        .await;
    let text = places.read().unwrap();
    assert!(
        text.contains("\\u{1b}[2Jx\n") && text.len() <= LOG_BYTES,
        "{} bytes",
        text.len()
    );
    workspace.output(&place).await;
    workspace.output("true").await;
    read_until(&places, ", exit code 0\n").await;
    workspace.output(&format!("ln -sf /etc/shadow {log}")).await;
    workspace.stop().await;
    assert_eq!(places.read().unwrap(), "", "the log was gone when it was to be kept");
    workspace.remove().await;
}

/// Neither by bytes nor by names; where the directory is small, that is.
pub async fn a_full_socket_directory_stops_nothing(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    if subject.isolates() {
        workspace
            .sh("cat /dev/zero > /run/memoh/fill; for i in $(seq 100); do : > /run/memoh/$i; done")
            .await;
        assert_eq!(workspace.output("df /run/memoh | awk 'END {print $4}'").await, "0");
        for _ in 0..50 {
            assert_eq!(workspace.output("echo works").await, "works");
        }
        workspace.output("rm -f /run/memoh/[0-9]* /run/memoh/fill").await;
        workspace.output("echo works").await;
        let text = subject.runtime().log_places(&workspace.bot).read().unwrap();
        assert!(text.contains(" lines could not be kept\n"), "{text}");
    }
    workspace.remove().await;
}
