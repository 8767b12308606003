//! What a workspace uses, once or as a stream.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use futures::TryStreamExt;
use serde::Deserialize;
use skep_api::{ErrorBody, MetricsResponse};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{BotAccess, Read};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;
use crate::http::{sse, wire};

/// Between two events, at least and at most.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// Between two events, unless the caller says otherwise.
const USUAL_INTERVAL: Duration = Duration::from_secs(5);

/// `/bots/{bot_id}/container/metrics` and its stream.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(metrics))
        .routes(routes!(metrics_stream))
}

/// What the workspace uses now. Counters are read at once; storage is counted in the background, after operations and
/// once a minute while the workspace runs, and has a time of its own. A bot without a workspace: `exists` is false.
#[utoipa::path(get, path = "/bots/{bot_id}/container/metrics", tag = "workspace",
    responses((status = 200, body = MetricsResponse)))]
async fn metrics(State(app): State<App>, access: BotAccess<Read>) -> ApiResult<Json<MetricsResponse>> {
    let metrics = app.core().workspace_metrics(access.bot_id()).await?;
    Ok(Json(wire::metrics(app.core().capabilities().backend, metrics)))
}

#[derive(Debug, Deserialize, IntoParams)]
struct StreamQuery {
    /// Between two events: seconds (`5`) or a duration (`1500ms`, `1m`), 1 s to 60 s; 5 s unless given.
    #[param(example = "5s")]
    interval: Option<String>,
}

/// The same as server-sent events: one at once, then one after each interval, until the bot is deleted.
#[utoipa::path(get, path = "/bots/{bot_id}/container/metrics/stream", tag = "workspace", params(StreamQuery),
    responses((status = 200, body = MetricsResponse, content_type = "text/event-stream"),
        (status = 400, body = ErrorBody, description = "`interval` is no duration from 1 s to 60 s")))]
async fn metrics_stream(
    State(app): State<App>,
    access: BotAccess<Read>,
    Query(query): Query<StreamQuery>,
) -> ApiResult<Response> {
    let interval = interval_of(query.interval.as_deref())?;
    let backend = app.core().capabilities().backend;
    let metrics = app.core().watch_metrics(access.bot_id(), interval).await?;
    let events = metrics.map_ok(move |metrics| (0, wire::metrics(backend, metrics)));
    Ok(sse::try_stream(events, sse::Ids::Without))
}

fn interval_of(text: Option<&str>) -> ApiResult<Duration> {
    let Some(text) = text else { return Ok(USUAL_INTERVAL) };
    let read = match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    read.filter(|interval| INTERVALS.contains(interval))
        .ok_or_else(|| ApiError::invalid_argument("interval must be 1s to 60s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_seconds_or_durations_within_bounds() {
        let read = |text| interval_of(Some(text)).ok();
        assert_eq!(read("1"), Some(Duration::from_secs(1)));
        assert_eq!(read("1500ms"), Some(Duration::from_millis(1500)));
        assert_eq!(read("1m"), Some(Duration::from_secs(60)));
        assert_eq!(interval_of(None).ok(), Some(USUAL_INTERVAL));
        for wrong in ["0", "999ms", "61", "61s", "-1", "soon", "", "18446744073709551616"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
