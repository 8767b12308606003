//! Terminals over their socket on real containerd: how long they live, what is left of them, and many at once.
//!
//! `make soak-terminal`, `make soak-terminal-hour` and `make soak-terminals` are the long forms.

use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{SinkExt, StreamExt, TryStreamExt, stream};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::files::MemoryWatch;
use crate::installation::{Installation, OciRuntime};
use crate::model::amount;

const LIMIT: Duration = Duration::from_secs(60);
/// Seconds from one ping of the server to the next.
const PING_EVERY: u64 = 30;
/// An echo in a terminal beside those with much output, on a machine that has other work.
const ECHO_WITHIN: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Terminals that are opened at a time.
const AT_ONCE: usize = 16;

/// A window on a terminal.
struct Window {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// What came and was not looked at yet.
    unread: Vec<u8>,
    /// Pings that came.
    pings: u64,
}

impl Window {
    async fn open(skep: &Installation, bot: &str, query: &str) -> Self {
        let url = format!("{}/bots/{bot}/container/terminal/ws{query}", skep.client.url);
        let mut request = url
            .replace("http://", "ws://")
            .into_client_request()
            .expect("a request");
        let key = format!("Bearer {}", skep.client.token).parse().expect("a header");
        request.headers_mut().insert("authorization", key);
        let (socket, _) = tokio_tungstenite::connect_async(request)
            .await
            .expect("a terminal opens");
        Self {
            socket,
            unread: Vec::new(),
            pings: 0,
        }
    }

    async fn type_line(&mut self, line: &str) {
        let keys = Message::Binary(format!("{line}\n").into_bytes().into());
        self.socket.send(keys).await.expect("the window is open");
    }

    /// All output up to the end of this text.
    async fn until_shown(&mut self, text: &str) -> Vec<u8> {
        let mut looked_at = 0;
        loop {
            if let Some(at) = find(&self.unread[looked_at..], text.as_bytes()) {
                let rest = self.unread.split_off(looked_at + at + text.len());
                return std::mem::replace(&mut self.unread, rest);
            }
            looked_at = self.unread.len().saturating_sub(text.len());
            match tokio::time::timeout(LIMIT, self.socket.next()).await {
                Ok(Some(Ok(Message::Binary(piece)))) => self.unread.extend_from_slice(&piece),
                Ok(Some(Ok(Message::Ping(_)))) => self.pings += 1,
                other => {
                    let shown = String::from_utf8_lossy(&self.unread[looked_at..]);
                    panic!("{other:?} in place of {text:?}, after {shown:?}");
                }
            }
        }
    }

    /// Code and reason of the close frame.
    async fn until_closed(&mut self) -> (u16, String) {
        loop {
            match tokio::time::timeout(LIMIT, self.socket.next()).await {
                Ok(Some(Ok(Message::Close(Some(close))))) => return (close.code.into(), close.reason.to_string()),
                Ok(Some(Ok(_))) => {}
                other => panic!("{other:?} in place of a close frame"),
            }
        }
    }

    /// Ends the connection by a reset, with no word of the WebSocket.
    fn cut(self) {
        let MaybeTlsStream::Plain(connection) = self.socket.get_ref() else {
            panic!("the connection is a plain one");
        };
        connection.set_zero_linger().expect("a connection can be reset");
    }

    /// The command's output, of which no byte is another than expected.
    async fn shows_exactly(&mut self, command: &str, expected: &str) {
        self.type_line(&format!("echo be''gin; {command}; echo e''nd")).await;
        self.until_shown("begin\r\n").await;
        let shown = self.until_shown("end\r\n").await;
        let shown = &shown[..shown.len() - "end\r\n".len()];
        let wrong = shown
            .iter()
            .zip(expected.as_bytes())
            .position(|(is, wanted)| is != wanted);
        let lengths = (shown.len(), expected.len());
        assert!(
            wrong.is_none() && lengths.0 == lengths.1,
            "{command}: {wrong:?}, {lengths:?}"
        );
    }
}

fn find(within: &[u8], text: &[u8]) -> Option<usize> {
    within.windows(text.len()).position(|piece| piece == text)
}

