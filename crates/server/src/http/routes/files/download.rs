//! A file's bytes as they are, whole or in part; a directory as a compressed archive.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    HeaderName, HeaderValue, LAST_MODIFIED, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::Deserialize;
use skep_api::ErrorBody;
use skep_core::bridge::{Bridge, BridgeError, BridgeResult};
use skep_core::files::{self, FileEntry, FileReader, Links, WorkspacePath};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::media_type::media_type;
use super::range::{Part, is_known, part_of};
use super::{bridge_of, refused, required_path};
use crate::app::App;
use crate::http::access::{BotAccess, Download};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;

/// How often a file is looked at anew when it changes between the look and the opening.
const LOOKS: u32 = 4;
/// Where a guest's downloads may lead.
const MEDIA_DIRECTORY: &str = "/data/media";

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(download, head))
}

#[derive(Debug, Deserialize, IntoParams)]
struct DownloadQuery {
    /// The file or directory.
    path: Option<String>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// A file's bytes, streamed; a directory comes as `.tar.gz`.
#[utoipa::path(get, path = "/bots/{bot_id}/container/fs/download", tag = "files", params(DownloadQuery),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, description = "The range that was asked for"),
        (status = 304, description = "The caller has it"),
        (status = 400, body = ErrorBody, description = "Neither a file nor a directory"),
        (status = 403, body = ErrorBody, description = "The file's permissions"),
        (status = 404, body = ErrorBody, description = "No such file"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 416, body = ErrorBody, description = "The range begins behind the end"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn download(
    State(app): State<App>,
    access: BotAccess<Download>,
    Query(query): Query<DownloadQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    answer(
        &app,
        &access,
        &query,
        Asked {
            method: Method::GET,
            headers,
        },
    )
    .await
}

/// The same without the bytes.
#[utoipa::path(head, path = "/bots/{bot_id}/container/fs/download", tag = "files", params(DownloadQuery),
    responses((status = 200, description = "The headers of the download"),
        (status = 206, description = "Those of the range that was asked for"),
        (status = 304, description = "The caller has it"),
        (status = 400, description = "Neither a file nor a directory"),
        (status = 403, description = "The file's permissions"),
        (status = 404, description = "No such file"),
        (status = 409, description = "The workspace is stopped"),
        (status = 416, description = "The range begins behind the end"),
        (status = 503, description = "The workspace is not reachable")))]
async fn head(
    State(app): State<App>,
    access: BotAccess<Download>,
    Query(query): Query<DownloadQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    answer(
        &app,
        &access,
        &query,
        Asked {
            method: Method::HEAD,
            headers,
        },
    )
    .await
}

struct Asked {
    method: Method,
    headers: HeaderMap,
}

async fn answer(app: &App, access: &BotAccess<Download>, query: &DownloadQuery, asked: Asked) -> ApiResult<Response> {
    let path = required_path(query.path.as_deref())?;
    // What a guest may do is to read.
    let start = query.start.filter(|_| !access.as_guest);
    let bridge = bridge_of(app, access, start).await?;
    let confine = access.as_guest.then_some(MEDIA_DIRECTORY);
    if confine.is_some() {
        // Before anything is told of it: a link may lead a guest out.
        files::read_below(&bridge, &path, (0, 1), confine)
            .await
            .map_err(refused)?;
    }
    for _ in 0..LOOKS {
        let entry = files::stat(&bridge, &path, Links::Followed).await.map_err(refused)?;
        if entry.is_directory() {
            return directory(&bridge, access, &path, &asked).await;
        }
        if !entry.is_regular() {
            return Err(ApiError::new(
                skep_api::ErrorCode::InvalidPath,
                "neither a file nor a directory",
            ));
        }
        if is_known(&asked.headers, entry.etag.as_deref()) {
            return Ok(with_state(StatusCode::NOT_MODIFIED, &entry, Body::empty()));
        }
        let part = part_of(&asked.headers, entry.size_bytes, entry.etag.as_deref());
        if part == Part::Outside {
            return Ok(outside(entry.size_bytes));
        }
        if asked.method == Method::HEAD {
            return Ok(file(&entry, part, Body::empty()));
        }
        let (offset, length) = match part {
            Part::Some { offset, length } => (offset, length),
            _ => (0, 0),
        };
        let mut reader = files::read_below(&bridge, &path, (offset, length), confine)
            .await
            .map_err(refused)?;
        if (entry.size_bytes, reader.entry().size_bytes) == (0, 0)
            && let Some(first) = reader.next_piece().await.map_err(refused)?
        {
            return Ok(of_untold_size(&entry, first, reader));
        }
        if (&reader.entry().etag, reader.entry().size_bytes) == (&entry.etag, entry.size_bytes) {
            let promised = if length == 0 { entry.size_bytes } else { length };
            return Ok(file(&entry, part, Body::from_stream(exactly(reader, promised))));
        }
    }
    Err(ApiError::new(
        skep_api::ErrorCode::Conflict,
        "the file changes all the time; read it with /fs/read or copy it first",
    ))
}

