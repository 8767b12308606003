//! One connection per bot, made when it is first needed and replaced when it is dead.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use skep_bridge_protocol::bridgepb::container_service_client::ContainerServiceClient;
use skep_bridge_protocol::workspace::workspace_client::WorkspaceClient;
use skep_bridge_protocol::workspace::workspace_server::WorkspaceServer;
use skep_bridge_protocol::workspace::{InfoRequest, InfoResponse};
use skep_names::BotId;
use skep_runtime::{BridgeEndpoint, Runtime, RuntimeError};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};

use super::connect::{Wire, connect};
use super::error::{BridgeError, BridgeResult, sentence};
use super::reference::{self, OverReference, Route};
use crate::error::Error;
use crate::settings::LONGEST_FREEZE;

/// How long a bridge may take to accept a connection and to answer `Info`.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The longest message of a bridge of ours: pages and pieces are far below it.
pub(super) const LARGEST_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// What one stream may hold unread. A slow reader holds no more than this.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
/// What all streams may hold unread together: 512 of them may stand still before one waits for another. Half of it is
/// what h2 lets very small frames take up.
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024 * 1024;
/// Headers and trailers of one answer.
const LARGEST_HEADERS_BYTES: u32 = 64 * 1024;
/// A connection with calls on it is asked so often whether the other end is there, and given up when it says nothing
/// for so long: a workspace that is frozen for an export answers after the thaw, and its streams go on.
pub(super) const KEEPALIVE: Keepalive = Keepalive {
    interval: Duration::from_secs(30),
    timeout: Duration::from_secs(LONGEST_FREEZE.as_secs() + 10),
};
/// First and longest pause between two tries to reach a bridge that is being started.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// When the other end of a connection is asked for a sign of life, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keepalive {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

/// The pool. Knows no rules: whether a workspace should run at all is decided before a bridge is asked for.
pub struct BridgePool {
    runtime: Arc<dyn Runtime>,
    connections: Mutex<HashMap<BotId, Arc<Slot>>>,
}

/// Callers that come at once share one try to connect, and its failure: else each would wait for a try of its own
/// after all those before it, and the last one for minutes.
#[derive(Default)]
struct Slot {
    connection: OnceCell<BridgeResult<Arc<Connection>>>,
}

impl Slot {
    fn is_over(&self) -> bool {
        match self.connection.get() {
            Some(Ok(connection)) => connection.is_dead(),
            Some(Err(_)) => true,
            None => false,
        }
    }
}

struct Connection {
    channel: Channel,
    gone: Arc<AtomicBool>,
    kind: Kind,
}

/// What the other end is.
enum Kind {
    /// Has our service.
    Ours(InfoResponse),
    /// Has the reference's service alone, over which ours is spoken.
    Reference(WorkspaceServer<OverReference>),
}

/// One connection to one workspace, for as long as a caller needs it. Clones share it.
#[derive(Clone)]
pub struct Bridge {
    connection: Arc<Connection>,
}

