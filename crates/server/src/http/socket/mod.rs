//! What every WebSocket has in common: who may open one, how large its frames are, how it is written to and closed.

mod origin;

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::extract::{FromRequestParts, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use futures::SinkExt;
use futures::stream::SplitSink;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, error::CapacityError};

use crate::app::App;
use crate::http::error::ApiError;

/// The largest frame, in bytes, taken in or sent.
const LARGEST_FRAME_BYTES: usize = 64 * 1024;
/// The largest message of several frames that is taken in, in bytes.
const LARGEST_MESSAGE_BYTES: usize = 1024 * 1024;
/// Between two pings.
pub(super) const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a client has to take the close frame, and then to answer it.
pub(super) const CLOSE_ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The longest reason a close frame holds, in bytes.
const LONGEST_REASON: usize = 120;

/// The code and the reason of a close frame.
pub(super) type Close = (u16, String);

/// The writing half of a socket.
pub(super) type Frames = SplitSink<WebSocket, Message>;

/// An upgrade from a page that may open sockets, refused in the one form of errors.
pub(super) struct Upgrade(WebSocketUpgrade);

impl FromRequestParts<App> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let upgrade = WebSocketUpgrade::from_request_parts(parts, app).await;
        let upgrade = upgrade.map_err(|rejection| {
            let status = rejection.into_response().status();
            ApiError::invalid_argument("this route is a WebSocket").with_status(status)
        })?;
        if !origin::is_allowed(&parts.headers, &app.config().server.allowed_origins) {
            return Err(ApiError::forbidden(
                "this origin may not open sockets; see server.allowed_origins",
            ));
        }
        Ok(Self(
            upgrade
                .max_message_size(LARGEST_MESSAGE_BYTES)
                .max_frame_size(LARGEST_FRAME_BYTES),
        ))
    }
}

impl Upgrade {
    /// Answers with the upgrade and serves the socket in a task of its own.
    pub(super) fn serve<F: Future<Output = ()> + Send + 'static>(
        self,
        serve: impl FnOnce(WebSocket) -> F + Send + 'static,
    ) -> Response {
        self.0.on_upgrade(serve).into_response()
    }
}

/// The client is gone.
pub(super) struct Gone;

/// Writes one frame. A client may leave it unread for as long as it likes: a suspended one comes back, and one that is
/// gone is found out by the connection, which has something to send at each ping.
pub(super) async fn send(frames: &mut Frames, message: Message) -> Result<(), Gone> {
    frames.send(message).await.map_err(|_| Gone)
}

/// How to close a socket whose frames can no longer be read, unless its client is gone.
pub(super) fn close_of_unreadable(error: axum::Error) -> Option<Close> {
    let error = error.into_inner().downcast::<tungstenite::Error>().ok()?;
    match *error {
        tungstenite::Error::Capacity(CapacityError::MessageTooLong { max_size, .. }) => {
            let what = match max_size {
                LARGEST_FRAME_BYTES => "frames",
                _ => "messages",
            };
            Some((close_code::SIZE, format!("{what} have at most {} KiB", max_size / 1024)))
        }
        tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_) => {
            Some((close_code::PROTOCOL, "this is no WebSocket frame".to_owned()))
        }
        _ => None,
    }
}

/// Writes the close frame.
pub(super) async fn close(frames: &mut Frames, (code, mut reason): Close) {
    reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    let sent = timeout(CLOSE_ANSWER_WITHIN, send(frames, Message::Close(Some(frame)))).await;
    if !matches!(sent, Ok(Ok(()))) {
        tracing::debug!("a socket's client was gone before its close frame");
    }
}
