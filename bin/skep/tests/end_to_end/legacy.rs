//! A container from before the bridge had a socket: started, reached over TCP, stopped and deleted like any other.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;
use skep_testkit::Expected;

use crate::installation::{Installation, OciRuntime};

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
    make_legacy_container(&skep, &container, &data);

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
    skep.traces().until_as_in(&model, Duration::from_secs(10)).await;
}

/// The reference's service has no exec of ours: a file is what it can read.
async fn read(skep: &Installation, bot: &str) -> String {
    let path = format!("/bots/{bot}/container/fs/read?path=/data/file");
    let read = skep.client.good(Method::GET, &path, None).await;
    read["content"].as_str().expect("the content is text").to_owned()
}

/// As the reference system left them, but for its process: our bridge, told to listen on TCP.
fn make_legacy_container(skep: &Installation, container: &str, data: &std::path::Path) {
    let runtime = skep.data_root().join("runtime");
    let mount = |source: &std::path::Path, place: &str, options: &str| {
        format!("type=bind,src={},dst={place},options={options}", source.display())
    };
    let (data, runtime) = (
        mount(data, "/data", "rbind:rw"),
        mount(&runtime, "/opt/old", "rbind:ro"),
    );
    let image = skep.registry.reference("test/busybox", "1");
    let arguments = [
        "containers",
        "create",
        "--mount",
        &data,
        "--mount",
        &runtime,
        "--env",
        "BRIDGE_SOCKET_PATH=/tmp/bridge.sock",
        &image,
        container,
        "/bin/sh",
        "/data/serve",
    ];
    let made = skep.ctr(&arguments);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let listed = skep.ctr(&["containers", "ls", "-q"]);
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains(container),
        "{}",
        json!(arguments)
    );
}
