//! The socket on which the bridge listens, and who may call. The network's side is in `tcp`.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use futures::{Stream, stream};
use tokio::net::{UnixListener, UnixStream};

use crate::log;

pub(crate) const SOCKET_VARIABLE: &str = "BRIDGE_SOCKET_PATH";
pub(crate) const SAME_NAMESPACE_VARIABLE: &str = "BRIDGE_ALLOW_SAME_PID_NAMESPACE";
const DEFAULT_SOCKET: &str = "/run/memoh/bridge.sock";
/// Too many open files, say: the next try may work, and must not be a busy loop.
pub(crate) const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

fn socket_path() -> PathBuf {
    let given = env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
    given.unwrap_or_else(|| DEFAULT_SOCKET.into()).into()
}

/// The log's files go where the socket is: the one place that the host can see. Without it the bridge works all the
/// same.
pub(crate) fn keep_log_beside_socket() {
    let path = socket_path();
    let Some(directory) = path.parent() else { return };
    if let Err(error) = fs::create_dir_all(directory).and_then(|()| log::keep_in(directory)) {
        log::tell!("keep a log in {}: {error}", directory.display());
    }
}

/// Listens on the socket path, in place of a socket that an earlier bridge left.
pub(crate) fn listen_on_socket() -> io::Result<UnixListener> {
    let path = &socket_path();
    let told = |error: io::Error| io::Error::new(error.kind(), format!("listen on {}: {error}", path.display()));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(told)?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path).map_err(told)?,
        Ok(_) => {
            return Err(told(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something else has that name",
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(told(error)),
    }
    let listener = UnixListener::bind(path).map_err(told)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(told)?;
    Ok(listener)
}

/// The connections of callers outside the workspace.
///
/// As process 1 of its own namespace the bridge sees the host's processes as pid 0 and those of the workspace by
/// their numbers. As a child of an init it sees its callers only if it is told to (tests; backends that share one).
pub(crate) fn host_connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    let same_namespace = env::var_os(SAME_NAMESPACE_VARIABLE).is_some_and(|value| value == "1");
    stream::unfold(listener, move |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) if same_namespace || is_from_outside(&connection) => {
                    return Some((Ok(connection), listener));
                }
                // Closed at once: a neighbour within the workspace gets no answer at all.
                Ok(_) => {}
                Err(error) => {
                    log::tell!("accept a connection: {error}");
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
        }
    })
}

fn is_from_outside(connection: &UnixStream) -> bool {
    connection.peer_cred().is_ok_and(|peer| peer.pid() == Some(0))
}