/// A file of the kernel's, in /proc say, which has no size before it is read: its end is that of the transfer.
fn of_untold_size(entry: &FileEntry, first: Bytes, reader: FileReader) -> Response {
    let rest = futures::stream::try_unfold(reader, |mut reader| async move {
        Ok::<_, BridgeError>(reader.next_piece().await?.map(|piece| (piece, reader)))
    });
    let body = Body::from_stream(futures::stream::once(async { Ok(first) }).chain(rest));
    let mut response = file(entry, Part::Whole, body);
    // Nor is it known by what it was before, or told in parts.
    for told in [CONTENT_LENGTH, ETAG, ACCEPT_RANGES] {
        response.headers_mut().remove(told);
    }
    response
}

/// 416, with the size in the header that clients look for it in.
fn outside(size: u64) -> Response {
    let mut response = ApiError::from(skep_core::Error::RangeNotSatisfiable { size }).into_response();
    set(response.headers_mut(), CONTENT_RANGE, &format!("bytes */{size}"));
    response
}

/// The bytes that were promised and not one less: a short file breaks the transfer.
fn exactly(reader: FileReader, promised: u64) -> impl Stream<Item = BridgeResult<Bytes>> {
    futures::stream::try_unfold((reader, promised), |(mut reader, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(mut piece) = reader.next_piece().await? else {
            return Err(BridgeError::SourceBroken(
                "the file became shorter while it was read".to_owned(),
            ));
        };
        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(piece.len()));
        let left = left - piece.len() as u64;
        Ok(Some((piece, (reader, left))))
    })
}

fn file(entry: &FileEntry, part: Part, body: Body) -> Response {
    let (status, length) = match part {
        Part::Some { length, .. } => (StatusCode::PARTIAL_CONTENT, length),
        _ => (StatusCode::OK, entry.size_bytes),
    };
    let mut response = with_state(status, entry, body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type(&entry.name)));
    set(headers, CONTENT_DISPOSITION, &disposition("inline", &entry.name));
    if let Part::Some { offset, length } = part {
        let range = format!("bytes {offset}-{}/{}", offset + length - 1, entry.size_bytes);
        set(headers, CONTENT_RANGE, &range);
    }
    response
}

fn with_state(status: StatusCode, entry: &FileEntry, body: Body) -> Response {
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    if let Some(etag) = &entry.etag {
        set(headers, ETAG, etag);
    }
    let modified = entry.modified_at.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    set(headers, LAST_MODIFIED, &modified);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    keep_harmless(headers);
    response
}

/// The bytes are a tenant's and come from our own origin: a browser must not take them for a page of ours.
fn keep_harmless(headers: &mut HeaderMap) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox; default-src 'none'"),
    );
}

async fn directory(
    bridge: &Bridge,
    access: &BotAccess<Download>,
    path: &WorkspacePath,
    asked: &Asked,
) -> ApiResult<Response> {
    if access.as_guest {
        return Err(ApiError::forbidden("guests download files, not directories"));
    }
    let name = if path.is_root() { "root" } else { path.name() };
    if asked.method == Method::HEAD {
        // Its length is not known, so none may be told: an empty body would tell 0.
        let nothing = futures::stream::empty::<std::io::Result<Bytes>>();
        return Ok(as_archive(Body::from_stream(nothing), name));
    }
    let archive = files::read_archive(bridge, std::slice::from_ref(path)).await;
    Ok(compressed(archive.map_err(refused)?, name))
}

/// A tar stream as `<name>.tar.gz`.
pub(super) fn compressed(archive: impl Stream<Item = BridgeResult<Bytes>> + Send + 'static, name: &str) -> Response {
    as_archive(Body::from_stream(files::gzip(archive)), name)
}

fn as_archive(body: Body, name: &str) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
    set(
        headers,
        CONTENT_DISPOSITION,
        &disposition("attachment", &format!("{name}.tar.gz")),
    );
    keep_harmless(headers);
    response
}

/// The file's name as RFC 6266 has it, every other byte than plain ones in hexadecimal.
fn disposition(kind: &str, name: &str) -> String {
    let mut encoded = String::new();
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => encoded.push(char::from(byte)),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("{kind}; filename*=UTF-8''{encoded}")
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
