//! Terminals over their socket.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::json;
use skep_testkit::server::TestServer;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::{LIMIT, SHOWN_WITHIN, Workspace, until};

pub(crate) type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

pub(crate) async fn connect(workspace: &Workspace, query: &str, origin: Option<&str>) -> Result<Socket, Error> {
    open_socket(workspace, &format!("/terminal/ws{query}"), origin).await
}

pub(crate) async fn open_socket(workspace: &Workspace, rest: &str, origin: Option<&str>) -> Result<Socket, Error> {
    let url = format!("{}{}", workspace.server.url(), workspace.path(rest));
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    let key = format!("Bearer {}", workspace.server.admin_key());
    request.headers_mut().insert("authorization", key.parse().unwrap());
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().unwrap());
    }
    tokio_tungstenite::connect_async(request)
        .await
        .map(|(socket, _)| socket)
}

/// What the terminal shows until it has shown `until`.
pub(crate) async fn read_until(socket: &mut Socket, until: &str) -> String {
    // Over all frames: a window that is quiet goes on with pings.
    let end = Instant::now() + SHOWN_WITHIN;
    let mut shown = String::new();
    while !shown.contains(until) {
        let frame = timeout_at(end, socket.next()).await;
        match frame {
            Ok(Some(Ok(Message::Binary(bytes)))) => shown.push_str(&String::from_utf8_lossy(&bytes)),
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            other => panic!("{other:?} in place of {until:?}, after {shown:?}"),
        }
    }
    shown
}

pub(crate) async fn read_close(socket: &mut Socket) -> (u16, String) {
    let end = Instant::now() + LIMIT;
    loop {
        let frame = timeout_at(end, socket.next()).await;
        match frame {
            Ok(Some(Ok(Message::Close(Some(close))))) => return (close.code.into(), close.reason.to_string()),
            Ok(Some(Ok(_))) => {}
            other => panic!("{other:?} in place of a close frame"),
        }
    }
}

