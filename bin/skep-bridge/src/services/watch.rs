//! Changes of files as a stream, which costs no thread while nothing changes.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use prost::Message;
use skep_bridge_protocol::workspace::{WatchEvent, WatchEvents, WatchRequest};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::streams::ResponseStream;
use crate::files::Watched;
use crate::workers::on_path;
use crate::{failure, paths, system};

/// Messages on their way to the caller.
const IN_FLIGHT: usize = 4;
/// A message holds no more events than this, and no more bytes before its last one: a path may be of any length.
const MESSAGE_EVENTS: usize = 500;
const MESSAGE_BYTES: usize = 256 * 1024;
/// Between two looks: what changes all the time is told so often.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

type Outlet = mpsc::Sender<Result<WatchEvents, Status>>;

pub(super) async fn watch(request: WatchRequest) -> Result<ResponseStream<WatchEvents>, Status> {
    let path = paths::resolve_or_data(&request.path)?;
    let begin = move |path: &std::path::Path| {
        let watched = Watched::begin(path, request.recursive)?;
        let descriptor = watched.descriptor()?;
        Ok((watched, descriptor))
    };
    let (watched, descriptor) = on_path(path.clone(), begin).await?;
    let ready = system::watch_descriptor(descriptor).map_err(|error| failure::of_path(&error, &path))?;
    let (outlet, answers) = mpsc::channel(IN_FLIGHT);
    // Not joined: it ends with the caller's stream, or with what is watched.
    tokio::spawn(async move {
        if let Err(error) = follow(watched, ready, &outlet).await {
            // Nobody reads it when the caller has gone.
            drop(outlet.send(Err(failure::of_path(&error, &path))).await);
        }
    });
    Ok(Box::pin(ReceiverStream::new(answers)))
}

async fn follow(mut watched: Watched, ready: AsyncFd<OwnedFd>, outlet: &Outlet) -> io::Result<()> {
    // The first one says that it has begun.
    if !send(outlet, Vec::new()).await {
        return Ok(());
    }
    loop {
        tokio::select! {
            () = outlet.closed() => return Ok(()),
            readable = ready.readable() => readable?.clear_ready(),
        }
        let mut is_drained = false;
        while !is_drained {
            let read = tokio::task::spawn_blocking(move || (watched.read(), watched)).await;
            let (batch, again) = read.map_err(io::Error::other)?;
            let batch = batch?;
            for events in messages(batch.events) {
                if !send(outlet, events).await {
                    return Ok(());
                }
            }
            if batch.is_over {
                return Ok(());
            }
            (watched, is_drained) = (again, batch.is_drained);
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// The events in their order, as many as one message may hold in each.
fn messages(events: Vec<WatchEvent>) -> Vec<Vec<WatchEvent>> {
    let mut messages: Vec<Vec<WatchEvent>> = Vec::new();
    let mut bytes = 0;
    for event in events {
        let is_full = bytes >= MESSAGE_BYTES || messages.last().is_none_or(|last| last.len() == MESSAGE_EVENTS);
        if is_full {
            messages.push(Vec::new());
            bytes = 0;
        }
        bytes += event.encoded_len();
        if let Some(last) = messages.last_mut() {
            last.push(event);
        }
    }
    messages
}

/// `false`: the caller has gone.
async fn send(outlet: &Outlet, events: Vec<WatchEvent>) -> bool {
    outlet.send(Ok(WatchEvents { events })).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_is_longer_than_a_host_takes() {
        let event = |length: usize| WatchEvent {
            path: vec![b'x'; length],
            ..WatchEvent::default()
        };
        for (length, count) in [(0, 1200), (100_000, 40), (1 << 20, 5)] {
            let all = messages(vec![event(length); count]);
            assert_eq!(all.iter().map(Vec::len).sum::<usize>(), count);
            for message in all {
                assert!((1..=500).contains(&message.len()), "{length}: {}", message.len());
                let bytes: usize = message.iter().map(Message::encoded_len).sum();
                assert!(bytes < 2 << 20, "{length}: {bytes}");
            }
        }
        assert!(messages(Vec::new()).is_empty());
    }
}
