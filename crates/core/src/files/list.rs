//! Listings, page by page as the bridge sends them.

use skep_bridge_protocol::workspace::{ListPage, ListRequest};
use tokio::time::timeout;
use tonic::Streaming;

use super::entry::{FileEntry, relative_name};
use super::path::WorkspacePath;
use crate::bridge::{Bridge, BridgeError, BridgeResult, NEXT_PIECE_WITHIN, SMALL_WITHIN};

/// The most entries one listing gives; the rest by its cursor.
pub const MOST_ENTRIES: u32 = 100_000;

/// What to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Depth first, all the way down.
    pub recursive: bool,
    /// The place of the last entry seen, as [`EntryStream::cursor`] gave it.
    pub after: Vec<u8>,
    /// At most so many; 0 and more than [`MOST_ENTRIES`] mean that many.
    pub limit: u32,
    /// A top directory with more in it than this is not expanded; 0: all are.
    pub collapse_threshold: u32,
}

/// The entries of one listing, in order.
pub struct EntryStream {
    pages: Streaming<ListPage>,
    directory: WorkspacePath,
    left: u32,
    last: Vec<u8>,
    recursive: bool,
    truncated: bool,
    empty_pages: u32,
}

/// A bridge sends at most one, for an empty directory or for the end of a cut listing.
const MOST_EMPTY_PAGES: u32 = 2;

/// Begins a listing.
///
/// # Errors
/// `NotFound`, `InvalidPath` (no directory), `PermissionDenied`, `Unreachable`; the later ones of a listing that
/// breaks off come from [`EntryStream::next_page`].
pub async fn list(bridge: &Bridge, directory: &WorkspacePath, options: &ListOptions) -> BridgeResult<EntryStream> {
    let mut client = bridge.workspace();
    let limit = match options.limit {
        0 => MOST_ENTRIES,
        limit => limit.min(MOST_ENTRIES),
    };
    let request = ListRequest {
        path: directory.to_bytes(),
        recursive: options.recursive,
        after: options.after.clone(),
        limit,
        collapse_threshold: options.collapse_threshold,
    };
    let pages = Bridge::answer(SMALL_WITHIN, client.list(request)).await?;
    Ok(EntryStream {
        pages,
        directory: directory.clone(),
        left: limit,
        last: options.after.clone(),
        recursive: options.recursive,
        truncated: false,
        empty_pages: 0,
    })
}

impl EntryStream {
    /// The next entries; `None` at the end.
    ///
    /// # Errors
    /// What the bridge met with; `Untrustworthy` for names that cannot be, for more entries than were asked for
    /// and for a listing that does not go forward.
    pub async fn next_page(&mut self) -> BridgeResult<Option<Vec<FileEntry>>> {
        let page = match timeout(NEXT_PIECE_WITHIN, self.pages.message()).await {
            Ok(page) => page?,
            Err(_) => return Err(BridgeError::late("the next part of the listing")),
        };
        let Some(page) = page else { return Ok(None) };
        let count = u32::try_from(page.entries.len()).unwrap_or(u32::MAX);
        self.left = self
            .left
            .checked_sub(count)
            .ok_or_else(|| BridgeError::Untrustworthy("more entries than were asked for".to_owned()))?;
        self.truncated |= page.truncated;
        self.empty_pages += u32::from(page.entries.is_empty());
        if self.empty_pages > MOST_EMPTY_PAGES {
            return Err(BridgeError::Untrustworthy("a listing of empty parts".to_owned()));
        }
        let mut entries = Vec::with_capacity(page.entries.len());
        for info in &page.entries {
            let place = relative_name(info, &self.directory)?;
            if !self.recursive && (place.contains(&b'/') || place <= self.last.as_slice()) {
                return Err(BridgeError::Untrustworthy("a listing out of order".to_owned()));
            }
            self.last = place.to_vec();
            entries.push(FileEntry::below(info, &self.directory)?);
        }
        Ok(Some(entries))
    }

    /// After the end: where the next listing begins, when there is more.
    pub fn cursor(&self) -> Option<&[u8]> {
        self.truncated.then_some(self.last.as_slice())
    }
}
