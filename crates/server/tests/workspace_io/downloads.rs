//! Bytes as they are: whole, in part, known already, or a directory packed.

use std::io::Read;

use serde_json::json;

use crate::{Workspace, until};

#[tokio::test]
async fn a_download_is_the_file_with_its_state() {
    let workspace = Workspace::start().await;
    workspace.output_of("printf 0123456789 > f.txt").await;
    let path = workspace.path("/fs/download?path=/data/f.txt");
    let whole = workspace.server.call("GET", &path).send().await;
    whole.expect_status(200);
    assert_eq!(&whole.body[..], b"0123456789");
    assert_eq!(whole.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(
        (whole.header("content-length"), whole.header("accept-ranges")),
        ("10", "bytes")
    );
    assert!(whole.header("last-modified").ends_with(" GMT"));
    let head = workspace.server.call("HEAD", &path).send().await;
    head.expect_status(200);
    assert!(head.body.is_empty());
    for name in ["content-length", "etag", "content-type", "last-modified"] {
        assert_eq!(head.header(name), whole.header(name), "{name}");
    }
    let known = workspace
        .server
        .call("GET", &path)
        .header("if-none-match", whole.header("etag"))
        .send()
        .await;
    assert!(known.expect_status(304).body.is_empty());
    workspace.output_of("printf X >> f.txt").await;
    let changed = workspace
        .server
        .call("GET", &path)
        .header("if-none-match", whole.header("etag"))
        .send()
        .await;
    assert_eq!(changed.expect_status(200).body.len(), 11);
}

#[tokio::test]
async fn ranges_are_served_or_refused() {
    let workspace = Workspace::start().await;
    workspace.output_of("printf 0123456789 > f; : > empty").await;
    let path = workspace.path("/fs/download?path=/data/f");
    for (range, body, content_range) in [
        ("bytes=0-0", "0", "bytes 0-0/10"),
        ("bytes=3-5", "345", "bytes 3-5/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-2", "89", "bytes 8-9/10"),
    ] {
        let part = workspace.server.call("GET", &path).header("range", range).send().await;
        part.expect_status(206);
        assert_eq!(
            (part.text().as_str(), part.header("content-range")),
            (body, content_range)
        );
    }
    let outside = workspace
        .server
        .call("GET", &path)
        .header("range", "bytes=10-")
        .send()
        .await;
    outside.expect_error(416, "range_not_satisfiable");
    assert_eq!(outside.header("content-range"), "bytes */10");
    let empty = workspace.get("/fs/download?path=/data/empty").await;
    assert_eq!(
        (empty.expect_status(200).body.len(), empty.header("content-length")),
        (0, "0")
    );
}

#[tokio::test]
async fn a_directory_comes_packed_and_an_archive_goes_back_in() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("mkdir -p d/e; echo hello > d/e/f; chmod 751 d/e/f; ln -s e/f d/link; ln d/e/f d/hard; : > d/empty")
        .await;
    let packed = workspace.get("/fs/download?path=/data/d").await;
    packed.expect_status(200);
    assert_eq!(packed.header("content-type"), "application/gzip");
    let head = workspace
        .server
        .call("HEAD", &workspace.path("/fs/download?path=/data/d"))
        .send()
        .await;
    head.expect_status(200);
    for name in ["content-type", "content-length", "content-disposition"] {
        assert_eq!(head.header(name), packed.header(name), "{name}");
    }
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&packed.body[..])
        .read_to_end(&mut tar)
        .unwrap();
    let plain = workspace.get("/fs/archive?path=/data/d").await;
    assert_eq!(plain.expect_status(200).header("content-type"), "application/x-tar");
    assert_eq!(names_of(&plain.body), names_of(&tar));
    let put = workspace
        .server
        .call("PUT", &workspace.path("/fs/archive?path=/data/back"));
    let report = put.body("application/x-tar", tar).send().await;
    assert_eq!(report.expect_status(200).json()["bytes"], 6);
    let seen = workspace
        .output_of("cd back; cat e/f; stat -c '%a %h' e/f; readlink link; stat -c %s empty")
        .await;
    assert_eq!(seen, "hello\n751 2\ne/f\n0\n");
    let one = workspace.get("/fs/archive?path=/data/d/e/f").await;
    assert_eq!(names_of(&one.expect_status(200).body), ["f"]);
    let junk = workspace
        .server
        .call("PUT", &workspace.path("/fs/archive?path=/data/junk"));
    let junk = junk.body("application/x-tar", vec![7_u8; 4096]).send().await;
    junk.expect_error(400, "archive_refused");
}

fn names_of(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .unwrap()
                .to_string_lossy()
                .trim_end_matches('/')
                .to_owned()
        })
        .collect()
}

#[tokio::test]
async fn a_download_that_breaks_is_never_taken_for_whole() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("dd if=/dev/urandom of=f bs=1M count=64 2>/dev/null")
        .await;
    let endless = json!({"command": "cat /dev/urandom", "detach": true});
    for (method, route) in [
        ("GET", "/fs/download?path=/data/f"),
        ("GET", "/fs/archive?path=/data"),
        ("GET", "/fs/download?path=/data"),
        ("POST", "/fs/archive"),
        ("GET", "/exec/{id}/output?follow=true"),
    ] {
        let mut route = route.to_owned();
        if route.contains("{id}") {
            let started = workspace.post("/exec", endless.clone()).await.expect_status(202).json();
            route = route.replace("{id}", started["exec_id"].as_str().unwrap());
        }
        let call = workspace.server.call(method, &workspace.path(&route));
        let call = match method {
            "POST" => call.json(&json!({"paths": ["/data/f"]})),
            _ => call,
        };
        let mut response = call.open().await;
        assert_eq!(response.status(), 200);
        assert!(response.chunk().await.unwrap().is_some());
        workspace
            .server
            .runtime()
            .kill_process_one(&workspace.bot.parse().unwrap())
            .unwrap();
        let broke = loop {
            match response.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        assert!(broke, "{route} ended as if it were whole");
        // Asked for, since one that dies so often is not started by itself for a while.
        until(async || match workspace.post("/start", json!({})).await {
            answer if answer.status != 200 => Err(format!("{answer:?}")),
            _started => match workspace.get("/fs").await {
                answer if answer.status == 200 => Ok(()),
                answer => Err(format!("the workspace did not come back: {answer:?}")),
            },
        })
        .await;
    }
    assert_eq!(
        workspace.post("/exec", json!({"command": "stat -c %s f"})).await.json()["stdout"],
        "67108864\n"
    );
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_downloaded_is_never_taken_for_whole() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("dd if=/dev/zero of=f bs=1M count=64 2>/dev/null")
        .await;
    let path = workspace.path("/fs/download?path=/data/f");
    let mut response = workspace.server.call("GET", &path).open().await;
    assert_eq!(
        (response.status().as_u16(), response.content_length()),
        (200, Some(64 << 20))
    );
    assert!(response.chunk().await.unwrap().is_some());
    workspace.output_of(": > f").await;
    let broke = loop {
        match response.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broke, "it ended as if it were whole");
}
