//! Logs of ordinary bridges and of hostile tenants, in plain directories.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use tempfile::TempDir;

use super::{LOG_BYTES, LogFollower, LogPlaces, forget, keep};
use crate::system_calls::take_write_lease;

struct Setting {
    directory: TempDir,
    places: LogPlaces,
}

impl Setting {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let places = LogPlaces {
            live_directory: directory.path().join("run"),
            kept_file: directory.path().join("logs/bot.log"),
        };
        fs::create_dir(&places.live_directory).expect("a directory");
        Self { directory, places }
    }

    fn live(&self, name: &str) -> PathBuf {
        self.places.live_directory.join(name)
    }

    fn add(&self, text: &str) {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(self.live("bridge.log"))
            .expect("the log");
        file.write_all(text.as_bytes()).expect("written");
    }

    fn turn(&self) {
        fs::rename(self.live("bridge.log"), self.live("bridge.log.1")).expect("turned");
    }

    /// Its end as a backend has it: the copy, then the directory.
    fn end(&self) {
        keep(&self.places).expect("kept");
        fs::remove_dir_all(&self.places.live_directory).expect("unmounted");
    }

    fn begin(&self) {
        fs::create_dir(&self.places.live_directory).expect("mounted");
    }

    fn read(&self) -> String {
        self.places.read().expect("a log")
    }
}

#[test]
fn a_workspace_that_never_ran_has_an_empty_log() {
    let setting = Setting::new();
    assert_eq!(setting.read(), "");
    fs::remove_dir(&setting.places.live_directory).expect("removed");
    assert_eq!(setting.read(), "");
    keep(&setting.places).expect("nothing to keep");
    assert!(!setting.places.kept_file.exists());
}

