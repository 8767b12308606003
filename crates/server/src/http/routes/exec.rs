//! Processes in a workspace: run and wait, run and watch, run and leave alone.

mod control;
mod interruption;
mod list;
mod output;
mod stream;
mod wanted;

use axum::Json;
use axum::extract::State;
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use skep_api::{Encoding, ErrorBody, ExecInfo, ExecRequest, ExecResult, ExecStarted, ExecState, ExecStreamEvent};
use skep_core::bridge::{Bridge, BridgeResult};
use skep_core::exec::{self, ExecId, ExecOutcome, ExecStatus, OutputRoom, OutputStream, Program, TextPiece};
use skep_core::{Outcome, Requester};
use skep_names::BotId;
use skep_store::IdempotencyOutcome;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) use interruption::{Watch, restarted};
pub(super) use wanted::log_limits;

use super::files::{refused, watched_bridge_of};
use crate::app::App;
use crate::http::access::{BotAccess, Caller, Operate};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Query, RawJsonBody};
use crate::http::held::{self, Held, WrittenAs};
use crate::http::idempotency::{Begin, Claim, Idempotency};
use crate::http::room::{GrowingRoom, Purpose};
use crate::http::routes::operations::with_operation;

/// How much of each output an answer holds; the rest is in the log.
const MOST_ANSWERED_BYTES: usize = 1024 * 1024;

/// The key has an id; whether its process was started is for the bridge to say.
const GIVEN: StatusCode = StatusCode::ACCEPTED;
/// The bridge said that the process was started.
const STARTED: StatusCode = StatusCode::OK;

/// `/bots/{bot_id}/container/exec…`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list::list, run))
        .merge(control::router())
        .merge(output::router())
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct StartQuery {
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// Run a command. Answers when it has ended; with `Accept: text/event-stream` as it goes; with `detach` at once.
#[utoipa::path(post, path = "/bots/{bot_id}/container/exec", tag = "exec", params(StartQuery),
    request_body = ExecRequest,
    responses((status = 200, content((ExecResult = "application/json"), (ExecStreamEvent = "text/event-stream"))),
        (status = 202, body = ExecStarted, description = "With `detach`"),
        (status = 400, body = ErrorBody, description = "A request that cannot be; `exec_not_started` with the reason"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 422, body = ErrorBody, description = "The idempotency key was used with another body"),
        (status = 501, body = ErrorBody, description = "`snapshot` on a backend that keeps none"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn run(
    State(app): State<App>,
    access: BotAccess<Operate>,
    idempotency: Idempotency,
    Query(query): Query<StartQuery>,
    headers: HeaderMap,
    body: RawJsonBody<ExecRequest>,
) -> ApiResult<Response> {
    let (detach, snapshot) = (body.value.detach, body.value.snapshot);
    let request = wanted::request(body.value, &app.config().exec)?;
    let (mut bridge, mut watch) = watched_bridge_of(&app, &access, query.start).await?;
    if idempotency.is_given() && !bridge.remembers_processes() {
        return Err(ApiError::unsupported(
            "the bridge of this workspace is too old for an Idempotency-Key: it would run the process twice",
        ));
    }
    let beginning = Beginning {
        caller: access.caller.clone(),
        idempotency: idempotency.clone(),
        body: body.bytes,
        snapshot_for: snapshot.then(|| (access.bot.id.clone(), access.requester())),
        bridge: bridge.clone(),
    };
    // To its end also when the client goes away: its repeat would wait in vain for a key that nobody works on.
    let begun = app
        .tasks()
        .spawn(beginning.begin(app.clone()))
        .await
        .map_err(ApiError::internal)??;
    let told = match (detach, wants_events(&headers)) {
        (true, _) => Told::Start,
        (false, true) => Told::Events,
        (false, false) => Told::End,
    };
    let claim = idempotency.claim(&access.caller);
    let answer = async {
        if snapshot {
            // Taking it has put another bridge in the place of that one.
            (bridge, watch) = watched_bridge_of(&app, &access, query.start).await?;
        }
        started(&app, &access, &begun, (bridge, watch, request), (claim, told)).await
    };
    let answer = answer.await;
    let operation_id = begun.taken.as_ref().map(|taken| taken.operation_id.as_str());
    Ok(with_operation(operation_id, answer))
}

/// What an answer waits for.
enum Told {
    Start,
    Events,
    End,
}

/// Starts the process, or finds the one that was, and answers.
async fn started(
    app: &App,
    access: &BotAccess<Operate>,
    begun: &Begun,
    (bridge, watch, request): (Bridge, Watch, exec::ExecRequest),
    (claim, told): (Claim, Told),
) -> ApiResult<Response> {
    let snapshot_version = begun.taken.as_ref().map(|taken| taken.version);
    let (id, remembered) = (begun.id.clone(), with_id(begun, STARTED));
    if matches!(told, Told::Start) {
        let start = async move { exec::start(&bridge, &id, request).await };
        to_end(app, start, (claim, remembered)).await?;
        let started = ExecStarted {
            exec_id: begun.id.as_str().to_owned(),
            snapshot_version,
        };
        return Ok((StatusCode::ACCEPTED, Json(started)).into_response());
    }
    let mut room = OutputRooms::begin(app, &access.caller).await?;
    let run = async move { exec::run(&bridge, &id, request).await };
    let events = to_end(app, run, (claim, remembered)).await?;
    if matches!(told, Told::Events) {
        let following = stream::Following::new(events, watch, access.context.request_id.clone());
        return following.answer(snapshot_version).await;
    }
    let outcome = exec::collect(events, MOST_ANSWERED_BYTES, &mut room).await;
    let outcome = watch.judge(outcome.map_err(refused))?;
    result(outcome, room, snapshot_version)
}

/// Room for the outputs of a process that is waited for. Where there is none the rest of an output is left to the log:
/// the process has run, and its end must be told.
struct OutputRooms<'a>([GrowingRoom<'a>; 2]);

impl<'a> OutputRooms<'a> {
    async fn begin(app: &'a App, caller: &'a Caller) -> ApiResult<Self> {
        let begin = || GrowingRoom::begin(app.rooms(), (Purpose::Output, &caller.user.id), 0);
        Ok(Self([begin().await?, begin().await?]))
    }
}

impl OutputRoom for OutputRooms<'_> {
    async fn cover(&mut self, stream: OutputStream, bytes: usize) -> bool {
        match self.0[stream as usize].cover(bytes).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "an output is left to its log");
                false
            }
        }
    }
}

