//! One process: its state, its input, its signals, its end.

use axum::Json;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use serde::Deserialize;
use skep_api::{ErrorBody, ExecDone, ExecInfo, ResizeRequest, SignalRequest};
use skep_core::exec::{self, InputEnd, TerminalSize};
use skep_core::terminal::LARGEST_SIZE;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::files::{body_bytes, bridge_of, refused};
use super::StartQuery;
use super::output::ExecAccess;
use crate::app::App;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{JsonBody, Query};

const DONE: Json<ExecDone> = Json(ExecDone { ok: true });

pub(super) fn router() -> OpenApiRouter<App> {
    let stdin = OpenApiRouter::new()
        .routes(routes!(stdin))
        .layer(DefaultBodyLimit::disable());
    OpenApiRouter::new()
        .routes(routes!(get, delete))
        .routes(routes!(signal))
        .routes(routes!(resize))
        .merge(stdin)
}

/// The state of a process.
#[utoipa::path(get, path = "/bots/{bot_id}/container/exec/{exec_id}", tag = "exec", params(StartQuery),
    responses((status = 200, body = ExecInfo),
        (status = 404, body = ErrorBody, description = "No such process"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn get(
    State(app): State<App>,
    ExecAccess { access, id }: ExecAccess,
    Query(query): Query<StartQuery>,
) -> ApiResult<Json<ExecInfo>> {
    let bridge = bridge_of(&app, access.bot_id(), query.start).await?;
    let status = exec::status(&bridge, &id).await.map_err(refused)?;
    Ok(Json(super::info(status)))
}

/// End a process with its whole group, and forget it and its output.
#[utoipa::path(delete, path = "/bots/{bot_id}/container/exec/{exec_id}", tag = "exec", params(StartQuery),
    responses((status = 204, description = "It is gone"),
        (status = 404, body = ErrorBody, description = "No such process"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn delete(
    State(app): State<App>,
    ExecAccess { access, id }: ExecAccess,
    Query(query): Query<StartQuery>,
) -> ApiResult<StatusCode> {
    let bridge = bridge_of(&app, access.bot_id(), query.start).await?;
    exec::remove(&bridge, &id).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Send a signal to a process's whole group.
#[utoipa::path(post, path = "/bots/{bot_id}/container/exec/{exec_id}/signal", tag = "exec", params(StartQuery),
    request_body = SignalRequest,
    responses((status = 200, body = ExecDone),
        (status = 400, body = ErrorBody, description = "No such signal"),
        (status = 404, body = ErrorBody, description = "No such process"),
        (status = 409, body = ErrorBody, description = "The process is over; the workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn signal(
    State(app): State<App>,
    ExecAccess { access, id }: ExecAccess,
    Query(query): Query<StartQuery>,
    JsonBody(body): JsonBody<SignalRequest>,
) -> ApiResult<Json<ExecDone>> {
    let number = exec::signal_number(&body.signal)
        .ok_or_else(|| ApiError::invalid_argument("signal must be a name as SIGTERM, or a number from 1 to 64"))?;
    let bridge = bridge_of(&app, access.bot_id(), query.start).await?;
    exec::signal(&bridge, &id, number).await.map_err(refused)?;
    Ok(DONE)
}

/// Give a process's terminal another size.
#[utoipa::path(post, path = "/bots/{bot_id}/container/exec/{exec_id}/resize", tag = "exec", params(StartQuery),
    request_body = ResizeRequest,
    responses((status = 200, body = ExecDone),
        (status = 400, body = ErrorBody, description = "No size, or no terminal"),
        (status = 404, body = ErrorBody, description = "No such process"),
        (status = 409, body = ErrorBody, description = "The process is over; the workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn resize(
    State(app): State<App>,
    ExecAccess { access, id }: ExecAccess,
    Query(query): Query<StartQuery>,
    JsonBody(body): JsonBody<ResizeRequest>,
) -> ApiResult<Json<ExecDone>> {
    let size = |given: u32| {
        u16::try_from(given)
            .ok()
            .filter(|given| (1..=LARGEST_SIZE).contains(given))
    };
    let (Some(cols), Some(rows)) = (size(body.cols), size(body.rows)) else {
        return Err(ApiError::invalid_argument("cols and rows must be between 1 and 1000"));
    };
    let bridge = bridge_of(&app, access.bot_id(), query.start).await?;
    exec::resize(&bridge, &id, TerminalSize { cols, rows })
        .await
        .map_err(refused)?;
    Ok(DONE)
}

#[derive(Debug, Deserialize, IntoParams)]
struct StdinQuery {
    /// Close the input after these bytes.
    eof: Option<bool>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// Write to a process's input; answers when the process's pipe has taken all of it.
#[utoipa::path(post, path = "/bots/{bot_id}/container/exec/{exec_id}/stdin", tag = "exec", params(StdinQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ExecDone),
        (status = 404, body = ErrorBody, description = "No such process"),
        (status = 409, body = ErrorBody, description = "The process or its input is closed; the workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn stdin(
    State(app): State<App>,
    ExecAccess { access, id }: ExecAccess,
    Query(query): Query<StdinQuery>,
    body: Body,
) -> ApiResult<Json<ExecDone>> {
    let end = match query.eof {
        Some(true) => InputEnd::Closed,
        _ => InputEnd::Open,
    };
    let bridge = bridge_of(&app, access.bot_id(), query.start).await?;
    exec::write_stdin(&bridge, &id, body_bytes(body), end)
        .await
        .map_err(refused)?;
    Ok(DONE)
}
