//! Archives into `/data` over real HTTP: all of one, or nothing.

use std::io::Write;

use serde_json::{Value, json};
use skep_testkit::fake_runtime::Verb;
use skep_testkit::server::{Answer, TestServer};
use skep_testkit::trees::{self, Tree};

use crate::Workspace;

const IMPORT: &str = "/data/import";
const BOUNDARY: &str = "multipart/form-data; boundary=cut";

impl Workspace {
    async fn with(keys: &[(&str, &str)]) -> Self {
        let server = TestServer::with(keys).await;
        let bot = server.bot_with_workspace().await;
        Self { server, bot }
    }

    async fn import(&self, query: &str, archive: &[u8]) -> Answer {
        let call = self.server.call("POST", &self.path(&format!("{IMPORT}{query}")));
        call.body("application/gzip", archive.to_vec()).send().await
    }

    async fn act(&self, action: &str) {
        self.post(action, json!({})).await.expect_status(200);
    }

    async fn runs(&self) -> bool {
        self.get("").await.expect_status(200).json()["task_running"] == true
    }

    /// Nothing that was received is left.
    fn spool_is_empty(&self) -> bool {
        let spool = self.server.directory().join("data/imports");
        std::fs::read_dir(spool).expect("the spool").next().is_none()
    }
}

fn form(archive: &[u8]) -> Vec<u8> {
    let head = b"--cut\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nhello\r\n\
                 --cut\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.tar\"\r\n\r\n";
    [&head[..], archive, b"\r\n--cut--\r\n"].concat()
}

fn archive_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_bytes()).expect("added");
    }
    tar.into_inner().expect("whole")
}

/// One entry of any kind, whose name is taken as it is.
fn raw_entry(name: &str, kind: tar::EntryType, link: &str) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o4755);
    header.set_size(0);
    header.set_uid(100_000);
    header.set_gid(0);
    header.set_cksum();
    header
}

fn raw(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, link) in entries {
        bytes.extend_from_slice(raw_entry(name, *kind, link).as_bytes());
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(bytes).expect("written");
    gzip.finish().expect("whole")
}

