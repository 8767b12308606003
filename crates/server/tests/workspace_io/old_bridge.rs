//! An old bridge, which has the reference's service alone, and this server: what that wire can say works, and what it
//! cannot is refused by name.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::Workspace;
use crate::terminals::{connect, open_socket, read_close, read_until, type_line};
use crate::uploads::{form, part};

async fn old_workspace() -> Workspace {
    let workspace = Workspace::start().await;
    let bot = workspace.bot.parse().expect("an id");
    let shown = workspace.server.runtime().show_only_the_reference(&bot).await;
    shown.expect("a listener");
    workspace.post("/restart", json!({})).await.expect_status(200);
    workspace
}

#[tokio::test]
async fn files_are_read_written_listed_moved_and_removed() {
    let workspace = old_workspace().await;
    let written = workspace
        .post("/fs/write", json!({"path": "/data/d/a b", "content": "one\ntwo\n"}))
        .await;
    assert_eq!(written.expect_status(200).json(), json!({"ok": true}));
    let shown = workspace.get("/fs?path=/data/d/a%20b").await.expect_status(200).json();
    assert_eq!((&shown["size"], &shown["mode"]), (&json!(8), &json!("-rw-------")));
    assert!(shown["modTime"].as_str().expect("a time").starts_with("20"), "{shown}");
    assert!(shown.get("uid").is_none(), "that is not told there: {shown}");
    let read = workspace
        .get("/fs/read?path=/data/d/a%20b&line_offset=2")
        .await
        .expect_status(200)
        .json();
    assert_eq!(read["content"], "two\n");
    assert!(read.get("etag").is_none(), "{read}");
    workspace
        .post("/fs/rename", json!({"oldPath": "/data/d/a b", "newPath": "/data/d/c"}))
        .await
        .expect_status(200);
    workspace
        .post("/fs/mkdir", json!({"path": "/data/d/e/f"}))
        .await
        .expect_status(200);
    let listed = workspace.get("/fs/list?path=/data/d").await.expect_status(200).json();
    let names = |listed: &Value| -> Vec<String> {
        let entries = listed["entries"].as_array().expect("entries").iter();
        entries
            .map(|entry| entry["path"].as_str().expect("a path").to_owned())
            .collect()
    };
    assert_eq!(names(&listed), ["/data/d/c", "/data/d/e"]);
    let all = workspace
        .get("/fs/list?path=/data&recursive=true")
        .await
        .expect_status(200)
        .json();
    assert_eq!(names(&all), ["/data/d", "/data/d/c", "/data/d/e", "/data/d/e/f"]);
    let full = workspace.post("/fs/delete", json!({"path": "/data/d"})).await;
    full.expect_error(409, "conflict");
    for _ in 0..2 {
        let gone = workspace
            .post("/fs/delete", json!({"path": "/data/d", "recursive": true}))
            .await;
        gone.expect_status(200);
    }
    workspace.get("/fs?path=/data/d").await.expect_error(404, "not_found");
    workspace
        .get("/fs/read?path=/data")
        .await
        .expect_error(400, "invalid_path");
}

