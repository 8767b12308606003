//! A tenant puts something else in the place of its bridge: its own calls are told so in time, and nobody else's.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use skep_runtime::{BridgeEndpoint, Runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::Workspace;

/// Every try to reach a bridge ends within 10 s, there are two, and all callers share them.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(25);
/// Calls at once.
const CALLS: usize = 20;
/// How long a neighbour's small command may take meanwhile: as long as a try to connect. On a busy machine, where it
/// takes long anyhow, so many times that.
const NEIGHBOUR_WITHIN: Duration = Duration::from_secs(5);
const TIMES_THE_USUAL: u32 = 10;

/// What stands where the bridge's socket was.
#[derive(Clone, Copy, Debug)]
enum Instead {
    Nothing,
    File,
    Pipe,
    LinkToANeighbour,
    Garbage,
    Silence,
    EndAtOnce,
    AnotherProtocol,
    EndlessHeaders,
}

fn socket_of(workspace: &Workspace, bot: &str) -> PathBuf {
    let bot = bot.parse().expect("an id");
    let endpoint = workspace.server.runtime().bridge_endpoint(&bot).expect("it runs");
    match endpoint {
        BridgeEndpoint::Unix {
            directory, file_name, ..
        } => directory.join(file_name),
        BridgeEndpoint::Tcp(address) => panic!("{address} is no socket of a file system"),
    }
}

/// Ends what serves in its place.
struct Impostor(Option<JoinHandle<()>>);

impl Drop for Impostor {
    fn drop(&mut self) {
        if let Some(serving) = &self.0 {
            serving.abort();
        }
    }
}

impl Instead {
    /// Without a root of the tenant's: the fake runtime's tenants are this very user.
    fn put(self, socket: &Path, neighbour: &Path) -> Impostor {
        std::fs::remove_file(socket).expect("the socket is there");
        let bytes: &'static [u8] = match self {
            Self::Nothing => return Impostor(None),
            Self::File => {
                std::fs::write(socket, "text").expect("a file");
                return Impostor(None);
            }
            Self::Pipe => {
                let made = std::process::Command::new("mkfifo").arg(socket).status();
                assert!(made.expect("mkfifo is part of every Debian").success());
                return Impostor(None);
            }
            Self::LinkToANeighbour => {
                symlink(neighbour, socket).expect("a link");
                return Impostor(None);
            }
            Self::Garbage => &[0xfe; 65_536],
            Self::Silence | Self::EndAtOnce => &[],
            Self::AnotherProtocol => b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n",
            // Settings of HTTP/2, then frames of headers that are never whole.
            Self::EndlessHeaders => &[0, 0, 0, 4, 0, 0, 0, 0, 0],
        };
        let listener = UnixListener::bind(socket).expect("another server");
        Impostor(Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(self.serve(stream, bytes));
            }
        })))
    }

    async fn serve(self, mut stream: UnixStream, bytes: &'static [u8]) {
        if matches!(self, Self::EndAtOnce) || stream.write_all(bytes).await.is_err() {
            return;
        }
        // A frame of 16,384 bytes of headers for stream 1 that announces more, again and again.
        let mut frame = vec![0, 0x40, 0, 1, 0, 0, 0, 0, 1];
        frame.resize(9 + 16_384, 0x40);
        let mut sink = vec![0; 4096];
        loop {
            let goes_on = match self {
                Self::EndlessHeaders => stream.write_all(&frame).await.is_ok(),
                _ => stream.read(&mut sink).await.is_ok_and(|read| read > 0),
            };
            if !goes_on {
                return;
            }
            frame[3] = 9;
        }
    }
}

/// How long a neighbour's small command takes.
async fn neighbours_command(workspace: &Workspace, neighbour: &str) -> Duration {
    let begun = Instant::now();
    let path = format!("/bots/{neighbour}/container/exec");
    let call = workspace.server.call("POST", &path);
    let ran = call.json(&json!({"command": "echo works"})).send().await;
    assert_eq!(ran.expect_status(200).json()["stdout"], "works\n");
    begun.elapsed()
}

async fn is_told_in_time(instead: Instead) {
    let mut workspace = Workspace::start().await;
    let neighbour = workspace.server.bot_with_workspace().await;
    let mut usual = Duration::MAX;
    for _ in 0..3 {
        usual = usual.min(neighbours_command(&workspace, &neighbour).await);
    }
    let at_most = NEIGHBOUR_WITHIN.max(TIMES_THE_USUAL * usual);
    let sockets = (socket_of(&workspace, &workspace.bot), socket_of(&workspace, &neighbour));
    let impostor = instead.put(&sockets.0, &sockets.1);
    // The connection there is goes on to the true bridge: a new server has none.
    workspace.server.restart().await;
    let begun = Instant::now();
    let neighbours = async {
        for _ in 0..10 {
            let took = neighbours_command(&workspace, &neighbour).await;
            assert!(took < at_most, "{instead:?}: {took:?}, before {usual:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let workspace = &workspace;
    let calls = (0..CALLS).map(|number| async move {
        match number % 2 {
            0 => workspace.post("/exec", json!({"command": "true"})).await,
            _ => workspace.get("/fs/list?path=/data").await,
        }
    });
    let (answers, ()) = tokio::join!(futures::future::join_all(calls), neighbours);
    for answer in answers {
        let message = answer.expect_error(503, "bridge_unavailable");
        assert!(
            !message.contains(sockets.0.to_str().expect("text")),
            "a path of the host: {message}"
        );
    }
    assert!(begun.elapsed() < GIVEN_UP_WITHIN, "{instead:?}: {:?}", begun.elapsed());
    drop(impostor);
    workspace.get("").await.expect_status(200);
}

#[tokio::test]
async fn a_socket_that_is_gone_is_told() {
    is_told_in_time(Instead::Nothing).await;
}

#[tokio::test]
async fn a_file_in_place_of_the_socket_is_told() {
    is_told_in_time(Instead::File).await;
}

#[tokio::test]
async fn a_pipe_in_place_of_the_socket_is_told() {
    is_told_in_time(Instead::Pipe).await;
}

#[tokio::test]
async fn a_link_to_a_neighbours_socket_is_not_followed() {
    is_told_in_time(Instead::LinkToANeighbour).await;
}

#[tokio::test]
async fn a_server_of_garbage_is_told() {
    is_told_in_time(Instead::Garbage).await;
}

#[tokio::test]
async fn a_server_that_says_nothing_is_told() {
    is_told_in_time(Instead::Silence).await;
}

#[tokio::test]
async fn a_server_that_hangs_up_is_told() {
    is_told_in_time(Instead::EndAtOnce).await;
}

#[tokio::test]
async fn a_server_of_another_protocol_is_told() {
    is_told_in_time(Instead::AnotherProtocol).await;
}

#[tokio::test]
async fn a_server_of_headers_without_an_end_is_told() {
    is_told_in_time(Instead::EndlessHeaders).await;
}

#[tokio::test]
async fn a_restart_of_the_workspace_brings_its_bridge_back() {
    let mut workspace = Workspace::start().await;
    let socket = socket_of(&workspace, &workspace.bot);
    let impostor = Instead::EndAtOnce.put(&socket, &socket);
    workspace.server.restart().await;
    let answer = workspace.post("/exec", json!({"command": "true"})).await;
    answer.expect_error(503, "bridge_unavailable");
    workspace.post("/restart", json!({})).await.expect_status(200);
    assert_eq!(workspace.output_of("echo works").await, "works\n");
    drop(impostor);
}
