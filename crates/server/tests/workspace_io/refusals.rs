//! What is wrong is said with a status and a code, and never with a 500.

use serde_json::json;

use crate::Workspace;
use crate::uploads::{form, part};

#[tokio::test]
async fn each_wrong_path_has_its_status() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("echo x > file; mkdir -p dir/sub; mkfifo pipe")
        .await;
    let long = format!("/data/{}", "n".repeat(300));
    let longer = "/x".repeat(3000);
    for (route, status, code) in [
        ("/fs?path=/data/none".to_owned(), 404, "not_found"),
        ("/fs?path=/data/file/below".to_owned(), 400, "invalid_path"),
        (format!("/fs?path={long}"), 400, "invalid_path"),
        (format!("/fs?path={longer}"), 400, "invalid_path"),
        ("/fs?path=/a%00b".to_owned(), 400, "invalid_path"),
        ("/fs/list?path=/data/none".to_owned(), 404, "not_found"),
        ("/fs/list?path=/data/file".to_owned(), 400, "invalid_path"),
        ("/fs/list?path=/data&limit=x".to_owned(), 400, "invalid_argument"),
        ("/fs/read".to_owned(), 400, "invalid_path"),
        ("/fs/read?path=/data/dir".to_owned(), 400, "invalid_path"),
        ("/fs/read?path=/data/pipe".to_owned(), 400, "invalid_path"),
        ("/fs/read?path=/data/none".to_owned(), 404, "not_found"),
        (
            "/fs/read?path=/data/file&encoding=latin1".to_owned(),
            400,
            "invalid_argument",
        ),
        ("/fs/read?path=/data/file&n_lines=0".to_owned(), 400, "invalid_argument"),
        ("/fs/download".to_owned(), 400, "invalid_path"),
        ("/fs/download?path=/data/pipe".to_owned(), 400, "invalid_path"),
        ("/fs/download?path=/data/none".to_owned(), 404, "not_found"),
        ("/fs/archive?path=/data/none".to_owned(), 404, "not_found"),
        ("/fs/search?path=/data".to_owned(), 400, "invalid_argument"),
        ("/fs/search?path=/data&pattern=(".to_owned(), 400, "invalid_argument"),
        ("/fs/search?path=/data/none&pattern=x".to_owned(), 404, "not_found"),
        ("/fs/watch?path=/data/none".to_owned(), 404, "not_found"),
        ("/exec/none".to_owned(), 404, "not_found"),
        ("/exec/a%20b".to_owned(), 400, "invalid_id"),
        ("/exec/none/output".to_owned(), 404, "not_found"),
    ] {
        let message = workspace.get(&route).await.expect_error(status, code);
        assert!(!message.is_empty(), "{route}");
    }
}

