//! Searching in the files of a workspace: its bridge looks, with the tenant's own rights.

use std::time::Duration;

use skep_bridge_protocol::workspace::{SearchMatch, SearchRequest};
use tokio::time::timeout;

use super::entry::path_within;
use super::path::WorkspacePath;
use crate::bridge::{Bridge, BridgeError, BridgeResult, NEXT_PIECE_WITHIN, SMALL_WITHIN};

/// The most lines one search gives.
pub const MOST_RESULTS: u32 = 10_000;
/// How many it gives unless told otherwise.
const RESULTS: u32 = 1_000;
/// What is taken of one line.
const MOST_LINE_BYTES: usize = 4 * 1024;
/// What is taken of all lines together.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// How long a bridge may take in all: it ends a search by itself after 30 s, and may be frozen meanwhile.
const WITHIN: Duration = Duration::from_secs(SMALL_WITHIN.as_secs() + NEXT_PIECE_WITHIN.as_secs());

/// What to search for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchOptions {
    /// A regular expression of one line, as Rust's `regex` takes it.
    pub pattern: String,
    /// Only files whose name fits or, when it has a slash, whose path below the searched one does; empty: all.
    pub glob: String,
    /// At most so many lines; 0: 1,000, and never more than [`MOST_RESULTS`].
    pub max_results: u32,
    /// Small and capital letters are the same.
    pub ignore_case: bool,
}

/// A line that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLine {
    /// Of the file. Bytes that are not UTF-8 are replaced.
    pub path: String,
    /// From 1.
    pub line: u64,
    /// Where its first match begins: from 1, in characters.
    pub column: u64,
    /// Its first 4 KiB without its end. Bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// What a search found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchResult {
    /// In the order of a recursive listing.
    pub lines: Vec<FoundLine>,
    /// That is not all: there are more than were asked for, or 30 s were not enough to look at all.
    pub truncated: bool,
}

/// Searches below a directory, or in one file. Links and other file systems are not entered; a binary file is left at
/// its first NUL.
///
/// # Errors
/// `InvalidArgument` for a pattern or glob that is none, and as [`stat`](super::stat).
pub async fn search(bridge: &Bridge, root: &WorkspacePath, options: &SearchOptions) -> BridgeResult<SearchResult> {
    search_within(WITHIN, bridge, root, options).await
}

/// As [`search`], with another limit for the whole answer.
pub(crate) async fn search_within(
    limit: Duration,
    bridge: &Bridge,
    root: &WorkspacePath,
    options: &SearchOptions,
) -> BridgeResult<SearchResult> {
    match timeout(limit, search_all(bridge, root, options)).await {
        Ok(found) => found,
        Err(_) => Err(BridgeError::late("the search")),
    }
}

async fn search_all(bridge: &Bridge, root: &WorkspacePath, options: &SearchOptions) -> BridgeResult<SearchResult> {
    let mut client = bridge.workspace();
    let most = match options.max_results {
        0 => RESULTS,
        most => most.min(MOST_RESULTS),
    };
    let request = SearchRequest {
        path: root.to_bytes(),
        pattern: options.pattern.clone(),
        glob: options.glob.clone(),
        max_results: most,
        ignore_case: options.ignore_case,
    };
    let mut pages = Bridge::answer(SMALL_WITHIN, client.search(request)).await?;
    let mut result = SearchResult::default();
    let mut bytes = 0;
    loop {
        let page = match timeout(NEXT_PIECE_WITHIN, pages.message()).await {
            Ok(page) => page?,
            Err(_) => return Err(BridgeError::late("the next part of the search")),
        };
        let Some(page) = page else {
            return Err(BridgeError::Untrustworthy("a search without an end".to_owned()));
        };
        if page.matches.is_empty() && !page.last {
            return Err(BridgeError::Untrustworthy(
                "a part of a search with nothing in it".to_owned(),
            ));
        }
        for found in &page.matches {
            bytes += found.path.len() + found.text.len();
            if bytes > MOST_BYTES {
                result.truncated = true;
                return Ok(result);
            }
            result.lines.push(line_of(found, root)?);
        }
        if result.lines.len() > most as usize {
            return Err(BridgeError::Untrustworthy("more lines than were asked for".to_owned()));
        }
        if page.last {
            result.truncated = page.truncated;
            return Ok(result);
        }
    }
}

fn line_of(found: &SearchMatch, root: &WorkspacePath) -> BridgeResult<FoundLine> {
    if found.text.len() > MOST_LINE_BYTES {
        return Err(BridgeError::Untrustworthy("a line longer than it may be".to_owned()));
    }
    Ok(FoundLine {
        path: path_within(&found.path, root)?,
        line: found.line,
        column: found.column,
        text: String::from_utf8_lossy(&found.text).into_owned(),
    })
}
