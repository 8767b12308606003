//! A terminal over a WebSocket: keys out, output in, the size when it changes.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Stdin};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;

use crate::client::{Client, Socket, open_socket};
use crate::failure::{Failure, Result};
use crate::terminal;

const OPENING: &str = "opening a terminal";
/// How long a lost connection to a session is tried again, and how often.
const CONNECT_AGAIN_WITHIN: Duration = Duration::from_secs(60);
const CONNECT_AGAIN_EVERY: Duration = Duration::from_millis(500);
/// What Ctrl-C is where keys go through as they are.
const INTERRUPT: u8 = 3;
/// Puts a terminal's screen and modes back to their beginning.
const RESET: &[u8] = b"\x1bc";

/// How a connection came to its end.
enum End {
    /// The server told it.
    Told(Result<()>),
    /// It broke.
    Lost(String),
}

/// Attaches this terminal until the shell ends; its exit code becomes ours.
pub(super) async fn attach(client: &Client, path: &str, with_keys: bool) -> Result<()> {
    let socket = open_socket(client, path, OPENING).await?;
    let restore = if with_keys { Some(terminal::raw()?) } else { None };
    let end = talk(socket, &mut Keys::new(with_keys)).await;
    drop(restore);
    match end? {
        End::Told(end) => end,
        End::Lost(what) => Err(lost(what)),
    }
}

/// As [`attach`] with keys, to a shell that is still there when the connection is lost: it is connected to again.
pub(super) async fn attach_to_session(client: &Client, path: impl Fn() -> String) -> Result<()> {
    let mut socket = open_socket(client, &path(), OPENING).await?;
    // Dropped at the end, whatever it is.
    let _restore = terminal::raw()?;
    let mut keys = Keys::new(true);
    loop {
        match talk(socket, &mut keys).await? {
            End::Told(end) => return end,
            End::Lost(what) => socket = connect_again(client, &path, &mut keys, what).await?,
        }
    }
}

async fn connect_again(client: &Client, path: impl Fn() -> String, keys: &mut Keys, what: String) -> Result<Socket> {
    eprint!("\r\nskep: the connection was lost and is tried again; Ctrl-C gives up\r\n");
    let deadline = Instant::now() + CONNECT_AGAIN_WITHIN;
    loop {
        tokio::select! {
            () = sleep(CONNECT_AGAIN_EVERY) => {}
            interrupted = keys.interrupt() => return Err(interrupted.err().unwrap_or_else(|| lost(what))),
        }
        match open_socket(client, &path(), OPENING).await {
            Ok(socket) => {
                // What it showed comes again.
                print(RESET).await?;
                return Ok(socket);
            }
            Err(Failure::NotReachable { .. } | Failure::Refused { status: 503, .. }) if Instant::now() < deadline => {}
            Err(failure) => return Err(failure),
        }
    }
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

async fn talk(socket: Socket, keys: &mut Keys) -> Result<End> {
    let (mut out, mut incoming) = socket.split();
    let mut resized = signal(SignalKind::window_change())
        .map_err(|error| Failure::local("cannot watch the terminal's size", error))?;
    loop {
        let message = tokio::select! {
            message = incoming.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    print(&bytes).await?;
                    continue;
                }
                Some(Ok(Message::Close(Some(frame)))) => return Ok(End::Told(closed(&frame))),
                Some(Ok(Message::Close(None))) => return Ok(End::Lost("closed without a reason".into())),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Ok(End::Lost(error.to_string())),
                None => return Ok(End::Lost("it ended without a reason".into())),
            },
            piece = keys.next() => Message::Binary(piece?.to_vec().into()),
            _ = resized.recv() => {
                let (cols, rows) = terminal::size();
                Message::Text(json!({"type": "resize", "cols": cols, "rows": rows}).to_string().into())
            }
        };
        if let Err(error) = out.send(message).await {
            return Ok(End::Lost(error.to_string()));
        }
    }
}

async fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = tokio::io::stdout();
    let printed = async {
        stdout.write_all(bytes).await?;
        stdout.flush().await
    };
    printed.await.map_err(|error| Failure::local("cannot print", error))
}

fn lost(what: String) -> Failure {
    Failure::Failed(format!("the terminal's connection was lost: {what}"))
}

/// A close 1000 tells `exit <code>`; every other one is a failure.
fn closed(frame: &CloseFrame) -> Result<()> {
    let code = frame
        .reason
        .strip_prefix("exit ")
        .and_then(|code| code.trim().parse::<i64>().ok());
    match (u16::from(frame.code), code) {
        (1000, Some(0)) => Ok(()),
        (1000, Some(code)) => Err(Failure::CommandEnded(u8::try_from(code).unwrap_or(1))),
        (number, _) => Err(lost(format!("{} ({number})", frame.reason))),
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

    use super::*;

    fn close(code: u16, reason: &'static str) -> Result<()> {
        closed(&CloseFrame {
            code: CloseCode::from(code),
            reason: reason.into(),
        })
    }

    #[test]
    fn only_a_told_exit_is_an_exit() {
        assert!(close(1000, "exit 0").is_ok());
        assert!(matches!(close(1000, "exit 3"), Err(Failure::CommandEnded(3))));
        assert!(matches!(close(1001, "idle timeout"), Err(Failure::Failed(_))));
        assert!(matches!(close(1000, ""), Err(Failure::Failed(_))));
    }
}
