//! A terminal in a workspace, on a WebSocket.

mod window;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use skep_api::{ErrorBody, ErrorCode, TerminalInfo};
use skep_core::exec::{self, ExecId};
use skep_core::terminal::{self, SessionName, SessionTerms, ShellRequest};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::exec::log_limits;
use super::files::{bridge_of, watched_bridge_of};
use crate::app::App;
use crate::http::access::{BotAccess, Operate, Terminal};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;
use crate::http::socket::Upgrade;

/// `/bots/{bot_id}/container/terminal…`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(info)).routes(routes!(socket))
}

#[derive(Debug, Deserialize, IntoParams)]
struct InfoQuery {
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// Whether a terminal can be opened, and which shell it starts.
#[utoipa::path(get, path = "/bots/{bot_id}/container/terminal", tag = "terminal", params(InfoQuery),
    responses((status = 200, body = TerminalInfo)))]
async fn info(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<InfoQuery>,
) -> ApiResult<Json<TerminalInfo>> {
    let bridge = match bridge_of(&app, &access, query.start).await {
        Ok(bridge) => bridge,
        Err(error) => return not_available(error),
    };
    match exec::shell(&bridge).await {
        Ok(shell) => Ok(Json(TerminalInfo { available: true, shell })),
        Err(error) => not_available(super::files::refused(error)),
    }
}

/// A workspace that is stopped or not reachable has no terminal; anything else is a failure.
fn not_available(error: ApiError) -> ApiResult<Json<TerminalInfo>> {
    match error.code() {
        ErrorCode::WorkspaceStopped | ErrorCode::BridgeUnavailable | ErrorCode::Unsupported => Ok(Json(TerminalInfo {
            available: false,
            shell: String::new(),
        })),
        _ => Err(error),
    }
}

#[derive(Debug, Deserialize, IntoParams)]
struct SocketQuery {
    /// Columns; 80 when absent, not a number or 0; at most 1000.
    cols: Option<String>,
    /// Rows; 24 when absent, not a number or 0; at most 1000.
    rows: Option<String>,
    /// Open a window on this process, which was started with `pty`, in place of a shell.
    exec_id: Option<String>,
    /// With `exec_id`: from which byte of its output on. Absent: from the oldest that is kept.
    offset: Option<u64>,
    /// The shell of this name, with the last 256 KiB of what it showed, or a new one: it outlives its window, for as
    /// long as `terminal.session_keep`. 1–64 of `A–Z a–z 0–9 - _`; not with `exec_id`.
    session: Option<String>,
    /// With `session`: only a shell that still runs; in place of a new one, the socket is closed with 1011
    /// `session ended`.
    resume: Option<bool>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// A terminal. Binary frames are keystrokes and output; the text `{"type":"resize","cols","rows"}` is another size.
/// At the end a close frame 1000 `exit <code>`; the bridge lost, or output of the process dropped before the client
/// read it (or before `offset` could be): 1011; idle: 1001; a snapshot or a rollback: 1012; 2 MiB
/// of keystrokes of which the process reads none for 20 s: 1008; a frame over 64 KiB, or a message of several over
/// 1 MiB: 1009.
#[utoipa::path(get, path = "/bots/{bot_id}/container/terminal/ws", tag = "terminal", params(SocketQuery),
    responses((status = 101, description = "The socket"),
        (status = 400, body = ErrorBody, description = "Not an upgrade to a WebSocket"),
        (status = 403, body = ErrorBody, description = "A foreign origin"),
        (status = 404, body = ErrorBody, description = "No such process"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 426, body = ErrorBody, description = "Not an upgrade to a WebSocket"),
        (status = 501, body = ErrorBody, description = "`session`, in a workspace whose bridge has none"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn socket(
    State(app): State<App>,
    access: BotAccess<Terminal>,
    Query(query): Query<SocketQuery>,
    upgrade: Upgrade,
) -> ApiResult<Response> {
    if query.session.is_some() && query.exec_id.is_some() {
        return Err(ApiError::invalid_argument("session and exec_id exclude each other"));
    }
    let number = |text: &Option<String>| {
        let number: Option<u128> = text.as_deref().and_then(|text| text.trim().parse().ok());
        number.map(|number| u32::try_from(number).unwrap_or(u32::MAX))
    };
    let size = terminal::size(number(&query.cols), number(&query.rows));
    let attached = query.exec_id.as_deref().map(ExecId::parse).transpose();
    let attached = attached.map_err(|_| ApiError::invalid_id("exec"))?;
    let session = query.session.as_deref().map(SessionName::parse).transpose();
    let session = session.map_err(super::files::refused)?;
    let (bridge, watch) = watched_bridge_of(&app, &access, query.start).await?;
    if session.is_some() {
        terminal::check_sessions(&bridge).map_err(super::files::refused)?;
    }
    let shell = ShellRequest {
        size,
        log: log_limits(&app.config().exec),
    };
    let opening = match attached {
        Some(id) => {
            let attached = terminal::attach(&bridge, id, query.offset.unwrap_or(0))
                .await
                .map_err(super::files::refused)?;
            window::Opening::Attached(Box::new(attached), size, query.offset)
        }
        None => match session {
            Some(name) => {
                let terms = SessionTerms {
                    keep: app.config().terminal.session_keep,
                    resume: query.resume.unwrap_or(false),
                };
                window::Opening::Session(name, shell, terms)
            }
            None => window::Opening::Shell(shell),
        },
    };
    let idle_timeout = app.config().terminal.idle_timeout;
    Ok(upgrade.serve(move |socket| window::serve(socket, (bridge, watch), opening, idle_timeout)))
}
