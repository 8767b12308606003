//! Changes of files as a stream, which costs no thread while nothing changes.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

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
/// Events of one message: with the longest paths still well below the largest one.
const MESSAGE_EVENTS: usize = 500;
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
            for events in batch.events.chunks(MESSAGE_EVENTS) {
                if !send(outlet, events.to_vec()).await {
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

/// `false`: the caller has gone.
async fn send(outlet: &Outlet, events: Vec<WatchEvent>) -> bool {
    outlet.send(Ok(WatchEvents { events })).await.is_ok()
}
