//! A terminal over a WebSocket: keys out, output in, the size when it changes.

use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, Stdin};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{interval, sleep, timeout};
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;

use super::{TRY_AGAIN_EVERY, TRY_AGAIN_WITHIN, exit_with, may_come_back, print};
use crate::client::{Client, Socket, open_socket};
use crate::failure::{Failure, Result};
use crate::terminal;

const OPENING: &str = "opening a terminal";
/// How often a terminal without keys tells that somebody watches it.
const STILL_WATCHED_EVERY: Duration = Duration::from_secs(20);
/// What Ctrl-C is where keys go through as they are.
const INTERRUPT: u8 = 3;
/// Puts a terminal's screen and modes back to their beginning.
const RESET: &[u8] = b"\x1bc";

/// How a connection came to its end.
enum End {
    /// The server told it: the shell's exit code, or why there is none.
    Told(Result<u8>),
    /// It broke.
    Lost(String),
}

/// Attaches this terminal until the shell ends; returns its exit code.
pub(super) async fn attach(client: &Client, path: &str, with_keys: bool) -> Result<u8> {
    let socket = open_socket(client, path, OPENING).await?;
    let restore = if with_keys { Some(terminal::raw()?) } else { None };
    // A command that nobody types to runs on while somebody watches it.
    let end = talk(socket, &mut Keys::new(with_keys), true).await;
    drop(restore);
    match end? {
        End::Told(end) => end,
        End::Lost(what) => Err(lost(what)),
    }
}

/// As [`attach`] with keys, to a shell that is still there when the connection is lost: it is connected to again, and not
/// replaced when it has ended meanwhile. Its exit code becomes ours.
pub(super) async fn attach_to_session(client: &Client, path: impl Fn() -> String) -> Result<()> {
    let mut socket = open_socket(client, &path(), OPENING).await?;
    let path = || format!("{}&resume=true", path());
    // Dropped at the end, whatever it is.
    let _restore = terminal::raw()?;
    let mut keys = Keys::new(true);
    loop {
        match talk(socket, &mut keys, false).await? {
            End::Told(end) => return exit_with(end?),
            End::Lost(what) => socket = connect_again(client, &path, &mut keys, what).await?,
        }
    }
}

async fn connect_again(client: &Client, path: impl Fn() -> String, keys: &mut Keys, what: String) -> Result<Socket> {
    eprint!("\r\nskep: the connection was lost and is tried again; Ctrl-C gives up\r\n");
    let connect = async {
        loop {
            sleep(TRY_AGAIN_EVERY).await;
            match open_socket(client, &path(), OPENING).await {
                Err(failure) if may_come_back(&failure) => {}
                opened => return opened,
            }
        }
    };
    // Also one that is accepted and never answered ends by these two.
    let socket = tokio::select! {
        opened = timeout(TRY_AGAIN_WITHIN, connect) => match opened {
            Ok(opened) => opened?,
            Err(_) => return Err(lost(what)),
        },
        interrupted = keys.interrupt() => return Err(interrupted.err().unwrap_or_else(|| lost(what))),
    };
    // What it showed comes again.
    print(&mut tokio::io::stdout(), RESET).await?;
    Ok(socket)
}

/// What is typed, over all connections: a read that was begun in one of them is not lost to the next.
struct Keys {
    stdin: Stdin,
    piece: Vec<u8>,
    are_open: bool,
}

impl Keys {
    fn new(are_open: bool) -> Self {
        Self {
            stdin: tokio::io::stdin(),
            piece: vec![0; 16 << 10],
            are_open,
        }
    }

    /// The next ones; never comes after their end.
    async fn next(&mut self) -> Result<&[u8]> {
        let count = match self.are_open {
            true => self.stdin.read(&mut self.piece).await,
            false => Ok(0),
        };
        let count = count.map_err(|error| Failure::local("cannot read standard input", error))?;
        if count == 0 {
            self.are_open = false;
            std::future::pending::<()>().await;
        }
        Ok(&self.piece[..count])
    }

    async fn interrupt(&mut self) -> Result<()> {
        while !self.next().await?.contains(&INTERRUPT) {}
        Ok(())
    }
}

