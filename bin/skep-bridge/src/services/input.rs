//! What callers send to a process or a connection, taken off the wire as it comes. While nobody reads it there it waits here
//! together, each byte in the room of a byte: left in its frames, very many small messages would take so much more that the
//! connection, and with it every other stream of the workspace, is given up for it.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, SimplexStream, WriteHalf};
use tonic::{Status, Streaming};

use crate::failure;

/// What waits of one stream; more is left on the wire, and the caller waits.
const WAITING_BYTES: usize = 128 * 1024;
/// One piece of it.
const PIECE_BYTES: usize = 32 * 1024;

/// Where it is put.
pub(super) struct Given(WriteHalf<SimplexStream>);

/// Where it is taken.
pub(super) struct Taken {
    waiting: ReadHalf<SimplexStream>,
    buffer: BytesMut,
}

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By a message that says so.
    Told,
    /// With its last message.
    Silent,
}

pub(super) fn pipe() -> (Given, Taken) {
    let (waiting, given) = tokio::io::simplex(WAITING_BYTES);
    let buffer = BytesMut::new();
    (Given(given), Taken { waiting, buffer })
}

impl Given {
    pub(super) async fn put(&mut self, data: &[u8]) -> Result<(), Status> {
        self.0.write_all(data).await.map_err(|_| failure::worker_gone())
    }

    pub(super) async fn end(&mut self) -> Result<(), Status> {
        self.0.shutdown().await.map_err(|_| failure::worker_gone())
    }

    /// Puts all that `split` finds in the messages, and ends. What was cut off is an error, and no end.
    pub(super) async fn put_all<M>(
        mut self,
        mut messages: Streaming<M>,
        split: impl Fn(M) -> (Bytes, bool),
    ) -> Result<End, Status> {
        let mut end = End::Silent;
        while end == End::Silent
            && let Some(message) = messages.message().await?
        {
            let (data, is_end) = split(message);
            self.put(&data).await?;
            if is_end {
                end = End::Told;
            }
        }
        self.end().await?;
        Ok(end)
    }
}

impl Taken {
    /// The next bytes, as many as wait; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        self.buffer.reserve(PIECE_BYTES);
        let read = self.waiting.read_buf(&mut self.buffer).await;
        match read.map_err(|_| failure::worker_gone())? {
            0 => Ok(None),
            _ => Ok(Some(self.buffer.split().freeze())),
        }
    }
}
