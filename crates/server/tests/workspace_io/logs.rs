//! The log of a workspace over HTTP.

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::{LIMIT, Workspace, until};

/// A log that is followed, or events, and what came so far.
struct Followed {
    pieces: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Followed {
    async fn open(workspace: &Workspace, query: &str) -> Self {
        Self::of(
            workspace,
            &format!("/logs?follow=true{query}"),
            "text/plain; charset=utf-8",
        )
        .await
    }

    async fn events(workspace: &Workspace) -> Self {
        Self::of(workspace, "/events", "text/event-stream").await
    }

    async fn of(workspace: &Workspace, path: &str, content_type: &str) -> Self {
        let answer = workspace.server.call("GET", &workspace.path(path)).open().await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], content_type);
        Self {
            pieces: answer.bytes_stream().boxed(),
            text: String::new(),
        }
    }

    async fn until(&mut self, wanted: &str) {
        // Over all pieces: a stream that is quiet goes on with comments.
        let end = Instant::now() + LIMIT;
        while !self.text.contains(wanted) {
            match timeout_at(end, self.pieces.next()).await {
                Ok(Some(piece)) => self
                    .text
                    .push_str(std::str::from_utf8(&piece.expect("a piece")).expect("UTF-8")),
                Ok(None) => panic!("it ended without {wanted:?}: {}", self.text),
                Err(_) => panic!("no {wanted:?} in time: {}", self.text),
            }
        }
    }

    /// The rest; an error when the transfer was cut off.
    async fn end(mut self) -> reqwest::Result<String> {
        while let Some(piece) = timeout(LIMIT, self.pieces.next()).await.expect("it ends in time") {
            self.text.push_str(std::str::from_utf8(&piece?).expect("UTF-8"));
        }
        Ok(self.text)
    }
}

async fn log_with(workspace: &Workspace, wanted: &str) -> String {
    until(async || {
        let text = workspace.get("/logs").await.expect_status(200).text();
        match text.contains(wanted) {
            true => Ok(text),
            false => Err(format!("no {wanted:?} in {text}")),
        }
    })
    .await
}

#[tokio::test]
async fn the_log_tells_of_execs_and_its_tail_is_so_many_lines() {
    let workspace = Workspace::start().await;
    workspace.run("exit 7").await;
    let text = log_with(&workspace, ", exit code 7\n").await;
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() >= 3, "{text}");
    let tail = workspace.get("/logs?tail=2").await.expect_status(200).text();
    assert_eq!(tail.lines().collect::<Vec<_>>(), lines[lines.len() - 2..]);
    assert_eq!(workspace.get("/logs?tail=0").await.expect_status(200).text(), "");
    let whole = workspace.get("/logs?tail=100000&follow=false").await;
    assert_eq!(whole.expect_status(200).text(), text);
    assert_eq!(whole.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(whole.header("content-length"), text.len().to_string());
    for wrong in [
        "tail=-1",
        "tail=x",
        "tail=",
        "tail=1.5",
        "follow=yes",
        "tail=99999999999999999999",
    ] {
        let answer = workspace.get(&format!("/logs?{wrong}")).await;
        answer.expect_error(400, "invalid_argument");
    }
}

#[tokio::test]
async fn a_bot_without_a_workspace_has_no_log() {
    let workspace = Workspace::start().await;
    let bare = workspace.server.bare_bot(workspace.server.admin_key()).await;
    for query in ["", "?follow=true"] {
        let path = format!("/bots/{bare}/container/logs{query}");
        let answer = workspace.server.call("GET", &path).send().await;
        answer.expect_error(404, "container_not_found");
    }
    let (_, stranger) = workspace.server.member("stranger").await;
    let path = workspace.path("/logs");
    let refused = workspace.server.call_as(&stranger, "GET", &path).send().await;
    refused.expect_error(403, "bot_access_denied");
}