#[test]
fn what_was_kept_comes_first_then_both_halves_of_the_ring() {
    let setting = Setting::new();
    setting.add("first run\n");
    setting.end();
    setting.begin();
    setting.add("older\n");
    setting.turn();
    setting.add("newer\n");
    assert_eq!(setting.read(), "first run\nolder\nnewer\n");
    let mode = fs::metadata(&setting.places.kept_file).expect("kept").mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn keeping_it_twice_adds_nothing() {
    let setting = Setting::new();
    setting.add("one\n");
    for _ in 0..3 {
        keep(&setting.places).expect("kept");
    }
    assert_eq!(setting.read(), "one\n");
    forget(&setting.places).expect("forgotten");
    forget(&setting.places).expect("forgotten again");
    assert_eq!(setting.read(), "");
}

#[test]
fn what_is_kept_never_grows_beyond_the_ring() {
    let setting = Setting::new();
    for run in 0..5 {
        setting.add(&format!("run {run} {}\n", "x".repeat(100)).repeat(1000));
        setting.end();
        setting.begin();
        let size = fs::metadata(&setting.places.kept_file).expect("kept").len();
        assert!(size <= LOG_BYTES as u64, "{size}");
    }
    let text = setting.read();
    assert!(text.starts_with("run ") && text.ends_with("x\n"));
    assert!(text.contains("run 4") && !text.contains("run 0"));
}

#[test]
fn a_full_disk_leaves_the_earlier_copy_and_the_live_log() {
    let setting = Setting::new();
    setting.add("one\n");
    setting.end();
    setting.begin();
    setting.add("two\n");
    // What stands in for a full disk: the new copy cannot be made.
    fs::create_dir(setting.places.kept_file.with_extension("new")).expect("in the way");
    keep(&setting.places).expect_err("it cannot be kept");
    assert_eq!(setting.read(), "one\ntwo\n");
}

#[test]
fn links_lead_nowhere() {
    let setting = Setting::new();
    let secret = setting.directory.path().join("secret");
    fs::write(&secret, "secret\n").expect("written");
    for target in [secret.clone(), PathBuf::from("../secret"), PathBuf::from("/etc/shadow")] {
        symlink(&target, setting.live("bridge.log")).expect("a link");
        symlink(&target, setting.live("bridge.log.1")).expect("a link");
        assert_eq!(setting.read(), "", "{target:?}");
        let (text, mut follower) = LogFollower::begin(setting.places.clone()).expect("followed");
        assert_eq!(text + &follower.added().expect("followed"), "");
        keep(&setting.places).expect("nothing to keep");
        for name in ["bridge.log", "bridge.log.1"] {
            fs::remove_file(setting.live(name)).expect("removed");
        }
    }
    assert_eq!(fs::read(&secret).expect("still there"), b"secret\n");
}

#[test]
fn a_directory_of_the_socket_that_is_a_link_is_not_entered() {
    let setting = Setting::new();
    setting.add("one\n");
    let other = setting.directory.path().join("other");
    fs::rename(&setting.places.live_directory, &other).expect("moved");
    symlink(&other, &setting.places.live_directory).expect("a link");
    assert_eq!(setting.read(), "");
}

#[test]
fn pipes_devices_and_directories_are_passed_over_at_once() {
    let setting = Setting::new();
    let mode = Mode::from_raw_mode(0o666);
    let begun = Instant::now();
    let (fifo, zero) = (FileType::Fifo, FileType::CharacterDevice);
    mknodat(CWD, setting.live("bridge.log"), fifo, mode, 0).expect("a pipe");
    mknodat(CWD, setting.live("bridge.log.1"), zero, mode, makedev(1, 5)).expect("/dev/zero");
    assert_eq!(setting.read(), "");
    keep(&setting.places).expect("nothing to keep");
    fs::remove_file(setting.live("bridge.log")).expect("removed");
    fs::create_dir(setting.live("bridge.log")).expect("a directory");
    assert_eq!(setting.read(), "");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn of_a_file_of_a_tebibyte_only_the_end_is_read() {
    let setting = Setting::new();
    let file = File::create(setting.live("bridge.log")).expect("the log");
    file.set_len(1 << 40).expect("sparse");
    (&file).write_all(b"begin\n").expect("written");
    std::os::unix::fs::FileExt::write_at(&file, b"\nend\n", (1 << 40) - 5).expect("written");
    let text = setting.read();
    // A zero byte is a control character.
    assert!(text.len() <= LOG_BYTES && text.ends_with("end\n") && !text.contains('\0'));
    let (_, mut follower) = LogFollower::begin(setting.places.clone()).expect("followed");
    file.set_len(1 << 41).expect("twice as large");
    let added = follower.added().expect("followed");
    assert!(added.starts_with("skep: lines were left out here\n"), "{added:.100}");
    setting.end();
    assert!(fs::metadata(&setting.places.kept_file).expect("kept").len() <= LOG_BYTES as u64);
}

#[test]
fn garbage_becomes_harmless_text() {
    let setting = Setting::new();
    fs::write(setting.live("bridge.log"), b"\x1b]0;owned\x07\xff\x00\r\n\x9b\n").expect("written");
    let expected = "\\u{1b}]0;owned\\u{7}\u{fffd}\\u{0}\\u{d}\n\u{fffd}\n";
    assert_eq!(setting.read(), expected);
    setting.end();
    assert_eq!(fs::read_to_string(&setting.places.kept_file).expect("kept"), expected);
    assert_eq!(setting.read(), expected);
}

#[test]
fn a_follower_gets_each_line_once_over_turns_ends_and_starts() {
    let setting = Setting::new();
    setting.add("one\nhalf ");
    let (text, mut follower) = LogFollower::begin(setting.places.clone()).expect("followed");
    assert_eq!(text, "one\n");
    assert_eq!(follower.added().expect("followed"), "");
    setting.add("a line\ntwo\n");
    assert_eq!(follower.added().expect("followed"), "half a line\ntwo\n");
    setting.add("before the turn\n");
    setting.turn();
    setting.add("after it\n");
    assert_eq!(follower.added().expect("followed"), "before the turn\nafter it\n");
    setting.add("last words");
    setting.end();
    assert_eq!(follower.added().expect("followed"), "last words\n");
    assert_eq!(follower.added().expect("followed"), "");
    setting.begin();
    assert_eq!(follower.added().expect("followed"), "");
    setting.add("anew\n");
    assert_eq!(follower.added().expect("followed"), "anew\n");
    assert_eq!(follower.added().expect("followed"), "");
}

#[test]
fn two_turns_between_two_looks_lose_nothing() {
    let setting = Setting::new();
    setting.add("one\n");
    let (_, mut follower) = LogFollower::begin(setting.places.clone()).expect("followed");
    setting.add("two\n");
    setting.turn();
    setting.add("three\n");
    setting.turn();
    setting.add("four\n");
    assert_eq!(follower.added().expect("followed"), "two\nthree\nfour\n");
}

#[test]
fn a_follower_is_not_led_away_by_what_replaces_the_log() {
    let setting = Setting::new();
    setting.add("one\n");
    let (_, mut follower) = LogFollower::begin(setting.places.clone()).expect("followed");
    fs::remove_file(setting.live("bridge.log")).expect("removed");
    symlink("/etc/shadow", setting.live("bridge.log")).expect("a link");
    assert_eq!(follower.added().expect("followed"), "");
    fs::remove_file(setting.live("bridge.log")).expect("removed");
    let fifo = FileType::Fifo;
    mknodat(CWD, setting.live("bridge.log"), fifo, Mode::from_raw_mode(0o666), 0).expect("a pipe");
    assert_eq!(follower.added().expect("followed"), "");
    fs::remove_file(setting.live("bridge.log")).expect("removed");
    setting.add("two\n");
    assert_eq!(follower.added().expect("followed"), "two\n");
    fs::write(setting.live("bridge.log"), "").expect("shortened");
    assert_eq!(follower.added().expect("followed"), "");
    setting.add("3\n");
    assert_eq!(follower.added().expect("followed"), "3\n");
    // A line without an end is told in pieces: nothing waits without a limit.
    setting.add(&"x".repeat(200_000));
    let text = follower.added().expect("followed");
    assert_eq!(text.len(), 200_001);
}

#[test]
fn a_file_that_only_root_may_read_is_read() {
    let setting = Setting::new();
    setting.add("one\n");
    let mode = fs::Permissions::from_mode(0o000);
    fs::set_permissions(setting.live("bridge.log"), mode).expect("a mode");
    assert_eq!(setting.read(), "one\n");
}

#[test]
fn a_file_that_its_tenant_has_a_lease_on_is_not_there() {
    let setting = Setting::new();
    setting.add("2026-01-01T00:00:00Z one\n");
    setting.turn();
    setting.add("2026-01-01T00:00:01Z two\n");
    let before = setting.read();
    let leased = File::options()
        .write(true)
        .open(setting.live("bridge.log"))
        .expect("the log");
    take_write_lease(&leased).expect("a lease");
    let during = setting.read();
    assert!(during.contains("one") && !during.contains("two"), "{during}");
    drop(leased);
    assert_eq!(setting.read(), before);
}
