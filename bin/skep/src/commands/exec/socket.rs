//! A terminal over a WebSocket: keys out, output in, the size when it changes.

use futures::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;

use crate::client::{Client, Socket, open_socket};
use crate::failure::{Failure, Result};
use crate::terminal;

/// Attaches this terminal until the shell ends; its exit code becomes ours.
pub(super) async fn attach(client: &Client, path: &str, with_keys: bool) -> Result<()> {
    let socket = open_socket(client, path, "opening a terminal").await?;
    let restore = if with_keys { Some(terminal::raw()?) } else { None };
    let end = talk(socket, with_keys).await;
    drop(restore);
    end
}

async fn talk(socket: Socket, with_keys: bool) -> Result<()> {
    let (mut out, mut incoming) = socket.split();
    let mut resized = signal(SignalKind::window_change())
        .map_err(|error| Failure::local("cannot watch the terminal's size", error))?;
    let mut stdin = tokio::io::stdin();
    let mut stdout = tokio::io::stdout();
    let mut keys = vec![0; 16 << 10];
    let mut listening = with_keys;
    loop {
        tokio::select! {
            message = incoming.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    stdout.write_all(&bytes).await.map_err(|error| Failure::local("cannot print", error))?;
                    stdout.flush().await.map_err(|error| Failure::local("cannot print", error))?;
                }
                Some(Ok(Message::Close(frame))) => return closed(frame),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(lost(error.to_string())),
                None => return Err(lost("it ended without a reason".into())),
            },
            read = stdin.read(&mut keys), if listening => {
                match read.map_err(|error| Failure::local("cannot read standard input", error))? {
                    0 => listening = false,
                    count => {
                        let piece = Message::Binary(keys[..count].to_vec().into());
                        out.send(piece).await.map_err(|error| lost(error.to_string()))?;
                    }
                }
            }
            _ = resized.recv() => {
                let (cols, rows) = terminal::size();
                let told = json!({"type": "resize", "cols": cols, "rows": rows}).to_string();
                out.send(Message::Text(told.into())).await.map_err(|error| lost(error.to_string()))?;
            }
        }
    }
}

fn lost(what: String) -> Failure {
    Failure::Failed(format!("the terminal's connection was lost: {what}"))
}

/// A close 1000 tells `exit <code>`; every other one is a failure.
fn closed(frame: Option<CloseFrame>) -> Result<()> {
    let Some(frame) = frame else {
        return Err(lost("closed without a reason".into()));
    };
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
        closed(Some(CloseFrame {
            code: CloseCode::from(code),
            reason: reason.into(),
        }))
    }

    #[test]
    fn only_a_told_exit_is_an_exit() {
        assert!(close(1000, "exit 0").is_ok());
        assert!(matches!(close(1000, "exit 3"), Err(Failure::CommandEnded(3))));
        assert!(matches!(close(1001, "idle timeout"), Err(Failure::Failed(_))));
        assert!(matches!(close(1000, ""), Err(Failure::Failed(_))));
        assert!(matches!(closed(None), Err(Failure::Failed(_))));
    }
}
