//! Answers that nobody takes, and what is left for others of the same user.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::{Workspace, until};

/// Bytes that a connection's own buffers take little of.
const LITTLE: u32 = 4096;

/// The answer has begun, and nobody takes more of it.
pub(super) async fn begun(workspace: &Workspace, route: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(LITTLE).expect("a small buffer");
    let address = workspace.server.running().address();
    let mut connection = socket.connect(address).await.expect("the server is there");
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {}\r\n\r\n",
        workspace.path(route),
        workspace.server.admin_key()
    );
    connection.write_all(request.as_bytes()).await.expect("sent");
    let mut head = [0; 12];
    connection.read_exact(&mut head).await.expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200", "{route}");
    connection
}

async fn search(workspace: &Workspace, pattern: &str) -> (u16, Value) {
    let query = format!("/fs/search?path=/data/lines&pattern={pattern}&max_results=10000");
    let answer = workspace.get(&query).await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn searches_and_outputs_of_commands_take_of_a_users_room_too() {
    let workspace = Workspace::start().await;
    // Read they take 16 MiB and 4 MiB; seven and two of them are all that a user has.
    let files = "head -c 8388608 /dev/zero > /data/large; head -c 2097152 /dev/zero > /data/less; \
        yes $(head -c 900 /dev/zero | tr '\\0' x) | head -n 6000 > /data/lines; echo needle >> /data/lines";
    workspace.output_of(files).await;
    let wide = "for i in $(seq 300); do printf '%01024d' $i; done; echo end >&2; exit 7";
    let whole = workspace.run(wide).await;
    assert_eq!(
        (&whole["stdout_truncated"], &whole["exit_code"]),
        (&json!(false), &json!(7))
    );
    let (status, found) = search(&workspace, "xx").await;
    assert_eq!((status, found["matches"].as_array().map(Vec::len)), (200, Some(6000)));
    let mut untaken = Vec::new();
    for file in ["/data/large"; 7].into_iter().chain(["/data/less"; 2]) {
        untaken.push(begun(&workspace, &format!("/fs/read?path={file}")).await);
    }
    let (refused, little) = tokio::join!(search(&workspace, "xx"), search(&workspace, "needle"));
    assert_eq!((refused.0, &refused.1["code"]), (429, &json!("rate_limited")));
    assert_eq!(little.1["matches"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        workspace.run(wide).await["stdout_truncated"],
        false,
        "outputs have their own"
    );
    drop(untaken);
    until(async || match search(&workspace, "xx").await {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // Of a mebibyte twenty outputs take more than a user has for them, for as long as their commands run.
    let long = "for fd in 1 2; do head -c 1048576 /dev/zero | tr '\\0' x >&$fd; done; \
        until [ -e /data/go ]; do sleep 0.1; done";
    let waiting = futures::future::join_all((0..10).map(|_| workspace.run(long)));
    let watching = async {
        let mut cut = Value::Null;
        until(async || {
            cut = workspace.run(wide).await;
            match cut["stdout_truncated"] == true {
                true => Ok(()),
                false => Err(cut["stdout_truncated"].to_string()),
            }
        })
        .await;
        let (status, _) = search(&workspace, "xx").await;
        assert_eq!(status, 200, "answers have their own");
        workspace.output_of("touch /data/go").await;
        cut
    };
    let (_, cut) = tokio::join!(waiting, watching);
    // It has run, and says how it ended. What it wrote is whole in its log.
    assert_eq!((&cut["exit_code"], &cut["stderr"]), (&json!(7), &json!("end\n")));
    assert_eq!(cut["stderr_truncated"], false);
    let (shown, all) = (cut["stdout"].as_str().unwrap(), whole["stdout"].as_str().unwrap());
    assert!(
        shown.len() < all.len() && all.starts_with(shown),
        "{} bytes",
        shown.len()
    );
    let log = format!(
        "/exec/{}/output?stream=stdout&offset=0",
        cut["exec_id"].as_str().unwrap()
    );
    assert!(workspace.get(&log).await.expect_status(200).text() == all);
    let again = workspace.run(wide).await;
    assert_eq!(again["stdout_truncated"], false, "{again}");
}