/// Both ways, neither of which waits for the other: what is pasted may be shown again before all of it is taken.
async fn talk(socket: Socket, keys: &mut Keys, is_watched: bool) -> Result<End> {
    let (mut out, mut incoming) = socket.split();
    tokio::select! {
        biased;
        end = show(&mut incoming) => end,
        end = send_keys(&mut out, keys, is_watched) => end,
    }
}

async fn show(incoming: &mut SplitStream<Socket>) -> Result<End> {
    loop {
        match incoming.next().await {
            Some(Ok(Message::Binary(bytes))) => print(&mut tokio::io::stdout(), &bytes).await?,
            Some(Ok(Message::Close(Some(frame)))) => return Ok(end_of(&frame)),
            Some(Ok(Message::Close(None))) => return Ok(End::Lost("closed without a reason".into())),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Ok(End::Lost(error.to_string())),
            None => return Ok(End::Lost("it ended without a reason".into())),
        }
    }
}

async fn send_keys(out: &mut SplitSink<Socket, Message>, keys: &mut Keys, is_watched: bool) -> Result<End> {
    let mut resized = signal(SignalKind::window_change())
        .map_err(|error| Failure::local("cannot watch the terminal's size", error))?;
    let mut watching = interval(STILL_WATCHED_EVERY);
    loop {
        let is_watched = is_watched || !keys.are_open;
        let message = tokio::select! {
            piece = keys.next() => Message::Binary(piece?.to_vec().into()),
            _ = resized.recv() => size_message(),
            // Who watches without a key is not idle.
            _ = watching.tick(), if is_watched => size_message(),
        };
        if let Err(error) = out.send(message).await {
            return Ok(End::Lost(error.to_string()));
        }
    }
}

fn size_message() -> Message {
    let (cols, rows) = terminal::size();
    Message::Text(json!({"type": "resize", "cols": cols, "rows": rows}).to_string().into())
}

fn lost(what: String) -> Failure {
    Failure::Failed(format!("the terminal's connection was lost: {what}"))
}

/// A bridge that was lost says nothing of the shell, which may still be there.
fn end_of(frame: &CloseFrame) -> End {
    match (u16::from(frame.code), frame.reason.as_str()) {
        (1011, "bridge lost") => End::Lost("bridge lost (1011)".into()),
        _ => End::Told(closed(frame)),
    }
}

/// A close 1000 tells `exit <code>`; every other one is a failure.
fn closed(frame: &CloseFrame) -> Result<u8> {
    let code = frame
        .reason
        .strip_prefix("exit ")
        .and_then(|code| code.trim().parse::<i64>().ok());
    match (u16::from(frame.code), code) {
        (1000, Some(code)) => Ok(u8::try_from(code).unwrap_or(1)),
        (1011, _) if frame.reason.as_str() == "session ended" => Err(Failure::Failed(
            "the session has ended: how is not known, and nothing of it is left".into(),
        )),
        (number, _) => Err(lost(format!("{} ({number})", frame.reason))),
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

    use super::*;

    fn close(code: u16, reason: &'static str) -> Result<u8> {
        closed(&CloseFrame {
            code: CloseCode::from(code),
            reason: reason.into(),
        })
    }

    #[test]
    fn only_a_told_exit_is_an_exit() {
        assert!(matches!(close(1000, "exit 0"), Ok(0)));
        assert!(matches!(close(1000, "exit 3"), Ok(3)));
        assert!(matches!(close(1001, "idle timeout"), Err(Failure::Failed(_))));
        assert!(matches!(close(1000, ""), Err(Failure::Failed(_))));
    }

    #[test]
    fn only_a_lost_bridge_is_worth_another_try() {
        let end = |code: u16, reason: &'static str| {
            end_of(&CloseFrame {
                code: CloseCode::from(code),
                reason: reason.into(),
            })
        };
        assert!(matches!(end(1011, "bridge lost"), End::Lost(_)));
        assert!(matches!(end(1011, "exec failed"), End::Told(Err(_))));
        assert!(matches!(end(1011, "session ended"), End::Told(Err(_))));
        assert!(matches!(end(1000, "exit 0"), End::Told(Ok(0))));
    }
}
