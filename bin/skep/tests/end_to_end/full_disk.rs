//! Tenants that fill the disk, on a small file system of a test's own that holds containerd and the data root: the one
//! that does it is stopped before anybody else is short of space, and may be started again to clean up.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::installation::{Installation, OciRuntime};

const LIMIT: Duration = Duration::from_secs(120);
const DISK_BYTES: u64 = 768 << 20;
const RESERVE_BYTES: u64 = 192 << 20;
/// So much above the reserve it is filled slowly.
const SLOWLY: u64 = 32 << 20;
/// Time enough to see that it fills before nothing is left.
const TO_BE_SEEN: Duration = Duration::from_millis(200);
/// Of the small disk alone: the host's others may have much to write.
const SYNC: &str = "sync -f /data";
const SYNC_SECONDS: u64 = 120;

/// A file system in a file; unmounted also when a test fails.
pub(crate) struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    pub(crate) fn mount() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("skep-disk-")
            .tempdir_in("/var/tmp")
            .expect("a directory can be made");
        let disk = Self { directory };
        let image = disk.directory.path().join("image");
        let file = std::fs::File::create(&image).expect("a file can be made");
        file.set_len(DISK_BYTES).expect("it can have holes");
        std::fs::create_dir(disk.place()).expect("a directory can be made");
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.place()));
        disk
    }

    pub(crate) fn place(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    fn free(&self) -> u64 {
        let told = rustix::fs::statvfs(self.place()).expect("it is mounted");
        told.f_bavail * told.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.place()).status();
        if !unmounted.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("the small disk is still mounted: {unmounted:?}");
        }
    }
}

fn run(command: &mut Command) {
    let ended = command.output().expect("the program is there");
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{command:?}: {errors}");
}

pub(crate) async fn start_on(place: &Path) -> Installation {
    let reserve = ("SKEP_LIMITS__RESERVE_BYTES", RESERVE_BYTES.to_string());
    Installation::start_in(place, OciRuntime::Found, &[reserve]).await
}

pub(crate) async fn detached(skep: &Installation, bot: &str, command: &str) {
    let body = json!({"command": command, "detach": true});
    let path = format!("/bots/{bot}/container/exec");
    skep.client.good(Method::POST, &path, Some(body)).await;
}

/// Half of the disk at once, then a megabyte after each pause.
pub(crate) fn fill(into: &str, pause: Duration) -> String {
    fill_from(DISK_BYTES / 2, into, pause)
}

/// As far as near to the reserve at once, then slowly enough to be seen.
fn fill_near(disk: &SmallDisk, into: &str) -> String {
    fill_from(disk.free() - RESERVE_BYTES - SLOWLY, into, TO_BE_SEEN)
}

fn fill_from(at_once: u64, into: &str, pause: Duration) -> String {
    let megabytes = at_once >> 20;
    let zeros = "dd if=/dev/zero bs=1M 2>/dev/null";
    format!(
        "{zeros} count={megabytes} {into}; while {zeros} count=1 {into}; do sleep {}; done",
        pause.as_secs_f64()
    )
}

/// Waits until it is stopped for that reason; the least that was free meanwhile.
pub(crate) async fn until_stopped(skep: &Installation, disk: &SmallDisk, bot: &str) -> u64 {
    let (deadline, mut least) = (Instant::now() + LIMIT, u64::MAX);
    loop {
        least = least.min(disk.free());
        let info = skep.client.info(bot).await;
        if info["status"] == "stopped" {
            assert_eq!(info["reason"], "disk_full", "{info}");
            assert_eq!(
                (&info["task_running"], &info["desired"]),
                (&json!(false), &json!("stopped"))
            );
            return least;
        }
        assert!(
            Instant::now() < deadline,
            "it is not stopped with {least} bytes free: {info}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until_free(disk: &SmallDisk, bytes: u64) {
    let deadline = Instant::now() + LIMIT;
    while disk.free() < bytes {
        assert!(Instant::now() < deadline, "{} bytes are free", disk.free());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Starts it again and takes away what it wrote: there is room for as much once more.
pub(crate) async fn clean_up(skep: &Installation, disk: &SmallDisk, bot: &str) {
    skep.client.act(bot, "start").await;
    remove_big(skep, bot).await;
    until_free(disk, DISK_BYTES / 2 + RESERVE_BYTES).await;
}

async fn remove_big(skep: &Installation, bot: &str) {
    let command = format!("rm /data/big; {SYNC}");
    skep.client.output_within(bot, &command, SYNC_SECONDS).await;
}

async fn write(skep: &Installation, bot: &str) -> (StatusCode, Value) {
    let body = json!({"path": "/data/small", "content": "small"});
    let path = format!("/bots/{bot}/container/fs/write");
    skep.client.call(Method::POST, &path, Some(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_fills_the_disk_is_stopped_and_may_clean_up() {
    let disk = SmallDisk::mount();
    let skep = start_on(&disk.place()).await;
    let neighbour = skep.client.workspace("neighbour", None).await;
    let hog = skep.client.workspace("hog", None).await;
    assert!(
        disk.free() > DISK_BYTES / 2 + RESERVE_BYTES,
        "{} bytes are free",
        disk.free()
    );

    detached(&skep, &hog, &fill_near(&disk, ">> /data/big")).await;
    let least = until_stopped(&skep, &disk, &hog).await;
    assert!(least > RESERVE_BYTES * 3 / 4, "only {least} bytes were left");
    assert_eq!(write(&skep, &neighbour).await.0, StatusCode::OK);
    assert_eq!(write(&skep, &hog).await.1["code"], "workspace_stopped");

    // It is not stopped again for what is still there.
    skep.client.act(&hog, "start").await;
    assert_eq!(skep.client.output(&hog, "sleep 2; ls /data/big").await, "/data/big\n");
    remove_big(&skep, &hog).await;
    until_free(&disk, DISK_BYTES / 2 + RESERVE_BYTES).await;
    assert_eq!(write(&skep, &hog).await.0, StatusCode::OK);

    // What has no name any more is found by who writes it, and is gone with him.
    let unseen = format!("exec 3> /data/unseen; rm /data/unseen; {}", fill_near(&disk, ">&3"));
    detached(&skep, &hog, &unseen).await;
    let least = until_stopped(&skep, &disk, &hog).await;
    assert!(least > RESERVE_BYTES * 3 / 4, "only {least} bytes were left");
    until_free(&disk, 2 * RESERVE_BYTES).await;
    assert_eq!(skep.client.info(&neighbour).await["task_running"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_over_its_limit_of_storage_runs_on_and_takes_no_files() {
    let disk = SmallDisk::mount();
    let skep = start_on(&disk.place()).await;
    let bot = skep.client.workspace("limited", None).await;
    let command = format!("dd if=/dev/zero of=/data/big bs=1M count=64 2>/dev/null; {SYNC}");
    skep.client.output_within(&bot, &command, SYNC_SECONDS).await;
    let path = format!("/bots/{bot}/container/limits");
    let limits = json!({"storage_bytes": 32 << 20});
    skep.client.good(Method::PUT, &path, Some(limits)).await;
    let deadline = Instant::now() + LIMIT;
    while skep.client.info(&bot).await["storage_over_limit"] != true {
        assert!(Instant::now() < deadline, "64 MiB are not found");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (status, answer) = write(&skep, &bot).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::INSUFFICIENT_STORAGE, &json!("disk_full"))
    );
    remove_big(&skep, &bot).await;
    let deadline = Instant::now() + LIMIT;
    while write(&skep, &bot).await.0 != StatusCode::OK {
        assert!(Instant::now() < deadline, "what was removed still counts");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