#[tokio::test]
async fn each_wrong_body_has_its_status() {
    let workspace = Workspace::start().await;
    workspace.output_of("echo x > file; mkdir -p dir/sub").await;
    let big = "x".repeat(16 * 1024 * 1024 + 1);
    for (route, body, status, code) in [
        ("/fs/write", json!({"content": "x"}), 400, "invalid_path"),
        (
            "/fs/write",
            json!({"path": "/data/dir", "content": "x"}),
            400,
            "invalid_path",
        ),
        (
            "/fs/write",
            json!({"path": "/data/file/x", "content": "x"}),
            400,
            "invalid_path",
        ),
        (
            "/fs/write",
            json!({"path": "/data/f", "content": "%", "encoding": "base64"}),
            400,
            "invalid_argument",
        ),
        (
            "/fs/write",
            json!({"path": "/data/f", "content": "", "encoding": "utf-16"}),
            400,
            "invalid_body",
        ),
        (
            "/fs/write",
            json!({"path": "/data/f", "content": "", "mode": "rwx"}),
            400,
            "invalid_argument",
        ),
        ("/fs/write", json!({"path": 5}), 400, "invalid_body"),
        (
            "/fs/write",
            json!({"path": "/data/f", "content": big}),
            413,
            "body_too_large",
        ),
        ("/fs/mkdir", json!({}), 400, "invalid_path"),
        ("/fs/mkdir", json!({"path": "/data/file"}), 400, "invalid_path"),
        ("/fs/mkdir", json!({"path": "/data/file/x"}), 400, "invalid_path"),
        ("/fs/delete", json!({"path": " "}), 400, "invalid_path"),
        ("/fs/rename", json!({"oldPath": "/data/file"}), 400, "invalid_path"),
        (
            "/fs/rename",
            json!({"oldPath": "/data/file", "newPath": "/data/dir"}),
            400,
            "invalid_path",
        ),
        (
            "/fs/copy",
            json!({"from": "/data/none", "to": "/data/y"}),
            404,
            "not_found",
        ),
        (
            "/fs/chmod",
            json!({"path": "/data/file", "mode": "9"}),
            400,
            "invalid_argument",
        ),
        (
            "/fs/chmod",
            json!({"path": "/data/none", "mode": "0644"}),
            404,
            "not_found",
        ),
        ("/fs/extract", json!({"path": "/data/x.zip"}), 404, "not_found"),
        ("/fs/extract", json!({}), 400, "invalid_path"),
        ("/fs/archive", json!({"paths": []}), 400, "invalid_argument"),
        ("/exec", json!({}), 400, "invalid_argument"),
        ("/exec", json!({"command": "x", "argv": ["x"]}), 400, "invalid_argument"),
        (
            "/exec",
            json!({"command": "x", "timeout_seconds": -1}),
            400,
            "invalid_argument",
        ),
        (
            "/exec",
            json!({"command": "x", "timeout_seconds": 90000}),
            400,
            "invalid_argument",
        ),
        (
            "/exec",
            json!({"command": "x", "env": {"A=B": "c"}}),
            400,
            "invalid_argument",
        ),
        ("/exec", json!({"command": "x\u{0}"}), 400, "invalid_argument"),
        ("/exec", json!({"argv": ["/no/such/program"]}), 400, "exec_not_started"),
        (
            "/exec",
            json!({"command": "true", "cwd": "/no/such/directory"}),
            400,
            "exec_not_started",
        ),
        (
            "/exec",
            json!({"command": "true", "user": "nobody-knows"}),
            400,
            "exec_not_started",
        ),
        ("/exec/none/signal", json!({"signal": "SIGTERM"}), 404, "not_found"),
        (
            "/exec/none/signal",
            json!({"signal": "SIGNONE"}),
            400,
            "invalid_argument",
        ),
        (
            "/exec/none/resize",
            json!({"cols": 0, "rows": 5}),
            400,
            "invalid_argument",
        ),
        ("/exec/none/resize", json!({"cols": 5, "rows": 5}), 404, "not_found"),
    ] {
        let answer = workspace.post(route, body.clone()).await;
        assert_eq!(answer.status, status, "{route}: {}", answer.text());
        answer.expect_error(status, code);
    }
}

#[tokio::test]
async fn a_stopped_workspace_is_told_or_started() {
    let workspace = Workspace::start().await;
    workspace.post("/stop", json!({})).await.expect_status(200);
    workspace.get("/fs").await.expect_error(409, "workspace_stopped");
    workspace
        .post("/exec", json!({"command": "true"}))
        .await
        .expect_error(409, "workspace_stopped");
    let terminal = workspace.get("/terminal").await.expect_status(200).json();
    assert_eq!(terminal["available"], false);
    // The answer names the operation that was begun for it.
    let listed = workspace.get("/fs?start=true").await;
    let start = listed.expect_status(200).header("x-operation-id").to_owned();
    let path = format!("/operations/{start}");
    let operation = workspace.server.call("GET", &path).send().await;
    let operation = operation.expect_status(200).json();
    assert_eq!(
        (&operation["kind"], &operation["state"]),
        (&json!("start"), &json!("succeeded"))
    );
    let again = workspace.get("/fs?start=true").await;
    assert!(!again.expect_status(200).headers.contains_key("x-operation-id"));
    let terminal = workspace.get("/terminal").await.expect_status(200).json();
    assert_eq!(terminal, json!({"available": true, "shell": "/bin/sh"}));
}

#[tokio::test]
async fn files_and_execs_go_on_while_the_runtime_is_away() {
    let workspace = Workspace::start().await;
    workspace.server.runtime().go_away();
    assert_eq!(workspace.output_of("echo here").await, "here\n");
    workspace.get("/fs").await.expect_status(200);
}

