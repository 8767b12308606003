//! A server of this host: its data root, its containerd, its announcement.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use skep_server::announcement::Announcement;
use skep_server::config::Config;
use skep_server::serve;
use skep_server::server::RunningServer;
use skep_store::{DataRoot, DataRootError};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::backend::Which;
use super::sign_in::{self, Reader};
use crate::client::{Client, Endpoint};
use crate::failure::{Failure, Result, with_causes};

/// A server that answers, announced to the command line of this host.
pub(super) struct Running {
    // Withdrawn before the data root is free for the next server: fields are dropped in this order.
    announcement: Announcement,
    pub(super) server: RunningServer,
}

/// The server has some descriptors for each connection, workspace and stream: it takes as many as it may have, whatever the
/// system's soft limit for everybody is. What runs in a workspace has a limit of its own.
pub(super) fn raise_open_files() -> Result<()> {
    let given = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: given.maximum,
        ..given
    };
    setrlimit(Resource::Nofile, raised).map_err(|error| Failure::local("cannot raise the limit of open files", error))
}

/// Owns the data root from here on.
///
/// # Errors
/// Another server owns it, and is named.
pub(super) fn claim(config: &Config, command: &str) -> Result<DataRoot> {
    claim_or_held(config, command)?.map_err(|held| Failure::Failed(with_causes(&held)))
}

/// The same for whoever has a way with the one that owns it: that is the inner error.
///
/// # Errors
/// It cannot be owned by anybody.
pub(super) fn claim_or_held(config: &Config, command: &str) -> Result<std::result::Result<DataRoot, DataRootError>> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::NotRoot(format!(
            "`{command}` starts containers and sets up networks"
        )));
    }
    let holder = format!("{command}, process {}", std::process::id());
    match DataRoot::claim(&config.workspace.data_root, &holder) {
        Ok(data_root) => Ok(Ok(data_root)),
        Err(held @ DataRootError::Held { .. }) => Ok(Err(held)),
        Err(error) => Err(Failure::Failed(with_causes(&error))),
    }
}

/// Starts it on this containerd.
pub(super) async fn start(mut config: Config, data_root: DataRoot, which: &Which) -> Result<Running> {
    config.containerd.socket_path = which.socket().to_owned();
    let failed = |error: serve::ServeError| Failure::Failed(with_causes(&error));
    let root = data_root.path().to_owned();
    let started = serve::start_in(config, data_root).await;
    let server = started
        .inspect_err(|_| sign_in::tell_of_unread(&root))
        .map_err(failed)?;
    let announcement = Announcement::publish(&server)
        .map_err(|error| Failure::local("cannot tell the command line where the server is", error))?;
    Ok(Running { announcement, server })
}

impl Running {
    /// Its address.
    pub(super) fn address(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// A client with the admin key.
    pub(super) fn client(&self) -> Result<Client> {
        let path = self.server.admin_key();
        let key = std::fs::read_to_string(path)
            .map_err(|error| Failure::local(format!("cannot read the admin key {}", path.display()), error))?;
        Client::new(Endpoint {
            server: self.address(),
            token: Some(key.trim().to_owned()),
        })
    }

    /// Tells how to sign in on standard output.
    pub(super) fn tell_sign_in(&self) {
        let mut out = std::io::stdout();
        sign_in::tell(self.server.first_admin(), Reader::of(&out), &mut out);
    }

    /// Ends it in order, without waiting for a signal; workspaces run on.
    pub(super) async fn end(mut self) {
        self.server.shut_down(serve::GRACE).await;
    }

    /// Serves until a signal, then ends it in order; a second signal ends at once.
    pub(super) async fn until_told(self) -> Result<()> {
        let ended = serve::end_on_signal(self.server, self.announcement).await;
        ended.map_err(|error| Failure::Failed(with_causes(&error)))
    }
}

/// SIGTERM and Ctrl-C.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| Failure::local("cannot listen for signals", error));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