/// Starts a process and remembers that it was, also when the client goes away: its repeat would else run the command
/// once more, when the bridge knows of the process no more.
async fn to_end<T: Send + 'static>(
    app: &App,
    start: impl Future<Output = BridgeResult<T>> + Send + 'static,
    (claim, remembered): (Claim, IdempotencyOutcome),
) -> ApiResult<T> {
    let server = app.clone();
    let started = async move {
        let started = start.await.map_err(refused)?;
        claim.finish(&server, &remembered).await?;
        Ok(started)
    };
    app.tasks().spawn(started).await.map_err(ApiError::internal)?
}

/// A process that is about to be started.
struct Begun {
    id: ExecId,
    /// The version that was taken for it.
    taken: Option<Taken>,
}

struct Taken {
    version: u64,
    operation_id: String,
}

/// What a process is begun from.
struct Beginning {
    caller: Caller,
    idempotency: Idempotency,
    body: Bytes,
    /// Whose version is taken first, and for whom.
    snapshot_for: Option<(BotId, Requester)>,
    bridge: Bridge,
}

impl Beginning {
    /// The id of the process of this request, and the version that is taken first. With an idempotency key both are
    /// remembered before the process is started: a repeat asks for the same id, and the bridge gives the process
    /// there is. One that was started and that the bridge knows no more, because its workspace ended under it, is
    /// never run again.
    async fn begin(self, app: App) -> ApiResult<Begun> {
        match self.idempotency.begin(&app, &self.caller, &self.body).await? {
            Begin::First(claim) => {
                let begun = self.begin_first(&app, &claim).await;
                if begun.is_err() {
                    claim.release(&app).await?;
                }
                begun
            }
            Begin::Again(outcome) => {
                let (status, id) = outcome
                    .answer
                    .ok_or_else(|| ApiError::internal("an idempotency key of an exec without its id"))?;
                let (id, version) = id.split_once(' ').unwrap_or((&id, ""));
                let id = ExecId::parse(id).map_err(refused)?;
                if status == STARTED.as_u16() {
                    exec::status(&self.bridge, &id).await.map_err(refused)?;
                }
                let version: Option<u64> = version.parse().ok();
                let taken = version.zip(outcome.operation_id);
                let taken = taken.map(|(version, operation_id)| Taken { version, operation_id });
                Ok(Begun { id, taken })
            }
        }
    }

