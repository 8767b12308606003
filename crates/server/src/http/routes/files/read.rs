//! What is under a path, and a file's content as JSON.

use axum::Json;
use axum::extract::State;
use base64::Engine;
use serde::Deserialize;
use skep_api::{Encoding, ErrorBody, FileContent, FileInfo};
use skep_core::files::{self, FileReader, Links, WorkspacePath};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::lines::Lines;
use super::{bridge_of, exact_text, file_info, refused, required_path};
use crate::app::App;
use crate::http::access::{BotAccess, Operate};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;

/// The most that a read holds in memory; a download has no limit.
const MOST_READ_BYTES: usize = 16 * 1024 * 1024;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(stat)).routes(routes!(read))
}

#[derive(Debug, Deserialize, IntoParams)]
struct StatQuery {
    /// `/` when absent.
    path: Option<String>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// What is under a path; a link is followed, a dangling one shows itself.
#[utoipa::path(get, path = "/bots/{bot_id}/container/fs", tag = "files", params(StatQuery),
    responses((status = 200, body = FileInfo),
        (status = 400, body = ErrorBody, description = "A path through a file, or that cannot be"),
        (status = 403, body = ErrorBody, description = "The file's permissions"),
        (status = 404, body = ErrorBody, description = "No such file"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn stat(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<StatQuery>,
) -> ApiResult<Json<FileInfo>> {
    let path = WorkspacePath::parse(query.path.as_deref().unwrap_or("/")).map_err(refused)?;
    let bridge = bridge_of(&app, &access, query.start).await?;
    let entry = files::stat(&bridge, &path, Links::Followed).await.map_err(refused)?;
    Ok(Json(file_info(entry)))
}

#[derive(Debug, Deserialize, IntoParams)]
struct ReadQuery {
    /// The file.
    path: Option<String>,
    /// First line, from 1.
    line_offset: Option<u64>,
    /// Number of lines.
    n_lines: Option<u64>,
    /// `base64`, or `auto` for base64 only where the content is not UTF-8; absent: text, with U+FFFD for the rest.
    encoding: Option<String>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Text,
    Base64,
    Auto,
}

/// A file's content, or some of its lines.
#[utoipa::path(get, path = "/bots/{bot_id}/container/fs/read", tag = "files", params(ReadQuery),
    responses((status = 200, body = FileContent),
        (status = 400, body = ErrorBody, description = "Not a file"),
        (status = 403, body = ErrorBody, description = "The file's permissions"),
        (status = 404, body = ErrorBody, description = "No such file"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 413, body = ErrorBody, description = "Over 16 MiB: use download"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn read(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<ReadQuery>,
) -> ApiResult<Json<FileContent>> {
    let path = required_path(query.path.as_deref())?;
    let wanted = match query.encoding.as_deref() {
        None | Some("") => Wanted::Text,
        Some("base64") => Wanted::Base64,
        Some("auto") => Wanted::Auto,
        Some(_) => return Err(ApiError::invalid_argument("encoding must be base64 or auto")),
    };
    if query.line_offset == Some(0) || query.n_lines == Some(0) {
        return Err(ApiError::invalid_argument("line_offset and n_lines count from 1"));
    }
    let bridge = bridge_of(&app, &access, query.start).await?;
    let reader = files::read(&bridge, &path, 0, 0).await.map_err(refused)?;
    let (size, etag) = (reader.entry().size_bytes, reader.entry().etag.clone());
    let bytes = match (query.line_offset, query.n_lines) {
        (None, None) => whole(reader).await?,
        (offset, count) => some_lines(reader, offset.unwrap_or(1), count.unwrap_or(u64::MAX)).await?,
    };
    let (content, encoding, lossy) = as_wanted(bytes, wanted);
    Ok(Json(FileContent {
        path: path.as_str().to_owned(),
        content,
        size,
        lossy,
        encoding,
        etag,
    }))
}

async fn whole(reader: FileReader) -> ApiResult<Vec<u8>> {
    if reader.entry().size_bytes > MOST_READ_BYTES as u64 {
        return Err(too_large());
    }
    reader.collect(MOST_READ_BYTES).await.map_err(refused)
}

async fn some_lines(mut reader: FileReader, offset: u64, count: u64) -> ApiResult<Vec<u8>> {
    let mut lines = Lines::new(offset, count, MOST_READ_BYTES);
    while let Some(piece) = reader.next_piece().await.map_err(refused)? {
        if !lines.push(&piece).map_err(|_| too_large())? {
            break;
        }
    }
    Ok(lines.finish())
}

fn too_large() -> ApiError {
    ApiError::new(
        skep_api::ErrorCode::BodyTooLarge,
        "the file is over 16 MiB: use /fs/download, or line_offset and n_lines",
    )
}

fn as_wanted(bytes: Vec<u8>, wanted: Wanted) -> (String, Option<Encoding>, bool) {
    match wanted {
        Wanted::Base64 => {
            let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
            (text, Some(Encoding::Base64), false)
        }
        Wanted::Auto => {
            let (text, encoding) = exact_text(bytes);
            (text, Some(encoding), false)
        }
        Wanted::Text => match String::from_utf8(bytes) {
            Ok(text) => (text, None, false),
            Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), None, true),
        },
    }
}
