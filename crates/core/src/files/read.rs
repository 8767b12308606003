//! A regular file's bytes, from any offset, in pieces.

use std::time::Duration;

use bytes::Bytes;
use skep_bridge_protocol::workspace::{ReadChunk, ReadRequest};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Streaming;

use super::entry::FileEntry;
use super::path::WorkspacePath;
use crate::bridge::{Bridge, BridgeError, BridgeResult, LARGE_WITHIN, NEXT_PIECE_WITHIN, SMALL_WITHIN};

/// An open file of a workspace.
pub struct FileReader {
    entry: FileEntry,
    chunks: Streaming<ReadChunk>,
    first: Option<Bytes>,
    /// Pieces without a byte that may still come: an old bridge skips what lies before the offset, and says so.
    empty_pieces: u64,
    /// By when all of it must be there, if it must.
    deadline: Option<Instant>,
}

/// Opens a regular file at `offset`, for `length` bytes (0: to its end).
///
/// # Errors
/// `InvalidPath` for anything but a regular file, `NotFound`, `PermissionDenied`, `Unreachable`.
pub async fn read(bridge: &Bridge, path: &WorkspacePath, offset: u64, length: u64) -> BridgeResult<FileReader> {
    read_below(bridge, path, (offset, length), None).await
}

/// As [`read`] of offset and length; a path that leads out of `confine_below`, also by a link, is refused.
///
/// # Errors
/// As [`read`].
pub async fn read_below(
    bridge: &Bridge,
    path: &WorkspacePath,
    (offset, length): (u64, u64),
    confine_below: Option<&str>,
) -> BridgeResult<FileReader> {
    let mut client = bridge.workspace();
    let request = ReadRequest {
        path: path.to_bytes(),
        offset,
        length,
        confine_below: confine_below.unwrap_or_default().into(),
    };
    let mut chunks = Bridge::answer(SMALL_WITHIN, client.read(request)).await?;
    let first = next(&mut chunks).await?;
    let first = first.ok_or_else(|| BridgeError::Untrustworthy("a file without a state".to_owned()))?;
    let info = first.info.as_ref();
    let info = info.ok_or_else(|| BridgeError::Untrustworthy("a file without a state".to_owned()))?;
    Ok(FileReader {
        entry: FileEntry::of_path(info, path)?,
        first: Some(first.data).filter(|data| !data.is_empty()),
        chunks,
        // Each stands for one byte or more of what is skipped.
        empty_pieces: if bridge.skips_to_offsets() { offset } else { 0 },
        deadline: None,
    })
}

impl FileReader {
    /// The state of the file that was opened.
    pub fn entry(&self) -> &FileEntry {
        &self.entry
    }

    /// The same, of which the next pieces come as soon as a file that is held whole must, or not at all.
    #[must_use]
    pub fn in_bounded_time(self) -> Self {
        self.within(LARGE_WITHIN)
    }

    pub(crate) fn within(self, limit: Duration) -> Self {
        Self {
            deadline: Instant::now().checked_add(limit),
            ..self
        }
    }

    /// The next bytes; `None` at the end. How many come in all is for the caller to check: a file may shrink or
    /// grow while it is read.
    ///
    /// # Errors
    /// What the bridge met with, or that it stood still for too long.
    pub async fn next_piece(&mut self) -> BridgeResult<Option<Bytes>> {
        match self.deadline {
            None => self.next_of_any_time().await,
            Some(deadline) => match timeout_at(deadline, self.next_of_any_time()).await {
                Ok(piece) => piece,
                Err(_) => Err(BridgeError::late("the file")),
            },
        }
    }

    async fn next_of_any_time(&mut self) -> BridgeResult<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        while let Some(chunk) = next(&mut self.chunks).await? {
            if !chunk.data.is_empty() {
                return Ok(Some(chunk.data));
            }
            let left = self.empty_pieces.checked_sub(1);
            self.empty_pieces = left.ok_or_else(|| BridgeError::Untrustworthy("a piece without a byte".to_owned()))?;
        }
        Ok(None)
    }

    /// The whole rest, at most `most` bytes.
    ///
    /// # Errors
    /// `TooLarge` when there is more; `Unreachable` when it takes longer than anything that small may.
    pub async fn collect(self, most: usize) -> BridgeResult<Vec<u8>> {
        let mut whole = self.in_bounded_time();
        let mut bytes = Vec::with_capacity(usize::try_from(whole.entry.size_bytes).unwrap_or(most).min(most));
        while let Some(piece) = whole.next_piece().await? {
            if bytes.len() + piece.len() > most {
                return Err(BridgeError::TooLarge(format!(
                    "{} has more than {most} bytes; use download",
                    whole.entry.path
                )));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

async fn next(chunks: &mut Streaming<ReadChunk>) -> BridgeResult<Option<ReadChunk>> {
    match timeout(NEXT_PIECE_WITHIN, chunks.message()).await {
        Ok(chunk) => Ok(chunk?),
        Err(_) => Err(BridgeError::late("the next bytes of the file")),
    }
}
