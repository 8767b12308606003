//! How the host connects to a socket in a directory that a tenant can write.
//!
//! By descriptors, never by the socket's path: a path would follow a link the tenant put there, and may be longer
//! than the 107 bytes a socket's address holds. The uid that called `listen` (`SO_PEERCRED`) is the proof of who
//! answers: it belongs to this bot alone. Where workspaces have no ids of their own, the listener's control group is.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use skep_runtime::BridgeEndpoint;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connected stream that tells when whoever drives it has let it go.
pub(super) struct Wire {
    stream: Stream,
    gone: Arc<AtomicBool>,
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Connects to where a bridge listens.
///
/// # Errors
/// What is there is no socket, its listener is another user, or nobody listens. The text is for the caller: it
/// names no path of the host.
pub(super) async fn connect(endpoint: &BridgeEndpoint, gone: Arc<AtomicBool>) -> io::Result<Wire> {
    let stream = match endpoint {
        BridgeEndpoint::Unix {
            directory,
            file_name,
            owner_uid,
            cgroup,
        } => {
            let stream = connect_unix(directory, file_name, *owner_uid).await?;
            is_of_group(&stream, cgroup.as_deref())?;
            Stream::Unix(stream)
        }
        BridgeEndpoint::Tcp(address) => Stream::Tcp(TcpStream::connect(address).await?),
    };
    Ok(Wire { stream, gone })
}

async fn connect_unix(directory: &Path, file_name: &str, owner_uid: u32) -> io::Result<UnixStream> {
    let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, directory, place | OFlags::DIRECTORY, Mode::empty())
        .map_err(|error| told(error, "its socket directory is not there"))?;
    let socket =
        openat(&directory, file_name, place, Mode::empty()).map_err(|error| told(error, "its socket is not there"))?;
    if FileType::from_raw_mode(fstat(&socket)?.st_mode) != FileType::Socket {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what is there is no socket"));
    }
    // The descriptor's name in /proc is short, and leads to this very socket: nothing can be put in between.
    // The connect does not block: a listener that never accepts is EAGAIN.
    let stream = UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))
        .await
        .map_err(|error| {
            let what = match error.kind() {
                io::ErrorKind::WouldBlock => "whoever listens on its socket takes no more callers",
                _ => "nobody listens on its socket",
            };
            io::Error::new(error.kind(), what)
        })?;
    if stream.peer_cred()?.uid() != owner_uid {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "its socket belongs to another user",
        ));
    }
    Ok(stream)
}

/// Where a workspace shares its root's uid with others, its control group tells whose listener this is.
fn is_of_group(stream: &UnixStream, cgroup: Option<&str>) -> io::Result<()> {
    match cgroup {
        Some(group) if !skep_runtime::listener_is_in_cgroup(stream, group)? => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "its socket belongs to a process outside of the workspace",
        )),
        _ => Ok(()),
    }
}

fn told(error: rustix::io::Errno, text: &'static str) -> io::Error {
    io::Error::new(io::Error::from(error).kind(), text)
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Release);
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, into),
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Unix(stream) => stream.is_write_vectored(),
            Stream::Tcp(stream) => stream.is_write_vectored(),
        }
    }
}
