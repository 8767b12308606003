//! Trees as tar streams, modes and links kept.

use axum::Json;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use serde::Deserialize;
use skep_api::{ArchiveResult, ErrorBody};
use skep_core::bridge::BridgeError;
use skep_core::files::{self, Links};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::upload::body_bytes;
use super::{bridge_of, refused, required_path};
use crate::app::App;
use crate::http::access::{BotAccess, Operate};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(get, put, pack))
        .layer(DefaultBodyLimit::disable())
}

#[derive(Debug, Deserialize, IntoParams)]
struct ArchiveQuery {
    /// A file or directory to pack; the directory to unpack into.
    path: Option<String>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// A tar stream: a directory's entries are relative to it, a file is one entry.
#[utoipa::path(get, path = "/bots/{bot_id}/container/fs/archive", tag = "files", params(ArchiveQuery),
    responses((status = 200, content_type = "application/x-tar", body = Vec<u8>),
        (status = 400, body = ErrorBody, description = "A path that cannot be"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 404, body = ErrorBody, description = "No such file"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn get(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<ArchiveQuery>,
) -> ApiResult<Response> {
    let path = required_path(query.path.as_deref())?;
    let bridge = bridge_of(&app, access.bot_id(), query.start).await?;
    // What is not there must be a status, not a broken stream.
    files::stat(&bridge, &path, Links::Followed).await.map_err(refused)?;
    let archive = files::read_archive(&bridge, &path).await.map_err(refused)?;
    let mut response = Response::new(Body::from_stream(archive));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

/// Unpack a tar stream into a directory.
#[utoipa::path(put, path = "/bots/{bot_id}/container/fs/archive", tag = "files", params(ArchiveQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 200, body = ArchiveResult),
        (status = 400, body = ErrorBody, description = "No tar stream, or one with something that is not accepted"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable"),
        (status = 507, body = ErrorBody, description = "No space")))]
async fn put(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<ArchiveQuery>,
    body: Body,
) -> ApiResult<Json<ArchiveResult>> {
    let path = required_path(query.path.as_deref())?;
    let bridge = bridge_of(&app, access.bot_id(), query.start).await?;
    let report = files::write_archive(&bridge, &path, body_bytes(body)).await;
    let report = report.map_err(|error| match error {
        BridgeError::InvalidArgument(text) => ApiError::new(skep_api::ErrorCode::ArchiveRefused, text),
        other => refused(other),
    })?;
    Ok(Json(ArchiveResult {
        entries: report.entries,
        bytes: report.bytes,
    }))
}

/// Pack several paths: not in this version.
#[utoipa::path(post, path = "/bots/{bot_id}/container/fs/archive", tag = "files",
    responses((status = 501, body = ErrorBody, description = "Not in this version")))]
async fn pack(_access: BotAccess<Operate>) -> ApiError {
    ApiError::unsupported("packing several paths is not in this version; GET /fs/archive packs one")
}
