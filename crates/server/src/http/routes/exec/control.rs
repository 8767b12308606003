//! One process: its state, its input, its signals, its end.

use axum::Json;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use skep_api::{ErrorBody, ExecDone, ExecInfo, ResizeRequest, SignalRequest};
use skep_core::bridge::{Bridge, BridgeResult};
use skep_core::exec::{self, ExecId, InputEnd, TerminalSize};
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

/// The process of a route, with the bridge of its workspace still to be asked for.
struct Control {
    app: App,
    access: ExecAccess,
    start: Option<bool>,
}

impl FromRequestParts<App> for Control {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let access = ExecAccess::from_request_parts(parts, app).await?;
        let Query(query) = Query::<StartQuery>::from_request_parts(parts, app).await?;
        Ok(Self {
            app: app.clone(),
            access,
            start: query.start,
        })
    }
}

impl Control {
    /// Does what was asked, once it is known to be well formed.
    async fn ask<T>(self, ask: impl AsyncFnOnce(&Bridge, &ExecId) -> BridgeResult<T>) -> ApiResult<T> {
        let bridge = bridge_of(&self.app, &self.access.access, self.start).await?;
        ask(&bridge, &self.access.id).await.map_err(refused)
    }
}

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
async fn get(control: Control) -> ApiResult<Json<ExecInfo>> {
    let status = control.ask(exec::status).await?;
    Ok(Json(super::info(status)))
}

/// End a process with its whole group, and forget it and its output.
#[utoipa::path(delete, path = "/bots/{bot_id}/container/exec/{exec_id}", tag = "exec", params(StartQuery),
    responses((status = 204, description = "It is gone"),
        (status = 404, body = ErrorBody, description = "No such process"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn delete(control: Control) -> ApiResult<StatusCode> {
    control.ask(exec::remove).await?;
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
async fn signal(control: Control, JsonBody(body): JsonBody<SignalRequest>) -> ApiResult<Json<ExecDone>> {
    let number = exec::signal_number(&body.signal)
        .ok_or_else(|| ApiError::invalid_argument("signal must be a name as SIGTERM, or a number from 1 to 64"))?;
    control
        .ask(async |bridge, id| exec::signal(bridge, id, number).await)
        .await?;
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
async fn resize(control: Control, JsonBody(body): JsonBody<ResizeRequest>) -> ApiResult<Json<ExecDone>> {
    let size = |given: u32| {
        u16::try_from(given)
            .ok()
            .filter(|given| (1..=LARGEST_SIZE).contains(given))
    };
    let (Some(cols), Some(rows)) = (size(body.cols), size(body.rows)) else {
        return Err(ApiError::invalid_argument("cols and rows must be between 1 and 1000"));
    };
    let size = TerminalSize { cols, rows };
    control
        .ask(async |bridge, id| exec::resize(bridge, id, size).await)
        .await?;
    Ok(DONE)
}

#[derive(Debug, Deserialize, IntoParams)]
struct StdinQuery {
    /// Close the input after these bytes.
    eof: Option<bool>,
}

/// Write to a process's input; answers when the process's pipe has taken all of it.
#[utoipa::path(post, path = "/bots/{bot_id}/container/exec/{exec_id}/stdin", tag = "exec", params(StdinQuery, StartQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ExecDone),
        (status = 404, body = ErrorBody, description = "No such process"),
        (status = 409, body = ErrorBody, description = "The process or its input is closed; the workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn stdin(control: Control, Query(query): Query<StdinQuery>, body: Body) -> ApiResult<Json<ExecDone>> {
    let end = match query.eof {
        Some(true) => InputEnd::Closed,
        _ => InputEnd::Open,
    };
    let bytes = body_bytes(body);
    control
        .ask(async |bridge, id| exec::write_stdin(bridge, id, bytes, end).await)
        .await?;
    Ok(DONE)
}
