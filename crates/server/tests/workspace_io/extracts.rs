//! Archives made of files in a workspace, and unpacked there.

use std::io::{Cursor, Write};

use serde_json::{Value, json};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::Workspace;

async fn put(workspace: &Workspace, path: &str, bytes: Vec<u8>) {
    let call = workspace
        .server
        .call("PUT", &workspace.path(&format!("/fs/upload?path={path}")));
    call.body("application/octet-stream", bytes)
        .send()
        .await
        .expect_status(200);
}

async fn extracted(workspace: &Workspace, body: Value) -> Value {
    workspace.post("/fs/extract", body).await.expect_status(200).json()
}

fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        writer.start_file(*name, SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[tokio::test]
async fn archives_of_every_kind_are_unpacked_where_they_lie_or_elsewhere() {
    let workspace = Workspace::start().await;
    workspace
        .output_of(
            "mkdir -p made/d; echo one > made/d/one; chmod 750 made/d/one; ln -s d/one made/link; cd made; tar cf ../a.tar .; \
             tar czf ../a.tar.gz .",
        )
        .await;
    let tar = workspace.get("/fs/archive?path=/data/made").await.body.to_vec();
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    put(&workspace, "/data/a.tar.zst", zstd).await;
    put(
        &workspace,
        "/data/a.zip",
        zip_of(&[("d/one", b"one\n"), ("other", b"")]),
    )
    .await;
    for name in ["a.tar", "a.tar.gz", "a.tar.zst", "a.zip"] {
        let to = format!("/data/out-{name}/below");
        let done = extracted(&workspace, json!({"path": format!("/data/{name}"), "to": to})).await;
        assert_eq!(done["bytes"], 4, "{name}: {done}");
        assert_eq!(workspace.output_of(&format!("cat {to}/d/one")).await, "one\n", "{name}");
    }
    let kept = workspace
        .output_of("cd out-a.tar.gz/below; stat -c %a d/one; readlink link")
        .await;
    assert_eq!(kept, "750\nd/one\n");
    workspace.output_of("mkdir box; cp a.zip box/").await;
    let done = extracted(&workspace, json!({"path": "/data/box/a.zip"})).await;
    assert_eq!(done, json!({"entries": 2, "bytes": 4}));
    assert_eq!(workspace.output_of("ls box").await, "a.zip\nd\nother\n");
}

#[tokio::test]
async fn what_is_no_archive_or_leads_out_of_the_directory_is_refused() {
    let workspace = Workspace::start().await;
    let refused = async |bytes: Vec<u8>, code: &str| {
        put(&workspace, "/data/in/a", bytes).await;
        let answer = workspace.post("/fs/extract", json!({"path": "/data/in/a"})).await;
        let message = answer.expect_error(400, code);
        assert!(message.contains("/data/in/a"), "{message}");
    };
    refused(b"text".to_vec(), "archive_refused").await;
    refused(Vec::new(), "archive_refused").await;
    refused(b"\x1f\x8bnothing".to_vec(), "archive_refused").await;
    let zip = zip_of(&[("aa/x", b"x")]);
    refused(zip[..zip.len() - 5].to_vec(), "archive_refused").await;
    let mut outward = zip.clone();
    for at in 0..outward.len() - 4 {
        if &zip[at..at + 4] == b"aa/x" {
            outward[at..at + 2].copy_from_slice(b"..");
        }
    }
    refused(outward, "archive_refused").await;
    assert_eq!(workspace.output_of("ls").await, "in\n", "nothing came out of it");
    let missing = workspace.post("/fs/extract", json!({"path": "/data/none.zip"})).await;
    missing.expect_error(404, "not_found");
    let directory = workspace.post("/fs/extract", json!({"path": "/data/in"})).await;
    directory.expect_error(400, "invalid_path");
    let nothing = workspace.post("/fs/extract", json!({})).await;
    nothing.expect_error(400, "invalid_path");
}

#[tokio::test]
async fn several_paths_are_packed_each_below_its_own_name() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("mkdir -p a/b c; echo one > a/b/one; echo two > c/two; echo three > three")
        .await;
    let packed = workspace
        .post("/fs/archive", json!({"paths": ["/data/a/b", "/data/c", "/data/three"]}))
        .await;
    packed.expect_status(200);
    assert_eq!(packed.header("content-type"), "application/gzip");
    put(&workspace, "/data/out/all.tar.gz", packed.body.to_vec()).await;
    extracted(&workspace, json!({"path": "/data/out/all.tar.gz"})).await;
    let all = workspace.output_of("cd out; cat b/one c/two three").await;
    assert_eq!(all, "one\ntwo\nthree\n");
    for (paths, status, code) in [
        (json!([]), 400, "invalid_argument"),
        (json!([""]), 400, "invalid_path"),
        (json!(["/data/a/b", "/data/b"]), 400, "invalid_argument"),
        (json!(["/", "/data"]), 400, "invalid_argument"),
        (json!(["/data/c", "/data/none"]), 404, "not_found"),
    ] {
        let answer = workspace.post("/fs/archive", json!({"paths": paths})).await;
        answer.expect_error(status, code);
    }
}
