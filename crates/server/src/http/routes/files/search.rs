//! Searching in files.

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use skep_api::{ErrorBody, SearchMatch, SearchResults};
use skep_core::files::{self, FoundLine, SearchOptions, WorkspacePath};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{bridge_of, refused};
use crate::app::App;
use crate::http::access::{BotAccess, Operate};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;
use crate::http::held::{self, PIECE_BYTES};
use crate::http::room::{GrowingRoom, Purpose, Room};

/// The longest pattern or glob.
const LONGEST_PATTERN_BYTES: usize = 4 * 1024;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(search))
}

#[derive(Debug, Deserialize, IntoParams)]
struct SearchQuery {
    /// A directory with all below it, or a file; `/data` when absent.
    path: Option<String>,
    /// A regular expression of one line.
    pattern: Option<String>,
    /// Only files that fit, as `*.rs` by their name or, with a slash, by their path below `path`, as `src/**/*.rs`.
    glob: Option<String>,
    /// At most so many lines: 1,000 when absent or 0, and never more than 10,000.
    max_results: Option<u32>,
    /// Small and capital letters are the same.
    ignore_case: Option<bool>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// Search the files below a directory for lines that match a pattern. Binary files, links and other file systems are
/// passed over; it looks for at most 30 s.
#[utoipa::path(get, path = "/bots/{bot_id}/container/fs/search", tag = "files", params(SearchQuery),
    responses((status = 200, body = SearchResults),
        (status = 400, body = ErrorBody, description = "A pattern, glob or path that cannot be"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 404, body = ErrorBody, description = "No such file or directory"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 429, body = ErrorBody, description = "Too many large answers are being sent to this user, or to all"),
        (status = 501, body = ErrorBody, description = "The workspace was made by an older version: restart it"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn search(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<SearchQuery>,
) -> ApiResult<Response> {
    let path = WorkspacePath::parse(query.path.as_deref().unwrap_or("/data")).map_err(refused)?;
    let pattern = query.pattern.filter(|pattern| !pattern.is_empty());
    let pattern = pattern.ok_or_else(|| ApiError::invalid_argument("pattern is required"))?;
    let options = SearchOptions {
        pattern,
        glob: query.glob.unwrap_or_default(),
        max_results: query.max_results.unwrap_or(0),
        ignore_case: query.ignore_case.unwrap_or(false),
    };
    if options.pattern.len().max(options.glob.len()) > LONGEST_PATTERN_BYTES {
        return Err(ApiError::invalid_argument(
            "pattern and glob have at most 4,096 bytes each",
        ));
    }
    let bridge = bridge_of(&app, &access, query.start).await?;
    let mut search = files::search(&bridge, &path, &options).await.map_err(refused)?;
    let mut room = GrowingRoom::begin(app.rooms(), (Purpose::Answer, &access.caller.user.id), 0).await?;
    let (mut lines, mut held_bytes) = (Vec::new(), 0);
    while let Some(page) = search.next_page().await.map_err(refused)? {
        held_bytes += page.iter().map(FoundLine::held_bytes).sum::<usize>();
        room.cover(held_bytes).await?;
        lines.extend(page);
    }
    Ok(held::in_pieces(Pieces {
        lines: lines.into_iter(),
        text: b"{\"matches\":[".to_vec(),
        before: Some(""),
        is_truncated: search.is_truncated(),
        _room: room.into_taken(),
    }))
}

/// The answer from its start to its end, written as it is sent.
struct Pieces {
    lines: std::vec::IntoIter<FoundLine>,
    text: Vec<u8>,
    /// What stands before the next line; `None`: all of it was given.
    before: Option<&'static str>,
    is_truncated: bool,
    _room: Vec<Room>,
}

impl Iterator for Pieces {
    type Item = serde_json::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut before = self.before.take()?;
        let mut text = std::mem::take(&mut self.text);
        while text.len() < PIECE_BYTES {
            let Some(line) = self.lines.next() else {
                text.extend_from_slice(format!("],\"truncated\":{}}}", self.is_truncated).as_bytes());
                return Some(Ok(text.into()));
            };
            text.extend_from_slice(before.as_bytes());
            if let Err(error) = serde_json::to_writer(&mut text, &search_match(line)) {
                return Some(Err(error));
            }
            before = ",";
        }
        self.before = Some(before);
        Some(Ok(text.into()))
    }
}

fn search_match(found: FoundLine) -> SearchMatch {
    SearchMatch {
        path: found.path,
        line: found.line,
        column: found.column,
        text: found.text,
    }
}
