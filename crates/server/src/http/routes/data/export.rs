//! `/data` as an archive that is made while it is sent. One that fails midway breaks the transfer: a client must never
//! take a part for the whole.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderName, HeaderValue, TE, TRAILER};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http_body::Frame;
use http_body_util::StreamBody;
use serde::Deserialize;
use skep_api::ErrorBody;
use skep_core::transfer::{ArchiveFormat, Changing, Digest, Moment, Piece};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{BotAccess, Manage};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;

const ESTIMATE: HeaderName = HeaderName::from_static("x-export-bytes-estimate");
const SHA256: HeaderName = HeaderName::from_static("x-export-sha256");
const SKIPPED: HeaderName = HeaderName::from_static("x-export-skipped");
const CHANGED: HeaderName = HeaderName::from_static("x-export-changed");

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get, post))
}

#[derive(Debug, Deserialize, IntoParams)]
struct ExportQuery {
    /// `tar.gz` (default), `tar.zst` or `tar`.
    format: Option<String>,
    /// Fail when a file changes each time it is read, rather than count it.
    strict: Option<bool>,
    /// All of it as it is at one moment: the workspace is frozen while it is read.
    consistent: Option<bool>,
}

/// `/data` as an archive; a running workspace runs on, a stopped one stays stopped.
#[utoipa::path(get, path = "/bots/{bot_id}/container/data/export", tag = "data", params(ExportQuery),
    responses((status = 200, content_type = "application/gzip", body = Vec<u8>),
        (status = 400, body = ErrorBody, description = "/data is no directory, or an unknown format"),
        (status = 404, body = ErrorBody, description = "No workspace"),
        (status = 409, body = ErrorBody, description = "`consistent=true`: `/data` is more than can be read within `export.freeze_max`"),
        (status = 429, body = ErrorBody, description = "So many exports are under way already: 4 of a workspace, 1 with `consistent=true`, 16 of an owner's workspaces, 64 in all"),
        (status = 501, body = ErrorBody, description = "The backend cannot freeze a workspace, or read a stopped one"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn get(
    State(app): State<App>,
    access: BotAccess<Manage>,
    Query(query): Query<ExportQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    answer(&app, &access, &query, &headers).await
}

/// The same.
#[utoipa::path(post, path = "/bots/{bot_id}/container/data/export", tag = "data", params(ExportQuery),
    responses((status = 200, content_type = "application/gzip", body = Vec<u8>),
        (status = 400, body = ErrorBody, description = "/data is no directory, or an unknown format"),
        (status = 404, body = ErrorBody, description = "No workspace"),
        (status = 409, body = ErrorBody, description = "`consistent=true`: `/data` is more than can be read within `export.freeze_max`"),
        (status = 429, body = ErrorBody, description = "So many exports are under way already: 4 of a workspace, 1 with `consistent=true`, 16 of an owner's workspaces, 64 in all"),
        (status = 501, body = ErrorBody, description = "The backend cannot freeze a workspace, or read a stopped one"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn post(
    State(app): State<App>,
    access: BotAccess<Manage>,
    Query(query): Query<ExportQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    answer(&app, &access, &query, &headers).await
}

async fn answer(
    app: &App,
    access: &BotAccess<Manage>,
    query: &ExportQuery,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    let (format, ending, media_type) = match query.format.as_deref() {
        None | Some("" | "tar.gz") => (ArchiveFormat::TarGz, "tar.gz", "application/gzip"),
        Some("tar.zst") => (ArchiveFormat::TarZst, "tar.zst", "application/zstd"),
        Some("tar") => (ArchiveFormat::Tar, "tar", "application/x-tar"),
        Some(_) => return Err(ApiError::invalid_argument("format is tar.gz, tar.zst or tar")),
    };
    let moment = match query.consistent {
        Some(true) => Moment::OfAll,
        _ => Moment::OfEachFile,
    };
    let changing = match query.strict {
        Some(true) => Changing::Refused,
        _ => Changing::Counted,
    };
    let export = app.core().export_data(access.bot_id(), moment, changing).await?;
    let estimate = export.estimate_bytes;
    let digest = match wants_trailers(headers) {
        true => Digest::Taken,
        false => Digest::NotTaken,
    };
    let body = Body::new(StreamBody::new(export.compressed(format, digest).map(frame)));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(ESTIMATE, HeaderValue::from(estimate));
    headers.insert(
        TRAILER,
        HeaderValue::from_static("X-Export-Sha256, X-Export-Changed, X-Export-Skipped"),
    );
    let name = format!("attachment; filename=\"{}-data.{ending}\"", access.bot_id());
    let name = HeaderValue::from_str(&name).map_err(ApiError::internal)?;
    headers.insert(CONTENT_DISPOSITION, name);
    Ok(response)
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    let wanted = headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    wanted
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case("trailers"))
}

/// An error takes the place of the end, which breaks the transfer.
fn frame(piece: skep_core::Result<Piece>) -> Result<Frame<bytes::Bytes>, ApiError> {
    Ok(match piece? {
        Piece::Data(data) => Frame::data(data),
        Piece::End { sha256, counts } => {
            let mut trailers = HeaderMap::new();
            trailers.insert(CHANGED, HeaderValue::from(counts.changed));
            trailers.insert(SKIPPED, HeaderValue::from(counts.skipped));
            if let Some(sha256) = sha256.and_then(|hex| HeaderValue::from_str(&hex).ok()) {
                trailers.insert(SHA256, sha256);
            }
            Frame::trailers(trailers)
        }
    })
}
