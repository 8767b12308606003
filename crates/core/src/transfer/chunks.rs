//! A file as a stream of pieces.

use std::io;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

/// Bytes of a file that are read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// From where it stands to its end.
pub(crate) fn chunks_of(file: File) -> BoxStream<'static, io::Result<Bytes>> {
    stream::try_unfold(file, |mut file| async move {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        match file.read_buf(&mut chunk).await? {
            0 => Ok::<_, io::Error>(None),
            _ => Ok(Some((chunk.freeze(), file))),
        }
    })
    .boxed()
}
