//! Connections to ports of a workspace's own loopback, each on a WebSocket.

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, close_code};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::SplitStream;
use serde::Deserialize;
use skep_api::ErrorBody;
use skep_core::bridge::Bridge;
use skep_core::ports::{self, PortError, PortReceiver, PortSender, Received};
use tokio::time::{MissedTickBehavior, interval, timeout};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::exec::Watch;
use super::files::watched_bridge_of;
use crate::app::App;
use crate::http::access::{BotAccess, Port};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;
use crate::http::socket::{CLOSE_ANSWER_WITHIN, Close, Frames, PING_EVERY, Upgrade, close, close_of_unreadable, send};

/// The largest piece of data in one frame.
const LARGEST_DATA_BYTES: usize = 32 * 1024;

/// `/bots/{bot_id}/container/port-forward`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(forward))
}

#[derive(Debug, Deserialize, IntoParams)]
struct ForwardQuery {
    /// A TCP port from 1 to 65535.
    port: Option<u16>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// A TCP connection to a port of the workspace's loopback. Binary frames are its bytes either way, an empty one says
/// that its sender sends nothing more. When both have ended a close frame 1000; nothing listening: 1011
/// `connection refused`; broken off by the workspace: 1011 `connection reset`; the bridge lost: 1011; a snapshot or a
/// rollback: 1012; a frame over 64 KiB, or a message of several over 1 MiB: 1009.
#[utoipa::path(get, path = "/bots/{bot_id}/container/port-forward", tag = "terminal", params(ForwardQuery),
    responses((status = 101, description = "The socket"),
        (status = 400, body = ErrorBody, description = "No port, or not an upgrade to a WebSocket"),
        (status = 403, body = ErrorBody, description = "A foreign origin"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 426, body = ErrorBody, description = "Not an upgrade to a WebSocket"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn forward(
    State(app): State<App>,
    access: BotAccess<Port>,
    Query(query): Query<ForwardQuery>,
    upgrade: Upgrade,
) -> ApiResult<Response> {
    let port = query.port.filter(|port| *port != 0);
    let port = port.ok_or_else(|| ApiError::invalid_argument("port must be a number from 1 to 65535"))?;
    let (bridge, watch) = watched_bridge_of(&app, &access, query.start).await?;
    Ok(upgrade.serve(move |socket| serve(socket, bridge, port, watch)))
}

async fn serve(socket: WebSocket, bridge: Bridge, port: u16, watch: Watch) {
    let (mut sink, mut frames) = socket.split();
    let ended = match ports::connect(&bridge, port).await {
        Ok((sender, receiver)) => carry((&mut sink, &mut frames), sender, receiver).await,
        Err(error) => Some(close_of(&error)),
    };
    let Some(mut ended) = ended else { return };
    if ended.0 != close_code::NORMAL && watch.was_interrupted() {
        ended = (close_code::RESTART, "workspace restarted".to_owned());
    }
    close(&mut sink, ended).await;
    // A socket dropped with unread frames is reset, and the client loses what it had not read yet.
    let answered = async { while let Some(Ok(_)) = frames.next().await {} };
    if timeout(CLOSE_ANSWER_WITHIN, answered).await.is_err() {
        tracing::debug!("a port's client did not answer the close frame");
    }
}

/// Both directions, each to its own end. `None`: the client is gone, and the workspace sees a reset.
async fn carry(
    (sink, frames): (&mut Frames, &mut SplitStream<WebSocket>),
    sender: PortSender,
    receiver: PortReceiver,
) -> Option<Close> {
    tokio::select! {
        ended = outward(sink, receiver) => ended,
        ended = inward(frames, &sender) => ended,
    }
}

/// Until there are no more frames: how to close. `None`: the client is gone. What it sends after its own end, or when the workspace takes no more, is dropped: the
/// other direction tells why.
async fn inward(frames: &mut SplitStream<WebSocket>, sender: &PortSender) -> Option<Close> {
    let mut goes_on = true;
    loop {
        let message = match frames.next().await? {
            Ok(message) => message,
            Err(error) => return close_of_unreadable(error),
        };
        match message {
            Message::Binary(data) if !goes_on => drop(data),
            Message::Binary(data) if data.is_empty() => {
                sender.end().await;
                goes_on = false;
            }
            Message::Binary(data) => goes_on = sender.send(data).await,
            Message::Close(_) => return None,
            Message::Text(_) | Message::Ping(_) | Message::Pong(_) => {}
        }
    }
}

/// Until both sides have ended, or one broke it off: how to close. `None`: the client is gone.
async fn outward(sink: &mut Frames, mut receiver: PortReceiver) -> Option<Close> {
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let received = tokio::select! {
            received = receiver.next() => received,
            _ = pings.tick() => {
                send(sink, Message::Ping(Bytes::new())).await.ok()?;
                continue;
            }
        };
        match received {
            Ok(Received::Data(mut data)) => {
                while !data.is_empty() {
                    let piece = data.split_to(data.len().min(LARGEST_DATA_BYTES));
                    send(sink, Message::Binary(piece)).await.ok()?;
                }
            }
            Ok(Received::End) => send(sink, Message::Binary(Bytes::new())).await.ok()?,
            Ok(Received::Over) => return Some((close_code::NORMAL, String::new())),
            Err(error) => return Some(close_of(&error)),
        }
    }
}

fn close_of(error: &PortError) -> Close {
    let reason = match error {
        PortError::Refused | PortError::Reset => error.to_string(),
        PortError::Bridge(error) => {
            tracing::debug!(%error, "a forwarded port lost its bridge");
            match error.is_lost() {
                true => "bridge lost".to_owned(),
                false => error.to_string(),
            }
        }
    };
    (close_code::ERROR, reason)
}
