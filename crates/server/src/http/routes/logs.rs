//! The log of a workspace.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use skep_api::ErrorBody;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{BotAccess, Read};
use crate::http::error::ApiResult;
use crate::http::extract::Query;

/// `/bots/{bot_id}/container/logs`.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(logs))
}

#[derive(Debug, Deserialize, IntoParams)]
struct LogsQuery {
    /// Only so many of the last lines; all that is kept (256 KiB) unless given.
    tail: Option<u64>,
    /// Go on with lines as they come, over stops and starts, until the workspace is deleted.
    follow: Option<bool>,
}

/// What the workspace's bridge wrote (starts, ends, execs by id, errors; also of earlier runs) and the kernel's kills
/// for want of memory. Lines begin with a time in RFC 3339. The text is the tenant's: control characters other than
/// line ends and tabs are written as escapes.
#[utoipa::path(get, path = "/bots/{bot_id}/container/logs", tag = "workspace", params(LogsQuery),
    responses((status = 200, content_type = "text/plain", body = String),
        (status = 400, body = ErrorBody, description = "`tail` is no number, or `follow` neither true nor false"),
        (status = 404, body = ErrorBody, description = "No such bot, or it has no workspace")))]
async fn logs(State(app): State<App>, access: BotAccess<Read>, Query(query): Query<LogsQuery>) -> ApiResult<Response> {
    let (core, bot) = (app.core(), access.bot_id());
    let body = match query.follow.unwrap_or(false) {
        true => Body::from_stream(core.follow_workspace_log(bot, query.tail).await?),
        false => Body::from(core.workspace_log(bot, query.tail).await?),
    };
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox; default-src 'none'"),
    );
    Ok(response)
}
