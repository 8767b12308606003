//! The workspace of a bot: making, starting, stopping, removing, and what is known of it.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use futures::StreamExt;
use serde::Deserialize;
use skep_api::{
    ContainerInfo, CreateWorkspaceRequest, Desired, ErrorCode, LimitsRequest, LimitsResponse, RestartedResponse,
    StartedResponse, StateEvent, StoppedResponse, StreamEvent, WorkspaceStatus,
};
use skep_core::{AskedLimits, CreateRequest, DeleteData, Outcome, WorkspaceState};
use skep_store::Scope;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{BotAccess, Manage, Operate, Read};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{JsonBody, Query, RawBody, RawJsonBody};
use crate::http::idempotency::Idempotency;
use crate::http::routes::operations::with_operation;
use crate::http::{sse, wire};

/// The longest that a stop may be told to wait.
const LONGEST_TIMEOUT_SECONDS: u64 = 300;

/// `/bots/{bot_id}/container`, files, exec and terminal excepted.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create, info, delete))
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(restart))
        .routes(routes!(limits))
        .routes(routes!(events))
}

/// Make the bot's workspace, or start the one it has, which is kept as it is. Answers a stream of
/// events, or, to a client that accepts `application/json` alone, the `container` of `complete`.
#[utoipa::path(post, path = "/bots/{bot_id}/container", tag = "workspace", request_body = CreateWorkspaceRequest,
    responses((status = 200, content(
            (StreamEvent = "text/event-stream"), (skep_api::Container = "application/json"))),
        (status = 409, description = "The workspace exists and has another image, GPU or snapshotter"),
        (status = 422, description = "The idempotency key was used with another body"),
        (status = 502, description = "JSON form: the image could not be pulled")))]
async fn create(
    State(app): State<App>,
    access: BotAccess<Operate>,
    idempotency: Idempotency,
    headers: HeaderMap,
    body: RawJsonBody<CreateWorkspaceRequest>,
) -> ApiResult<Response> {
    let request = create_request(body.value)?;
    may_choose(&request, access.scope)?;
    let requester = idempotency.of(&access.caller, access.requester());
    let (server, bot) = (app.clone(), access.bot.id.clone());
    let start = async move { server.core().create_workspace(&bot, request, &requester).await };
    let id = idempotency.operation(&app, &access.caller, body.bytes, start).await?;
    if accepts_json_alone(&headers) {
        return match app.core().operation_outcome(&id).await {
            Ok(Outcome::Workspace(done)) => Ok(with_operation(Some(&id), Json(wire::container(done)))),
            Ok(_) => Err(ApiError::internal("a create without a workspace")),
            Err(error) => Ok(with_operation(Some(&id), ApiError::from(error))),
        };
    }
    let request_id = access.context.request_id.clone();
    let events = app.core().operation_events(&id, 0).await?;
    let events = events.map(move |event| (event.id, wire::stream_event(event.body, &request_id)));
    Ok(with_operation(Some(&id), sse::stream(events, sse::Ids::Without)))
}

fn create_request(body: CreateWorkspaceRequest) -> ApiResult<CreateRequest> {
    check_env(body.env.as_ref())?;
    Ok(CreateRequest {
        image: body.image.filter(|image| !image.trim().is_empty()),
        snapshotter: body.snapshotter.filter(|name| !name.trim().is_empty()),
        gpu_devices: body.gpu.map(|gpu| gpu.devices),
        restore_data: body.restore_data,
        limits: body.limits.map(asked_limits),
        env: body.env.unwrap_or_default(),
    })
}

/// A plain create is a start of what there is, or of what the bot's own settings say. What chooses something else
/// takes the right that changing it takes.
fn may_choose(request: &CreateRequest, scope: Scope) -> ApiResult<()> {
    let chooses = *request != CreateRequest::default();
    if chooses && scope < Scope::Manage {
        return Err(ApiError::new(
            ErrorCode::BotAccessDenied,
            "a create that chooses anything needs the right to manage the bot; an empty body does not",
        ));
    }
    Ok(())
}

/// What `execve` cannot carry is refused here, by name and never by value.
fn check_env(env: Option<&BTreeMap<String, String>>) -> ApiResult<()> {
    for (name, value) in env.into_iter().flatten() {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(ApiError::invalid_argument(format!(
                "env: {name:?} cannot be an environment variable"
            )));
        }
    }
    let bytes: usize = env
        .into_iter()
        .flatten()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    if bytes > 64 * 1024 {
        return Err(ApiError::invalid_argument("env may have 64 KiB"));
    }
    Ok(())
}

