//! A container from before the bridge had a socket: started, reached over TCP, stopped and deleted like any other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::json;
use skep_testkit::{Expected, ReferenceBridge};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::installation::{Installation, OciRuntime};
use crate::model::converge_limit;

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_container_is_started_reached_stopped_and_deleted() {
    let skep = Installation::start(OciRuntime::Found).await;
    // Fetches the image.
    let other = skep.client.workspace("of today", None).await;
    let bot = skep.client.bot("of yesterday").await;
    let container = format!("mcp-{bot}");
    let data = skep.data_root().join("bots").join(&bot);
    std::fs::create_dir_all(&data).expect("a legacy data directory can be made");
    std::fs::write(data.join("file"), "kept").expect("a file can be written");
    // Our bridge listens on the loopback alone.
    let serve = "BRIDGE_TCP_ADDR=127.0.0.1:9091 /opt/old/bridge & exec nc -ll -p 9090 -e nc 127.0.0.1 9091";
    std::fs::write(data.join("serve"), serve).expect("a script can be written");
    make_legacy_container(&skep, &container, &data, &["/bin/sh", "/data/serve"]);

    assert_eq!(skep.client.act(&bot, "start").await["started"], true);
    let info = skep.client.info(&bot).await;
    assert_eq!(
        (info["legacy"].as_bool(), info["task_running"].as_bool()),
        (Some(true), Some(true))
    );
    assert_eq!(info["container_id"], container.as_str());
    assert_eq!(info["isolation"]["user_namespace"], false);
    assert!(info["ip"].is_string(), "{info}");
    assert_eq!(read(&skep, &bot).await, "kept");
    // Also where others run under crun, which would drop these.
    let mounts = skep.client.output(&bot, "cat /proc/self/mountinfo").await;
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/"));
    let root = root.expect("it has a root");
    assert!(root.contains("nosuid") && root.contains("nodev"), "{root}");

    // What an older server started is taken up by the next.
    for action in ["stop", "start", "restart"] {
        skep.client.act(&bot, action).await;
    }
    assert_eq!(read(&skep, &bot).await, "kept");
    skep.client.act(&bot, "stop").await;
    assert_eq!(skep.client.info(&bot).await["status"], "stopped");

    // A plain delete keeps its directory.
    let path = format!("/bots/{bot}/container");
    skep.client.good(Method::DELETE, &path, None).await;
    assert_eq!(
        skep.client.call(Method::GET, &path, None).await.0,
        StatusCode::NOT_FOUND
    );
    assert!(data.join("file").exists(), "the legacy data went with the container");
    let model = BTreeMap::from([(other, Expected::Running), (bot, Expected::Nothing)]);
    skep.traces().until_as_in(&model, converge_limit()).await;
}

/// What it has not is not tried in secret: the bridge of today behind it never sees such a call.
#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_bridge_with_the_references_service_alone_has_files_processes_and_terminals() {
    let skep = Installation::start(OciRuntime::Found).await;
    let other = skep.client.workspace("of today", None).await;
    let bot = skep.client.bot("of yesterday").await;
    let container = format!("mcp-{bot}");
    let data = skep.data_root().join("bots").join(&bot);
    std::fs::create_dir_all(&data).expect("a legacy data directory can be made");
    std::fs::write(data.join("file"), "kept").expect("a file can be written");
    make_legacy_container(&skep, &container, &data, &["/opt/old/bridge"]);
    let socket = data.join("bridge.sock");

    // Its network is made within the start, and the start waits for the bridge.
    let (started, bridge) = tokio::join!(skep.client.act(&bot, "start"), old_bridge(&bot, &socket));
    assert_eq!(started["started"], true);
    assert_eq!(read(&skep, &bot).await, "kept");
    let path = |route: &str| format!("/bots/{bot}/container{route}");
    let body = json!({"path": "/data/written", "content": "by the server"});
    skep.client.good(Method::POST, &path("/fs/write"), Some(body)).await;
    assert_eq!(
        std::fs::read_to_string(data.join("written")).expect("it was written"),
        "by the server"
    );
    let ended = skep.client.exec(&bot, "cat /data/written; echo bad >&2; exit 7").await;
    assert_eq!(
        (ended.exit_code, ended.stdout.as_str(), ended.stderr.as_str()),
        (7, "by the server", "bad\n")
    );
    assert_eq!(terminal(&skep, &bot, "echo in-$((40 + 2)); exit 5").await, "exit 5");
    let copy = json!({"from": "/data/file", "to": "/data/copy"});
    let (status, refused) = skep.client.call(Method::POST, &path("/fs/copy"), Some(copy)).await;
    assert_eq!(
        (status, refused["code"].as_str()),
        (StatusCode::NOT_IMPLEMENTED, Some("unsupported")),
        "{refused}"
    );

    skep.client.act(&bot, "stop").await;
    drop(bridge);
    let (_, bridge) = tokio::join!(skep.client.act(&bot, "start"), old_bridge(&bot, &socket));
    assert_eq!(skep.client.output(&bot, "cat /data/written").await, "by the server");
    skep.client.act(&bot, "stop").await;
    drop(bridge);
    skep.client.good(Method::DELETE, &path(""), None).await;
    let model = BTreeMap::from([(other, Expected::Running), (bot, Expected::Nothing)]);
    skep.traces().until_as_in(&model, converge_limit()).await;
}

