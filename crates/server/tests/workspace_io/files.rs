//! Looking, listing, reading, writing, moving.

use base64::Engine;
use serde_json::json;

use crate::Workspace;

#[tokio::test]
async fn a_written_file_is_seen_inside_and_described_as_it_is() {
    let workspace = Workspace::start().await;
    let body = json!({"path": "/data/a/b.txt", "content": "h\u{e9}llo\n"});
    let written = workspace.post("/fs/write", body).await;
    assert_eq!(written.expect_status(200).json(), json!({"ok": true}));
    assert_eq!(workspace.output_of("cat /data/a/b.txt").await, "h\u{e9}llo\n");
    let info = workspace.get("/fs?path=/data/a/b.txt").await.expect_status(200).json();
    assert_eq!(info["name"], "b.txt");
    assert_eq!(info["path"], "/data/a/b.txt");
    assert_eq!(info["size"], 7);
    assert_eq!(info["mode"], "-rw-------");
    assert_eq!((&info["isDir"], &info["isSymlink"]), (&json!(false), &json!(false)));
    let parent = workspace.get("/fs?path=data/a").await.expect_status(200).json();
    assert_eq!(
        (&parent["mode"], &parent["isDir"]),
        (&json!("drwxr-x---"), &json!(true))
    );
    assert_eq!(workspace.get("/fs").await.expect_status(200).json()["name"], "/");
}

#[tokio::test]
async fn the_time_of_a_change_is_told_in_utc_with_its_nanoseconds() {
    let workspace = Workspace::start().await;
    let mut archive = tar::Builder::new(Vec::new());
    archive
        .append_pax_extensions([("mtime", &b"1700000000.123456789"[..])])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o644);
    archive.append_data(&mut header, "file", std::io::empty()).unwrap();
    let put = workspace.server.call("PUT", &workspace.path("/fs/archive?path=/data"));
    let put = put
        .body("application/x-tar", archive.into_inner().unwrap())
        .send()
        .await;
    put.expect_status(200);
    let info = workspace.get("/fs?path=/data/file").await.expect_status(200).json();
    assert_eq!(info["modTime"], "2023-11-14T22:13:20.123456789Z");
    let listed = workspace.get("/fs/list?path=/data").await.expect_status(200).json();
    assert_eq!(listed["entries"][0]["modTime"], "2023-11-14T22:13:20.123456789Z");
}

#[tokio::test]
async fn links_are_followed_by_a_look_and_shown_by_a_listing() {
    let workspace = Workspace::start().await;
    workspace
        .output_of(
            "mkdir d; echo x > d/f; ln -s d to-dir; ln -s nowhere dangling; mkfifo p; chmod 1777 d; chmod 4755 d/f",
        )
        .await;
    let look = workspace.get("/fs?path=/data/to-dir").await.expect_status(200).json();
    assert_eq!((&look["isDir"], &look["mode"]), (&json!(true), &json!("dtrwxrwxrwx")));
    let dangling = workspace.get("/fs?path=/data/dangling").await.expect_status(200).json();
    assert_eq!(
        (&dangling["isSymlink"], &dangling["target"]),
        (&json!(true), &json!("nowhere"))
    );
    let listed = workspace.get("/fs/list?path=/data").await.expect_status(200).json();
    assert_eq!(listed["path"], "/data");
    let found: Vec<(&str, &str)> = listed["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["name"].as_str().unwrap(), entry["mode"].as_str().unwrap()))
        .collect();
    assert_eq!(
        found,
        [
            ("d", "dtrwxrwxrwx"),
            ("dangling", "Lrwxrwxrwx"),
            ("p", "prw-r--r--"),
            ("to-dir", "Lrwxrwxrwx")
        ]
    );
    let below = workspace
        .get("/fs/list?path=/data/to-dir")
        .await
        .expect_status(200)
        .json();
    assert_eq!(below["entries"][0]["path"], "/data/to-dir/f");
    assert_eq!(below["entries"][0]["mode"], "urwxr-xr-x");
}

#[tokio::test]
async fn a_listing_is_paged_without_a_gap() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("mkdir many; cd many; for i in $(seq 1 57); do : > f$i; done")
        .await;
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = workspace
            .get(&format!("/fs/list?path=/data/many&limit=10{cursor}"))
            .await;
        let page = page.expect_status(200).json();
        let entries = page["entries"].as_array().unwrap();
        assert!(entries.len() <= 10);
        names.extend(entries.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()));
        match page.get("next_cursor") {
            Some(next) => cursor = format!("&cursor={}", next.as_str().unwrap()),
            None => break,
        }
    }
    let mut sorted = names.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!((names.len(), &names), (57, &sorted));
    let empty = workspace.get("/fs/list?path=/home").await.expect_status(200).json();
    assert_eq!(empty["entries"].as_array().unwrap().len(), 1);
    workspace.output_of("mkdir /data/none").await;
    let none = workspace
        .get("/fs/list?path=/data/none")
        .await
        .expect_status(200)
        .json();
    assert_eq!(none, json!({"path": "/data/none", "entries": []}));
    workspace
        .get("/fs/list?path=/data&cursor=%25")
        .await
        .expect_error(400, "invalid_argument");
}

