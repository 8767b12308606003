//! A window on a terminal: frames of the socket to keystrokes, output to frames.
//!
//! Two halves that never wait for each other: a client that does not read stops its own shell (the output is not
//! taken from the bridge), and still can close; a process that does not read its keystrokes still shows its output.

use std::ops::ControlFlow;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, close_code};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::SplitStream;
use skep_api::TerminalMessage;
use skep_core::bridge::{Bridge, BridgeError};
use skep_core::exec::{self, ExecEvent, ExecEvents, ExecId, InputEnd, TerminalSize};
use skep_core::terminal::{self, SessionName, Terminal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::http::routes::exec::Watch;
use crate::http::socket::{CLOSE_ANSWER_WITHIN, Close, Frames, PING_EVERY, close, send};

/// Frames of keystrokes that wait for a process that reads slowly.
const WAITING_KEYSTROKES: usize = 64;
/// The largest piece of output in one frame.
const LARGEST_OUTPUT_BYTES: usize = 32 * 1024;

/// What the window is opened on.
pub(super) enum Opening {
    /// The workspace's shell, of this size.
    Shell(TerminalSize),
    /// The shell of that name, of this size; it outlives the window for so long.
    Session(SessionName, TerminalSize, Duration),
    /// A process that runs, made this size.
    Attached(Box<Terminal>, TerminalSize),
}

/// Serves one window to its end.
pub(super) async fn serve(
    socket: WebSocket,
    (bridge, watch): (Bridge, Watch),
    opening: Opening,
    idle_timeout: Duration,
) {
    let (mut sink, frames) = socket.split();
    let terminal = match open(&bridge, opening).await {
        Ok(terminal) => terminal,
        Err(()) => return close(&mut sink, (close_code::ERROR, "exec failed".to_owned())).await,
    };
    let (keystrokes, typed) = mpsc::channel::<Bytes>(WAITING_KEYSTROKES);
    let (activity, mut active) = tokio::sync::watch::channel(Instant::now());
    let id = terminal.id.clone();
    let reading = Reading {
        frames,
        keystrokes,
        activity,
        bridge: bridge.clone(),
        id: id.clone(),
    };
    let mut reading = std::pin::pin!(reading.read());
    let ended = tokio::select! {
        ended = show(&mut sink, terminal.events, &watch) => ended,
        () = &mut reading => None,
        () = type_into(&bridge, &id, typed) => None,
        () = idle(&mut active, idle_timeout) => Some((close_code::AWAY, "idle timeout".to_owned())),
    };
    if let Some(ended) = ended {
        close(&mut sink, ended).await;
        // A socket dropped with unread frames is reset, and the client loses what it had not read yet.
        if timeout(CLOSE_ANSWER_WITHIN, reading).await.is_err() {
            tracing::debug!("a terminal's client did not answer the close frame");
        }
    }
}

async fn open(bridge: &Bridge, opening: Opening) -> Result<Terminal, ()> {
    let failed = |error: BridgeError| tracing::debug!(%error, "a terminal could not be opened");
    match opening {
        Opening::Shell(size) => terminal::open(bridge, size).await.map_err(failed),
        Opening::Session(name, size, keep) => terminal::open_session(bridge, &name, size, keep).await.map_err(failed),
        Opening::Attached(terminal, size) => {
            // One that has ended by now still shows its output.
            if let Err(error) = exec::resize(bridge, &terminal.id, size).await {
                tracing::debug!(%error, "the size of a terminal was not taken");
            }
            Ok(*terminal)
        }
    }
}

/// Output to frames, until the process ends. `None`: the client is gone.
async fn show(sink: &mut Frames, mut events: ExecEvents, watch: &Watch) -> Option<Close> {
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = pings.tick() => {
                send(sink, Message::Ping(Bytes::new())).await.ok()?;
                continue;
            }
        };
        match event {
            Ok(Some(ExecEvent::Exited(_)) | None) | Err(_) if watch.was_interrupted() => {
                return Some((close_code::RESTART, "workspace restarted".to_owned()));
            }
            Ok(Some(ExecEvent::Output { mut data, .. })) => {
                while !data.is_empty() {
                    let piece = data.split_to(data.len().min(LARGEST_OUTPUT_BYTES));
                    send(sink, Message::Binary(piece)).await.ok()?;
                }
            }
            Ok(Some(ExecEvent::Started(_))) => {}
            Ok(Some(ExecEvent::Exited(status))) => {
                // An end that is not told is no end of zero.
                return Some(match status.end {
                    Some(end) => (close_code::NORMAL, format!("exit {}", end.exit_code)),
                    None => (close_code::ERROR, "bridge lost".to_owned()),
                });
            }
            Ok(None) => return Some((close_code::ERROR, "bridge lost".to_owned())),
            Err(error) => {
                tracing::debug!(%error, "a terminal lost its bridge");
                return Some((close_code::ERROR, "bridge lost".to_owned()));
            }
        }
    }
}

struct Reading {
    frames: SplitStream<WebSocket>,
    keystrokes: mpsc::Sender<Bytes>,
    activity: tokio::sync::watch::Sender<Instant>,
    bridge: Bridge,
    id: ExecId,
}

impl Reading {
    /// Frames to keystrokes and sizes, until the client is gone.
    async fn read(mut self) {
        while let Some(Ok(message)) = self.frames.next().await {
            if self.take(message).await.is_break() {
                return;
            }
        }
    }

    async fn take(&mut self, message: Message) -> ControlFlow<()> {
        match message {
            Message::Binary(bytes) => {
                self.activity.send_replace(Instant::now());
                if self.keystrokes.send(bytes).await.is_err() {
                    tracing::trace!("keystrokes for a process that takes no more");
                }
            }
            Message::Text(text) => {
                self.activity.send_replace(Instant::now());
                if let Ok(TerminalMessage::Resize { cols, rows }) = serde_json::from_str(&text) {
                    let size = terminal::size(Some(cols), Some(rows));
                    if let Err(error) = exec::resize(&self.bridge, &self.id, size).await {
                        tracing::debug!(%error, "the size of a terminal was not taken");
                    }
                }
            }
            Message::Close(_) => return ControlFlow::Break(()),
            Message::Ping(_) | Message::Pong(_) => {}
        }
        ControlFlow::Continue(())
    }
}

/// Keystrokes to the process. When its input is closed the window stays open: what it shows still counts.
async fn type_into(bridge: &Bridge, id: &ExecId, typed: mpsc::Receiver<Bytes>) {
    let typed = ReceiverStream::new(typed).map(Ok);
    if let Err(error) = exec::write_stdin(bridge, id, typed, InputEnd::Open).await {
        tracing::debug!(%error, "the input of a terminal is closed");
    }
    std::future::pending::<()>().await;
}

/// Until the client has sent nothing for so long.
async fn idle(active: &mut tokio::sync::watch::Receiver<Instant>, idle_timeout: Duration) {
    loop {
        let until = *active.borrow_and_update() + idle_timeout;
        tokio::select! {
            () = sleep_until(until) => return,
            changed = active.changed() => {
                if changed.is_err() {
                    sleep_until(until).await;
                    return;
                }
            }
        }
    }
}
