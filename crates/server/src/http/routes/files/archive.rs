//! Trees as tar streams, modes and links kept.

use std::collections::HashSet;

use axum::Json;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use serde::Deserialize;
use skep_api::{ArchiveResult, ErrorBody, ExtractRequest, PackRequest};
use skep_core::bridge::{BridgeError, BridgeResult};
use skep_core::files::{self, ArchiveReport, Links, WorkspacePath};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::change::StartQuery;
use super::download::compressed;
use super::upload::body_bytes;
use super::{bridge_of, refused, required_path, roomy_bridge_of};
use crate::app::App;
use crate::http::access::{BotAccess, DownloadArchive, Operate};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{JsonBody, Query};

/// What one archive may be packed of.
const MOST_PATHS: usize = 1_000;

pub(super) fn router() -> OpenApiRouter<App> {
    let stream = OpenApiRouter::new()
        .routes(routes!(get, put))
        .layer(DefaultBodyLimit::disable());
    OpenApiRouter::new()
        .merge(stream)
        .routes(routes!(pack))
        .routes(routes!(extract))
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
    access: BotAccess<DownloadArchive>,
    Query(query): Query<ArchiveQuery>,
) -> ApiResult<Response> {
    let path = required_path(query.path.as_deref())?;
    let bridge = bridge_of(&app, &access, query.start).await?;
    // What is not there must be a status, not a broken stream.
    files::stat(&bridge, &path, Links::Followed).await.map_err(refused)?;
    let archive = files::read_archive(&bridge, std::slice::from_ref(&path))
        .await
        .map_err(refused)?;
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
        (status = 507, body = ErrorBody, description = "No space, or over the storage limit")))]
async fn put(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<ArchiveQuery>,
    body: Body,
) -> ApiResult<Json<ArchiveResult>> {
    let path = required_path(query.path.as_deref())?;
    let bridge = roomy_bridge_of(&app, &access, query.start).await?;
    let report = files::write_archive(&bridge, &path, body_bytes(body)).await;
    unpacked(report)
}

/// Pack several files and directories, each below its own last name, as `.tar.gz`.
#[utoipa::path(post, path = "/bots/{bot_id}/container/fs/archive", tag = "files", params(StartQuery),
    request_body = PackRequest,
    responses((status = 200, content_type = "application/gzip", body = Vec<u8>),
        (status = 400, body = ErrorBody, description = "No path, one that cannot be, or two with the same last name"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 404, body = ErrorBody, description = "One of them is not there"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn pack(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<StartQuery>,
    JsonBody(body): JsonBody<PackRequest>,
) -> ApiResult<Response> {
    let paths: Vec<WorkspacePath> = body
        .paths
        .iter()
        .map(|path| required_path(Some(path)))
        .collect::<ApiResult<_>>()?;
    if paths.is_empty() || paths.len() > MOST_PATHS {
        return Err(ApiError::invalid_argument("paths must be 1 to 1,000 paths"));
    }
    let mut names = HashSet::new();
    if let Some(twice) = paths.iter().find(|path| !names.insert(path.name())) {
        let message = format!("two of the paths are called {}", twice.name());
        return Err(ApiError::invalid_argument(message));
    }
    if paths.len() > 1 && paths.iter().any(WorkspacePath::is_root) {
        return Err(ApiError::invalid_argument(
            "/ has no name to be packed by beside others",
        ));
    }
    let bridge = bridge_of(&app, &access, query.start).await?;
    let archive = files::read_archive(&bridge, &paths).await.map_err(refused)?;
    Ok(compressed(archive, "files"))
}

/// Unpack an archive that lies in the workspace: `.zip`, `.tar`, `.tar.gz` or `.tar.zst`. Modes, times and links are kept,
/// owners are not; no name leads out of the directory, nothing is written through a link of the archive. What was
/// unpacked before something is refused stays.
#[utoipa::path(post, path = "/bots/{bot_id}/container/fs/extract", tag = "files", params(StartQuery),
    request_body = ExtractRequest,
    responses((status = 200, body = ArchiveResult),
        (status = 400, body = ErrorBody, description = "No archive, or one with something that is not accepted"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 404, body = ErrorBody, description = "No such archive"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 501, body = ErrorBody, description = "The workspace was made by an older version: restart it"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable"),
        (status = 507, body = ErrorBody, description = "No space, or over the storage limit")))]
async fn extract(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<StartQuery>,
    JsonBody(body): JsonBody<ExtractRequest>,
) -> ApiResult<Json<ArchiveResult>> {
    let path = required_path(Some(&body.path))?;
    let to = body.to.as_deref().map(|to| required_path(Some(to))).transpose()?;
    let bridge = roomy_bridge_of(&app, &access, query.start).await?;
    let report = files::extract(&bridge, &path, to.as_ref()).await;
    unpacked(report)
}

fn unpacked(report: BridgeResult<ArchiveReport>) -> ApiResult<Json<ArchiveResult>> {
    let report = report.map_err(|error| match error {
        BridgeError::InvalidArgument(text) => ApiError::new(skep_api::ErrorCode::ArchiveRefused, text),
        other => refused(other),
    })?;
    Ok(Json(ArchiveResult {
        entries: report.entries,
        bytes: report.bytes,
    }))
}