#[tokio::test]
async fn a_stopped_workspace_has_its_log_and_a_deleted_one_leaves_none() {
    let workspace = Workspace::start().await;
    workspace.run("exit 7").await;
    workspace.post("/stop", serde_json::json!({})).await.expect_status(200);
    let text = workspace.get("/logs").await.expect_status(200).text();
    assert!(text.contains(", exit code 7\n") && text.ends_with(" ended\n"), "{text}");
    let delete = workspace.server.call("DELETE", &workspace.path("")).send().await;
    delete.expect_status(204);
    workspace.get("/logs").await.expect_error(404, "container_not_found");
    let create = workspace.server.call("POST", &workspace.path(""));
    let create = create.header("accept", "application/json").json(&serde_json::json!({}));
    create.send().await.expect_status(200);
    let anew = workspace.get("/logs").await.expect_status(200).text();
    assert!(!anew.contains("exit code 7"), "the log of another workspace: {anew}");
}

#[tokio::test]
async fn a_follower_sees_lines_come_over_a_restart_and_ends_with_the_workspace() {
    let workspace = Workspace::start().await;
    let mut followed = Followed::open(&workspace, "").await;
    followed.until(" started as process 1\n").await;
    workspace.run("exit 7").await;
    followed.until(", exit code 7\n").await;
    workspace
        .post("/restart", serde_json::json!({}))
        .await
        .expect_status(200);
    workspace.run("exit 8").await;
    followed.until(", exit code 8\n").await;
    assert_eq!(
        followed.text.matches(" started as process 1\n").count(),
        2,
        "{}",
        followed.text
    );
    assert!(
        followed.text.contains(" ended\n"),
        "the last words are missing: {}",
        followed.text
    );
    let delete = workspace.server.call("DELETE", &workspace.path("")).send().await;
    delete.expect_status(204);
    let text = followed.end().await.expect("a clean end");
    let lines: std::collections::HashSet<&str> = text.lines().collect();
    assert_eq!(lines.len(), text.lines().count(), "a line came twice: {text}");
}

#[tokio::test]
async fn a_follower_with_a_tail_begins_with_it() {
    let workspace = Workspace::start().await;
    workspace.run("exit 7").await;
    log_with(&workspace, ", exit code 7\n").await;
    let mut followed = Followed::open(&workspace, "&tail=0").await;
    workspace.run("exit 8").await;
    followed.until(", exit code 8\n").await;
    assert!(!followed.text.contains("exit code 7"), "{}", followed.text);
}

#[tokio::test]
async fn a_server_that_goes_down_breaks_the_transfer_off() {
    let mut workspace = Workspace::start().await;
    let mut followed = Followed::open(&workspace, "").await;
    followed.until(" started as process 1\n").await;
    workspace.server.stop().await;
    followed.end().await.expect_err("that is no end of the log");
}

#[tokio::test]
async fn kills_for_want_of_memory_are_lines_and_events_too() {
    let workspace = Workspace::start().await;
    let mut followed = Followed::open(&workspace, "").await;
    followed.until(" started as process 1\n").await;
    let mut events = Followed::events(&workspace).await;
    events.until("\"status\":\"running\"").await;
    let bot = workspace.bot.parse().expect("an id");
    workspace.server.runtime().tell_out_of_memory(&bot);
    events.until("\"reason\":\"oom_killed\"").await;
    let kill = " kernel: a process was killed for want of memory\n";
    followed.until(kill).await;
    let text = log_with(&workspace, kill).await;
    assert_eq!(text.matches(kill).count(), 1, "{text}");
}

#[tokio::test]
async fn refused_processes_are_lines_and_events_too() {
    let workspace = Workspace::start().await;
    let mut followed = Followed::open(&workspace, "").await;
    followed.until(" started as process 1\n").await;
    let mut events = Followed::events(&workspace).await;
    events.until("\"status\":\"running\"").await;
    let bot = workspace.bot.parse().expect("an id");
    workspace.server.runtime().set_refused_processes(&bot, 7);
    events.until("\"reason\":\"pids_exhausted\"").await;
    followed
        .until(" kernel: a process was not started: as many run as may\n")
        .await;
}
