//! From a configuration to a server that runs until it is told to end.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use skep_store::{DataRoot, DataRootError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::auth::FirstAdmin;
use crate::backend::{self, BackendError, RUN_ROOT};
use crate::config::Config;
use crate::server::{RunningServer, StartError, StartParts};

/// What operations get to come to a safe step after SIGTERM.
pub const GRACE: Duration = Duration::from_secs(30);
/// The exit code of a server that was told twice to end: 128 and SIGTERM.
const TOLD_TWICE: i32 = 143;

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another server owns the data root, or it cannot be used.
    #[error(transparent)]
    DataRoot(#[from] DataRootError),
    /// The backend could not be made.
    #[error("making the backend")]
    Backend(#[from] BackendError),
    /// The rest did not start.
    #[error("starting the server")]
    Start(#[from] StartError),
    /// Signals cannot be heard.
    #[error("listening for signals")]
    Signals(#[source] std::io::Error),
    /// What tells the command line where the server is could not be written.
    #[error("writing {}", path.display())]
    ServerFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Claims the data root, makes the backend and starts a server.
///
/// # Errors
/// At once when another server owns the data root; what it lacks otherwise.
pub async fn start(config: Config) -> Result<RunningServer, ServeError> {
    let holder = format!("skep serve, process {}", std::process::id());
    let data_root = DataRoot::claim(&config.workspace.data_root, &holder)?;
    start_in(config, data_root).await
}

/// The same in a data root that this process owns already.
///
/// # Errors
/// What it lacks.
pub async fn start_in(config: Config, data_root: DataRoot) -> Result<RunningServer, ServeError> {
    let address = config.server.addr;
    let listener = TcpListener::bind(address).await.map_err(|source| StartError::Listen {
        address: address.to_string(),
        source,
    })?;
    let runtime = backend::make(&config, &data_root).await?;
    let parts = StartParts {
        config,
        data_root,
        runtime,
        listener,
    };
    Ok(RunningServer::start(parts).await?)
}

/// Serves until SIGTERM or SIGINT, then ends in order; workspaces stay running. A second signal ends the
/// process at once.
///
/// # Errors
/// As [`start`].
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let server = start(config).await?;
    print_first_admin(server.first_admin());
    let file = ServerFile::write(&server)?;
    tracing::info!(address = %server.address(), data_root = %server.data_root().path().display(), "serving");
    end_on_signal(server, file).await
}

/// Waits for SIGTERM or SIGINT and ends the server in order.
///
/// # Errors
/// When signals cannot be heard.
pub async fn end_on_signal(server: RunningServer, file: ServerFile) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending; workspaces stay running");
    tokio::select! {
        () = server.shut_down(GRACE) => {}
        _ = terminate.recv() => leave_at_once(file),
        _ = interrupt.recv() => leave_at_once(file),
    }
    Ok(())
}

/// Nothing is lost: the next start carries on from the journal.
fn leave_at_once(file: ServerFile) {
    drop(file);
    std::process::exit(TOLD_TWICE);
}

/// To standard error and nowhere else: a log is kept, this is not to be.
fn print_first_admin(first: &FirstAdmin) {
    if let FirstAdmin::Generated { username, password } = first {
        let mut out = std::io::stderr().lock();
        if let Err(error) = writeln!(
            out,
            "\nFirst sign-in: user {username}, password {password}\n(shown once; change it with PUT /users/me/password)\n"
        ) {
            tracing::warn!(%error, "the first password could not be printed; set another one with the admin key");
        }
    }
}

/// `/run/skep/server.json` while the server runs: tells the command line where it is. Holds no secret.
#[derive(Debug)]
pub struct ServerFile(PathBuf);

impl ServerFile {
    /// Writes it; it appears whole or not at all, and goes when this is dropped.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(server: &RunningServer) -> Result<Self, ServeError> {
        let path = Path::new(RUN_ROOT).join("server.json");
        let text = json!({
            "server": format!("http://{}", reachable(server.address())),
            "pid": std::process::id(),
            "data_root": server.data_root().path(),
            "data_root_id": server.data_root().id(),
            "admin_key": server.admin_key(),
        });
        write_whole(&path, &format!("{text}\n")).map_err(|source| ServeError::ServerFile {
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }
}

impl Drop for ServerFile {
    /// Only if it is still ours: another server may have written its own since.
    fn drop(&mut self) {
        let ours = format!("\"pid\":{}", std::process::id());
        let is_ours = std::fs::read_to_string(&self.0)
            .is_ok_and(|text| text.split([',', '}']).any(|part| part.trim_start_matches('{') == ours));
        if is_ours && let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "the file that names this server is left behind");
        }
    }
}

/// Where a client of this host reaches a server that listens on all addresses.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let temporary = directory.join(format!(".server.json.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&temporary)?;
    // Whatever the umask of whoever started us: everybody on this host may look where the server is.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    drop(file);
    std::fs::rename(&temporary, path)
}