fn asked_limits(limits: LimitsRequest) -> AskedLimits {
    AskedLimits {
        cpu_millicores: limits.cpu_millicores,
        memory_bytes: limits.memory_bytes,
        pids: limits.pids,
        storage_bytes: limits.storage_bytes,
    }
}

/// Only a client that names JSON and leaves no way to a stream gets JSON.
fn accepts_json_alone(headers: &HeaderMap) -> bool {
    let accepted: Vec<String> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|part| part.split(';').next().unwrap_or("").trim().to_ascii_lowercase())
        .filter(|part| !part.is_empty())
        .collect();
    !accepted.is_empty() && accepted.iter().all(|part| part == "application/json")
}

/// What is known of the workspace; the task is asked of the runtime now.
#[utoipa::path(get, path = "/bots/{bot_id}/container", tag = "workspace", responses((status = 200, body = ContainerInfo)))]
async fn info(State(app): State<App>, access: BotAccess<Read>) -> ApiResult<Json<ContainerInfo>> {
    Ok(Json(wire::container_info(
        app.core().workspace_info(access.bot_id()).await?,
    )))
}

#[derive(Debug, Deserialize, IntoParams)]
struct DeleteQuery {
    /// Keep a backup of its data first.
    #[serde(default)]
    preserve_data: bool,
}

/// Remove the workspace with its layers; 204 also when there is none.
#[utoipa::path(delete, path = "/bots/{bot_id}/container", tag = "workspace", params(DeleteQuery),
    responses((status = 204)))]
async fn delete(
    State(app): State<App>,
    access: BotAccess<Manage>,
    Query(query): Query<DeleteQuery>,
) -> ApiResult<Response> {
    let data = if query.preserve_data {
        DeleteData::Preserve
    } else {
        DeleteData::Remove
    };
    let (server, bot, requester) = (app.clone(), access.bot.id.clone(), access.requester());
    let work = async move {
        let handle = server.core().delete_workspace(&bot, data, &requester).await?;
        let outcome = handle.outcome().await.map(|_| StatusCode::NO_CONTENT);
        Ok(with_operation(Some(handle.id()), outcome.map_err(ApiError::from)))
    };
    app.tasks().spawn(work).await.map_err(ApiError::internal)?
}

/// Ensure that the workspace runs, now and after restarts of the server.
#[utoipa::path(post, path = "/bots/{bot_id}/container/start", tag = "workspace",
    responses((status = 200, body = StartedResponse)))]
async fn start(
    State(app): State<App>,
    access: BotAccess<Operate>,
    idempotency: Idempotency,
    body: RawBody,
) -> ApiResult<Response> {
    let requester = idempotency.of(&access.caller, access.requester());
    let (server, bot) = (app.clone(), access.bot.id.clone());
    let work = async move { server.core().start_workspace(&bot, &requester).await };
    let id = idempotency.operation(&app, &access.caller, body.0, work).await?;
    done(&app, &id, StartedResponse { started: true }).await
}

#[derive(Debug, Deserialize, IntoParams)]
struct StopQuery {
    /// Seconds between SIGTERM and SIGKILL, 0 to 300.
    #[param(minimum = 0, maximum = 300)]
    timeout: Option<u64>,
}

impl StopQuery {
    fn grace(&self) -> ApiResult<Option<Duration>> {
        if self.timeout.is_some_and(|seconds| seconds > LONGEST_TIMEOUT_SECONDS) {
            return Err(ApiError::invalid_argument(format!(
                "timeout must be 0 to {LONGEST_TIMEOUT_SECONDS}"
            )));
        }
        Ok(self.timeout.map(Duration::from_secs))
    }
}

/// End all its processes. It stays stopped until somebody starts it.
#[utoipa::path(post, path = "/bots/{bot_id}/container/stop", tag = "workspace", params(StopQuery),
    responses((status = 200, body = StoppedResponse)))]
