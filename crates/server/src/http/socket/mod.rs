//! What every WebSocket has in common: who may open one, how large its frames are, how it is written to and closed.

mod origin;

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use axum::extract::{FromRequestParts, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use futures::SinkExt;
use futures::stream::SplitSink;
use tokio::time::timeout;

use crate::app::App;
use crate::http::error::ApiError;

/// The largest frame either way, in bytes.
const LARGEST_FRAME_BYTES: usize = 64 * 1024;
/// Between two pings.
pub(super) const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a client has to answer the close frame.
pub(super) const CLOSE_ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a client may leave a frame unread before its socket is given up.
const SEND_WITHIN: Duration = Duration::from_secs(120);
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
                .max_message_size(LARGEST_FRAME_BYTES)
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

/// Writes one frame.
pub(super) async fn send(frames: &mut Frames, message: Message) -> Result<(), Gone> {
    match timeout(SEND_WITHIN, frames.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Gone),
    }
}

/// Writes the close frame.
pub(super) async fn close(frames: &mut Frames, (code, mut reason): Close) {
    reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    if send(frames, Message::Close(Some(frame))).await.is_err() {
        tracing::debug!("a socket's client was gone before its close frame");
    }
}