#[tokio::test]
async fn a_long_listing_comes_in_pages_and_whole() {
    let workspace = old_workspace().await;
    workspace
        .output_of("mkdir many; cd many; for n in $(seq 1000 1700); do : > $n; done")
        .await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/fs/list?path=/data/many&limit=300{cursor}");
        let page = workspace.get(&path).await.expect_status(200).json();
        let entries = page["entries"].as_array().expect("entries");
        assert!(entries.len() <= 300);
        seen.extend(
            entries
                .iter()
                .map(|entry| entry["name"].as_str().expect("a name").to_owned()),
        );
        let Some(next) = page["next_cursor"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, (1000..=1700).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn uploads_and_downloads_are_streamed_whole_or_in_part() {
    let workspace = old_workspace().await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let call = workspace
        .server
        .call("PUT", &workspace.path("/fs/upload?path=/data/up"));
    let put = call.body("application/octet-stream", bytes.clone()).send().await;
    assert_eq!(
        put.expect_status(200).json(),
        json!({"path": "/data/up", "size": 3_000_000})
    );
    assert_eq!(workspace.output_of("stat -c '%s %a' up").await, "3000000 644\n");
    let download = || {
        workspace
            .server
            .call("GET", &workspace.path("/fs/download?path=/data/up"))
    };
    let whole = download().open().await;
    assert_eq!(whole.headers()["content-length"], "3000000");
    assert!(whole.headers().get("etag").is_none());
    assert!(whole.bytes().await.expect("bytes") == bytes);
    let part = download().header("range", "bytes=2500000-2500009").open().await;
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await.expect("bytes")[..], bytes[2_500_000..2_500_010]);
}

#[tokio::test]
async fn a_form_may_begin_with_its_file() {
    let workspace = old_workspace().await;
    let (path, file) = (part("path", None, "/data/form"), part("file", Some("x"), "content"));
    let sent = form(&workspace, &[file, path]).await;
    assert_eq!(sent.expect_status(200).json(), json!({"path": "/data/form", "size": 7}));
    let seen = workspace.output_of("cat form; stat -c ' %a' form; ls -A /tmp").await;
    assert_eq!(seen, "content 644\n");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_old_file() {
    let workspace = old_workspace().await;
    workspace.output_of("echo old > kept").await;
    let pieces = futures::stream::iter(0..4).then(|number| async move {
        if number == 3 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            return Err(std::io::Error::other("broken off"));
        }
        Ok(vec![b'x'; 300_000])
    });
    let call = reqwest::Client::new()
        .put(format!(
            "{}{}",
            workspace.server.url(),
            workspace.path("/fs/upload?path=/data/kept")
        ))
        .bearer_auth(workspace.server.admin_key())
        .body(reqwest::Body::wrap_stream(pieces));
    call.send().await.expect_err("it was cut");
    // What came of it goes when the server sees that it is cut.
    workspace.until_code("test \"$(ls -A)\" = kept", 0).await;
    assert_eq!(workspace.output_of("cat kept").await, "old\n");
}

#[tokio::test]
async fn processes_run_with_their_input_output_time_and_truthful_ends() {
    let workspace = old_workspace().await;
    let result = workspace.run("echo out; echo err >&2; exit 7").await;
    for (field, value) in [
        ("exit_code", json!(7)),
        ("stdout", json!("out\n")),
        ("stderr", json!("err\n")),
        ("timed_out", json!(false)),
    ] {
        assert_eq!(result[field], value, "{field} in {result}");
    }
    assert_eq!(workspace.run("kill -9 $$").await["exit_code"], 137);
    let body = json!({"argv": ["/bin/sh", "-c", "pwd; echo \"$A\" \"$0\"; cat", "it's"], "cwd": "/tmp",
        "env": {"A": "x y"}, "stdin": "given"});
    let result = workspace.post("/exec", body).await.expect_status(200).json();
    assert_eq!(result["stdout"], "/tmp\nx y it's\ngiven", "{result}");
    let slow = json!({"command": "sleep 60", "timeout_seconds": 0.2});
    let slow = workspace.post("/exec", slow).await.expect_status(200).json();
    assert_eq!((&slow["timed_out"], &slow["exit_code"]), (&json!(true), &json!(143)));
    let missing = json!({"command": "true", "cwd": "/no/such"});
    workspace
        .post("/exec", missing)
        .await
        .expect_error(400, "exec_not_started");
    let call = workspace.server.call("POST", &workspace.path("/exec"));
    let streamed = call
        .header("accept", "text/event-stream")
        .json(&json!({"command": "echo a; exit 3"}));
    let events = streamed.send().await.expect_status(200).events();
    assert_eq!(events[0]["type"], "start");
    assert!(events[0].get("pid").is_none(), "that is not told there: {events:?}");
    let last = events.last().expect("an end");
    assert_eq!((&last["type"], &last["exit_code"]), (&json!("exit"), &json!(3)));
}

#[tokio::test]
async fn many_processes_at_once_keep_their_own_ends() {
    let workspace = old_workspace().await;
    let runs = (0..200).map(|number| {
        let workspace = &workspace;
        async move {
            let code = number % 256;
            let result = workspace.run(&format!("echo {number}; exit {code}")).await;
            assert_eq!(result["exit_code"], code, "{result}");
            assert_eq!(result["stdout"], format!("{number}\n"));
        }
    });
    futures::stream::iter(runs)
        .buffer_unordered(20)
        .collect::<Vec<()>>()
        .await;
}

#[tokio::test]
async fn a_terminal_takes_keystrokes_and_sizes_and_tells_its_end() {
    let workspace = old_workspace().await;
    let info = workspace.get("/terminal").await.expect_status(200).json();
    assert_eq!(info, json!({"available": true, "shell": "/bin/sh"}));
    let mut socket = connect(&workspace, "?cols=101&rows=31", None).await.expect("a socket");
    type_line(&mut socket, "stty size; pwd").await;
    let shown = read_until(&mut socket, "/data\r\n").await;
    assert!(shown.contains("31 101\r\n"), "{shown}");
    let resize = Message::Text(r#"{"type":"resize","cols":55,"rows":22}"#.into());
    socket.send(resize).await.expect("sent");
    let wait = "until test \"$(stty size)\" = '22 55'; do sleep 0.05; done; echo res''ized";
    type_line(&mut socket, wait).await;
    read_until(&mut socket, "resized\r\n").await;
    type_line(&mut socket, "exit 5").await;
    assert_eq!(read_close(&mut socket).await, (1000, "exit 5".to_owned()));
}

#[tokio::test]
async fn what_that_wire_cannot_say_is_refused_by_name() {
    let workspace = old_workspace().await;
    workspace.output_of("echo a > a; mkdir d").await;
    for (path, body, named) in [
        ("/exec", json!({"command": "true", "detach": true}), "detach"),
        ("/exec", json!({"command": "true", "user": "worker"}), "another user"),
        ("/fs/copy", json!({"from": "/data/a", "to": "/data/b"}), "copying"),
        ("/fs/chmod", json!({"path": "/data/a", "mode": "0755"}), "mode"),
        (
            "/fs/write",
            json!({"path": "/data/a", "content": "b", "mode": "0755"}),
            "mode",
        ),
        (
            "/fs/write",
            json!({"path": "/data/a", "content": "b", "if_match": "*"}),
            "if_match",
        ),
        ("/exec/id/signal", json!({"signal": "SIGTERM"}), "signals"),
    ] {
        let refused = workspace.post(path, body.clone()).await;
        let message = refused.expect_error(501, "unsupported");
        assert!(
            message.contains("too old") && message.contains(named),
            "{path} {body}: {message}"
        );
    }
    for path in [
        "/exec",
        "/exec/id",
        "/exec/id/output?stream=stdout",
        "/fs/archive?path=/data",
        "/fs/download?path=/data/d",
        "/fs/search?pattern=x",
        "/fs/watch",
    ] {
        workspace.get(path).await.expect_error(501, "unsupported");
    }
    let extracted = workspace.post("/fs/extract", json!({"path": "/data/a.zip"})).await;
    extracted.expect_error(501, "unsupported");
    match connect(&workspace, "?session=s", None).await {
        Err(Error::Http(response)) => assert_eq!(response.status().as_u16(), 501),
        other => panic!("a session on an old bridge: {:?}", other.map(|_| ())),
    }
    let mut port = open_socket(&workspace, "/port-forward?port=80", None)
        .await
        .expect("a socket");
    let (code, reason) = read_close(&mut port).await;
    assert!(code == 1011 && reason.contains("too old"), "{code} {reason}");
    let call = workspace
        .server
        .call("POST", &workspace.path("/exec"))
        .header("idempotency-key", "k");
    let repeated = call.json(&json!({"command": "echo a >> a"})).send().await;
    repeated.expect_error(501, "unsupported");
    assert_eq!(workspace.output_of("cat a").await, "a\n", "nothing was done by half");
}
