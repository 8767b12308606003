//! A directory's entries, sent as they come: a listing may be longer than anybody wants to hold.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Deserialize;
use skep_api::{ErrorBody, FileList};
use skep_core::bridge::{BridgeError, BridgeResult};
use skep_core::files::{self, EntryStream, FileEntry, ListOptions, WorkspacePath};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{bridge_of, file_info, refused};
use crate::app::App;
use crate::http::access::{BotAccess, Operate};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

#[derive(Debug, Deserialize, IntoParams)]
struct ListQuery {
    /// `/` when absent.
    path: Option<String>,
    /// At most so many entries; 100,000 when absent or 0.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// All the way down, depth first.
    recursive: Option<bool>,
    /// A top directory with more in it than this is not expanded.
    collapse: Option<u32>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// A directory's entries, sorted by name; links are shown themselves.
#[utoipa::path(get, path = "/bots/{bot_id}/container/fs/list", tag = "files", params(ListQuery),
    responses((status = 200, body = FileList),
        (status = 400, body = ErrorBody, description = "Not a directory"),
        (status = 403, body = ErrorBody, description = "The directory's permissions"),
        (status = 404, body = ErrorBody, description = "No such directory"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn list(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<ListQuery>,
) -> ApiResult<Response> {
    let path = WorkspacePath::parse(query.path.as_deref().unwrap_or("/")).map_err(refused)?;
    let after = match query.cursor.as_deref() {
        None => Vec::new(),
        Some(cursor) => URL_SAFE_NO_PAD
            .decode(cursor)
            .map_err(|_| ApiError::invalid_argument("cursor is not one that a listing gave"))?,
    };
    let options = ListOptions {
        recursive: query.recursive.unwrap_or(false),
        after,
        limit: query.limit.unwrap_or(0),
        collapse_threshold: query.collapse.unwrap_or(0),
    };
    let bridge = bridge_of(&app, &access, query.start).await?;
    let mut entries = files::list(&bridge, &path, &options).await.map_err(refused)?;
    // The first page decides the status; a later failure breaks the transfer.
    let first = entries.next_page().await.map_err(refused)?;
    let mut response = Response::new(Body::from_stream(document(path, first, entries)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

struct Writing {
    entries: EntryStream,
    page: Option<Vec<FileEntry>>,
    written: u64,
    at: At,
}

enum At {
    Head(WorkspacePath),
    Entries,
    End,
}

fn document(
    path: WorkspacePath,
    first: Option<Vec<FileEntry>>,
    entries: EntryStream,
) -> impl futures::Stream<Item = BridgeResult<Bytes>> {
    let writing = Writing {
        entries,
        page: first,
        written: 0,
        at: At::Head(path),
    };
    futures::stream::try_unfold(writing, |mut writing| async move {
        let bytes = match std::mem::replace(&mut writing.at, At::Entries) {
            At::Head(path) => format!("{{\"path\":{},\"entries\":[", json(&path.as_str())?).into_bytes(),
            At::Entries => match next_page(&mut writing).await? {
                Some(bytes) => bytes,
                None => {
                    writing.at = At::End;
                    tail(&writing)?
                }
            },
            At::End => return Ok(None),
        };
        Ok(Some((Bytes::from(bytes), writing)))
    })
}

async fn next_page(writing: &mut Writing) -> BridgeResult<Option<Vec<u8>>> {
    let page = match writing.page.take() {
        Some(page) => Some(page),
        None => writing.entries.next_page().await?,
    };
    let Some(page) = page else { return Ok(None) };
    let mut bytes = Vec::with_capacity(page.len() * 256);
    for entry in page {
        if writing.written > 0 {
            bytes.push(b',');
        }
        writing.written += 1;
        bytes.extend_from_slice(json(&file_info(entry))?.as_bytes());
    }
    Ok(Some(bytes))
}

fn tail(writing: &Writing) -> BridgeResult<Vec<u8>> {
    Ok(match writing.entries.cursor() {
        None => b"]}".to_vec(),
        Some(last) => format!("],\"next_cursor\":{}}}", json(&URL_SAFE_NO_PAD.encode(last))?).into_bytes(),
    })
}

fn json(value: &impl serde::Serialize) -> BridgeResult<String> {
    serde_json::to_string(value).map_err(|error| BridgeError::Untrustworthy(error.to_string()))
}
