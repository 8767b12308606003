//! Copies out of a workspace and into one.

use serde_json::Value;

use super::setting::{Setting, code};

const SPARSE_BYTES: usize = 5 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn files_with_holes_come_back_whole_and_each_under_its_own_name() {
    let setting = Setting::new().await;
    setting.prints(&["create", "box"]).await;
    let script = format!(
        "mkdir -p /data/holes/a /data/holes/b && cd /data/holes && \
         for d in a b; do echo data-$d > $d/disk && truncate -s {SPARSE_BYTES} $d/disk; done"
    );
    setting.prints(&["exec", "box", "--", "sh", "-c", &script]).await;
    setting.prints(&["cp", "box:/data/holes", "back"]).await;
    let back = setting.home().join("back");
    for name in ["a", "b"] {
        let bytes = std::fs::read(back.join(name).join("disk")).expect("it came under its own name");
        let (data, hole) = bytes.split_at(7);
        assert_eq!(data, format!("data-{name}\n").as_bytes());
        assert_eq!(bytes.len(), SPARSE_BYTES);
        assert!(hole.iter().all(|byte| *byte == 0));
        let there = std::fs::read_dir(back.join(name)).expect("a directory");
        assert_eq!(there.count(), 1, "and nothing else came");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_had_by_its_name_and_by_its_digest_and_over_no_file() {
    let setting = Setting::new().await;
    let id = setting.prints(&["create", "box", "-o", "name"]).await;
    let id = id.trim();
    setting.prints(&["rm", "box", "--preserve-data", "--force"]).await;
    let listed: Value = serde_json::from_str(&setting.prints(&["backups", "ls", id, "-o", "json"]).await).unwrap();
    let of = |field: &str| listed[0][field].as_str().expect("it is told").to_owned();
    setting
        .prints(&["backups", "get", id, &of("name"), "--to", "by-name"])
        .await;
    // It outlives its bot.
    setting.prints(&["bots", "rm", "box", "--force"]).await;
    setting
        .prints(&["backups", "get", id, &of("sha256"), "--to", "by-digest"])
        .await;
    let read = |name: &str| std::fs::read(setting.home().join(name)).expect("it came");
    assert!(!read("by-name").is_empty() && read("by-name") == read("by-digest"));
    std::fs::write(setting.home().join("mine"), "mine").unwrap();
    let refused = setting.run(&["backups", "get", id, &of("name"), "--to", "mine"]).await;
    assert_eq!((code(&refused), read("mine")), (1, b"mine".to_vec()));
    let none = setting.run(&["backups", "get", id, "none", "--to", "none"]).await;
    assert_eq!(code(&none), 3, "{none:?}");
    assert!(!setting.home().join("none").exists());
}