/// Entry by entry, and what is in them; but for what a bridge leaves beside its socket.
const SHOWN: &str = "(find . ! -name . ! -name 'bridge.*' -exec stat -c '%n %F %a %u:%g %Y' {} +; \
                     find . -type f ! -name 'bridge.*' -exec sha256sum {} +; find . -type l -exec readlink {} \\;; \
                     test one -ef venv/two && echo linked) | tr -cd '\\12\\40-\\176'";

fn lines(shown: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = shown.lines().collect();
    lines.sort_unstable();
    assert!(lines.len() > 60, "{shown}");
    lines
}

/// The directory that was bound to its `/data` is what is kept, with all it holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_container_that_is_deleted_with_its_data_kept_comes_back_as_one_of_today() {
    let skep = Installation::start(OciRuntime::Found).await;
    let other = skep.client.workspace("of today", None).await;
    let bot = skep.client.bot("of yesterday").await;
    let data = skep.data_root().join("bots").join(&bot);
    std::fs::create_dir_all(&data).expect("a legacy data directory can be made");
    skep_testkit::trees::make_hard_tree(&data).expect("a tree can be made");
    std::fs::write(data.join("file"), "kept").expect("a file can be written");
    let serve = "BRIDGE_TCP_ADDR=127.0.0.1:9091 /opt/old/bridge & exec nc -ll -p 9090 -e nc 127.0.0.1 9091";
    std::fs::write(data.join("serve"), serve).expect("a script can be written");
    let before = Command::new("/bin/busybox")
        .args(["sh", "-c", SHOWN])
        .current_dir(&data)
        .output();
    let before = String::from_utf8_lossy(&before.expect("it can be shown").stdout).into_owned();
    make_legacy_container(&skep, &format!("mcp-{bot}"), &data, &["/bin/sh", "/data/serve"]);
    skep.client.act(&bot, "start").await;
    assert_eq!(read(&skep, &bot).await, "kept");

    let path = format!("/bots/{bot}/container");
    skep.client
        .good(Method::DELETE, &format!("{path}?preserve_data=true"), None)
        .await;
    let migrated = data.with_extension("migrated");
    assert!(!data.exists());
    assert!(migrated.join("venv/two").exists(), "nothing of it was taken away");
    let listed = skep
        .client
        .good(Method::GET, &format!("/bots/{bot}/backups"), None)
        .await;
    let backup = &listed["items"][0];
    assert_eq!(
        (&backup["name"], &backup["verified"]),
        (&json!(format!("{bot}.tar.gz")), &json!(true))
    );

    let events = skep.client.create(&bot, json!({})).await;
    let last = events.last().expect("a create tells something");
    assert_eq!(last["type"], "complete", "{events:?}");
    let info = skep.client.info(&bot).await;
    assert_eq!(
        (&info["legacy"], &info["has_preserved_data"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(info["container_id"], format!("workspace-{bot}"));
    assert_eq!(read(&skep, &bot).await, "kept");
    let shown = skep.client.output(&bot, SHOWN).await;
    assert_eq!(lines(&shown), lines(&before));
    let model = BTreeMap::from([(other, Expected::Running), (bot, Expected::Running)]);
    skep.traces().until_as_in(&model, converge_limit()).await;
}

/// Answers on the port of old bridges, in the network of a workspace that is about to start.
async fn old_bridge(bot: &str, socket: &Path) -> ReferenceBridge {
    let namespace = PathBuf::from(format!("/run/netns/skep-{bot}"));
    let limit = std::time::Instant::now() + Duration::from_secs(30);
    // What it passes calls on to: the socket of the last run refuses them until this one listens.
    while let Err(error) = std::os::unix::net::UnixStream::connect(socket) {
        assert!(std::time::Instant::now() < limit, "{}: {error}", socket.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    loop {
        // The file is there before the namespace is mounted on it.
        match ReferenceBridge::serve_inside(&namespace, 9090, socket.to_owned()) {
            Ok(bridge) => return bridge,
            Err(error) => assert!(std::time::Instant::now() < limit, "{}: {error}", namespace.display()),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Types a line into a new terminal and returns how it ended.
async fn terminal(skep: &Installation, bot: &str, line: &str) -> String {
    let url = format!("{}/bots/{bot}/container/terminal/ws?cols=80&rows=24", skep.client.url);
    let mut request = url.replace("http://", "ws://").into_client_request().expect("a URL");
    let token = format!("Bearer {}", skep.client.token).parse().expect("a header");
    request.headers_mut().insert("authorization", token);
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.expect("a socket");
    let typed = Message::Binary(format!("{line}\n").into_bytes().into());
    socket.send(typed).await.expect("it can be typed");
    let mut shown = String::new();
    loop {
        let frame = tokio::time::timeout(Duration::from_secs(20), socket.next()).await;
        match frame {
            Ok(Some(Ok(Message::Binary(bytes)))) => shown.push_str(&String::from_utf8_lossy(&bytes)),
            Ok(Some(Ok(Message::Close(Some(close))))) => {
                assert!(shown.contains("in-42\r\n"), "{shown}");
                return close.reason.to_string();
            }
            Ok(Some(Ok(_))) => {}
            other => panic!("{other:?} after {shown:?}"),
        }
    }
}

/// Its data is where nothing of ours is kept: a backup of what is found in our own places would not be its data.
#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_container_whose_data_is_elsewhere_is_not_deleted_as_if_it_were_kept() {
    let skep = Installation::start(OciRuntime::Found).await;
    // Has the image pulled.
    skep.client.workspace("of today", None).await;
    let bot = skep.client.bot("of elsewhere").await;
    let elsewhere = tempfile::tempdir().expect("a directory can be made");
    std::fs::write(elsewhere.path().join("file"), "its own").expect("a file can be written");
    let container = format!("mcp-{bot}");
    make_legacy_container(&skep, &container, elsewhere.path(), &["/bin/sleep", "1000"]);
    let path = format!("/bots/{bot}/container");
    let in_our_place = skep.data_root().join("bots").join(&bot);
    for is_there in [false, true] {
        if is_there {
            std::fs::create_dir_all(&in_our_place).expect("a directory can be made");
        }
        let kept = skep
            .client
            .request(Method::DELETE, &format!("{path}?preserve_data=true"));
        let kept = kept.send().await.expect("an answer");
        assert_eq!(kept.status(), StatusCode::CONFLICT, "{:?}", kept.text().await);
        let listed = skep.ctr(&["containers", "ls", "-q"]);
        assert!(String::from_utf8_lossy(&listed.stdout).contains(&container));
    }
    skep.client.good(Method::DELETE, &path, None).await;
    let file = std::fs::read_to_string(elsewhere.path().join("file"));
    assert_eq!(file.expect("it is there"), "its own");
}

/// A file that both kinds of bridges read.
async fn read(skep: &Installation, bot: &str) -> String {
    let path = format!("/bots/{bot}/container/fs/read?path=/data/file");
    let read = skep.client.good(Method::GET, &path, None).await;
    read["content"].as_str().expect("the content is text").to_owned()
}

/// As the reference system left them, but for its process: our bridge, where an old one would be.
fn make_legacy_container(skep: &Installation, container: &str, data: &Path, process: &[&str]) {
    let runtime = skep.data_root().join("runtime");
    let mount = |source: &Path, place: &str, options: &str| {
        format!("type=bind,src={},dst={place},options={options}", source.display())
    };
    let (data, runtime) = (
        mount(data, "/data", "rbind:rw"),
        mount(&runtime, "/opt/old", "rbind:ro"),
    );
    let image = skep.registry.reference("test/busybox", "1");
    let mut arguments = vec![
        "containers",
        "create",
        "--mount",
        &data,
        "--mount",
        &runtime,
        "--env",
        "BRIDGE_SOCKET_PATH=/data/bridge.sock",
        &image,
        container,
    ];
    arguments.extend(process);
    let made = skep.ctr(&arguments);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let listed = skep.ctr(&["containers", "ls", "-q"]);
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains(container),
        "{}",
        json!(arguments)
    );
}
