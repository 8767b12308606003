//! A stream by gzip. Each piece is compressed on a thread for blocking work, which nobody holds while a client is waited
//! for: the threads that answer go on answering, and a slow client costs none.

use std::io::{self, Write};
use std::mem;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use skep_archive::{Compressed, Format};
use tokio::task::spawn_blocking;

use crate::bridge::BridgeResult;

/// What comes of `source`, compressed as it is read: at the fastest level, as exports are.
///
/// # Errors
/// That of `source` is the last item, and what came before it has no end.
pub fn gzip(source: impl Stream<Item = BridgeResult<Bytes>> + Send) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(Some((Box::pin(source), None)), |state| async move {
        let Some((mut source, compressed)) = state else {
            return Ok(None);
        };
        let mut compressed = match compressed {
            Some(compressed) => compressed,
            None => Compressed::new(Vec::new(), Format::Gzip)?,
        };
        while let Some(piece) = source.next().await.transpose().map_err(io::Error::other)? {
            compressed = spawn_blocking(move || compressed.write_all(&piece).map(|()| compressed)).await??;
            let made = mem::take(compressed.output_mut());
            if !made.is_empty() {
                return Ok(Some((Bytes::from(made), Some((source, Some(compressed))))));
            }
        }
        let end = spawn_blocking(move || compressed.finish()).await??;
        Ok(Some((Bytes::from(end), None)))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use futures::poll;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::bridge::BridgeError;

    /// What is not made smaller.
    fn noise(size: usize) -> Bytes {
        let blocks = (0u64..).flat_map(|block| Sha256::digest(block.to_le_bytes()).to_vec());
        blocks.take(size).collect::<Vec<u8>>().into()
    }

    async fn read(source: Vec<BridgeResult<Bytes>>) -> (Vec<u8>, Option<io::Error>) {
        let (mut bytes, mut error) = (Vec::new(), None);
        let mut made = std::pin::pin!(gzip(stream::iter(source)));
        while let Some(piece) = made.next().await {
            assert!(error.is_none(), "something after the error");
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(last) => error = Some(last),
            }
        }
        (bytes, error)
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        let read = skep_archive::Source::open(bytes)?.read_to_end(&mut plain);
        read.map(|_| plain)
    }

    #[tokio::test]
    async fn it_holds_all_that_was_read_and_an_end() {
        let pieces = [noise(300_000), Bytes::from_static(b"x"), vec![0; 300_000].into()];
        let (bytes, error) = read(pieces.iter().cloned().map(Ok).collect()).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(unpacked(&bytes).expect("whole"), pieces.concat());
        let (nothing, _) = read(Vec::new()).await;
        assert!(unpacked(&nothing).expect("whole").is_empty());
    }

    #[tokio::test]
    async fn one_that_fails_midway_is_never_whole() {
        let lost = BridgeError::late("the next piece of the archive");
        let (bytes, error) = read(vec![Ok(noise(300_000)), Err(lost.clone())]).await;
        assert_eq!(error.expect("it is told").to_string(), lost.to_string());
        assert!(!bytes.is_empty(), "nothing was under way");
        unpacked(&bytes).expect_err("it has no end");
    }

    #[test]
    fn nothing_is_compressed_by_the_thread_that_answers() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        // The one thread for blocking work is busy until `free` is dropped.
        let (free, until_free) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || until_free.recv());
        runtime.block_on(async {
            let mut made = std::pin::pin!(gzip(stream::iter([Ok(noise(300_000))])));
            assert!(poll!(made.next()).is_pending());
            drop(free);
            assert!(matches!(made.next().await, Some(Ok(piece)) if !piece.is_empty()));
        });
    }
}