#[tokio::test]
async fn what_the_permissions_there_do_not_allow_is_403() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("mkdir fixed && mount -t tmpfs none fixed && echo x > fixed/file && mount -o remount,ro fixed")
        .await;
    for (route, body) in [
        ("/fs/write", json!({"path": "/data/fixed/new", "content": "x"})),
        ("/fs/write", json!({"path": "/data/fixed/file", "content": "y"})),
        ("/fs/mkdir", json!({"path": "/data/fixed/new"})),
        ("/fs/delete", json!({"path": "/data/fixed/file"})),
        (
            "/fs/rename",
            json!({"oldPath": "/data/fixed/file", "newPath": "/data/fixed/new"}),
        ),
        ("/fs/copy", json!({"from": "/data/fixed/file", "to": "/data/fixed/new"})),
        ("/fs/chmod", json!({"path": "/data/fixed/file", "mode": "0600"})),
    ] {
        let message = workspace.post(route, body).await.expect_error(403, "forbidden");
        assert!(message.contains("/data/fixed/"), "{route}: {message}");
    }
    let put = workspace
        .server
        .call("PUT", &workspace.path("/fs/upload?path=/data/fixed/new"));
    let put = put.body("application/octet-stream", "x").send().await;
    put.expect_error(403, "forbidden");
    assert_eq!(
        workspace.output_of("ls -A fixed; cat fixed/file; umount fixed").await,
        "file\nx\n"
    );
}

#[tokio::test]
async fn no_space_there_is_507_and_leaves_what_was_there() {
    let workspace = Workspace::start().await;
    // One file system has no room for so much, the other none for one more name.
    workspace
        .output_of(
            "mkdir small full && mount -t tmpfs -o size=64k none small && mount -t tmpfs -o nr_inodes=2 none full && \
             echo old > small/old && echo old > full/old && ! mkdir full/new 2>/dev/null && \
             head -c 1048576 /dev/zero > large",
        )
        .await;
    let large = "x".repeat(1 << 20);
    let mut answers = vec![workspace.post("/fs/mkdir", json!({"path": "/data/full/new"})).await];
    for path in ["/data/small/new", "/data/small/old", "/data/full/new", "/data/full/old"] {
        let written = json!({"path": path, "content": large});
        answers.push(workspace.post("/fs/write", written).await);
        let copied = json!({"from": "/data/large", "to": path});
        answers.push(workspace.post("/fs/copy", copied).await);
        let put = format!("/fs/upload?path={path}");
        let put = workspace.server.call("PUT", &workspace.path(&put));
        answers.push(put.body("application/octet-stream", large.clone()).send().await);
        let parts = [part("path", None, path), part("file", Some("large"), &large)];
        answers.push(form(&workspace, &parts).await);
    }
    for refused in answers {
        let message = refused.expect_error(507, "disk_full");
        assert!(
            message.contains("/data/small/") || message.contains("/data/full/"),
            "{message}"
        );
    }
    assert_eq!(
        workspace
            .output_of("ls -A full small; cat full/old small/old; umount full && umount small")
            .await,
        "full:\nold\n\nsmall:\nold\nold\nold\n"
    );
}

#[tokio::test]
async fn messages_that_clients_show_stay_as_they_are() {
    let workspace = Workspace::start().await;
    for (route, body, status, code, expected) in [
        (
            "/fs/write",
            json!({"content": "x"}),
            400,
            "invalid_path",
            "path is required",
        ),
        ("/fs/mkdir", json!({}), 400, "invalid_path", "path is required"),
        ("/fs/delete", json!({}), 400, "invalid_path", "path is required"),
        (
            "/fs/delete",
            json!({"path": "/", "recursive": true}),
            403,
            "forbidden",
            "cannot delete root directory",
        ),
        (
            "/fs/rename",
            json!({"oldPath": "/data/file"}),
            400,
            "invalid_path",
            "oldPath and newPath are required",
        ),
        (
            "/fs/rename",
            json!({"newPath": "/data/file"}),
            400,
            "invalid_path",
            "oldPath and newPath are required",
        ),
        ("/exec", json!({}), 400, "invalid_argument", "command is required"),
        (
            "/exec",
            json!({"command": " "}),
            400,
            "invalid_argument",
            "command is required",
        ),
        (
            "/snapshots/rollback",
            json!({"version": 0}),
            400,
            "invalid_argument",
            "version must be >= 1",
        ),
    ] {
        let message = workspace.post(route, body.clone()).await.expect_error(status, code);
        assert_eq!(message, expected, "{route} {body}");
    }
}
