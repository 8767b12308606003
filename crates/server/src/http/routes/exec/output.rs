//! What is kept of a process's output, as raw bytes from any offset.

use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use futures::Stream;
use serde::Deserialize;
use skep_api::ErrorBody;
use skep_core::bridge::{BridgeError, BridgeResult};
use skep_core::exec::{self, ExecEvent, ExecEvents, ExecId, OutputRange};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::files::{bridge_of, refused};
use crate::app::App;
use crate::http::access::{BotAccess, Operate};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Query, path_part};

/// Where the bytes of the answer begin: later than asked when what was asked is no longer kept.
const HEADER_OFFSET: HeaderName = HeaderName::from_static("x-offset");
/// Where the next question goes on.
const HEADER_NEXT_OFFSET: HeaderName = HeaderName::from_static("x-next-offset");

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(output))
}

/// The bot and the process of a route.
pub(super) struct ExecAccess {
    pub(super) access: BotAccess<Operate>,
    pub(super) id: ExecId,
}

impl FromRequestParts<App> for ExecAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let access = BotAccess::from_request_parts(parts, app).await?;
        let id = path_part(parts, "exec_id").await?;
        let id = ExecId::parse(&id).map_err(|_| ApiError::invalid_id("exec"))?;
        Ok(Self { access, id })
    }
}

#[derive(Debug, Deserialize, IntoParams)]
struct OutputQuery {
    /// `stdout` when absent, or `stderr`.
    stream: Option<String>,
    /// From which byte on.
    offset: Option<u64>,
    /// Go on until the process has ended.
    follow: Option<bool>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// A process's output. Without `follow` the header `X-Next-Offset` says where the next question goes on.
#[utoipa::path(get, path = "/bots/{bot_id}/container/exec/{exec_id}/output", tag = "exec", params(OutputQuery),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 400, body = ErrorBody, description = "No such stream"),
        (status = 404, body = ErrorBody, description = "No such process"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn output(
    State(app): State<App>,
    ExecAccess { access, id }: ExecAccess,
    Query(query): Query<OutputQuery>,
) -> ApiResult<Response> {
    let is_stderr = match query.stream.as_deref() {
        None | Some("stdout") => false,
        Some("stderr") => true,
        Some(_) => return Err(ApiError::invalid_argument("stream must be stdout or stderr")),
    };
    let follow = query.follow.unwrap_or(false);
    let bridge = bridge_of(&app, &access, query.start).await?;
    let status = exec::status(&bridge, &id).await.map_err(refused)?;
    let (oldest, written) = match is_stderr {
        false => (status.stdout_oldest, status.stdout_bytes),
        true => (status.stderr_oldest, status.stderr_bytes),
    };
    let from = query.offset.unwrap_or(0).max(oldest);
    let range = OutputRange {
        stdout: (!is_stderr).then_some(from),
        stderr: is_stderr.then_some(from),
        follow,
    };
    // What is known now is promised by its length; what follows ends when the process does.
    let end = match follow && status.end.is_none() {
        true => None,
        false => Some(written.max(from)),
    };
    let events = exec::output(&bridge, &id, range).await.map_err(refused)?;
    let mut response = Response::new(Body::from_stream(bytes_of(events, from, end)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(HEADER_OFFSET, HeaderValue::from(from));
    if let Some(end) = end {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(end - from));
        headers.insert(HEADER_NEXT_OFFSET, HeaderValue::from(end));
    }
    Ok(response)
}

/// A gap (the log dropped what was not read in time) and a lost bridge break the transfer.
fn bytes_of(events: ExecEvents, from: u64, end: Option<u64>) -> impl Stream<Item = BridgeResult<Bytes>> + Send {
    futures::stream::try_unfold((events, from), move |(mut events, at)| async move {
        if end.is_some_and(|end| at >= end) {
            return Ok(None);
        }
        loop {
            match events.next().await? {
                Some(ExecEvent::Output { offset, mut data, .. }) => {
                    if offset != at {
                        return Err(BridgeError::SourceBroken("the output is no longer kept".to_owned()));
                    }
                    if let Some(end) = end {
                        data.truncate(usize::try_from(end - at).unwrap_or(usize::MAX).min(data.len()));
                    }
                    let next = at + data.len() as u64;
                    return Ok(Some((data, (events, next))));
                }
                Some(ExecEvent::Started(_)) => {}
                Some(ExecEvent::Exited(_)) if end.is_none() => return Ok(None),
                Some(ExecEvent::Exited(_)) | None => {
                    return Err(BridgeError::Unreachable("the output ended before its end".to_owned()));
                }
            }
        }
    })
}
