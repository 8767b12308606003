//! Writing a file: nothing is seen of it before all of it is there.

use bytes::Bytes;
use skep_bridge_protocol::STREAM_CHUNK_BYTES;
use skep_bridge_protocol::workspace::{WriteChunk, WriteHeader, WriteResult};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::path::WorkspacePath;
use super::read::FileReader;
use super::roomy::RoomyBridge;
use crate::bridge::{BridgeError, BridgeResult, LARGE_WITHIN, NEXT_PIECE_WITHIN};

/// Pieces under way between the caller and the bridge.
const PIECES_UNDER_WAY: usize = 2;

/// How the file is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewFile {
    /// Permission bits of a new file; an existing one keeps its own.
    pub mode: u32,
    /// Permission bits in any case.
    pub set_mode: Option<u32>,
    /// The tag the present file must have; `*`: there must be one.
    pub if_match: Option<String>,
}

/// A file on its way. Dropped before [`FileWriter::finish`], it leaves the old file as it was.
pub struct FileWriter {
    bridge: RoomyBridge,
    pieces: Option<mpsc::Sender<WriteChunk>>,
    sent_bytes: u64,
    call: JoinHandle<BridgeResult<WriteResult>>,
}

impl FileWriter {
    /// Begins to write; parents are made.
    ///
    /// # Errors
    /// `Unreachable`, `Unsupported`. What is wrong with the path is told by a later call.
    pub async fn begin(bridge: &RoomyBridge, path: &WorkspacePath, file: NewFile) -> BridgeResult<Self> {
        let mut client = bridge.workspace();
        let header = WriteHeader {
            path: path.to_bytes(),
            mode: file.mode & 0o7777,
            set_mode: file.set_mode.map(|mode| mode & 0o7777),
            if_match: file.if_match.unwrap_or_default(),
        };
        let (sender, receiver) = mpsc::channel(PIECES_UNDER_WAY);
        let call = tokio::spawn(async move {
            let answer = client.write(ReceiverStream::new(receiver)).await?;
            Ok(answer.into_inner())
        });
        let mut writer = Self {
            bridge: bridge.clone(),
            pieces: Some(sender),
            sent_bytes: 0,
            call,
        };
        let first = WriteChunk {
            header: Some(header),
            ..WriteChunk::default()
        };
        writer.send(first).await?;
        Ok(writer)
    }

    /// Hands on some bytes of the file; waits while the bridge is slower than the caller.
    ///
    /// # Errors
    /// What the bridge met with: `NoSpace`, `PermissionDenied`, `InvalidPath`, `Changed`, `Unreachable`.
    pub async fn write(&mut self, mut bytes: Bytes) -> BridgeResult<()> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(STREAM_CHUNK_BYTES));
            self.bridge.take(piece.len())?;
            self.sent_bytes += piece.len() as u64;
            let chunk = WriteChunk {
                data: piece,
                ..WriteChunk::default()
            };
            self.send(chunk).await?;
        }
        Ok(())
    }

    /// Puts the file in its place; says how many bytes it has.
    ///
    /// # Errors
    /// As [`FileWriter::write`]; `Untrustworthy` when the bridge says that these were more or fewer than were sent.
    pub async fn finish(mut self) -> BridgeResult<u64> {
        let last = WriteChunk {
            finish: true,
            ..WriteChunk::default()
        };
        self.send(last).await?;
        match self.outcome().await?.bytes_written {
            written if written == self.sent_bytes => Ok(written),
            _ => Err(BridgeError::Untrustworthy(
                "another number of bytes than was sent".to_owned(),
            )),
        }
    }

    async fn send(&mut self, chunk: WriteChunk) -> BridgeResult<()> {
        let Some(pieces) = &self.pieces else {
            return Err(BridgeError::SourceBroken("the file was given up before".to_owned()));
        };
        match timeout(NEXT_PIECE_WITHIN, pieces.send(chunk)).await {
            Ok(Ok(())) => Ok(()),
            // The call is over, and tells why.
            Ok(Err(_)) => match self.outcome().await {
                Ok(_) => Err(BridgeError::Untrustworthy("before the file was sent".to_owned())),
                Err(error) => Err(error),
            },
            Err(_) => Err(BridgeError::late("the next piece of the file")),
        }
    }

    async fn outcome(&mut self) -> BridgeResult<WriteResult> {
        self.pieces = None;
        match timeout(LARGE_WITHIN, &mut self.call).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(BridgeError::Unreachable("the write was given up".to_owned())),
            Err(_) => Err(BridgeError::late("the end of the write")),
        }
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        // Ends the call in the middle: the bridge sees a stream without `finish`.
        self.call.abort();
    }
}

/// Pumps what is read into what is written and finishes it; says how many bytes that were.
///
/// # Errors
/// Those of either side; the file is then not changed.
pub async fn copy_content(mut from: FileReader, mut to: FileWriter) -> BridgeResult<u64> {
    while let Some(piece) = from.next_piece().await? {
        to.write(piece).await?;
    }
    to.finish().await
}
