//! Copies out of a workspace and into one.

use super::setting::Setting;

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
