//! The limit of storage over HTTP: whatever adds to a workspace that is over it answers 507, and nothing else does.
//!
//! Every route that is served below a workspace is in one of the three lists, or the first test fails: whoever adds one
//! says which it is.

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use skep_testkit::server::{Answer, Call};

use crate::{Workspace, until};

/// Add to what a workspace holds.
const ADDING: &[&str] = &[
    "POST /data/import",
    "POST /data/restore",
    "POST /fs/copy",
    "POST /fs/extract",
    "POST /fs/mkdir",
    "POST /fs/upload",
    "POST /fs/write",
    "PUT /fs/archive",
    "PUT /fs/upload",
];

/// Change something and add nothing, or act inside, where the limit is not looked at.
const NOT_ADDING: &[&str] = &[
    "DELETE ",
    "DELETE /exec/{exec_id}",
    "DELETE /snapshots/{version}",
    "PATCH /snapshots/{version}",
    "POST ",
    "POST /data/export",
    "POST /exec",
    "POST /exec/{exec_id}/resize",
    "POST /exec/{exec_id}/signal",
    "POST /exec/{exec_id}/stdin",
    "POST /fs/archive",
    "POST /fs/chmod",
    "POST /fs/delete",
    "POST /fs/rename",
    "POST /restart",
    "POST /snapshots",
    "POST /snapshots/rollback",
    "POST /start",
    "POST /stop",
    "PUT /limits",
];

/// Answer 501 in this version.
const LATER: &[&str] = &[
    "DELETE /skills",
    "POST /skills",
    "POST /skills/actions",
    "POST /skills/install",
];

const BELOW: &str = "/bots/{bot_id}/container";
const HUGE: u64 = 1 << 40;

/// What changes something below a workspace, as `POST /fs/write`, with its description.
async fn changing(workspace: &Workspace) -> Vec<(String, Value)> {
    let document = workspace.server.call("GET", "/api/openapi.json").send().await.json();
    let paths = document["paths"].as_object().expect("paths").clone();
    let below = paths
        .into_iter()
        .filter_map(|(path, item)| Some((path.strip_prefix(BELOW)?.to_owned(), item)));
    let mut routes = Vec::new();
    for (path, item) in below {
        for method in ["post", "put", "patch", "delete"] {
            if let Some(described) = item.get(method) {
                routes.push((format!("{} {path}", method.to_uppercase()), described.clone()));
            }
        }
    }
    routes
}

impl Workspace {
    async fn set_limit(&self, bytes: u64) {
        let call = self.server.call("PUT", &self.path("/limits"));
        let set = call.json(&json!({"storage_bytes": bytes})).send().await;
        let limits = set.expect_status(200).json();
        for told in ["wanted", "applied"] {
            assert_eq!(limits[told]["storage_bytes"], bytes, "{limits}");
        }
    }

    /// Waits until it is known to be over its limit, or within.
    async fn until_over(&self, wanted: bool) {
        until(async || match self.get("").await.json() {
            info if info["storage_over_limit"] == wanted => Ok(()),
            info => Err(info.to_string()),
        })
        .await;
    }

    /// Holds a file and an archive of it, and has a backup.
    async fn with_files() -> Self {
        let workspace = Self::start().await;
        let keep = workspace.path("?preserve_data=true");
        workspace.server.call("DELETE", &keep).send().await.expect_status(204);
        let create = workspace.server.call("POST", &workspace.path(""));
        let create = create.header("accept", "application/json");
        let made = create.json(&json!({"restore_data": false})).send().await;
        made.expect_status(200);
        workspace.output_of("echo old > old && tar cf old.tar old").await;
        workspace
    }

    /// A request of this route that is a good one.
    fn adding(&self, route: &str, archive: &[u8]) -> Call {
        let (method, path) = route.split_once(' ').expect("a method and a path");
        let query = match route {
            "PUT /fs/upload" => "?path=/data/raw",
            "PUT /fs/archive" => "?path=/data/tree",
            _ => "",
        };
        let call = self.server.call(method, &self.path(&format!("{path}{query}")));
        let part = |rest: &str| format!("--cut\r\nContent-Disposition: form-data; {rest}\r\n");
        let path = part("name=\"path\"\r\n\r\n/data/form");
        let file = part("name=\"file\"; filename=\"x\"\r\n\r\nnew");
        match route {
            "POST /fs/write" => call.json(&json!({"path": "/data/written", "content": "new"})),
            "POST /fs/mkdir" => call.json(&json!({"path": "/data/made"})),
            "POST /fs/copy" => call.json(&json!({"from": "/data/old", "to": "/data/copied"})),
            "POST /fs/extract" => call.json(&json!({"path": "/data/old.tar", "to": "/data/extracted"})),
            "POST /fs/upload" => call.body("multipart/form-data; boundary=cut", format!("{path}{file}--cut--\r\n")),
            "PUT /fs/upload" | "PUT /fs/archive" | "POST /data/import" => {
                call.body("application/octet-stream", archive.to_vec())
            }
            "POST /data/restore" => call.json(&json!({})),
            other => panic!("{other} has no request here"),
        }
    }

    async fn remove(&self, path: &str) -> Answer {
        self.post("/fs/delete", json!({"path": path})).await
    }
}

