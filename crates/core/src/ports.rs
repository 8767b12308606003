//! Connections to TCP ports of a workspace's own loopback, made and carried by its bridge.

use std::time::Duration;

use bytes::Bytes;
use skep_bridge_protocol::workspace::ForwardChunk;
use skep_bridge_protocol::{STREAM_CHUNK_BYTES, reason};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::bridge::{Bridge, BridgeError, SMALL_WITHIN};

/// Pieces under way to the bridge.
const PIECES_UNDER_WAY: usize = 4;
/// How long a workspace may leave what it was sent unread before the connection is given up.
const SEND_WITHIN: Duration = Duration::from_secs(60 * 60);

/// Why there is no connection (any more).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Nothing listens on that port.
    #[error("connection refused")]
    Refused,
    /// The workspace's side broke it off.
    #[error("connection reset")]
    Reset,
    /// The bridge failed, or has no such thing.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
}

impl From<Status> for PortError {
    fn from(status: Status) -> Self {
        let word = status.metadata().get(reason::METADATA_KEY);
        match word.and_then(|word| word.to_str().ok()) {
            Some(reason::CONNECTION_REFUSED) => Self::Refused,
            Some(reason::CONNECTION_RESET) => Self::Reset,
            _ => Self::Bridge(status.into()),
        }
    }
}

/// What goes to the workspace. Dropped before [`PortSender::end`], it is a reset there.
#[derive(Debug)]
pub struct PortSender(mpsc::Sender<ForwardChunk>);

/// What comes from the workspace.
#[derive(Debug)]
pub struct PortReceiver {
    chunks: Streaming<ForwardChunk>,
    has_ended: bool,
}

/// What came from the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Bytes.
    Data(Bytes),
    /// It sends nothing more. What is sent to it still arrives.
    End,
    /// Both sides have ended, and all that was sent has arrived.
    Over,
}

/// Connects to a port.
///
/// # Errors
/// `Refused` when nothing listens there; `Bridge` with `Unsupported` for an old one.
pub async fn connect(bridge: &Bridge, port: u16) -> Result<(PortSender, PortReceiver), PortError> {
    let mut client = bridge.workspace();
    let (sender, receiver) = mpsc::channel(PIECES_UNDER_WAY);
    let first = ForwardChunk {
        port: u32::from(port),
        ..ForwardChunk::default()
    };
    // The channel was just made and has room.
    if sender.try_send(first).is_err() {
        return Err(BridgeError::late("the connection").into());
    }
    let answer = timeout(SMALL_WITHIN, client.forward(ReceiverStream::new(receiver))).await;
    let chunks = answer.map_err(|_| BridgeError::late("the connection"))??.into_inner();
    let has_ended = false;
    Ok((PortSender(sender), PortReceiver { chunks, has_ended }))
}

impl PortSender {
    /// Sends bytes, in pieces of at most 256 KiB. `false`: the connection takes no more; the receiver tells why.
    pub async fn send(&self, mut data: Bytes) -> bool {
        while !data.is_empty() {
            let piece = ForwardChunk {
                data: data.split_to(data.len().min(STREAM_CHUNK_BYTES)),
                ..ForwardChunk::default()
            };
            if !self.send_chunk(piece).await {
                return false;
            }
        }
        true
    }

    /// Nothing more is sent. What the workspace sends still arrives. `false` as for [`PortSender::send`].
    pub async fn end(&self) -> bool {
        let end = ForwardChunk {
            end: true,
            ..ForwardChunk::default()
        };
        self.send_chunk(end).await
    }

    async fn send_chunk(&self, chunk: ForwardChunk) -> bool {
        matches!(timeout(SEND_WITHIN, self.0.send(chunk)).await, Ok(Ok(())))
    }
}

impl PortReceiver {
    /// The next bytes, then their end, then the end of the connection. It may be silent for as long as both sides like.
    ///
    /// # Errors
    /// `Reset`, also after the workspace's own end, for what it was sent then; or the bridge's end.
    pub async fn next(&mut self) -> Result<Received, PortError> {
        let Some(chunk) = self.chunks.message().await? else {
            return match self.has_ended {
                true => Ok(Received::Over),
                false => Err(BridgeError::Unreachable("the bridge left a connection open".to_owned()).into()),
            };
        };
        let untrustworthy = |what: &str| Err(BridgeError::Untrustworthy(what.to_owned()).into());
        match (chunk.data.is_empty(), chunk.end) {
            (false, false) if !self.has_ended => Ok(Received::Data(chunk.data)),
            (true, true) if !self.has_ended => {
                self.has_ended = true;
                Ok(Received::End)
            }
            (true, false) => untrustworthy("a piece without a byte"),
            (_, _) => untrustworthy("data and their end in one, or after it"),
        }
    }
}
