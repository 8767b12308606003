//! Changes of files as they happen.

use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::{LIMIT, Workspace};

/// The events of one watch, as they come.
struct Events {
    pieces: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Events {
    /// It watches when this returns.
    async fn of(workspace: &Workspace, query: &str) -> Self {
        let call = workspace
            .server
            .call("GET", &workspace.path(&format!("/fs/watch?{query}")));
        let answer = call.open().await;
        assert_eq!(answer.status(), 200);
        Self {
            pieces: answer.bytes_stream().boxed(),
            text: String::new(),
        }
    }

    /// `None`: the stream has ended.
    async fn next(&mut self) -> Option<Value> {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                match event.strip_prefix("data: ") {
                    Some(data) => return Some(serde_json::from_str(data).expect("JSON")),
                    None => assert!(event.starts_with(':'), "{event:?}"),
                }
                continue;
            }
            let piece = timeout_at(end, self.pieces.next()).await;
            let piece = piece.unwrap_or_else(|_| panic!("no event, only {:?}", self.text))?;
            self.text
                .push_str(std::str::from_utf8(&piece.expect("bytes")).expect("text"));
        }
    }

    /// The events up to one of this kind and path, each as `type path`; how often something is modified is left out.
    async fn up_to(&mut self, last: &str) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        while seen.last().is_none_or(|event| event != last) {
            let event = self.next().await.unwrap_or_else(|| panic!("it ended after {seen:?}"));
            let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            let event = match event.get("from") {
                Some(_) => format!("{} {} {}", text("type"), text("from"), text("path")),
                None => format!("{} {}", text("type"), text("path")),
            };
            if seen.last() != Some(&event) {
                seen.push(event);
            }
        }
        seen
    }
}

#[tokio::test]
async fn what_comes_changes_goes_and_gets_another_name_is_told() {
    let workspace = Workspace::start().await;
    workspace.output_of("mkdir -p box/below; touch box/old").await;
    let mut events = Events::of(&workspace, "path=/data/box").await;
    workspace
        .output_of(
            "cd box; echo > new; chmod 600 new; mkdir made; mv new made-of-new; touch below/hidden; mv old ../aside; \
             mv ../aside back; ln -s nowhere link; rm made-of-new; rmdir made; touch last",
        )
        .await;
    let seen = events.up_to("created /data/box/last").await;
    let wanted = [
        "created /data/box/new",
        "modified /data/box/new",
        "created /data/box/made",
        "renamed /data/box/new /data/box/made-of-new",
        "removed /data/box/old",
        "created /data/box/back",
        "created /data/box/link",
        "removed /data/box/made-of-new",
        "removed /data/box/made",
        "created /data/box/last",
    ];
    assert_eq!(seen, wanted);
    let mut events = Events::of(&workspace, "path=/data/box").await;
    workspace.output_of("mkdir box/d").await;
    assert_eq!(
        events.next().await.expect("an event"),
        json!({"type": "created", "path": "/data/box/d", "isDir": true})
    );
}

#[tokio::test]
async fn a_tree_is_watched_with_what_is_made_and_moved_in_it() {
    let workspace = Workspace::start().await;
    workspace
        .output_of("mkdir -p w/a/b o/outside; touch o/outside/x; ln -s ../o w/linked")
        .await;
    let mut events = Events::of(&workspace, "path=/data/w&recursive=true").await;
    workspace.output_of("mkdir -p w/a/b/c/d; echo > w/a/b/c/d/file").await;
    let seen = events.up_to("created /data/w/a/b/c/d/file").await;
    for wanted in ["created /data/w/a/b/c", "created /data/w/a/b/c/d"] {
        assert_eq!(seen.iter().filter(|event| *event == wanted).count(), 1, "{seen:?}");
    }
    workspace
        .output_of("cd w; mv a/b/c e; echo >> e/d/file; mv ../o/outside in")
        .await;
    let seen = events.up_to("created /data/w/in").await;
    for wanted in ["renamed /data/w/a/b/c /data/w/e", "modified /data/w/e/d/file"] {
        assert!(seen.iter().any(|event| event == wanted), "{wanted} in {seen:?}");
    }
    workspace.output_of("echo > w/in/y").await;
    assert_eq!(events.up_to("created /data/w/in/y").await, ["created /data/w/in/y"]);
    // What has left is watched no more, nor is what a link leads to.
    workspace
        .output_of("mv w/e o/left; echo > o/left/d/file; touch w/linked/z w/end")
        .await;
    let seen = events.up_to("created /data/w/end").await;
    assert_eq!(seen[seen.len() - 2..], ["removed /data/w/e", "created /data/w/end"]);
}

#[tokio::test]
async fn a_file_is_watched_on_when_another_takes_its_place() {
    let workspace = Workspace::start().await;
    workspace.output_of("echo one > file").await;
    let mut events = Events::of(&workspace, "path=/data/file").await;
    workspace
        .output_of("echo > other; mv other file; echo >> file; rm file; echo > file")
        .await;
    let seen = events.up_to("created /data/file").await;
    assert_eq!(seen, ["created /data/file"], "another took its place");
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event = events.next().await.expect("an event")["type"]
            .as_str()
            .expect("a type")
            .to_owned();
        if seen.last() != Some(&event) {
            seen.push(event);
        }
    }
    assert_eq!(seen, ["modified", "removed", "created"]);
}

#[tokio::test]
async fn a_watch_ends_with_what_it_watches_or_with_an_error() {
    let workspace = Workspace::start().await;
    workspace.output_of("mkdir -p one/below two").await;
    let mut removed = Events::of(&workspace, "path=/data/one&recursive=true").await;
    let mut moved = Events::of(&workspace, "path=/data/two").await;
    workspace.output_of("rm -r one; mv two three").await;
    assert_eq!(removed.up_to("removed /data/one").await.len(), 2);
    assert_eq!(removed.next().await, None);
    assert_eq!(moved.up_to("removed /data/two").await.len(), 1);
    assert_eq!(moved.next().await, None);

    let mut restarted = Events::of(&workspace, "path=/data").await;
    workspace.post("/snapshots", json!({})).await.expect_status(200);
    let mut last = restarted.next().await.expect("an end");
    while let Some(event) = restarted.next().await {
        last = event;
    }
    assert_eq!(
        (&last["type"], &last["code"]),
        (&json!("error"), &json!("workspace_restarted"))
    );
    let mut stopped = Events::of(&workspace, "path=/data").await;
    workspace.post("/stop", json!({})).await.expect_status(200);
    let mut last = stopped.next().await.expect("an end");
    while let Some(event) = stopped.next().await {
        last = event;
    }
    assert_eq!(last["type"], "error", "{last}");
}

#[tokio::test]
async fn what_cannot_be_watched_is_told() {
    let workspace = Workspace::start().await;
    let missing = workspace.get("/fs/watch?path=/data/nothing").await;
    missing.expect_error(404, "not_found");
    workspace.output_of("mkdir many; cd many; seq 8200 | xargs mkdir").await;
    let many = workspace.get("/fs/watch?path=/data/many&recursive=true").await;
    let message = many.expect_error(400, "invalid_argument");
    assert!(message.contains("8192"), "{message}");
    Events::of(&workspace, "path=/data/many").await;
}
