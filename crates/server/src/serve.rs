//! From a configuration to a server that runs until it is told to end.

use std::time::Duration;

use skep_store::{DataRoot, DataRootError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::announcement::Announcement;
use crate::backend::{self, BackendError};
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

/// Waits for SIGTERM or SIGINT and ends the server in order.
///
/// # Errors
/// When signals cannot be heard.
pub async fn end_on_signal(mut server: RunningServer, announcement: Announcement) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending; workspaces stay running");
    tokio::select! {
        () = server.shut_down(GRACE) => {}
        _ = terminate.recv() => leave_at_once(announcement),
        _ = interrupt.recv() => leave_at_once(announcement),
    }
    // First: what it writes is the data root's, which the next server may own once this one is gone.
    drop(announcement);
    drop(server);
    Ok(())
}

/// Nothing is lost: the next start carries on from the journal.
fn leave_at_once(announcement: Announcement) -> ! {
    drop(announcement);
    std::process::exit(TOLD_TWICE);
}