#[tokio::test]
async fn a_recursive_listing_goes_all_the_way_down_and_can_be_collapsed() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("mkdir -p t/big t/small; touch t/big/1 t/big/2 t/big/3 t/small/1")
        .await;
    let paths = |listed: serde_json::Value| -> Vec<String> {
        let entries = listed["entries"].as_array().unwrap().clone();
        entries
            .iter()
            .map(|entry| entry["path"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = workspace
        .get("/fs/list?path=/data/t&recursive=true")
        .await
        .expect_status(200)
        .json();
    assert_eq!(
        paths(all),
        [
            "/data/t/big",
            "/data/t/big/1",
            "/data/t/big/2",
            "/data/t/big/3",
            "/data/t/small",
            "/data/t/small/1"
        ]
    );
    let collapsed = workspace
        .get("/fs/list?path=/data/t&recursive=true&collapse=2")
        .await
        .expect_status(200)
        .json();
    assert_eq!(collapsed["entries"][1]["summary"], "3 items (not expanded)");
    assert_eq!(
        paths(collapsed),
        ["/data/t/big", "/data/t/big/", "/data/t/small", "/data/t/small/1"]
    );
}

#[tokio::test]
async fn reading_gives_text_exact_bytes_or_lines() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("printf 'one\\ntwo\\nthree' > lines; printf 'a\\377b' > bytes")
        .await;
    let text = workspace
        .get("/fs/read?path=/data/lines")
        .await
        .expect_status(200)
        .json();
    assert_eq!(
        (&text["content"], &text["size"]),
        (&json!("one\ntwo\nthree"), &json!(13))
    );
    assert!(text.get("lossy").is_none() && text.get("encoding").is_none());
    let some = workspace
        .get("/fs/read?path=/data/lines&line_offset=2&n_lines=1")
        .await
        .expect_status(200)
        .json();
    assert_eq!((&some["content"], &some["size"]), (&json!("two\n"), &json!(13)));
    let lossy = workspace
        .get("/fs/read?path=/data/bytes")
        .await
        .expect_status(200)
        .json();
    assert_eq!(
        (&lossy["content"], &lossy["lossy"]),
        (&json!("a\u{fffd}b"), &json!(true))
    );
    let exact = base64::engine::general_purpose::STANDARD.encode(b"a\xffb");
    for encoding in ["auto", "base64"] {
        let bytes = workspace
            .get(&format!("/fs/read?path=/data/bytes&encoding={encoding}"))
            .await;
        let bytes = bytes.expect_status(200).json();
        assert_eq!(
            (&bytes["content"], &bytes["encoding"]),
            (&json!(exact), &json!("base64"))
        );
    }
    let auto = workspace
        .get("/fs/read?path=/data/lines&encoding=auto")
        .await
        .expect_status(200)
        .json();
    assert_eq!(auto["encoding"], "utf-8");
    workspace
        .output_of("dd if=/dev/zero of=large bs=1M count=17 2>/dev/null; echo end >> large")
        .await;
    let message = workspace
        .get("/fs/read?path=/data/large")
        .await
        .expect_error(413, "body_too_large");
    assert!(message.contains("download"), "{message}");
}

#[tokio::test]
async fn a_write_keeps_the_mode_goes_through_links_and_minds_if_match() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("echo old > f; chmod 640 f; ln -s f link; ln f hard")
        .await;
    let tag = workspace.get("/fs/read?path=/data/f").await.json()["etag"]
        .as_str()
        .unwrap()
        .to_owned();
    let write = |content: &str, tag: &str| json!({"path": "/data/link", "content": content, "if_match": tag});
    workspace.post("/fs/write", write("new", &tag)).await.expect_status(200);
    let seen = workspace
        .output_of("stat -c %a f; cat f; echo; cat hard; test -L link && echo link")
        .await;
    assert_eq!(seen, "640\nnew\nold\nlink\n");
    workspace
        .post("/fs/write", write("late", &tag))
        .await
        .expect_error(412, "precondition_failed");
    let moded = json!({"path": "/data/run", "content": "IyEvYmluL3No", "encoding": "base64", "mode": "0755"});
    workspace.post("/fs/write", moded).await.expect_status(200);
    assert_eq!(workspace.output_of("stat -c %a run; cat run").await, "755\n#!/bin/sh");
}

