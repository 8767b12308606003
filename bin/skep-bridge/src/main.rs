//! Process 1 of a workspace: starts and reaps its processes, and serves its files and execs to the host.
//!
//! Static, for any image, one event loop and a few short-lived worker threads: an idle workspace costs little. It acts
//! with the tenant's own rights and decides nothing about who may do what; that is the server's.

mod exec;
mod failure;
mod files;
mod listen;
mod log;
mod paths;
mod reaper;
mod services;
mod shutdown;
mod startup;
mod system;
mod tcp;
mod tls;
mod workers;

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use skep_bridge_protocol::MAX_MESSAGE_BYTES;
use skep_bridge_protocol::bridgepb::container_service_server::ContainerServiceServer;
use skep_bridge_protocol::workspace::workspace_server::WorkspaceServer;
use tokio::sync::watch;
use tonic::transport::Server;

use exec::{Registry, Sessions};
use reaper::Reaper;
use services::{BothServices, Reference, WorkspaceService};

const EXEC_DIRECTORY: &str = "/var/lib/skep/exec";
const WORKER_STACK_BYTES: usize = 256 * 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest message of our own service that the host takes.
const LONGEST_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// What one stream may hold unread.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
/// What all of a connection may hold: 128 of them may stand still before one waits for another. Half of it is what h2 lets
/// very small frames take up that nobody has read, before it ends the connection.
const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024 * 1024;
/// For connections to take the last answers, once all processes have ended.
const LAST_ANSWERS: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::tell!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    system::forbid_tracing()?;
    reaper::block_signals()?;
    if let Err(error) = system::raise_open_files() {
        log::tell!("it keeps the open files that it was given: {error}");
    }
    let (reaper, signals) = Reaper::start()?;
    listen::keep_log_beside_socket();
    startup::prepare_data();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_stack_size(WORKER_STACK_BYTES)
        .max_blocking_threads(workers::MOST_WORKERS)
        .thread_keep_alive(workers::IDLE)
        .build()?;
    let registry = Registry::new(startup::environment(), reaper, PathBuf::from(EXEC_DIRECTORY));
    let result = runtime.block_on(serve(registry, signals));
    // A worker that is still in a slow file system must not keep the workspace from ending.
    runtime.shutdown_background();
    Ok(result?)
}

async fn serve(registry: Arc<Registry>, signals: watch::Receiver<bool>) -> io::Result<()> {
    let tcp = tcp::listen().await?;
    let socket = listen::listen_on_socket()?;
    let (stop, stopped) = watch::channel(false);
    let mut servers = tokio::task::JoinSet::new();
    let until = shutdown::terminated(stopped.clone());
    let (both, connections) = (services(&registry), listen::host_connections(socket));
    servers.spawn(server().serve_with_incoming_shutdown(both.clone(), connections, until));
    if let Some(tcp) = tcp {
        let until = shutdown::terminated(stopped);
        servers.spawn(server().serve_with_incoming_shutdown(both, tcp.connections(), until));
    }
    let store = tokio::spawn(Arc::clone(&registry).keep_store());
    tokio::spawn(workers::keep_one());
    log::tell!(
        "version {} started as process {}",
        env!("CARGO_PKG_VERSION"),
        std::process::id()
    );
    tokio::select! {
        () = shutdown::terminated(signals) => log::tell!("told to end"),
        ended = servers.join_next() => {
            let why = ended.map(|ended| ended.map_err(io::Error::other).and_then(|ended| ended.map_err(io::Error::other)));
            return Err(io::Error::other(format!("the service ended: {why:?}")));
        }
    }
    shutdown::end_processes(&registry).await;
    store.abort();
    stop.send_replace(true);
    let all_ended = async { while servers.join_next().await.is_some() {} };
    // Callers that do not take their answers are left.
    drop(tokio::time::timeout(LAST_ANSWERS, all_ended).await);
    log::tell!("ended");
    Ok(())
}

fn services(registry: &Arc<Registry>) -> BothServices {
    BothServices {
        reference: ContainerServiceServer::new(Reference {
            registry: Arc::clone(registry),
        })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES),
        workspace: WorkspaceServer::new(WorkspaceService {
            registry: Arc::clone(registry),
            sessions: Sessions::default(),
        })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(LONGEST_ANSWER_BYTES),
    }
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(1024 * 1024)
        // Execs and transfers side by side on the host's one connection.
        .max_concurrent_streams(4096)
        // Callers that give up on many streams at once are no attack here: there is one caller.
        .http2_max_pending_accept_reset_streams(Some(4096))
}