/// As a terminal shows them.
fn lines_to(last: usize) -> String {
    (1..=last).map(|line| format!("{line}\r\n")).collect()
}

/// How many processes of this host sleep so long.
fn sleepers(seconds: &str) -> usize {
    let expected = format!("sleep\0{seconds}\0");
    let processes = std::fs::read_dir("/proc").expect("processes can be listed");
    let lines = processes.filter_map(|process| std::fs::read_to_string(process.ok()?.path().join("cmdline")).ok());
    lines.filter(|line| *line == expected).count()
}

async fn until_sleepers(seconds: &str, count: usize) {
    let deadline = Instant::now() + LIMIT;
    loop {
        match sleepers(seconds) {
            found if found == count => return,
            found => assert!(
                Instant::now() < deadline,
                "{found} processes sleep {seconds} s, not {count}"
            ),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// How a terminal ends.
#[derive(Debug, Clone, Copy)]
enum Way {
    Closed,
    Cut,
    Idle,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_closed_cut_or_idle_leaves_no_process() {
    let idle = [("SKEP_TERMINAL__IDLE_TIMEOUT", "10s".to_owned())];
    let skep = Installation::start_with(OciRuntime::Found, &idle).await;
    let bot = skep.client.workspace("left", None).await;
    // Two seconds are promised; the rest is for a machine that has other work.
    let limit = Duration::from_secs(amount(10, 2) as u64);
    let mut longest = Duration::ZERO;
    for round in 0..amount(1, 20) {
        for (number, way) in [Way::Closed, Way::Cut, Way::Idle].into_iter().enumerate() {
            let seconds = format!("{number}{round}{:07}", std::process::id());
            let mut window = Window::open(&skep, &bot, "").await;
            let deaf = format!("(trap '' HUP TERM; exec sleep {seconds})");
            window
                .type_line(&format!("{deaf} & {deaf} & sleep {seconds} & echo sta''rted"))
                .await;
            window.until_shown("started\r\n").await;
            until_sleepers(&seconds, 3).await;
            match way {
                Way::Closed => window.socket.close(None).await.expect("it can be closed"),
                Way::Cut => window.cut(),
                Way::Idle => assert_eq!(window.until_closed().await, (1001, "idle timeout".to_owned())),
            }
            let ended = Instant::now();
            until_sleepers(&seconds, 0).await;
            assert!(
                ended.elapsed() < limit,
                "{way:?}: its processes live {:?} longer",
                ended.elapsed()
            );
            longest = longest.max(ended.elapsed());
        }
    }
    println!("closed, cut and idle terminals: all processes gone within {longest:?}");
}

/// `SKEP_TERMINAL_SECONDS` says how long; the short form sets the idle time to less than it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_with_traffic_lives_on() {
    let given = std::env::var("SKEP_TERMINAL_SECONDS")
        .ok()
        .map(|text| text.parse().expect("a number"));
    let seconds = given.unwrap_or(amount(15, 301) as u64);
    let idle = [("SKEP_TERMINAL__IDLE_TIMEOUT", "10s".to_owned())];
    let settings = &idle[..amount(1, 0)];
    let skep = Installation::start_with(OciRuntime::Found, settings).await;
    let bot = skep.client.workspace("lasting", None).await;
    let (mut plain, mut session) = (
        Window::open(&skep, &bot, "").await,
        Window::open(&skep, &bot, "?session=lasting").await,
    );
    for window in [&mut plain, &mut session] {
        window
            .type_line("shell=$$; while :; do echo beat; sleep 0.5; done &")
            .await;
    }
    let begun = Instant::now();
    let mut line = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        line += 1;
        for window in [&mut plain, &mut session] {
            window
                .type_line(&format!("test $$ = $shell && echo li''ne-{line}"))
                .await;
            window.until_shown(&format!("line-{line}\r\n")).await;
            window.until_shown("beat\r\n").await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let lasted = begun.elapsed().as_secs();
    for mut window in [plain, session] {
        // The first comes at the beginning, and the last may be on its way.
        let expected = lasted / PING_EVERY..=lasted / PING_EVERY + 1;
        assert!(expected.contains(&window.pings), "{} in {lasted} s", window.pings);
        window.type_line("exit 7").await;
        assert_eq!(window.until_closed().await, (1000, "exit 7".to_owned()));
    }
    println!("two terminals lived {:?} with {line} lines typed", begun.elapsed());
}

/// A connection that waits for an answer to what it sent before shows the second piece 40 ms late.
#[tokio::test(flavor = "multi_thread")]
async fn a_piece_of_output_does_not_wait_for_the_one_before_to_be_acknowledged() {
    const HELD_BACK: Duration = Duration::from_millis(36);
    const APART: Duration = Duration::from_millis(4);
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("pieces", None).await;
    let mut window = Window::open(&skep, &bot, "").await;
    let mut least = Duration::MAX;
    // One is enough, and the machine may have other work.
    let deadline = Instant::now() + LIMIT;
    while least >= HELD_BACK && Instant::now() < deadline {
        let typed = Instant::now();
        // What was typed is shown at once, and is not answered: the client has nothing to say.
        window.type_line("sleep 0.008; echo sh''own").await;
        window.until_shown("sh''own\r\n").await;
        let echoed = Instant::now();
        window.until_shown("shown\r\n").await;
        // Else something stalled, and both may have come in one packet.
        if echoed.elapsed() >= APART {
            least = least.min(typed.elapsed());
        }
        window.until_shown("# ").await;
    }
    println!("output that follows its echo after 8 ms is shown {least:?} after the key at least");
    assert!(least < HELD_BACK, "it was shown {least:?} after the key");
}

/// In each tenth terminal there is output; of a hundred one is not read meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn many_terminals_lose_no_byte_and_a_stalled_reader_holds_up_nobody() {
    const MOST_BYTES: u64 = 500 << 20;
    let (terminals, workspaces) = (amount(50, 500), amount(2, 10));
    // More than the buffers of a connection take.
    let (lines, stalled_lines) = (amount(20_000, 100_000), amount(1_000_000, 3_000_000));
    let skep = Installation::start(OciRuntime::Found).await;
    let mut bots = Vec::new();
    for number in 0..workspaces {
        bots.push(skep.client.workspace(&format!("many {number}"), None).await);
    }
    let memory = MemoryWatch::start(skep.server_pid());
    let mut windows: Vec<Window> = stream::iter((0..terminals).map(|number| &bots[number % workspaces]))
        .map(async |bot| Ok::<_, ()>(Window::open(&skep, bot, "").await))
        .buffered(AT_ONCE)
        .try_collect()
        .await
        .expect("all open");
    let mut stalled = windows.split_off(terminals - amount(1, 5));
    for window in &mut stalled {
        window
            .type_line(&format!("echo be''gin; seq {stalled_lines}; echo e''nd"))
            .await;
    }
    let (busy, idle) = windows.split_at_mut(terminals / 10);
    let expected = lines_to(lines);
    let command = format!("seq {lines}");
    let begun = Instant::now();
    let output = join_all(busy.iter_mut().map(|window| window.shows_exactly(&command, &expected)));
    let echoes = async {
        let mut slowest = Duration::ZERO;
        for window in idle.iter_mut() {
            let asked = Instant::now();
            window.type_line("echo he''re").await;
            window.until_shown("here\r\n").await;
            slowest = slowest.max(asked.elapsed());
        }
        slowest
    };
    let (_, slowest) = futures::join!(output, echoes);
    let took = begun.elapsed();
    let expected = lines_to(stalled_lines);
    for window in &mut stalled {
        window.until_shown("begin\r\n").await;
        let shown = window.until_shown("end\r\n").await;
        assert!(
            shown.strip_suffix(b"end\r\n") == Some(expected.as_bytes()),
            "{} bytes",
            shown.len()
        );
    }
    let highest = memory.highest();
    println!(
        "{terminals} terminals, output on {} in {took:?}, slowest echo of the others {slowest:?}, server {} MiB",
        terminals / 10,
        highest >> 20
    );
    assert!(highest < MOST_BYTES, "the server used {} MiB", highest >> 20);
    assert!(slowest < ECHO_WITHIN, "an idle terminal answered after {slowest:?}");
}
