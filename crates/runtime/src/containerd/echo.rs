//! Knowing that all of containerd's events up to now have been read: one of our own is published, and comes back
//! behind them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::PublishRequest;
use prost_types::Any;
use tokio::sync::oneshot;

use super::client::{Client, failed};
use crate::Result;

/// The topic of our own events.
pub(super) const TOPIC: &str = "/skep/subscribed";
const EVENT_TYPE: &str = "skep.events.Greeting";
/// It takes a millisecond; whoever waits longer asks in another way.
const ECHO_LIMIT: Duration = Duration::from_secs(2);

/// Those who wait for theirs; `None` while the stream is not followed.
#[derive(Default)]
pub(super) struct Echoes {
    waiting: Mutex<Option<HashMap<Vec<u8>, oneshot::Sender<()>>>>,
}

impl Echoes {
    /// The stream is followed from now on.
    pub(super) fn open(&self) {
        *self.locked() = Some(HashMap::new());
    }

    /// The stream has ended; those who wait are told so.
    pub(super) fn close(&self) {
        *self.locked() = None;
    }

    /// An event of ours has come, or of another server's in the same containerd.
    pub(super) fn heard(&self, event: &Any) {
        let waiter = self.locked().as_mut().and_then(|waiting| waiting.remove(&event.value));
        match waiter.map(|waiter| waiter.send(())) {
            // Another server's, or whoever waited has gone away.
            None | Some(Err(())) => {}
            Some(Ok(())) => {}
        }
    }

    /// Whether every event before this call has been read, and all that follow will be.
    pub(super) async fn all_read(&self, client: &Client) -> bool {
        let id = uuid::Uuid::new_v4().into_bytes().to_vec();
        let (sender, heard) = oneshot::channel();
        match self.locked().as_mut() {
            Some(waiting) => drop(waiting.insert(id.clone(), sender)),
            None => return false,
        }
        let echo = async { publish(client, id.clone(), ECHO_LIMIT).await.is_ok() && heard.await.is_ok() };
        let was_heard = tokio::time::timeout(ECHO_LIMIT, echo).await.unwrap_or(false);
        if !was_heard && let Some(waiting) = self.locked().as_mut() {
            waiting.remove(&id);
        }
        was_heard
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Option<HashMap<Vec<u8>, oneshot::Sender<()>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes an event of ours.
pub(super) async fn publish(client: &Client, id: Vec<u8>, limit: Duration) -> Result<()> {
    let message = PublishRequest {
        topic: TOPIC.to_owned(),
        event: Some(Any {
            type_url: EVENT_TYPE.to_owned(),
            value: id,
        }),
    };
    let published = client.events().publish(client.request_within(message, limit)).await;
    published
        .map(drop)
        .map_err(|status| failed("publishing an event in containerd", status))
}

/// Whether an event is one of ours.
pub(super) fn is_ours(event: &Any) -> bool {
    event.type_url == EVENT_TYPE
}
