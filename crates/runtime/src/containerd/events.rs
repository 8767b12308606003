//! containerd's event stream, followed for as long as the backend lives.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::types::Envelope;
use prost::Message;
use prost_types::Any;
use skep_names::BotId;
use tokio::sync::broadcast;

use super::client::{Client, failed};
use super::{ContainerdRuntime, echo};
use crate::{Result, RuntimeError, RuntimeEvent};

const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A quiet stream says nothing about the daemon: it is asked so often whether it is there.
const QUIET_LIMIT: Duration = Duration::from_secs(20);

/// In the types of events about containers and about layers; the others are about tasks.
const OF_CONTAINER: &str = "containerd.events.Container";
const OF_LAYER: &str = "containerd.events.Snapshot";
const COMMIT: &str = "containerd.events.SnapshotCommit";

/// What all events about containers and tasks begin with.
#[derive(Clone, PartialEq, prost::Message)]
struct About {
    #[prost(string, tag = "1")]
    container_id: String,
}

/// What events about layers begin with.
#[derive(Clone, PartialEq, prost::Message)]
struct AboutLayer {
    #[prost(string, tag = "1")]
    key: String,
    /// Of a commit the name that it gave; of others something else.
    #[prost(string, tag = "2")]
    second: String,
}

/// Follows the stream until the backend is dropped.
pub(super) async fn follow(runtime: Weak<ContainerdRuntime>, client: Client, events: broadcast::Sender<RuntimeEvent>) {
    let mut pause = SHORTEST_PAUSE;
    let mut reachable = true;
    while runtime.strong_count() > 0 {
        match subscribe(&client, &runtime).await {
            Ok(mut stream) => {
                pause = SHORTEST_PAUSE;
                reachable = true;
                see_from_now_on(&runtime);
                // Also the first time: what happened before is not in the stream.
                tell(&events, RuntimeEvent::Reconnected);
                read(&runtime, &client, &events, &mut stream).await;
                if let Some(runtime) = runtime.upgrade() {
                    runtime.echoes.close();
                }
            }
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                "containerd's events are out of reach"
            ),
        }
        if reachable && runtime.strong_count() > 0 {
            reachable = false;
            tell(&events, RuntimeEvent::Disconnected);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What was known before the stream counts no more: it may have changed unseen.
fn see_from_now_on(runtime: &Weak<ContainerdRuntime>) {
    if let Some(runtime) = runtime.upgrade() {
        runtime.picture.forget();
        runtime.by_label.since.forget();
        runtime.layer_names.since.forget();
        runtime.echoes.open();
        // Who died unseen is not to wait for an unhurried sweep.
        runtime.was_swept.store(false, Ordering::Relaxed);
    }
}

/// A stream that is known to be followed: what happens from now on is in it.
///
/// containerd answers a subscription only with its first event. So one of our own is published until it comes:
/// without it a quiet daemon would look like an absent one, and what happens meanwhile could be lost.
async fn subscribe(client: &Client, runtime: &Weak<ContainerdRuntime>) -> Result<tonic::Streaming<Envelope>> {
    let namespace = runtime.upgrade().map(|runtime| runtime.config.namespace.clone());
    let namespace = namespace.unwrap_or_default();
    let topics = [
        "topic~=\"^/(containers|tasks|snapshot)/\"".to_owned(),
        format!("topic==\"{}\"", echo::TOPIC),
    ];
    let filters = topics.map(|topic| format!("namespace==\"{namespace}\",{topic}"));
    let request = client.endless_request(SubscribeRequest {
        filters: filters.to_vec(),
    });
    let mut events = client.events();
    let subscribed = tokio::select! {
        stream = events.subscribe(request) => stream.map_err(|status| failed("following containerd's events", status)),
        error = greet(client) => Err(error),
    };
    Ok(subscribed?.into_inner())
}

/// Publishes an event of our own again and again; returns only when that fails.
async fn greet(client: &Client) -> RuntimeError {
    let mut pause = Duration::from_millis(5);
    loop {
        tokio::time::sleep(pause).await;
        if let Err(error) = echo::publish(client, Vec::new(), QUIET_LIMIT).await {
            return error;
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn read(
    runtime: &Weak<ContainerdRuntime>,
    client: &Client,
    events: &broadcast::Sender<RuntimeEvent>,
    stream: &mut tonic::Streaming<Envelope>,
) {
    loop {
        let envelope = match tokio::time::timeout(QUIET_LIMIT, stream.message()).await {
            Ok(Ok(Some(envelope))) => envelope,
            Ok(Ok(None)) => return,
            Ok(Err(status)) => {
                tracing::debug!(%status, "containerd's events ended");
                return;
            }
            Err(_quiet) => {
                let asked = client.request_within((), QUIET_LIMIT);
                if runtime.strong_count() == 0 || client.version().version(asked).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let Some(runtime) = runtime.upgrade() else { return };
        let Some(event) = envelope.event else { continue };
        runtime.note(&event);
        if let Some(event) = runtime.translate(&event).await {
            tell(events, event);
        }
    }
}

impl ContainerdRuntime {
    /// Before anybody hears of an event, what it makes untrue is forgotten.
    fn note(&self, event: &Any) {
        if echo::is_ours(event) {
            return self.echoes.heard(event);
        }
        if event.type_url.contains(OF_LAYER) {
            return self.note_layer(event);
        }
        match About::decode(event.value.as_slice()) {
            Ok(about) => {
                self.picture.container_changed(&about.container_id);
                if event.type_url.contains(OF_CONTAINER) {
                    self.by_label.since.changed(&about.container_id);
                }
            }
            // About what, nobody knows: about anything.
            Err(_) => {
                self.picture.forget();
                self.by_label.since.forget();
            }
        }
    }

    fn note_layer(&self, event: &Any) {
        match AboutLayer::decode(event.value.as_slice()) {
            Ok(about) => {
                self.layer_names.since.changed(&about.key);
                if event.type_url.ends_with(COMMIT) {
                    self.layer_names.since.changed(&about.second);
                }
            }
            Err(_) => self.layer_names.since.forget(),
        }
    }

    /// What an event of containerd means; `None` when it is not about a workspace of ours.
    async fn translate(&self, event: &Any) -> Option<RuntimeEvent> {
        if event.type_url.ends_with("containerd.events.TaskExit") {
            let exit = TaskExit::decode(event.value.as_slice()).ok()?;
            // Processes beside process 1 have ids of their own.
            if exit.id != exit.container_id {
                return None;
            }
            let bot = self.our_bot(&exit.container_id).await?;
            return Some(RuntimeEvent::TaskExited {
                bot,
                exit_status: exit.exit_status,
            });
        }
        if event.type_url.ends_with("containerd.events.TaskOOM") {
            let oom = TaskOom::decode(event.value.as_slice()).ok()?;
            let bot = self.our_bot(&oom.container_id).await?;
            return Some(RuntimeEvent::OutOfMemory { bot });
        }
        None
    }

    /// Whose container it is, when it is one of this data root: by what we started, else by asking.
    async fn our_bot(&self, container_id: &str) -> Option<BotId> {
        let bot: BotId = skep_names::derive_bot_id(container_id, None)?.parse().ok()?;
        if self
            .records
            .get(&bot)
            .is_some_and(|running| running.container_id == container_id)
        {
            return Some(bot);
        }
        match self.find_container_among_all(&bot).await {
            Ok(found) => found.map(|_| bot),
            Err(error) => {
                // Said rather than lost: an event too many only makes its reader look.
                tracing::warn!(%bot, error = &error as &dyn std::error::Error, "an event's container could not be looked up");
                Some(bot)
            }
        }
    }
}

/// Nobody listening is fine.
fn tell(events: &broadcast::Sender<RuntimeEvent>, event: RuntimeEvent) {
    if events.send(event).is_err() {
        tracing::trace!("an event of the runtime had no listener");
    }
}
