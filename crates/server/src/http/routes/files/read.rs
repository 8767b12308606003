//! What is under a path, and a file's content as JSON.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use skep_api::{ErrorBody, FileContent, FileInfo};
use skep_core::files::{self, FileReader, Links, WorkspacePath};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::content::{self, Wanted};
use super::lines::Lines;
use super::{bridge_of, file_info, refused, required_path};
use crate::app::App;
use crate::http::access::{BotAccess, Caller, Operate};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;
use crate::http::room::{GrowingRoom, Purpose, Room};

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

/// A file's content, or some of its lines.
#[utoipa::path(get, path = "/bots/{bot_id}/container/fs/read", tag = "files", params(ReadQuery),
    responses((status = 200, body = FileContent),
        (status = 400, body = ErrorBody, description = "Not a file"),
        (status = 403, body = ErrorBody, description = "The file's permissions"),
        (status = 404, body = ErrorBody, description = "No such file"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 413, body = ErrorBody, description = "Over 16 MiB: use download"),
        (status = 429, body = ErrorBody, description = "Too many large files are being read by this user, or by all"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn read(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<ReadQuery>,
) -> ApiResult<Response> {
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
    let is_whole = query.line_offset.is_none() && query.n_lines.is_none();
    if is_whole && size > MOST_READ_BYTES as u64 {
        return Err(too_large());
    }
    let expected = if is_whole {
        usize::try_from(size).unwrap_or(0)
    } else {
        0
    };
    let lines = Lines::new(
        query.line_offset.unwrap_or(1),
        query.n_lines.unwrap_or(u64::MAX),
        MOST_READ_BYTES,
    );
    let held = hold((&app, &access.caller), reader, (lines, expected)).await?;
    content::answer(
        FileContent {
            path: path.as_str().to_owned(),
            content: String::new(),
            size,
            lossy: false,
            encoding: None,
            etag,
        },
        held,
        wanted,
    )
}

/// Collects the lines as there is room for them: for as many bytes as the file says that it has, `expected`, and for
/// more when there are more.
async fn hold(
    (app, caller): (&App, &Caller),
    reader: FileReader,
    (mut lines, expected): (Lines, usize),
) -> ApiResult<(Vec<u8>, Vec<Room>)> {
    let mut reader = reader.in_bounded_time();
    let mut room = GrowingRoom::begin(app.rooms(), (Purpose::Answer, &caller.user.id), expected).await?;
    while let Some(piece) = reader.next_piece().await.map_err(refused)? {
        let goes_on = lines.push(&piece).map_err(|_| too_large())?;
        room.cover(lines.len()).await?;
        if !goes_on {
            break;
        }
    }
    Ok((lines.finish(), room.into_taken()))
}

fn too_large() -> ApiError {
    ApiError::new(
        skep_api::ErrorCode::BodyTooLarge,
        "the file is over 16 MiB: use /fs/download, or line_offset and n_lines",
    )
}