#[tokio::test]
async fn every_route_that_is_served_is_known_to_add_or_not_and_says_so() {
    let workspace = Workspace::start().await;
    let mut known = BTreeSet::new();
    for route in ADDING.iter().chain(NOT_ADDING).chain(LATER) {
        assert!(known.insert((*route).to_owned()), "{route} is in two lists");
    }
    let routes = changing(&workspace).await;
    let served: BTreeSet<String> = routes.iter().map(|(route, _)| route.clone()).collect();
    assert_eq!(
        served, known,
        "say of a new route whether it adds to what a workspace holds"
    );
    for (route, described) in routes {
        let of_507 = &described["responses"]["507"]["description"];
        let says_507 = of_507
            .as_str()
            .is_some_and(|text| text.contains("over the storage limit"));
        let says_501_alone = described["summary"]
            .as_str()
            .is_some_and(|text| text.starts_with("Not in this version"));
        assert_eq!(says_507, ADDING.contains(&route.as_str()), "{route}: {described}");
        assert_eq!(says_501_alone, LATER.contains(&route.as_str()), "{route}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_adds_to_a_workspace_over_its_limit_answers_507_and_adds_nothing() {
    let workspace = Workspace::with_files().await;
    let archive = workspace.get("/fs/download?path=/data/old.tar").await.body.to_vec();
    workspace.set_limit(1).await;
    workspace.until_over(true).await;
    for route in ADDING {
        let refused = workspace.adding(route, &archive).send().await;
        assert_eq!(refused.status, 507, "{route}: {}", refused.text());
        let message = refused.expect_error(507, "disk_full");
        assert!(message.contains("storage limit"), "{route}: {message}");
    }
    assert_eq!(workspace.output_of("ls").await, "old\nold.tar\n");
    // The requests were good ones: within the limit each is done.
    workspace.set_limit(HUGE).await;
    workspace.until_over(false).await;
    for route in ADDING {
        let done = workspace.adding(route, &archive).send().await;
        assert_eq!(done.status, 200, "{route}: {}", done.text());
    }
    let all = "copied\nextracted\nform\nmade\nold\nold.tar\nraw\ntree\nwritten\n";
    assert_eq!(workspace.output_of("ls").await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_over_its_limit_is_used_and_cleaned_up_and_then_takes_files_again() {
    let workspace = Workspace::with_files().await;
    workspace.output_of("head -c 33554432 /dev/zero > big; sync big").await;
    workspace.set_limit(16 << 20).await;
    workspace.until_over(true).await;
    let write = async || {
        let body = json!({"path": "/data/new", "content": "new"});
        workspace.post("/fs/write", body).await
    };
    write().await.expect_error(507, "disk_full");
    let renamed = json!({"oldPath": "/data/big", "newPath": "/data/large"});
    workspace.post("/fs/rename", renamed).await.expect_status(200);
    let mode = json!({"path": "/data/large", "mode": "0600"});
    workspace.post("/fs/chmod", mode).await.expect_status(200);
    let checks = workspace.server.call("GET", &format!("/bots/{}/checks", workspace.bot));
    let checks = checks.send().await.expect_status(200).json();
    let probes = checks["items"].as_array().expect("items");
    let probe = probes.iter().find(|item| item["type"] == "container.data_path");
    assert_eq!(probe.expect("a probe")["status"], "ok", "{checks}");
    workspace.remove("/data/large").await.expect_status(200);
    // Who tries has it counted again, long before the minute is over.
    until(async || match write().await {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.text()),
    })
    .await;
}

#[tokio::test]
async fn one_over_its_limit_says_so_in_its_first_event() {
    let workspace = Workspace::start().await;
    workspace.set_limit(1).await;
    workspace.until_over(true).await;
    until(async || {
        let mut stream = workspace.server.call("GET", &workspace.path("/events")).open().await;
        let piece = stream.chunk().await.expect("the stream is whole").expect("an event");
        let text = String::from_utf8_lossy(&piece).into_owned();
        match text.contains("\"storage_over_limit\":true") && text.contains("\"status\":\"running\"") {
            true => Ok(()),
            false => Err(text),
        }
    })
    .await;
}

/// The header of a tar archive's only file, which is of a gibibyte.
fn header_of_a_large_file() -> Bytes {
    let tree = tempfile::tempdir().expect("a directory");
    let file = std::fs::File::create(tree.path().join("large")).expect("a file");
    file.set_len(1 << 30).expect("holes");
    let mut tar = Command::new("tar")
        .args(["--create", "--format=ustar", "--directory"])
        .arg(tree.path())
        .arg("large")
        .stdout(Stdio::piped())
        .spawn()
        .expect("tar runs");
    let mut header = vec![0; 512];
    let mut output = tar.stdout.take().expect("a pipe");
    output.read_exact(&mut header).expect("a header");
    drop(output);
    tar.wait().expect("tar ends");
    header.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_crosses_the_limit_on_its_way_answers_507_and_puts_nothing_in_place() {
    let workspace = Workspace::with_files().await;
    workspace.set_limit(8 << 20).await;
    workspace.until_over(false).await;
    for route in ["/fs/upload?path=/data/large", "/fs/archive?path=/data/tree"] {
        let header = futures::stream::iter([header_of_a_large_file()]);
        let pieces = header.chain(futures::stream::repeat(Bytes::from_static(&[0; 1 << 19])));
        let slowly = pieces.then(async |piece| {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok::<_, std::io::Error>(piece)
        });
        let call = workspace.server.call("PUT", &workspace.path(route));
        let call = call.body("application/octet-stream", reqwest::Body::wrap_stream(slowly));
        let refused = call.send().await;
        let message = refused.expect_error(507, "disk_full");
        assert!(message.contains("storage limit"), "{route}: {message}");
        workspace.output_of("rm -rf tree").await;
        // What was written of it is gone, and whoever tries has that counted.
        until(
            async || match workspace.post("/fs/mkdir", json!({"path": "/data"})).await {
                answer if answer.status == 200 => Ok(()),
                answer => Err(answer.text()),
            },
        )
        .await;
    }
    assert_eq!(workspace.output_of("ls -A").await, "old\nold.tar\n");
}
