//! Searching in the files of a workspace: its bridge looks, with the tenant's own rights.

use std::time::Duration;

use skep_bridge_protocol::workspace::{SearchMatch, SearchPage, SearchRequest};
use tokio::time::{Instant, timeout};
use tonic::Streaming;

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

/// How long a bridge may take for all pages: it ends a search by itself after 30 s, and may be frozen meanwhile.
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

/// A search under way.
#[derive(Debug)]
pub struct Search {
    pages: Streaming<SearchPage>,
    root: WorkspacePath,
    /// How many lines may still come.
    lines_left: usize,
    /// How many bytes of them.
    bytes_left: usize,
    /// How long its bridge may still take.
    time_left: Duration,
    /// `None`: it goes on. Else whether that is not all.
    end: Option<bool>,
}

/// Begins to search below a directory, or in one file. Links and other file systems are not entered; a binary file is left at
/// its first NUL.
///
/// # Errors
/// `InvalidArgument` for a pattern or glob that is none, and as [`stat`](super::stat).
pub async fn search(bridge: &Bridge, root: &WorkspacePath, options: &SearchOptions) -> BridgeResult<Search> {
    search_within(WITHIN, bridge, root, options).await
}

/// As [`search`], with another limit for all of its pages.
pub(crate) async fn search_within(
    time_left: Duration,
    bridge: &Bridge,
    root: &WorkspacePath,
    options: &SearchOptions,
) -> BridgeResult<Search> {
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
    Ok(Search {
        pages: Bridge::answer(SMALL_WITHIN, client.search(request)).await?,
        root: root.clone(),
        lines_left: most as usize,
        bytes_left: MOST_BYTES,
        time_left,
        end: None,
    })
}

impl Search {
    /// The next lines, in the order of a recursive listing; `None`: there are no more.
    ///
    /// # Errors
    /// The bridge is lost, takes too long, or tells what cannot be.
    pub async fn next_page(&mut self) -> BridgeResult<Option<Vec<FoundLine>>> {
        if self.end.is_some() {
            return Ok(None);
        }
        let Some(page) = self.next_message().await? else {
            return Err(BridgeError::Untrustworthy("a search without an end".to_owned()));
        };
        if page.matches.is_empty() && !page.last {
            return Err(BridgeError::Untrustworthy(
                "a part of a search with nothing in it".to_owned(),
            ));
        }
        let mut lines = Vec::with_capacity(page.matches.len());
        for found in &page.matches {
            let bytes = found.path.len() + found.text.len();
            if bytes > self.bytes_left {
                self.end = Some(true);
                return Ok(Some(lines));
            }
            self.bytes_left -= bytes;
            lines.push(line_of(found, &self.root)?);
        }
        self.lines_left = self
            .lines_left
            .checked_sub(lines.len())
            .ok_or_else(|| BridgeError::Untrustworthy("more lines than were asked for".to_owned()))?;
        if page.last {
            self.end = Some(page.truncated);
        }
        Ok(Some(lines))
    }

    /// Known at its end: that is not all. There are more lines than were asked for, or 30 s were not enough to look at
    /// everything.
    pub fn is_truncated(&self) -> bool {
        self.end == Some(true)
    }

    /// The time in which nobody asks for it is not the bridge's.
    async fn next_message(&mut self) -> BridgeResult<Option<SearchPage>> {
        // One that always has something to say must be given up too.
        if self.time_left.is_zero() {
            return Err(BridgeError::late("the search"));
        }
        let begun = Instant::now();
        let page = timeout(NEXT_PIECE_WITHIN.min(self.time_left), self.pages.message()).await;
        self.time_left = self.time_left.saturating_sub(begun.elapsed());
        match page {
            Ok(page) => Ok(page?),
            Err(_) => Err(BridgeError::late("the next part of the search")),
        }
    }
}

impl FoundLine {
    /// About so many bytes it takes in memory.
    pub fn held_bytes(&self) -> usize {
        size_of::<Self>() + self.path.len() + self.text.len()
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