pub(crate) async fn type_line(socket: &mut Socket, line: &str) {
    socket
        .send(Message::Binary(format!("{line}\n").into_bytes().into()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_shell_takes_keystrokes_and_sizes_and_tells_its_end() {
    let workspace = Workspace::start().await;
    let mut socket = connect(&workspace, "?cols=101&rows=31", None).await.unwrap();
    type_line(&mut socket, "echo begin-$TERM; stty size; pwd").await;
    let shown = read_until(&mut socket, "/data\r\n").await;
    assert!(
        shown.contains("begin-xterm-256color\r\n") && shown.contains("31 101\r\n"),
        "{shown}"
    );
    socket.send(Message::Text("nonsense".into())).await.unwrap();
    socket
        .send(Message::Text(r#"{"type":"resize","cols":55,"rows":22}"#.into()))
        .await
        .unwrap();
    type_line(
        &mut socket,
        "until test \"$(stty size)\" = '22 55'; do sleep 0.05; done; echo resized",
    )
    .await;
    read_until(&mut socket, "\nresized\r\n").await;
    type_line(&mut socket, "exit 9").await;
    assert_eq!(read_close(&mut socket).await, (1000, "exit 9".to_owned()));
}

/// Seconds that no other test sleeps, on a host where several may run.
pub(crate) fn seconds_of_its_own(number: u32) -> String {
    format!("{number}{:07}", std::process::id())
}

/// How many processes of this host sleep so long: those of a fake workspace are the host's.
fn sleepers(seconds: &str) -> usize {
    let expected = format!("sleep\0{seconds}\0");
    let processes = std::fs::read_dir("/proc").unwrap();
    let lines = processes.filter_map(|process| std::fs::read_to_string(process.ok()?.path().join("cmdline")).ok());
    lines.filter(|line| *line == expected).count()
}

pub(crate) async fn until_sleepers(seconds: &str, count: usize) {
    until(async || match sleepers(seconds) {
        found if found == count => Ok(()),
        found => Err(format!("{found} processes sleep {seconds} s")),
    })
    .await;
}

#[tokio::test]
async fn closing_the_window_ends_the_shells_processes() {
    let workspace = Workspace::start().await;
    let mut socket = connect(&workspace, "", None).await.unwrap();
    let seconds = seconds_of_its_own(7);
    let line = format!("(trap '' HUP TERM; exec sleep {seconds}) & sleep {seconds} & echo started");
    type_line(&mut socket, &line).await;
    read_until(&mut socket, "started\r\n").await;
    until_sleepers(&seconds, 2).await;
    socket.close(None).await.unwrap();
    let closed = std::time::Instant::now();
    until_sleepers(&seconds, 0).await;
    // Two seconds are promised, and after thirty comes a ping; the rest is for a machine that has other work.
    assert!(closed.elapsed() < Duration::from_secs(25), "{:?}", closed.elapsed());
}

#[tokio::test]
async fn a_window_that_nobody_types_in_is_closed_as_idle_whatever_it_shows() {
    let server = TestServer::with(&[("terminal.idle_timeout", "8s")]).await;
    let bot = server.bot_with_workspace().await;
    let workspace = Workspace { server, bot };
    let mut socket = connect(&workspace, "", None).await.unwrap();
    let seconds = seconds_of_its_own(8);
    let line = format!("sleep {seconds} & while :; do echo shown; sleep 0.1; done");
    type_line(&mut socket, &line).await;
    read_until(&mut socket, "shown\r\n").await;
    assert_eq!(read_close(&mut socket).await, (1001, "idle timeout".to_owned()));
    until_sleepers(&seconds, 0).await;
}

#[tokio::test]
async fn a_window_opens_on_a_detached_process_with_a_terminal() {
    let workspace = Workspace::start().await;
    let body = json!({"command": "read x; echo got-$x; exit 4", "detach": true, "pty": true});
    let started = workspace.post("/exec", body).await.expect_status(202).json();
    let id = started["exec_id"].as_str().unwrap();
    let mut socket = connect(&workspace, &format!("?exec_id={id}"), None).await.unwrap();
    type_line(&mut socket, "it").await;
    read_until(&mut socket, "got-it\r\n").await;
    assert_eq!(read_close(&mut socket).await, (1000, "exit 4".to_owned()));
}

#[tokio::test]
async fn a_lost_bridge_closes_the_window_with_1011() {
    let workspace = Workspace::start().await;
    let mut socket = connect(&workspace, "", None).await.unwrap();
    type_line(&mut socket, "echo up").await;
    read_until(&mut socket, "up\r\n").await;
    workspace
        .server
        .runtime()
        .kill_process_one(&workspace.bot.parse().unwrap())
        .unwrap();
    assert_eq!(read_close(&mut socket).await.0, 1011);
}

#[tokio::test]
async fn a_shell_that_cannot_be_started_closes_the_window_with_1011() {
    let workspace = Workspace::start().await;
    workspace.output_of("mv /bin/sh /bin/was-sh").await;
    let mut socket = connect(&workspace, "", None).await.unwrap();
    assert_eq!(read_close(&mut socket).await, (1011, "exec failed".to_owned()));
}

#[tokio::test]
async fn a_size_that_is_no_number_or_zero_is_the_default() {
    let workspace = Workspace::start().await;
    for query in ["?cols=x&rows=0", "?cols=0&rows=-3", ""] {
        let mut socket = connect(&workspace, query, None).await.unwrap();
        type_line(&mut socket, "stty size; echo shown-$((1 + 1))").await;
        let shown = read_until(&mut socket, "shown-2\r\n").await;
        assert!(shown.contains("\n24 80\r\n"), "{query}: {shown}");
    }
}

#[tokio::test]
async fn refusals_come_before_the_upgrade() {
    let workspace = Workspace::start().await;
    let status_of = |outcome: Result<Socket, Error>| match outcome {
        Err(Error::Http(response)) => response.status().as_u16(),
        other => panic!("not refused: {:?}", other.map(|_| ())),
    };
    assert_eq!(
        status_of(connect(&workspace, "", Some("https://evil.example")).await),
        403
    );
    assert_eq!(status_of(connect(&workspace, "?exec_id=none", None).await), 404);
    connect(&workspace, "", Some(&workspace.server.url())).await.unwrap();
    workspace.post("/stop", json!({})).await.expect_status(200);
    assert_eq!(status_of(connect(&workspace, "", None).await), 409);
    workspace.get("/terminal/ws").await.expect_status(400);
}

#[tokio::test]
async fn a_window_that_a_rollback_ends_is_closed_as_restarted() {
    let workspace = Workspace::start().await;
    workspace.post("/snapshots", json!({})).await.expect_status(200);
    let mut socket = connect(&workspace, "", None).await.unwrap();
    type_line(&mut socket, "echo begin-$TERM").await;
    read_until(&mut socket, "begin-xterm-256color\r\n").await;
    let back = workspace.post("/snapshots/rollback", json!({"version": 1})).await;
    back.expect_status(200);
    assert_eq!(read_close(&mut socket).await, (1012, "workspace restarted".to_owned()));
}

#[tokio::test]
async fn what_a_terminal_showed_is_kept_as_far_as_that_of_any_process() {
    let server = TestServer::with(&[("exec.log_bytes", "64KiB")]).await;
    let bot = server.bot_with_workspace().await;
    let workspace = Workspace { server, bot };
    let mut socket = connect(&workspace, "", None).await.unwrap();
    type_line(&mut socket, "yes | head -c 1000000; echo end-$((1 + 1))").await;
    read_until(&mut socket, "end-2\r\n").await;
    let listed = workspace.get("/exec").await.expect_status(200).json();
    let id = listed["items"][0]["exec_id"].as_str().unwrap().to_owned();
    let output = workspace.get(&format!("/exec/{id}/output?offset=0")).await;
    let from: u64 = output.expect_status(200).header("x-offset").parse().unwrap();
    assert!(from > 0, "everything was kept");
}

#[tokio::test]
async fn output_that_was_dropped_before_a_window_showed_it_is_told_and_never_passed_over() {
    let server = TestServer::with(&[("exec.log_bytes", "64KiB")]).await;
    let bot = server.bot_with_workspace().await;
    let workspace = Workspace { server, bot };
    let command = "stty raw -echo; head -c 1000000 /dev/zero; exit 0";
    let body = json!({"command": command, "detach": true, "pty": true});
    let started = workspace.post("/exec", body).await.expect_status(202).json();
    let id = started["exec_id"].as_str().unwrap();
    until(
        async || match workspace.get(&format!("/exec/{id}")).await.expect_status(200).json() {
            state if state["state"] == "exited" => Ok(()),
            state => Err(state.to_string()),
        },
    )
    .await;
    let mut from_the_first = connect(&workspace, &format!("?exec_id={id}&offset=0"), None)
        .await
        .unwrap();
    let (code, reason) = read_close(&mut from_the_first).await;
    assert_eq!(code, 1011, "{reason}");
    assert!(
        reason.ends_with("bytes of the output were dropped before they were read"),
        "{reason}"
    );
    let mut from_what_is_kept = connect(&workspace, &format!("?exec_id={id}"), None).await.unwrap();
    assert_eq!(read_close(&mut from_what_is_kept).await, (1000, "exit 0".to_owned()));
}

/// A terminal whose shell reads nothing once it has begun to sleep so long.
async fn window_that_reads_nothing(workspace: &Workspace, seconds: &str) -> Socket {
    let mut socket = connect(workspace, "", None).await.unwrap();
    let line = format!("stty raw -echo; echo $$ > shell; echo begun-$((1 + 1)); while :; do sleep {seconds}; done");
    type_line(&mut socket, &line).await;
    read_until(&mut socket, "begun-2").await;
    until_sleepers(seconds, 1).await;
    socket
}

#[tokio::test]
async fn a_window_whose_keystrokes_nobody_reads_is_resized_and_closed_at_once() {
    let workspace = Workspace::start().await;
    let seconds = seconds_of_its_own(6);
    let mut socket = window_that_reads_nothing(&workspace, &seconds).await;
    // More frames, and far more bytes, than a terminal takes in without a reader.
    for _ in 0..384 {
        let keys = vec![b'x'; 4096];
        socket.send(Message::Binary(keys.into())).await.unwrap();
    }
    let size = r#"{"type":"resize","cols":77,"rows":22}"#;
    socket.send(Message::Text(size.into())).await.unwrap();
    // The one that the shell sleeps on.
    let look = "stty size < /proc/$(cat shell)/fd/0";
    until(async || match workspace.run(look).await {
        size if size["stdout"] == "22 77\n" => Ok(()),
        size => Err(size.to_string()),
    })
    .await;
    socket.close(None).await.unwrap();
    until_sleepers(&seconds, 0).await;
}

#[tokio::test]
async fn a_window_with_more_keystrokes_than_wait_for_a_process_is_closed_with_a_reason() {
    let workspace = Workspace::start().await;
    let seconds = seconds_of_its_own(9);
    let (mut sink, mut frames) = window_that_reads_nothing(&workspace, &seconds).await.split();
    let typing = async {
        let keys = bytes::Bytes::from(vec![b'x'; 64 * 1024]);
        // Until the window is closed.
        while sink.send(Message::Binary(keys.clone())).await.is_ok() {}
    };
    let closing = async {
        loop {
            match tokio::time::timeout(Duration::from_secs(60), frames.next()).await {
                Ok(Some(Ok(Message::Close(Some(close))))) => return (u16::from(close.code), close.reason.to_string()),
                Ok(Some(Ok(_))) => {}
                other => panic!("{other:?} in place of a close frame"),
            }
        }
    };
    let (_, closed) = tokio::join!(typing, closing);
    assert_eq!(closed, (1008, "the keystrokes are not read".to_owned()));
    until_sleepers(&seconds, 0).await;
}

#[tokio::test]
async fn more_keystrokes_than_wait_at_once_all_come_to_a_process_that_reads_them() {
    let workspace = Workspace::start().await;
    let mut socket = connect(&workspace, "", None).await.unwrap();
    let line = "stty raw -echo; echo begun-$((1 + 1)); head -c 12582912 | wc -c";
    type_line(&mut socket, line).await;
    read_until(&mut socket, "begun-2").await;
    for _ in 0..192 {
        let keys = vec![b'x'; 64 * 1024];
        socket.send(Message::Binary(keys.into())).await.unwrap();
    }
    read_until(&mut socket, "12582912").await;
}

#[tokio::test]
async fn what_is_pasted_in_pieces_comes_whole_and_what_is_too_large_is_refused_by_name() {
    let workspace = Workspace::start().await;
    let mut socket = connect(&workspace, "", None).await.unwrap();
    type_line(
        &mut socket,
        "stty raw -echo; echo begun-$((1 + 1)); head -c 1355776 | wc -c",
    )
    .await;
    read_until(&mut socket, "begun-2").await;
    let (of_several, in_several) = (16 * LARGEST_FRAME, 307_200);
    send_in_frames(&mut socket, of_several).await;
    for piece in vec![b'x'; in_several].chunks(LARGEST_FRAME) {
        socket.send(Message::Binary(piece.to_vec().into())).await.unwrap();
    }
    read_until(&mut socket, "1355776").await;
    let too_large = vec![b'x'; LARGEST_FRAME + 1];
    socket.send(Message::Binary(too_large.into())).await.unwrap();
    let refused = (1009, "frames have at most 64 KiB".to_owned());
    assert_eq!(read_close(&mut socket).await, refused);
    let mut socket = connect(&workspace, "", None).await.unwrap();
    send_in_frames(&mut socket, 16 * LARGEST_FRAME + 1).await;
    let refused = (1009, "messages have at most 1024 KiB".to_owned());
    assert_eq!(read_close(&mut socket).await, refused);
}

/// The largest that is taken, in bytes.
const LARGEST_FRAME: usize = 64 * 1024;

/// So many bytes as one message.
async fn send_in_frames(socket: &mut Socket, bytes: usize) {
    for at in (0..bytes).step_by(LARGEST_FRAME) {
        let piece = vec![b'x'; LARGEST_FRAME.min(bytes - at)];
        let kind = match at {
            0 => Data::Binary,
            _ => Data::Continue,
        };
        let is_last = at + piece.len() == bytes;
        let frame = Frame::message(piece, OpCode::Data(kind), is_last);
        socket.send(Message::Frame(frame)).await.unwrap();
    }
}

#[tokio::test]
async fn a_socket_that_was_opened_is_in_the_audit_trail() {
    let workspace = Workspace::start().await;
    let mut socket = connect(&workspace, "", None).await.unwrap();
    type_line(&mut socket, "exit 0").await;
    read_close(&mut socket).await;
    until(async || {
        let path = format!("/audit?bot_id={}", workspace.bot);
        let trail = workspace.server.call("GET", &path).send().await.json();
        let items = trail["items"].as_array().expect("a list");
        let opened = items
            .iter()
            .any(|line| line["action"] == "GET /bots/{bot_id}/container/terminal/ws" && line["outcome"] == "101");
        opened.then_some(()).ok_or_else(|| format!("{items:?}"))
    })
    .await;
}
