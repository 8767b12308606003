//! A window on a terminal: frames of the socket to keystrokes, output to frames.
//!
//! Two halves that never wait for each other: a client that does not read stops its own shell (the output is not
//! taken from the bridge), and still can close; a process that does not read its keystrokes still shows its output, and
//! up to 2 MiB of them is taken in, so that a size or a close behind them is seen. Beyond that the client waits, and the
//! window is closed when the process reads none of them.

use std::ops::ControlFlow;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, close_code};
use bytes::Bytes;
use futures::stream::SplitStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use skep_api::TerminalMessage;
use skep_core::bridge::{Bridge, BridgeError};
use skep_core::exec::{self, ExecEvent, ExecEvents, ExecId, InputEnd, TerminalSize};
use skep_core::terminal::{self, SessionName, SessionTerms, ShellRequest, Terminal};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::io::ReaderStream;

use crate::http::routes::exec::Watch;
use crate::http::socket::{CLOSE_ANSWER_WITHIN, Close, Frames, PING_EVERY, close, close_of_unreadable, send};

/// Bytes of keystrokes that wait for a process that reads slowly.
const WAITING_KEYSTROKES: usize = 2 * 1024 * 1024;
/// How long a process may take none of so many (or fewer than a piece of them) before the window is closed, in which no
/// frame is read either.
const READ_SOME_WITHIN: Duration = Duration::from_secs(20);
/// The largest piece of keystrokes in one message to the bridge.
const LARGEST_INPUT_BYTES: usize = 64 * 1024;
/// The largest piece of output in one frame.
const LARGEST_OUTPUT_BYTES: usize = 32 * 1024;

/// What the window is opened on.
pub(super) enum Opening {
    /// The workspace's shell.
    Shell(ShellRequest),
    /// The shell of that name; it outlives the window.
    Session(SessionName, ShellRequest, SessionTerms),
    /// A process that runs, made this size, from this byte of its output on; `None`: the oldest that is kept.
    Attached(Box<Terminal>, TerminalSize, Option<u64>),
}

impl Opening {
    /// The first byte that is shown; `None`: any.
    fn begins_at(&self) -> Option<u64> {
        match self {
            Self::Shell(_) => Some(0),
            Self::Session(..) => None,
            Self::Attached(.., offset) => *offset,
        }
    }
}