impl BridgePool {
    /// An empty pool; where bridges listen is asked of `runtime`.
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self {
            runtime,
            connections: Mutex::default(),
        }
    }

    /// The bridge of a bot's running workspace; a dead connection is replaced.
    ///
    /// # Errors
    /// `Unreachable` within 15 s when nobody trustworthy answers: 5 s each to connect, to shake hands and to say what it is.
    pub async fn bridge(&self, bot: &BotId) -> BridgeResult<Bridge> {
        let slot = self.slot(bot);
        let connection = slot.connection.get_or_init(|| self.connect(bot)).await;
        match connection {
            Ok(connection) => Ok(Bridge {
                connection: Arc::clone(connection),
            }),
            Err(error) => {
                self.forget(bot, &slot);
                Err(error.clone())
            }
        }
    }

    /// Forgets a bot's connection. Called on every start, stop, snapshot and rollback; calls under way go on as
    /// long as the old bridge lives.
    pub fn evict(&self, bot: &BotId) {
        self.lock().remove(bot);
    }

    /// Tries until the bridge of a workspace that was just started answers.
    ///
    /// # Errors
    /// After `deadline`, what the last try met with.
    pub async fn wait_until_answering(&self, bot: &BotId, deadline: Instant) -> BridgeResult<Bridge> {
        let mut pause = TRY_AGAIN.0;
        let mut last = BridgeError::late("its bridge");
        loop {
            match timeout_at(deadline, self.bridge(bot)).await {
                Ok(Ok(bridge)) => return Ok(bridge),
                Ok(Err(error)) => last = error,
                Err(_) => return Err(last),
            }
            if Instant::now() + pause >= deadline {
                return Err(last);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(TRY_AGAIN.1);
        }
    }

    /// The bot's slot, a new one when the connection in it is dead.
    fn slot(&self, bot: &BotId) -> Arc<Slot> {
        let mut connections = self.lock();
        let slot = connections.entry(bot.clone()).or_default();
        if slot.is_over() {
            *slot = Arc::default();
        }
        Arc::clone(slot)
    }

    /// A failed try leaves nothing behind: no entry for bots that are gone.
    fn forget(&self, bot: &BotId, slot: &Arc<Slot>) {
        let mut connections = self.lock();
        if connections.get(bot).is_some_and(|present| Arc::ptr_eq(present, slot)) {
            connections.remove(bot);
        }
    }

    async fn connect(&self, bot: &BotId) -> BridgeResult<Arc<Connection>> {
        let endpoint = self.runtime.bridge_endpoint(bot).map_err(|error| match error {
            RuntimeError::NotFound { .. } => BridgeError::Unreachable("it does not run".to_owned()),
            other => BridgeError::Unreachable(Error::from(other).to_string()),
        })?;
        connection_to(&endpoint, KEEPALIVE).await
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BotId, Arc<Slot>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects, shakes hands and asks what the other end is.
async fn connection_to(endpoint: &BridgeEndpoint, keepalive: Keepalive) -> BridgeResult<Arc<Connection>> {
    let gone = Arc::new(AtomicBool::new(false));
    let wire = timeout(CONNECT_WITHIN, connect(endpoint, Arc::clone(&gone)))
        .await
        .map_err(|_| BridgeError::late("the connection"))?
        .map_err(|error| BridgeError::Unreachable(error.to_string()))?;
    let channel = timeout(CONNECT_WITHIN, channel_over((wire, Arc::clone(&gone)), keepalive))
        .await
        .map_err(|_| BridgeError::late("the handshake"))?
        .map_err(|_| BridgeError::Unreachable("the handshake failed".to_owned()))?;
    let kind = ask_kind(&channel).await?;
    Ok(Arc::new(Connection { channel, gone, kind }))
}

/// A channel over this one stream: when the stream ends, or the other end takes no more calls on it, the channel is dead and
/// the pool makes another.
async fn channel_over(
    (wire, gone): (Wire, Arc<AtomicBool>),
    keepalive: Keepalive,
) -> Result<Channel, tonic::transport::Error> {
    let mut once = Some(wire);
    let connector = tower::service_fn(move |_: Uri| {
        let wire = once.take().map(TokioIo::new);
        // Asked for another one while the old stream may still carry calls: the bridge has said goodbye.
        if wire.is_none() {
            gone.store(true, Ordering::Release);
        }
        std::future::ready(wire.ok_or_else(|| std::io::Error::other("the connection was lost")))
    });
    Endpoint::from_static("http://bridge")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(LARGEST_HEADERS_BYTES)
        .http2_keep_alive_interval(keepalive.interval)
        .keep_alive_timeout(keepalive.timeout)
        .connect_with_connector(connector)
        .await
}

async fn ask_kind(channel: &Channel) -> BridgeResult<Kind> {
    let mut client = WorkspaceClient::new(channel.clone()).max_decoding_message_size(LARGEST_ANSWER_BYTES);
    let answer = timeout(CONNECT_WITHIN, client.info(InfoRequest {}))
        .await
        .map_err(|_| BridgeError::late("the bridge's first answer"))?;
    match answer {
        Ok(info) => {
            let mut info = info.into_inner();
            info.version = sentence(&info.version);
            // Nothing is asked of them, and a stranger's list would be held as long as the connection.
            info.features = Vec::new();
            Ok(Kind::Ours(info))
        }
        Err(status) if status.code() == Code::Unimplemented => Ok(Kind::Reference(reference::service(channel.clone()))),
        Err(status) => Err(BridgeError::Unreachable(sentence(status.message()))),
    }
}

impl Connection {
    fn is_dead(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

impl Bridge {
    /// A bridge at a place that a test chose.
    #[cfg(test)]
    pub(crate) async fn at(endpoint: &BridgeEndpoint) -> BridgeResult<Self> {
        Self::kept_alive(endpoint, KEEPALIVE).await
    }

    /// One that is given up sooner.
    #[cfg(test)]
    pub(super) async fn kept_alive(endpoint: &BridgeEndpoint, keepalive: Keepalive) -> BridgeResult<Self> {
        let connection = connection_to(endpoint, keepalive).await?;
        Ok(Self { connection })
    }

    /// The version the bridge tells; `None` for one that has the reference's service alone.
    pub fn version(&self) -> Option<&str> {
        match &self.connection.kind {
            Kind::Ours(info) => Some(&info.version),
            Kind::Reference(_) => None,
        }
    }

    /// The number of our service's surface it has; 0 for the reference's.
    pub fn generation(&self) -> u32 {
        match &self.connection.kind {
            Kind::Ours(info) => info.generation,
            Kind::Reference(_) => 0,
        }
    }

    /// Whether its connection was lost.
    pub fn is_dead(&self) -> bool {
        self.connection.is_dead()
    }

    /// Our service; where the bridge lacks it, spoken over the reference's, as far as that has words for it.
    pub(crate) fn workspace(&self) -> WorkspaceClient<Route> {
        let route = match &self.connection.kind {
            Kind::Ours(_) => Route::Own(self.connection.channel.clone()),
            Kind::Reference(service) => Route::OverReference(service.clone()),
        };
        WorkspaceClient::new(route).max_decoding_message_size(LARGEST_ANSWER_BYTES)
    }

    /// Whether it remembers the processes that it started, by their ids.
    pub fn remembers_processes(&self) -> bool {
        matches!(self.connection.kind, Kind::Ours(_))
    }

    /// Whether it reads a file from its beginning to get to an offset, and tells so by pieces without a byte.
    pub(crate) fn skips_to_offsets(&self) -> bool {
        matches!(self.connection.kind, Kind::Reference(_))
    }

    /// The reference's service, which every bridge has.
    pub fn reference(&self) -> ContainerServiceClient<Channel> {
        ContainerServiceClient::new(self.connection.channel.clone())
            .max_decoding_message_size(skep_bridge_protocol::MAX_MESSAGE_BYTES)
    }

    /// Waits for an answer no longer than `within`.
    pub(crate) async fn answer<T>(
        within: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> BridgeResult<T> {
        match timeout(within, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(BridgeError::late("an answer of the bridge")),
        }
    }
}
