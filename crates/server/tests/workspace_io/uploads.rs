//! Files as they come in.

use futures::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Workspace;

const BOUNDARY: &str = "multipart/form-data; boundary=cut";

pub(super) fn part(name: &str, file: Option<&str>, content: &str) -> String {
    let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
    format!("--cut\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{content}\r\n")
}

pub(super) async fn form(workspace: &Workspace, parts: &[String]) -> skep_testkit::server::Answer {
    let body = format!("{}--cut--\r\n", parts.concat());
    let call = workspace.server.call("POST", &workspace.path("/fs/upload"));
    call.body(BOUNDARY, body).send().await
}

async fn until_nothing_is_left(workspace: &Workspace) {
    workspace.until_code("test -z \"$(ls -A /tmp; ls -A /data)\"", 0).await;
}

/// The connection of an upload of this body, whose end is still to be sent.
async fn begun(workspace: &Workspace, body: &str, sent: usize) -> tokio::net::TcpStream {
    let address = workspace.server.url().replace("http://", "");
    let mut connection = tokio::net::TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Type: {BOUNDARY}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        workspace.path("/fs/upload"),
        workspace.server.admin_key(),
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&body.as_bytes()[..sent]).await.unwrap();
    connection
}

#[tokio::test]
async fn the_parts_of_a_form_come_in_any_order() {
    let workspace = Workspace::start().await;
    let (path, file) = (part("path", None, "/data/up/a"), part("file", Some("x.txt"), "content"));
    for parts in [[path.clone(), file.clone()], [file.clone(), path.clone()]] {
        let answer = form(&workspace, &parts).await;
        assert_eq!(
            answer.expect_status(200).json(),
            json!({"path": "/data/up/a", "size": 7})
        );
        let seen = workspace
            .output_of("cat up/a; stat -c ' %a' up/a; rm up/a; ls -A /tmp /data")
            .await;
        assert_eq!(seen, "content 644\n/data:\nup\n\n/tmp:\n");
    }
}

#[tokio::test]
async fn several_files_go_into_a_directory() {
    let workspace = Workspace::start().await;
    let files = [
        part("file", Some("a"), "1"),
        part("file", Some("../b"), "22"),
        part("path", None, "/data/d/"),
    ];
    let answer = form(&workspace, &files).await.expect_status(200).json();
    let wanted = json!({"files": [{"path": "/data/d/a", "size": 1}, {"path": "/data/d/b", "size": 2}]});
    assert_eq!(answer, wanted);
    let one = form(
        &workspace,
        &[part("path", None, "/data/d/"), part("file", Some("c"), "")],
    )
    .await;
    assert_eq!(one.expect_status(200).json(), json!({"path": "/data/d/c", "size": 0}));
    let no_directory = [
        part("path", None, "/data/one"),
        part("file", Some("a"), "1"),
        part("file", Some("b"), "2"),
    ];
    workspace.output_of("echo old > one").await;
    form(&workspace, &no_directory).await.expect_error(400, "invalid_path");
    // No temporary file is left.
    workspace
        .until_code("test \"$(ls -A | tr '\n' ' ')\" = 'd one '", 0)
        .await;
    assert_eq!(workspace.output_of("cat one").await, "old\n");
}

#[tokio::test]
async fn an_incomplete_form_is_refused_and_leaves_nothing() {
    let workspace = Workspace::start().await;
    let message = form(&workspace, &[part("file", Some("a"), "1")])
        .await
        .expect_error(400, "invalid_path");
    assert_eq!(message, "path is required");
    let message = form(&workspace, &[part("path", None, "/data/x")])
        .await
        .expect_error(400, "invalid_body");
    assert_eq!(message, "file is required");
    let call = workspace.server.call("POST", &workspace.path("/fs/upload"));
    call.body("text/plain", "x")
        .send()
        .await
        .expect_error(400, "invalid_body");
    let broken = workspace.server.call("POST", &workspace.path("/fs/upload"));
    let broken = broken
        .body(BOUNDARY, part("path", None, "/data/x") + "--cut\r\nContent-Disp")
        .send()
        .await;
    broken.expect_error(400, "invalid_body");
    until_nothing_is_left(&workspace).await;
}

