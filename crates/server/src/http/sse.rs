//! Event streams: one `data:` line and a blank line for each event, flushed at once, and a comment
//! every ten seconds that keeps proxies from closing the stream.

use std::convert::Infallible;
use std::time::Duration;

use axum::BoxError;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, TryStreamExt};
use serde::Serialize;

/// Between two comments.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Whether events carry their ids, for a client that comes back with `Last-Event-ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// `data:` lines alone.
    Without,
    /// An `id:` line before each.
    With,
}

/// Sends events as they come. The stream ends after the last one.
pub fn stream<T, S>(events: S, ids: Ids) -> Response
where
    T: Serialize + Send + 'static,
    S: Stream<Item = (u64, T)> + Send + 'static,
{
    try_stream(events.map(Ok::<_, Infallible>), ids)
}

/// The same; an error breaks the transfer, which a client does not take for the end.
pub fn try_stream<T, E, S>(events: S, ids: Ids) -> Response
where
    T: Serialize + Send + 'static,
    E: Into<BoxError> + 'static,
    S: Stream<Item = Result<(u64, T), E>> + Send + 'static,
{
    Sse::new(events.map_ok(move |(id, event)| line(id, &event, ids)))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text(""))
        .into_response()
}

fn line<T: Serialize>(id: u64, event: &T, ids: Ids) -> Event {
    // Our events are plain structures of texts and numbers: they always have a JSON form.
    let data =
        serde_json::to_string(event).unwrap_or_else(|error| format!("{{\"type\":\"error\",\"message\":\"{error}\"}}"));
    match ids {
        Ids::Without => Event::default().data(data),
        Ids::With => Event::default().id(id.to_string()).data(data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};

    #[tokio::test]
    async fn events_are_single_lines_and_ten_quiet_seconds_bring_a_comment() {
        let events = futures::stream::iter([(7, "a\nb")]).chain(futures::stream::pending());
        let quiet = std::time::Instant::now();
        let answer = stream(events, Ids::With);
        assert_eq!(answer.headers()[CONTENT_TYPE], "text/event-stream");
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-cache");
        let mut body = answer.into_body().into_data_stream();
        let first = body.next().await.unwrap().unwrap();
        assert_eq!(first, "id: 7\ndata: \"a\\nb\"\n\n");
        let comment = body.next().await.unwrap().unwrap();
        assert!(comment.starts_with(b":") && comment.ends_with(b"\n\n"), "{comment:?}");
        let quiet = quiet.elapsed();
        assert!((9..19).contains(&quiet.as_secs()), "after {quiet:?}");
    }
}
