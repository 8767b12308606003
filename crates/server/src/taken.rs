//! A connection whose client has to take what it is given.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// One who takes less than [`LEAST_BYTES`] for so long, of what waits for him, is given up. What is taken is seen when a
/// third of the socket's buffer is free, which may have 4 MiB: of honest clients the slowest take that in this time.
pub(crate) const TAKEN_WITHIN: Duration = Duration::from_secs(600);
const LEAST_BYTES: usize = 64 * 1024;

/// Whether the client may leave unread what is written now, for as long as he likes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patience(Arc<AtomicBool>);

impl Patience {
    pub(crate) fn set(&self, is_patient: bool) {
        self.0.store(is_patient, Ordering::Relaxed);
    }
}

/// A stream on which a write fails with [`ErrorKind::TimedOut`] when too little was taken.
pub(crate) struct Taken<S> {
    stream: S,
    limit: Duration,
    patience: Patience,
    /// Since a write had to wait.
    waiting: Option<Waiting>,
}

struct Waiting {
    end: Pin<Box<Sleep>>,
    taken_bytes: usize,
}

impl<S> Taken<S> {
    pub(crate) fn new(stream: S, limit: Duration, patience: Patience) -> Self {
        Self {
            stream,
            limit,
            patience,
            waiting: None,
        }
    }

    fn judge(&mut self, written: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                if let Some(waiting) = &mut self.waiting {
                    waiting.taken_bytes += bytes;
                }
                self.waiting.take_if(|waiting| waiting.taken_bytes >= LEAST_BYTES);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if self.patience.0.load(Ordering::Relaxed) => {
                self.waiting = None;
                Poll::Pending
            }
            Poll::Pending => {
                let waiting = self.waiting.get_or_insert_with(|| Waiting {
                    end: Box::pin(tokio::time::sleep(self.limit)),
                    taken_bytes: 0,
                });
                ready!(waiting.end.as_mut().poll(context));
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Asked for when all was written: nothing waits any more.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waiting = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);
    /// Long for what happens after a moment.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn one_who_takes_a_byte_now_and_then_is_given_up() {
        let (server, mut client) = tokio::io::duplex(1024);
        let mut taken = Taken::new(server, LIMIT, Patience::default());
        let reading = tokio::spawn(async move {
            while client.read_u8().await.is_ok() {
                tokio::time::sleep(LIMIT / 20).await;
            }
        });
        let ended = async {
            loop {
                if let Err(error) = taken.write_all(&[0; 4096]).await {
                    return error.kind();
                }
            }
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        assert_eq!(ended.expect("it is waited for without end"), ErrorKind::TimedOut);
        drop(taken);
        tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_time_in_which_nothing_waits_for_the_client_does_not_count() {
        let (server, mut client) = tokio::io::duplex(1024);
        let mut taken = Taken::new(server, LIMIT, Patience::default());
        for _ in 0..2 {
            let mut writing = Box::pin(async {
                taken.write_all(&[0; 1025]).await?;
                taken.flush().await
            });
            assert!(futures::poll!(&mut writing).is_pending(), "one byte has to wait");
            client.read_exact(&mut [0; 1024]).await.unwrap();
            writing.await.unwrap();
            client.read_u8().await.unwrap();
            tokio::time::sleep(LIMIT * 2).await;
        }
    }
}