#[tokio::test]
async fn a_raw_upload_keeps_or_sets_the_mode_and_an_empty_one_is_an_empty_file() {
    let workspace = Workspace::start().await;
    let put = |rest: &str, body: &'static str| {
        let call = workspace
            .server
            .call("PUT", &workspace.path(&format!("/fs/upload?path={rest}")));
        call.body("application/octet-stream", body).send()
    };
    let new = put("/data/n/f", "abc").await;
    assert_eq!(new.expect_status(200).json(), json!({"path": "/data/n/f", "size": 3}));
    put("/data/run&mode=755", "x").await.expect_status(200);
    put("/data/run", "").await.expect_status(200);
    assert_eq!(workspace.output_of("stat -c '%a %s' n/f run").await, "644 3\n755 0\n");
    put("/data/n", "x").await.expect_error(400, "invalid_path");
    put("/data/n/", "x").await.expect_error(400, "invalid_path");
    put("", "x").await.expect_error(400, "invalid_path");
}

#[tokio::test]
async fn an_aborted_upload_leaves_the_old_file() {
    let workspace = Workspace::start().await;
    workspace.output_of("echo old > f").await;
    let pieces = futures::stream::iter((0..20).map(|_| Ok(vec![b'x'; 100_000])));
    let broken = pieces.chain(futures::stream::once(async { Err(std::io::Error::other("gone")) }));
    let client = reqwest::Client::new();
    let url = format!(
        "{}{}",
        workspace.server.url(),
        workspace.path("/fs/upload?path=/data/f")
    );
    let request = client.put(url).bearer_auth(workspace.server.admin_key());
    let sent = request.body(reqwest::Body::wrap_stream(broken)).send().await;
    assert!(sent.is_err(), "the upload was not aborted");
    // No temporary file is left.
    workspace.until_code("test \"$(ls -A)\" = f", 0).await;
    assert_eq!(workspace.output_of("cat f").await, "old\n");
}

#[tokio::test]
async fn what_was_put_aside_goes_also_when_the_caller_hangs_up_after_his_last_byte() {
    let workspace = Workspace::start().await;
    let content = "x".repeat(24 << 20);
    let body = format!(
        "{}{}--cut--\r\n",
        part("file", Some("a"), &content),
        part("path", None, "/data/up/a")
    );
    let sent = body.len() / 2;
    let mut connection = begun(&workspace, &body, sent).await;
    crate::until(async || match workspace.output_of("ls -A /tmp").await {
        aside if aside.is_empty() => Err("it is not put aside yet".to_owned()),
        _ => Ok(()),
    })
    .await;
    connection.write_all(&body.as_bytes()[sent..]).await.unwrap();
    drop(connection);
    crate::until(async || match workspace.output_of("ls -A /tmp").await {
        aside if aside.is_empty() => Ok(()),
        aside => Err(aside),
    })
    .await;
}

#[tokio::test]
async fn what_is_put_aside_is_the_bridges_own_until_the_form_has_ended() {
    let workspace = Workspace::start().await;
    let (first, second) = ("1".repeat(300_000), "2".repeat(300_000));
    let files = part("file", Some("a"), &first) + &part("file", Some("b"), &second);
    let body = format!(
        "{files}{}{}--cut--\r\n",
        part("file", Some("c"), ""),
        part("path", None, "/data/d/")
    );
    // The second file has begun and not ended.
    let sent = files.len() - 100_000;
    let mut connection = begun(&workspace, &body, sent).await;
    workspace
        .until_code("test $(cat /tmp/.skep-* | wc -c) -gt 300000", 0)
        .await;
    // The bridge removes such a one when whoever writes it is gone, this server killed for one.
    let aside = workspace.output_of("ls -A /tmp").await;
    assert!(aside.trim().ends_with(".part") && aside.lines().count() == 1, "{aside}");
    connection.write_all(&body.as_bytes()[sent..]).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let seen = workspace
        .output_of("cd d; tr -d 1 < a | wc -c; tr -d 2 < b | wc -c; stat -c '%n %s %a' *; ls -A /tmp")
        .await;
    assert_eq!(seen, "0\n0\na 300000 644\nb 300000 644\nc 0 644\n");
}

#[tokio::test]
async fn a_second_file_behind_the_path_is_refused_before_it_is_written() {
    let workspace = Workspace::start().await;
    let parts = [
        part("file", Some("a"), "1"),
        part("path", None, "/data/one"),
        part("file", Some("b"), "2"),
    ];
    form(&workspace, &parts).await.expect_error(400, "invalid_path");
    until_nothing_is_left(&workspace).await;
}