/// What an import of an export must make of a tree: no pipes and sockets, no setuid and setgid, no access lists.
fn carried(tree: Tree) -> Tree {
    let mut carried = Tree::new();
    for (name, words) in tree {
        let (mode, rest) = words.split_once(' ').expect("a mode comes first");
        let mode = u32::from_str_radix(mode, 8).expect("in octal");
        if matches!(mode & 0o170_000, 0o010_000 | 0o140_000) {
            continue;
        }
        let without_list = rest.split_once(r#"{"system.posix_acl_"#);
        let rest = without_list.map_or(rest.to_owned(), |(rest, _)| format!("{rest}{{}}"));
        carried.insert(name, format!("{:o} {rest}", mode & !0o6000));
    }
    carried
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_is_hard_to_carry_is_equal_in_another_workspace() {
    for stopped in [false, true] {
        let from = Workspace::start().await;
        let data = from.data();
        std::fs::create_dir_all(&data).expect("a directory");
        trees::make_hard_tree(&data).expect("a tree");
        let before = trees::describe(&data).expect("a tree");
        let to = Workspace::start().await;
        if stopped {
            from.act("/stop").await;
            to.act("/stop").await;
        }
        let export = from.get("/data/export?format=tar.zst").await;
        export.expect_status(200);
        let estimate: u64 = export.header("x-export-bytes-estimate").parse().expect("a number");
        assert!((10_000..1 << 20).contains(&estimate), "{estimate}");
        let report = to.import("?mode=replace", &export.body).await.expect_status(200).json();
        assert_eq!(report["imported"], true);
        assert_eq!(
            (&report["skipped"], &report["remapped"]),
            (&json!(0), &json!(0)),
            "{report}"
        );
        assert_eq!(report["cleared"], 3, "{report}");
        let expected = carried(before);
        let found = trees::describe(&to.data()).expect("a tree");
        for (name, was) in &expected {
            assert_eq!(found.get(name), Some(was), "{}", String::from_utf8_lossy(name));
        }
        assert_eq!(found.len(), expected.len());
        assert_eq!(
            report["entries"],
            json!(expected.len() - 1),
            "/data itself is not counted"
        );
        assert_eq!(to.runs().await, !stopped);
        assert!(to.spool_is_empty());
    }
}

#[tokio::test]
async fn an_import_merges_or_replaces_as_a_form_and_as_the_body() {
    let workspace = Workspace::start().await;
    workspace.output_of("echo before > kept; echo before > both").await;
    let archive = archive_of(&[("both", "after\n"), ("d/new", "new\n")]);
    let call = workspace.server.call("POST", &workspace.path(IMPORT));
    let answer = call.body(BOUNDARY, form(&gzipped(&archive))).send().await;
    let report = answer.expect_status(200).json();
    assert_eq!(
        report,
        json!({"imported": true, "entries": 2, "bytes": 10, "skipped": 0, "remapped": 0, "cleared": 0})
    );
    assert_eq!(workspace.output_of("cat kept both d/new").await, "before\nafter\nnew\n");
    let operation = answer.header("x-operation-id").to_owned();
    let operation = workspace.server.call("GET", &format!("/operations/{operation}"));
    let operation = operation.send().await.expect_status(200).json();
    assert_eq!(
        (&operation["kind"], &operation["state"]),
        (&json!("import"), &json!("succeeded"))
    );
    workspace.import("?mode=replace", &archive).await.expect_status(200);
    assert_eq!(workspace.output_of("find . -type f | sort").await, "./both\n./d/new\n");
    assert!(workspace.spool_is_empty());
}

#[tokio::test]
async fn a_name_that_an_archive_has_twice_is_counted_once() {
    let workspace = Workspace::start().await;
    let archive = archive_of(&[("file", "before\n"), ("other", "other\n"), ("file", "after\n")]);
    let report = workspace.import("", &archive).await.expect_status(200).json();
    assert_eq!(
        (&report["entries"], &report["bytes"]),
        (&json!(2), &json!(12)),
        "{report}"
    );
    assert_eq!(workspace.output_of("cat file other").await, "after\nother\n");
}

#[tokio::test]
async fn what_is_left_out_or_cleared_is_counted() {
    use tar::EntryType::{Block, Char, Directory, Fifo, Regular};
    let workspace = Workspace::start().await;
    let archive = raw(&[
        ("device", Char, ""),
        ("disk", Block, ""),
        ("pipe", Fifo, ""),
        ("setuid", Regular, ""),
        ("directory/", Directory, ""),
    ]);
    let report = workspace.import("", &archive).await.expect_status(200).json();
    assert_eq!(
        (&report["skipped"], &report["remapped"]),
        (&json!(3), &json!(2)),
        "{report}"
    );
    assert_eq!(
        (&report["entries"], &report["cleared"]),
        (&json!(2), &json!(2)),
        "{report}"
    );
    let found = workspace.output_of("stat -c '%n %a %u' *").await;
    assert_eq!(found, "directory 755 65534\nsetuid 755 65534\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_mean_harm_are_refused_and_nothing_is_changed() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let workspace = Workspace::with(&[("import.max_entries", "3"), ("import.max_bytes", "100MiB")]).await;
    workspace
        .output_of("mkdir -p full/of; echo here > full/of/it; ln -s /etc link; echo here > file")
        .await;
    let before = trees::describe(&workspace.data()).expect("a tree");
    let whole = archive_of(&[("a", "1"), ("b", "2")]);
    let file = |name| (name, Regular, "");
    let cases = [
        ("an absolute name", raw(&[file("/etc/evil")])),
        ("`..`", raw(&[file("a/../../evil")])),
        (
            "through a link of its own",
            raw(&[("l", Symlink, "/etc"), file("l/evil")]),
        ),
        ("through a link that is there", raw(&[file("link/evil")])),
        ("a hard link out", raw(&[("h", Link, "/etc/shadow")])),
        ("a hard link to what is not in it", raw(&[("h", Link, "file")])),
        ("a directory over a link", raw(&[("link/", Directory, "")])),
        ("a file over a full directory", raw(&[file("full")])),
        ("one entry too many", raw(&[file("a"), file("b"), file("c"), file("d")])),
        ("cut off", whole[..whole.len() - 1500].to_vec()),
        ("cut off in gzip", gzipped(&whole)[..60].to_vec()),
        ("no archive", b"hello".repeat(500)),
        ("nothing", Vec::new()),
        ("a bomb", gzipped(&archive_of(&[("zeros", &"\0".repeat(90 << 20))]))),
    ];
    for running in [true, false] {
        for (what, archive) in &cases {
            let answer = workspace.import("", archive).await;
            assert_eq!(answer.status, 400, "{what}: {}", answer.text());
            answer.expect_error(400, "archive_refused");
            let after = trees::describe(&workspace.data()).expect("a tree");
            assert_eq!(after, before, "{what}");
            assert_eq!(workspace.runs().await, running, "{what}");
            assert!(workspace.spool_is_empty(), "{what}");
        }
        if running {
            workspace.act("/stop").await;
        }
    }
}

#[tokio::test]
async fn an_archive_that_is_refused_interrupts_nothing() {
    let workspace = Workspace::start().await;
    let started = workspace
        .post("/exec", json!({"command": "sleep 600", "detach": true}))
        .await;
    let exec = started.expect_status(202).json()["exec_id"].clone();
    let refused = workspace
        .import("", &raw(&[("../evil", tar::EntryType::Regular, "")]))
        .await;
    refused.expect_error(400, "archive_refused");
    let exec = exec.as_str().expect("an id");
    let exec = workspace.get(&format!("/exec/{exec}")).await.expect_status(200).json();
    assert_eq!(
        exec["state"], "running",
        "it was never stopped for what could not come in"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_put_where_data_leads_as_a_link() {
    let workspace = Workspace::start().await;
    let outside = tempfile::tempdir().expect("a directory");
    std::fs::write(outside.path().join("canary"), "untouched").expect("a canary");
    workspace.act("/stop").await;
    for target in [outside.path(), std::path::Path::new("/")] {
        // A change from outside leaves it on another layer.
        let data = workspace.data();
        match std::fs::symlink_metadata(&data) {
            Ok(there) if there.is_dir() => std::fs::remove_dir_all(&data).expect("removed"),
            Ok(_) => std::fs::remove_file(&data).expect("removed"),
            Err(_) => {}
        }
        std::os::unix::fs::symlink(target, &data).expect("a link");
        for mode in ["", "?mode=replace"] {
            let archive = archive_of(&[("canary", "evil"), ("skep-evil", "evil")]);
            let refused = workspace.import(mode, &archive).await;
            assert_eq!(refused.status, 400, "{}", refused.text());
            assert!(!workspace.runs().await, "it was stopped and stays so");
        }
        assert!(workspace.data().is_symlink(), "it is what it was");
    }
    let canary = std::fs::read_to_string(outside.path().join("canary"));
    assert_eq!(canary.expect("the canary"), "untouched");
    assert!(!outside.path().join("skep-evil").exists() && !std::path::Path::new("/skep-evil").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_its_workspace_waits_for_an_import() {
    let workspace = Workspace::start().await;
    let other = workspace.server.bot_with_workspace().await;
    let runtime = workspace.server.runtime().clone();
    let hold = runtime.faults().hold(Verb::WriteData);
    let archive = archive_of(&[("file", "imported\n")]);
    let others = async {
        crate::until(async || match runtime.faults().calls(Verb::WriteData) {
            0 => Err("nothing is written yet".to_owned()),
            _ => Ok(()),
        })
        .await;
        let path = |rest: &str| format!("/bots/{other}/container{rest}");
        let call = |method, rest: &str| workspace.server.call(method, &path(rest));
        for (method, rest) in [("POST", "/snapshots"), ("POST", "/restart"), ("GET", "/data/export")] {
            call(method, rest).send().await.expect_status(200);
        }
        // Of the workspace itself it is told how it is.
        assert_eq!(workspace.get("").await.expect_status(200).json()["task_running"], false);
        drop(hold);
    };
    let (imported, ()) = tokio::join!(workspace.import("", &archive), others);
    imported.expect_status(200);
    assert_eq!(workspace.output_of("cat file").await, "imported\n");
}

#[tokio::test]
async fn a_body_that_is_no_import_is_refused() {
    let workspace = Workspace::start().await;
    let send = async |media_type: &str, body: Vec<u8>| {
        let call = workspace.server.call("POST", &workspace.path(IMPORT));
        call.body(media_type, body).send().await
    };
    let nothing = b"--cut\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\nx\r\n--cut--\r\n".to_vec();
    send(BOUNDARY, nothing).await.expect_error(400, "invalid_body");
    send("multipart/form-data", Vec::new())
        .await
        .expect_error(400, "invalid_body");
    let whole = form(&archive_of(&[("a", "1")]));
    let cut = send(BOUNDARY, whole[..whole.len() - 700].to_vec()).await;
    assert_eq!(cut.status, 400, "{}", cut.text());
    workspace
        .import("?mode=other", &archive_of(&[]))
        .await
        .expect_error(400, "invalid_argument");
    assert_eq!(workspace.output_of("ls").await, "");
    assert!(workspace.spool_is_empty());
}

#[tokio::test]
async fn a_bot_without_a_workspace_has_nothing_to_import_into() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let path = format!("/bots/{bot}/container{IMPORT}");
    let answer = server
        .call("POST", &path)
        .body("application/gzip", archive_of(&[]))
        .send()
        .await;
    answer.expect_error(404, "container_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fails_midway_leaves_everything_as_it_was() {
    let workspace = Workspace::start().await;
    workspace.output_of("echo before > file").await;
    let archive = archive_of(&[("file", "after\n"), ("other", "after\n")]);
    for running in [true, false] {
        for (verb, code) in [(Verb::WriteData, 507), (Verb::Swap, 507), (Verb::Commit, 507)] {
            let full = skep_runtime::RuntimeError::NoSpace {
                operation: "writing".to_owned(),
            };
            workspace.server.runtime().faults().fail_next(verb, full);
            workspace.import("", &archive).await.expect_error(code, "disk_full");
            assert_eq!(workspace.runs().await, running, "{verb:?}");
            let here = std::fs::read_to_string(workspace.data().join("file")).expect("a file");
            assert_eq!(here, "before\n", "{verb:?}");
            assert!(!workspace.data().join("other").exists(), "{verb:?}");
            assert!(workspace.spool_is_empty());
        }
        if running {
            workspace.act("/stop").await;
        }
    }
    workspace.import("", &archive).await.expect_status(200);
    assert!(!workspace.runs().await);
    workspace.act("/start").await;
    assert_eq!(workspace.output_of("cat file other").await, "after\nafter\n");
}

#[tokio::test]
async fn the_same_import_with_the_same_key_is_done_once() {
    let workspace = Workspace::start().await;
    let send = async |archive: Vec<u8>| {
        let call = workspace.server.call("POST", &workspace.path(IMPORT));
        let call = call.header("idempotency-key", "once").body("application/gzip", archive);
        call.send().await
    };
    let archive = archive_of(&[("file", "imported\n")]);
    let first: Value = send(archive.clone()).await.expect_status(200).json();
    workspace.output_of("echo changed > file").await;
    assert_eq!(send(archive).await.expect_status(200).json(), first);
    assert_eq!(workspace.output_of("cat file").await, "changed\n");
    send(archive_of(&[("file", "another\n")]))
        .await
        .expect_error(422, "idempotency_key_reused");
    assert!(workspace.spool_is_empty());
}

#[tokio::test]
async fn what_a_crash_left_of_received_archives_is_removed_at_the_start() {
    let mut workspace = Workspace::start().await;
    let left = workspace.server.directory().join("data/imports/left");
    std::fs::write(&left, "half").expect("written");
    workspace.server.restart().await;
    assert!(workspace.spool_is_empty());
}