    async fn begin_first(self, app: &App, claim: &Claim) -> ApiResult<Begun> {
        let taken = match self.snapshot_for {
            Some((bot, requester)) => Some(take_version(app, &bot, requester).await?),
            None => None,
        };
        let id = ExecId::random();
        let begun = Begun { id, taken };
        claim.finish(app, &with_id(&begun, GIVEN)).await?;
        Ok(begun)
    }
}

/// What is remembered of an exec's key.
fn with_id(begun: &Begun, status: StatusCode) -> IdempotencyOutcome {
    let version = begun.taken.as_ref().map(|taken| format!(" {}", taken.version));
    let answer = format!("{}{}", begun.id.as_str(), version.unwrap_or_default());
    IdempotencyOutcome {
        operation_id: begun.taken.as_ref().map(|taken| taken.operation_id.clone()),
        bot_id: None,
        answer: Some((status.as_u16(), answer)),
    }
}

async fn take_version(app: &App, bot: &BotId, requester: Requester) -> ApiResult<Taken> {
    let wanted = ("", skep_core::SOURCE_PRE_EXEC);
    let handle = app.core().take_snapshot(bot, wanted, &requester).await?;
    let version = match handle.outcome().await {
        Ok(Outcome::Snapshot(taken)) => Ok(taken.version),
        Ok(_) => Err(ApiError::internal("a snapshot without a version")),
        Err(error) => Err(error.into()),
    };
    Ok(Taken {
        version: version.map_err(|error| error.about_operation(handle.id()))?,
        operation_id: handle.id().to_owned(),
    })
}

fn wants_events(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|value| {
        value
            .split(',')
            .any(|media| media.trim().starts_with("text/event-stream"))
    })
}

fn result(outcome: ExecOutcome, room: OutputRooms<'_>, snapshot_version: Option<u64>) -> ApiResult<Response> {
    let duration_ms = outcome.status.duration_milliseconds();
    let end = outcome
        .status
        .end
        .ok_or_else(|| ApiError::internal("a process without an end"))?;
    let [room_of_stdout, room_of_stderr] = room.0;
    let (stdout, stdout_encoding) = held_output(outcome.stdout.piece, room_of_stdout);
    let (stderr, stderr_encoding) = held_output(outcome.stderr.piece, room_of_stderr);
    let told = ExecResult {
        exec_id: outcome.status.id.as_str().to_owned(),
        exit_code: end.exit_code,
        signal: end.signal,
        timed_out: end.timed_out,
        stdout: String::new(),
        stderr: String::new(),
        stdout_encoding,
        stderr_encoding,
        stdout_truncated: outcome.stdout.truncated,
        stderr_truncated: outcome.stderr.truncated,
        duration_ms,
        snapshot_version,
    };
    held::document(&told, [("stdout", stdout), ("stderr", stderr)])
}

fn held_output(piece: TextPiece, room: GrowingRoom<'_>) -> (Held, Encoding) {
    let (bytes, written_as, encoding) = match piece {
        TextPiece::Text(text) => (text.into_bytes(), WrittenAs::Text, Encoding::Utf8),
        TextPiece::Bytes(bytes) => (bytes, WrittenAs::Base64, Encoding::Base64),
    };
    let room = room.into_taken();
    let held = Held {
        bytes,
        written_as,
        room,
    };
    (held, encoding)
}

fn info(status: ExecStatus) -> ExecInfo {
    let (command, argv) = match status.program {
        Program::Command(command) => (Some(command), None),
        Program::Argv(argv) => (None, Some(argv)),
    };
    let end = status.end;
    ExecInfo {
        exec_id: status.id.as_str().to_owned(),
        state: if end.is_some() {
            ExecState::Exited
        } else {
            ExecState::Running
        },
        command,
        argv,
        pid: status.pid,
        pty: status.has_terminal,
        started_at: status.started_at,
        finished_at: end.as_ref().map(|end| end.finished_at),
        exit_code: end.as_ref().map(|end| end.exit_code),
        timed_out: end.as_ref().is_some_and(|end| end.timed_out),
        signal: end.and_then(|end| end.signal),
        stdout_bytes: status.stdout_bytes,
        stderr_bytes: status.stderr_bytes,
        dropped_bytes: status.dropped_bytes,
    }
}
