//! Versions and backups as a person has them: by the command line, on real containerd, seen by HTTP beside it.

use std::process::Output;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::installation::{Installation, OciRuntime, field};

/// What a command that must succeed prints.
fn prints(skep: &Installation, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = skep.skep(arguments);
    assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("text is printed")
}

/// What a command that must fail says, with its exit code.
fn fails(skep: &Installation, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = skep.skep(arguments);
    assert!(!status.success(), "{arguments:?} succeeds");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

fn json_of(skep: &Installation, arguments: &[&str]) -> Value {
    let mut arguments = arguments.to_vec();
    arguments.extend(["--output", "json"]);
    serde_json::from_str(&prints(skep, &arguments)).expect("JSON is printed")
}

/// Every layer that is told of, those of the image included.
async fn layers(skep: &Installation, bot: &str) -> Vec<Value> {
    let path = format!("/bots/{bot}/container/snapshots");
    let list = skep.client.good(Method::GET, &path, None).await;
    list["snapshots"].as_array().expect("a list").clone()
}

async fn versions(skep: &Installation, bot: &str) -> Vec<(u64, String)> {
    let layers = layers(skep, bot).await;
    let versions = layers.iter().filter(|layer| layer["managed"] == true);
    versions
        .map(|layer| {
            (
                layer["version"].as_u64().expect("a number"),
                field(layer, "name").to_owned(),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_kept_gone_back_to_and_forgotten_by_the_command_line() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("kept", None).await;
    skep.client.output(&bot, "echo one > /data/file").await;
    let told = prints(&skep, &["snapshot", "create", "kept", "--label", "first"]);
    assert_eq!(told, "first is kept\n");
    skep.client
        .output(&bot, "echo two > /data/file; rm -rf /srv/x; mkdir -p /srv/x")
        .await;
    let taken = json_of(&skep, &["snapshot", "create", "kept"]);
    assert_eq!(
        (field(&taken, "snapshot_name"), field(&taken, "display_name")),
        ("Version 2", "")
    );
    assert_eq!(
        (taken["version"].as_u64(), field(&taken, "source")),
        (Some(2), "manual")
    );

    // Nothing was written since version 2: it is what is gone back from.
    let told = prints(&skep, &["snapshot", "rollback", "kept", "1"]);
    assert_eq!(told, "on version 1 again; what was there is version 2\n");
    assert_eq!(
        skep.client.output(&bot, "cat /data/file; ls -d /srv/x || true").await,
        "one\n"
    );
    assert_eq!(prints(&skep, &["snapshot", "rename", "kept", "1", "base"]), "base\n");
    assert_eq!(
        versions(&skep, &bot).await,
        [(1, "base".to_owned()), (2, "Version 2".to_owned())]
    );
    let listed = prints(&skep, &["snapshot", "ls", "kept", "--output", "name"]);
    assert_eq!(listed, "1\n2\n");

    assert_eq!(prints(&skep, &["snapshot", "rm", "kept", "2"]), "version 2 is gone\n");
    let (_, said) = fails(&skep, &["snapshot", "rollback", "kept", "2"]);
    assert!(said.contains("version"), "{said}");
    assert_eq!(skep.client.output(&bot, "cat /data/file").await, "one\n");
    skep.client.output(&bot, "echo three > /data/file").await;
    let body = json!({"version": 1});
    let path = format!("/bots/{bot}/container/snapshots/rollback");
    let back = skep.client.good(Method::POST, &path, Some(body)).await;
    assert_eq!(back, json!({"rolled_back_to": 1, "saved_version": 3}));
    prints(&skep, &["snapshot", "rollback", "kept", "3"]);
    assert_eq!(skep.client.output(&bot, "cat /data/file").await, "three\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_kept_listed_downloaded_and_put_back_by_the_command_line() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("kept", None).await;
    let tree = "cd /data && find . -exec stat -c '%n %F %a %u:%g %Y' {} + | sort; cat file; readlink a/link";
    let make = "cd /data && echo one > file && mkdir -p a/b && ln -s /etc/shadow a/link && ln file a/hard && \
                mkfifo a/fifo && chmod 0000 a/b && chown 1000:1000 file && touch empty && chmod 4755 empty";
    skep.client.output(&bot, make).await;
    let before = skep.client.output(&bot, tree).await;
    assert_eq!(
        prints(&skep, &["rm", "kept", "--preserve-data", "--force"]),
        format!("{bot}\n")
    );
    let path = format!("/bots/{bot}/container");
    assert_eq!(
        skep.client.call(Method::GET, &path, None).await.0,
        StatusCode::NOT_FOUND
    );

    let name = format!("{bot}.tar.gz");
    assert_eq!(
        prints(&skep, &["backups", "ls", "kept", "--output", "name"]),
        format!("{name}\n")
    );
    let listed = skep
        .client
        .good(Method::GET, &format!("/bots/{bot}/backups"), None)
        .await;
    let backup = &listed["items"][0];
    assert_eq!(
        (field(backup, "name"), &backup["verified"]),
        (name.as_str(), &json!(true))
    );
    let place = tempfile::tempdir().expect("a directory");
    let to = place.path().join("backup.tar.gz");
    prints(
        &skep,
        &["backups", "get", "kept", &name, "--to", to.to_str().expect("text")],
    );
    let summed = std::process::Command::new("sha256sum")
        .arg(&to)
        .output()
        .expect("it can be summed");
    assert!(String::from_utf8_lossy(&summed.stdout).starts_with(field(backup, "sha256")));

    let (_, said) = fails(&skep, &["create", "kept"]);
    assert!(
        said.contains(&format!("`skep create {bot}` makes its workspace")),
        "{said}"
    );
    assert_eq!(prints(&skep, &["create", &bot]), format!("kept is ready ({bot})\n"));
    assert_eq!(skep.client.output(&bot, tree).await, before);
    assert_eq!(prints(&skep, &["backups", "ls", "kept", "--output", "name"]), "");

    // Beside what a workspace holds by then, and over it.
    skep.client
        .good(Method::DELETE, &format!("{path}?preserve_data=true"), None)
        .await;
    skep.client.create(&bot, json!({"restore_data": false})).await;
    assert_eq!(skep.client.info(&bot).await["has_preserved_data"], true);
    skep.client
        .output(&bot, "echo new > /data/new; echo other > /data/file")
        .await;
    prints(&skep, &["restore", "kept", &name]);
    assert_eq!(skep.client.output(&bot, "cat /data/file /data/new").await, "one\nnew\n");
    prints(&skep, &["restore", "kept", "--replace"]);
    assert_eq!(skep.client.output(&bot, tree).await, before);
    let (_, said) = fails(&skep, &["restore", "kept"]);
    assert!(said.contains("no preserved data found"), "{said}");
}

/// Each restore puts a layer on those that are there; none is needed but the newest and those of versions.
#[tokio::test(flavor = "multi_thread")]
async fn many_restores_make_no_long_line_of_layers() {
    let more = [("SKEP_SNAPSHOTS__MERGE_OVER", "6".to_owned())];
    let skep = Installation::start_with(OciRuntime::Found, &more).await;
    let bot = skep.client.workspace("kept", None).await;
    skep.client
        .output(&bot, "mkdir /data/some && echo kept > /data/some/file")
        .await;
    let path = format!("/bots/{bot}/container");
    skep.client
        .good(Method::DELETE, &format!("{path}?preserve_data=true"), None)
        .await;
    skep.client.create(&bot, json!({"restore_data": false})).await;
    skep.client
        .output(&bot, "mkdir -p /data/some && echo first > /data/some/file")
        .await;
    let snapshots = format!("{path}/snapshots");
    skep.client.good(Method::POST, &snapshots, Some(json!({}))).await;
    let at_first = layers(&skep, &bot).await.len();
    let body = json!({"name": format!("{bot}.tar.gz"), "mode": "replace"});
    for round in 0..20 {
        let change = format!("rm -rf /data/some; mkdir -p /data/some; echo {round} > /data/some/{round}");
        skep.client.output(&bot, &change).await;
        skep.client
            .good(Method::POST, &format!("{path}/data/restore"), Some(body.clone()))
            .await;
        // A whiteout that a merge loses shows as a second name.
        let seen = skep.client.output(&bot, "ls /data/some; cat /data/some/file").await;
        assert_eq!(seen, "file\nkept\n", "after {} restores", round + 1);
        let now = layers(&skep, &bot).await.len();
        assert!(now <= at_first + 6 + 4, "{now} layers after {} restores", round + 1);
    }
    let back = Some(json!({"version": 1}));
    skep.client
        .good(Method::POST, &format!("{snapshots}/rollback"), back)
        .await;
    assert_eq!(skep.client.output(&bot, "cat /data/some/*").await, "first\n");
    skep.client.delete_bot(&bot).await;
    let left = skep.ctr(&["snapshots", "ls"]);
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(!left.contains("workspace-"), "{left}");
}
