//! A socket in front of a daemon's, whose connections can be cut while the daemon and all it has live on.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// It passes on until it is cut, and again when it is mended.
pub struct UnixProxy {
    directory: TempDir,
    target: PathBuf,
    /// `None`: it is cut.
    serving: Option<JoinHandle<()>>,
}

impl UnixProxy {
    /// In front of this socket.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(target: &Path) -> io::Result<Self> {
        let mut proxy = Self {
            directory: tempfile::Builder::new().prefix("skep-proxy-").tempdir()?,
            target: target.to_owned(),
            serving: None,
        };
        proxy.mend()?;
        Ok(proxy)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// Ends every connection, and refuses new ones from now on.
    ///
    /// # Errors
    /// When the socket cannot be removed.
    pub async fn cut(&mut self) -> io::Result<()> {
        let Some(serving) = self.serving.take() else {
            return Ok(());
        };
        serving.abort();
        match serving.await {
            // Its connections ended with it.
            Ok(()) | Err(_) => std::fs::remove_file(self.socket()),
        }
    }

    /// Passes on again.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn mend(&mut self) -> io::Result<()> {
        let listener = UnixListener::bind(self.socket())?;
        self.serving = Some(tokio::spawn(serve(listener, self.target.clone())));
        Ok(())
    }
}

impl Drop for UnixProxy {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

async fn serve(listener: UnixListener, target: PathBuf) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((near, _)) = listener.accept() => {
                connections.spawn(pass_on(near, target.clone()));
            }
            Some(_ended) = connections.join_next() => {}
            else => return,
        }
    }
}

/// Either side may end it, and the other sees that.
async fn pass_on(mut near: UnixStream, target: PathBuf) -> io::Result<()> {
    let mut far = UnixStream::connect(target).await?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop)
}