async fn stop(
    State(app): State<App>,
    access: BotAccess<Operate>,
    idempotency: Idempotency,
    Query(query): Query<StopQuery>,
    body: RawBody,
) -> ApiResult<Response> {
    let grace = query.grace()?;
    let requester = idempotency.of(&access.caller, access.requester());
    let (server, bot) = (app.clone(), access.bot.id.clone());
    let work = async move { server.core().stop_workspace(&bot, grace, &requester).await };
    let id = idempotency.operation(&app, &access.caller, body.0, work).await?;
    done(&app, &id, StoppedResponse { stopped: true }).await
}

/// Stop and start it.
#[utoipa::path(post, path = "/bots/{bot_id}/container/restart", tag = "workspace", params(StopQuery),
    responses((status = 200, body = RestartedResponse)))]
async fn restart(
    State(app): State<App>,
    access: BotAccess<Operate>,
    idempotency: Idempotency,
    Query(query): Query<StopQuery>,
    body: RawBody,
) -> ApiResult<Response> {
    let grace = query.grace()?;
    let requester = idempotency.of(&access.caller, access.requester());
    let (server, bot) = (app.clone(), access.bot.id.clone());
    let work = async move { server.core().restart_workspace(&bot, grace, &requester).await };
    let id = idempotency.operation(&app, &access.caller, body.0, work).await?;
    done(&app, &id, RestartedResponse { restarted: true }).await
}

/// The answer at an operation's end, with its id whatever the end.
async fn done<T: serde::Serialize>(app: &App, id: &str, answer: T) -> ApiResult<Response> {
    match app.core().operation_outcome(id).await {
        Ok(_) => Ok(with_operation(Some(id), Json(answer))),
        Err(error) => Ok(with_operation(Some(id), ApiError::from(error))),
    }
}

/// Set what it may use; applied at once when it runs. 0 is the configured default, what is absent stays.
#[utoipa::path(put, path = "/bots/{bot_id}/container/limits", tag = "workspace", request_body = LimitsRequest,
    responses((status = 200, body = LimitsResponse)))]
async fn limits(
    State(app): State<App>,
    access: BotAccess<Manage>,
    JsonBody(body): JsonBody<LimitsRequest>,
) -> ApiResult<Response> {
    let (server, bot, requester) = (app.clone(), access.bot.id.clone(), access.requester());
    let work = async move {
        let handle = server
            .core()
            .set_workspace_limits(&bot, asked_limits(body), &requester)
            .await?;
        let answer = match handle.outcome().await {
            Ok(Outcome::Limits(report)) => Json(wire::limits_report(report)).into_response(),
            Ok(_) => ApiError::internal("limits were set and not told").into_response(),
            Err(error) => ApiError::from(error).into_response(),
        };
        Ok(with_operation(Some(handle.id()), answer))
    };
    app.tasks().spawn(work).await.map_err(ApiError::internal)?
}

/// Its state as server-sent events: the present one first, then every change, and what the kernel did to its processes
/// (`reason` `oom_killed`, `pids_exhausted`).
#[utoipa::path(get, path = "/bots/{bot_id}/container/events", tag = "workspace",
    responses((status = 200, body = StateEvent, content_type = "text/event-stream")))]
async fn events(State(app): State<App>, access: BotAccess<Read>) -> ApiResult<Response> {
    let states = app.core().watch_workspace(access.bot_id()).await?;
    Ok(sse::stream(
        states.map(|state| (0, state_event(state))),
        sse::Ids::Without,
    ))
}

/// A bot without a workspace is told as `missing`: the stream goes on, and shows it as it comes.
fn state_event(state: WorkspaceState) -> StateEvent {
    StateEvent {
        kind: "state".to_owned(),
        status: state.status.map_or(WorkspaceStatus::Missing, wire::workspace_status),
        task_running: state.task_running,
        desired: state.desired.map_or(Desired::Stopped, wire::desired),
        reason: state
            .reason
            .or_else(|| state.status.is_none().then(|| "no workspace".to_owned())),
        storage_over_limit: state.storage_over_limit,
        at: state.at.min(Utc::now()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn json_is_answered_only_to_those_who_take_nothing_else() {
        let accept = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(value));
            accepts_json_alone(&headers)
        };
        assert!(accept("application/json"));
        assert!(accept("application/json; charset=utf-8"));
        for other in [
            "*/*",
            "text/event-stream",
            "application/json, text/event-stream",
            "application/json, */*",
        ] {
            assert!(!accept(other), "{other}");
        }
        assert!(!accepts_json_alone(&HeaderMap::new()));
    }
}