#[tokio::test]
async fn directories_are_made_moved_copied_and_deleted() {
    let workspace = Workspace::start().await;
    let ok = json!({"ok": true});
    let made = workspace.post("/fs/mkdir", json!({"path": "/data/x/y/z"})).await;
    assert_eq!(made.expect_status(200).json(), ok);
    workspace
        .post("/fs/mkdir", json!({"path": "/data/x/y/z"}))
        .await
        .expect_status(200);
    workspace.output_of("echo 1 > x/y/f; echo 2 > g").await;
    let renamed = workspace
        .post("/fs/rename", json!({"oldPath": "/data/g", "newPath": "/data/x/y/f"}))
        .await;
    assert_eq!(renamed.expect_status(200).json(), ok);
    assert_eq!(workspace.output_of("cat x/y/f; ls").await, "2\nx\n");
    let gone = workspace
        .post("/fs/rename", json!({"oldPath": "/data/g", "newPath": "/data/h"}))
        .await;
    assert!(gone.expect_error(404, "not_found").starts_with("/data/g: "));
    // What is moved is there: the place it should go to is at fault, and is the one that is named.
    workspace.output_of("touch here; mkdir -p full/of").await;
    for (new_path, status, code, named) in [
        ("/data/none/h", 404, "not_found", "/data/none/h: "),
        ("/data/here/h", 400, "invalid_path", "/data/here/h: "),
        ("/data/full", 409, "conflict", "/data/full: "),
    ] {
        let body = json!({"oldPath": "/data/x", "newPath": new_path});
        let refused = workspace.post("/fs/rename", body).await;
        let message = refused.expect_error(status, code);
        assert!(message.starts_with(named), "{message}");
    }
    workspace.output_of("rm -r here full").await;
    let copied = workspace
        .post("/fs/copy", json!({"from": "/data/x", "to": "/data/c"}))
        .await;
    assert_eq!(copied.expect_status(200).json(), ok);
    let moded = workspace
        .post(
            "/fs/chmod",
            json!({"path": "/data/c/y/f", "mode": "0751", "uid": 1000, "gid": 50}),
        )
        .await;
    assert_eq!(moded.expect_status(200).json(), ok);
    assert_eq!(workspace.output_of("stat -c '%a %u %g' c/y/f").await, "751 1000 50\n");
    let full = workspace.post("/fs/delete", json!({"path": "/data/x"})).await;
    full.expect_error(409, "conflict");
    for _ in 0..2 {
        let deleted = workspace
            .post("/fs/delete", json!({"path": "/data/x", "recursive": true}))
            .await;
        assert_eq!(deleted.expect_status(200).json(), ok);
    }
    let root = workspace
        .post("/fs/delete", json!({"path": "/data/..", "recursive": true}))
        .await;
    assert_eq!(root.expect_error(403, "forbidden"), "cannot delete root directory");
}

/// Escaped it has 48 MiB, which no connection takes unread.
#[tokio::test]
async fn whoever_leaves_large_reads_unread_gets_no_more_of_them() {
    let workspace = Workspace::start().await;
    workspace
        .run("head -c 8388608 /dev/zero > /data/large; echo small > /data/small")
        .await;
    let read = "/fs/read?path=/data/large";
    let mut unread = Vec::new();
    let refused = loop {
        let call = workspace.server.call("GET", &workspace.path(read));
        let answer = call.open().await;
        if answer.status() != 200 {
            break answer;
        }
        assert!(unread.len() < 16, "each takes room");
        unread.push(answer);
    };
    assert!(!unread.is_empty());
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    workspace.get("/fs/read?path=/data/small").await.expect_status(200);
    drop(unread);
    crate::until(async || match workspace.get(read).await.status {
        200 => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
}