/// Serves one window to its end.
pub(super) async fn serve(
    socket: WebSocket,
    (bridge, watch): (Bridge, Watch),
    opening: Opening,
    idle_timeout: Duration,
) {
    let (mut sink, frames) = socket.split();
    let begins_at = opening.begins_at();
    let terminal = match open(&bridge, opening).await {
        Ok(terminal) => terminal,
        Err(reason) => return close(&mut sink, (close_code::ERROR, reason.to_owned())).await,
    };
    let (keystrokes, typed) = tokio::io::duplex(WAITING_KEYSTROKES);
    let (size, sizes) = tokio::sync::watch::channel(None);
    let (activity, mut active) = tokio::sync::watch::channel(Instant::now());
    let id = terminal.id.clone();
    let (unread, mut is_unread) = oneshot::channel();
    let reading = Reading {
        frames,
        keystrokes,
        unread: Some(unread),
        activity,
        size,
    };
    let mut reading = std::pin::pin!(reading.read().fuse());
    let ended = tokio::select! {
        ended = show(&mut sink, terminal.events, begins_at, &watch) => ended,
        ended = &mut reading => ended,
        Ok(()) = &mut is_unread => Some((close_code::POLICY, "the keystrokes are not read".to_owned())),
        () = type_into(&bridge, &id, typed) => None,
        () = resize(&bridge, &id, sizes) => None,
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

/// An error is the reason of the close frame.
async fn open(bridge: &Bridge, opening: Opening) -> Result<Terminal, &'static str> {
    let failed = |error: BridgeError| {
        tracing::debug!(%error, "a terminal could not be opened");
        "exec failed"
    };
    match opening {
        Opening::Shell(wanted) => terminal::open(bridge, wanted).await.map_err(failed),
        Opening::Session(name, wanted, terms) => match terminal::open_session(bridge, &name, wanted, terms).await {
            Err(BridgeError::NotFound(_)) if terms.resume => Err("session ended"),
            opened => opened.map_err(failed),
        },
        Opening::Attached(terminal, size, _) => {
            // One that has ended by now still shows its output.
            if let Err(error) = exec::resize(bridge, &terminal.id, size).await {
                tracing::debug!(%error, "the size of a terminal was not taken");
            }
            Ok(*terminal)
        }
    }
}

/// Output to frames from the byte `next` on, until the process ends or a part of it is gone. `None`: the client is.
async fn show(sink: &mut Frames, mut events: ExecEvents, mut next: Option<u64>, watch: &Watch) -> Option<Close> {
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
            Ok(Some(ExecEvent::Exited(status))) if watch.has_ended(&status) => return Some(restarted()),
            Ok(None) | Err(_) if watch.was_interrupted() => return Some(restarted()),
            Ok(Some(ExecEvent::Output { offset, mut data, .. })) => {
                let dropped = next.map_or(0, |next| offset.saturating_sub(next));
                if dropped > 0 {
                    let reason = format!("{dropped} bytes of the output were dropped before they were read");
                    return Some((close_code::ERROR, reason));
                }
                next = Some(offset + data.len() as u64);
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

fn restarted() -> Close {
    (close_code::RESTART, "workspace restarted".to_owned())
}

struct Reading {
    frames: SplitStream<WebSocket>,
    keystrokes: DuplexStream,
    /// Tells that the process does not read them, once: what comes then is read past.
    unread: Option<oneshot::Sender<()>>,
    activity: tokio::sync::watch::Sender<Instant>,
    size: tokio::sync::watch::Sender<Option<TerminalSize>>,
}

impl Reading {
    /// Frames to keystrokes and sizes, until there are no more: how to close. `None`: the client is gone.
    async fn read(mut self) -> Option<Close> {
        loop {
            let message = match self.frames.next().await? {
                Ok(message) => message,
                Err(error) => return close_of_unreadable(error),
            };
            if self.take(message).await.is_break() {
                return None;
            }
        }
    }

    async fn take(&mut self, message: Message) -> ControlFlow<()> {
        match message {
            Message::Binary(bytes) => {
                self.activity.send_replace(Instant::now());
                self.type_all(&bytes).await;
            }
            Message::Text(text) => {
                self.activity.send_replace(Instant::now());
                if let Ok(TerminalMessage::Resize { cols, rows }) = serde_json::from_str(&text) {
                    self.size.send_replace(Some(terminal::size(Some(cols), Some(rows))));
                }
            }
            Message::Close(_) => return ControlFlow::Break(()),
            Message::Ping(_) | Message::Pong(_) => {}
        }
        ControlFlow::Continue(())
    }

    async fn type_all(&mut self, mut bytes: &[u8]) {
        while self.unread.is_some() && !bytes.is_empty() {
            match timeout(READ_SOME_WITHIN, self.keystrokes.write(bytes)).await {
                Ok(Ok(taken)) => bytes = &bytes[taken..],
                Ok(Err(error)) => {
                    tracing::trace!(%error, "keystrokes for a process that takes no more");
                    return;
                }
                // Nobody waits for it when the window is being closed anyway.
                Err(_) => drop(self.unread.take().map(|unread| unread.send(()))),
            }
        }
    }
}

/// Keystrokes to the process. When its input is closed the window stays open: what it shows still counts.
async fn type_into(bridge: &Bridge, id: &ExecId, typed: DuplexStream) {
    let typed = ReaderStream::with_capacity(typed, LARGEST_INPUT_BYTES);
    let typed = typed.map_err(|error| BridgeError::SourceBroken(error.to_string()));
    if let Err(error) = exec::write_stdin(bridge, id, typed, InputEnd::Open).await {
        tracing::debug!(%error, "the input of a terminal is closed");
    }
    std::future::pending::<()>().await;
}

/// Sizes to the process; of those that come while one is on its way the last.
async fn resize(bridge: &Bridge, id: &ExecId, mut sizes: tokio::sync::watch::Receiver<Option<TerminalSize>>) {
    while sizes.changed().await.is_ok() {
        let size = *sizes.borrow_and_update();
        if let Some(size) = size
            && let Err(error) = exec::resize(bridge, id, size).await
        {
            tracing::debug!(%error, "the size of a terminal was not taken");
        }
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
