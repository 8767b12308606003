//! Bots: making, listing, changing, removing, checking.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use skep_api::{
    Bot, BotCheckList, BotDeleting, BotPage, BotStatus, CreateBotRequest, PutOwnerRequest, UpdateBotRequest,
};
use skep_core::{Backup, BotChange, BotVisibility, CreateBot, DeleteData, OperationHandle, Requester};
use skep_store::{IdempotencyOutcome, UserRole};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{self, BotAccess, BotAdmin, Caller, Manage, Read, SignedIn, identity_part};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{JsonBody, Query, RawJsonBody, Still};
use crate::http::idempotency::{Begin, Idempotency};
use crate::http::routes::operations::with_operation;
use crate::http::routes::users;
use crate::http::{timezone, wire};

/// Bots on a page when nobody says.
const PAGE: u32 = 50;
/// Bots on a page at most.
const LARGEST_PAGE: u32 = 500;
/// How long the metadata of the bots on a page may be together, in bytes; of one alone it may be longer.
const MOST_METADATA_BYTES: usize = 1024 * 1024;
/// How many bytes one byte of metadata can take when it is read: a field of a small object takes hundreds.
const ROOM_OF_A_BYTE: usize = 64;
/// How many bytes a bot takes beside its metadata: it has three texts of up to 4 KiB, and its workspace.
const ROOM_OF_A_BOT: usize = 16 * 1024;

/// `/bots`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, replace, patch, delete))
        .routes(routes!(put_owner))
        .routes(routes!(checks))
}

#[derive(Debug, Deserialize, IntoParams)]
struct ListQuery {
    /// How many at most, 1 to 500; default 50. Bots with much metadata are fewer on a page.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Admin: those of this user.
    owner_id: Option<String>,
    /// Admin: all of them.
    #[serde(default)]
    all: bool,
    /// `container`: add each one's workspace.
    include: Option<String>,
}

/// Own and shared bots, newest first.
#[utoipa::path(get, path = "/bots", tag = "bots", params(ListQuery), responses((status = 200, body = BotPage),
    (status = 429, description = "Too many large answers are being sent to this user, or to all")))]
async fn list(State(app): State<App>, signed: SignedIn<Read>, Query(query): Query<ListQuery>) -> ApiResult<Response> {
    let caller = signed.caller;
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        return Err(ApiError::invalid_argument(format!("limit must be 1 to {LARGEST_PAGE}")));
    }
    let with_container = match query.include.as_deref() {
        None | Some("") => false,
        Some("container") => true,
        Some(_) => return Err(ApiError::invalid_argument("include may be container")),
    };
    let visible = visibility(&caller, &query)?;
    let cursor = query.cursor.as_deref();
    let lengths = app.core().bots_metadata_bytes(&visible, cursor, limit).await?;
    let (count, bytes) = fitting(&lengths);
    let taken_bytes = count as usize * ROOM_OF_A_BOT + bytes * ROOM_OF_A_BYTE;
    let room = app.rooms().take(&caller.user.id, taken_bytes).await?;
    let page = app.core().bots(&visible, cursor, count).await?;
    let allowed = |bot: &skep_core::Bot| {
        caller
            .bots
            .as_ref()
            .is_none_or(|bots| bots.iter().any(|id| id == bot.row.id.as_str()))
    };
    let bots: Vec<_> = page.bots.into_iter().filter(allowed).collect();
    let text = text_of(BotPage {
        items: match with_container {
            true => with_containers(&app, bots).await,
            false => bots.into_iter().map(wire::bot).collect(),
        },
        next_cursor: page.next_cursor,
    })?;
    Ok(([(CONTENT_TYPE, "application/json")], room.hold(text)).into_response())
}

/// The page as it is sent. Nothing else is left of it.
fn text_of(page: BotPage) -> ApiResult<Vec<u8>> {
    serde_json::to_vec(&page).map_err(ApiError::internal)
}

/// How many bots fit on a page, at least one, and how long their metadata is together.
fn fitting(lengths: &[usize]) -> (u32, usize) {
    let (mut count, mut bytes) = (0, 0);
    for length in lengths {
        if count > 0 && bytes + length > MOST_METADATA_BYTES {
            break;
        }
        count += 1;
        bytes += length;
    }
    (count.max(1), bytes)
}

/// Workspaces that cannot be asked about now do not keep bots from being listed; the reason is told with each.
async fn with_containers(app: &App, bots: Vec<skep_core::Bot>) -> Vec<Bot> {
    let ids: Vec<_> = bots.iter().map(|bot| bot.row.id.clone()).collect();
    let mut infos = app.core().workspace_infos(&ids).await;
    let shown = bots.into_iter().map(|bot| {
        let (container, container_error) = match &mut infos {
            Ok(infos) => (infos.remove(&bot.row.id).map(wire::container_info), None),
            Err(error) => (None, Some(wire::operation_error(error))),
        };
        Bot {
            container,
            container_error,
            ..wire::bot(bot)
        }
    });
    shown.collect()
}

fn visibility(caller: &Caller, query: &ListQuery) -> ApiResult<BotVisibility> {
    match (&query.owner_id, query.all) {
        (Some(owner), _) => {
            let owner = identity_part(owner, "user")?;
            if owner != caller.user.id && !caller.is_admin() {
                return Err(ApiError::forbidden("admin role required"));
            }
            Ok(BotVisibility::OwnedBy(owner.to_owned()))
        }
        (None, true) if !caller.is_admin() => Err(ApiError::forbidden("admin role required")),
        (None, true) => Ok(BotVisibility::All),
        // An admin may use the bots of a narrowed key also where he neither owns nor shares them.
        (None, false) => Ok(match &caller.bots {
            Some(bots) if caller.user.role == UserRole::Admin => BotVisibility::Among(bots.clone()),
            _ => BotVisibility::SeenBy(caller.user.id.clone()),
        }),
    }
}

#[derive(Debug, Deserialize, IntoParams)]
struct CreateQuery {
    /// `false`: only the row; the workspace is made by its own create.
    #[serde(default = "yes")]
    workspace: bool,
    /// Admin: who owns it.
    owner_id: Option<String>,
}

fn yes() -> bool {
    true
}

/// Make a bot; its workspace is set up in the background.
#[utoipa::path(post, path = "/bots", tag = "bots", params(CreateQuery), request_body = CreateBotRequest,
    responses((status = 201, body = Bot), (status = 404, description = "`owner_id` names no user, or there is no such backup for the caller"),
        (status = 412, description = "The backup that is named is another one by now"),
        (status = 422, description = "The idempotency key was used with another body")))]
async fn create(
    State(app): State<App>,
    context: RequestContext,
    headers: HeaderMap,
    Still(maker, body): Still<Maker, RawJsonBody<CreateBotRequest>>,
) -> ApiResult<Response> {
    let Maker {
        caller,
        owner,
        query,
        idempotency,
    } = maker;
    let requester = access::requester(&caller, Some(skep_store::Scope::Manage), &context, &headers);
    let requester = idempotency.of(&caller, requester);
    let restore = body.value.restore_backup.clone();
    let new = new_bot(body.value, owner, query.workspace)?;
    let (server, bytes) = (app.clone(), body.bytes);
    let work = async move {
        let claim = match idempotency.begin(&server, &caller, &bytes).await? {
            Begin::First(claim) => claim,
            Begin::Again(outcome) => return again(&server, outcome).await,
        };
        match made(&server, &caller, (new, restore), &requester).await {
            Ok((bot, operation)) => {
                context.note_bot(&bot.row.id);
                let bot = wire::bot(bot);
                let operation_id = operation.map(|handle| handle.id().to_owned());
                let text = serde_json::to_string(&bot).map_err(ApiError::internal)?;
                let outcome = IdempotencyOutcome {
                    operation_id: operation_id.clone(),
                    bot_id: None,
                    answer: Some((StatusCode::CREATED.as_u16(), text)),
                };
                claim.finish(&server, &outcome).await?;
                Ok(with_operation(
                    operation_id.as_deref(),
                    (StatusCode::CREATED, Json(bot)),
                ))
            }
            Err(error) => {
                claim.release(&server).await?;
                Err(error)
            }
        }
    };
    // The bot is the server's as soon as it was asked for: a client that goes away does not cut it in half.
    app.tasks().spawn(work).await.map_err(ApiError::internal)?
}

/// The backup is looked for only by the first request of its key: a repeat is answered also when it is gone by then.
async fn made(
    app: &App,
    caller: &Caller,
    (new, restore): (CreateBot, Option<String>),
    requester: &Requester,
) -> ApiResult<(skep_core::Bot, Option<OperationHandle>)> {
    let restore_backup = backup_asked(app, caller, restore.as_deref()).await?;
    let new = CreateBot { restore_backup, ..new };
    Ok(app.core().create_bot(new, requester).await?)
}

/// The first answer; where a crash came before it, the bot as it is now.
async fn again(app: &App, outcome: IdempotencyOutcome) -> ApiResult<Response> {
    let Some((status, text)) = outcome.answer else {
        let id = outcome.bot_id.and_then(|id| id.parse().ok());
        let id = id.ok_or_else(|| ApiError::internal("an idempotency key of a bot without its bot"))?;
        let bot = wire::bot(app.core().bot(&id).await?);
        let answer = (StatusCode::CREATED, Json(bot));
        return Ok(with_operation(outcome.operation_id.as_deref(), answer));
    };
    let status = StatusCode::from_u16(status).map_err(ApiError::internal)?;
    let value: Value = serde_json::from_str(&text).map_err(ApiError::internal)?;
    Ok(with_operation(outcome.operation_id.as_deref(), (status, Json(value))))
}

/// Who makes a bot, and for whom: looked at before the body.
struct Maker {
    caller: Caller,
    owner: String,
    query: CreateQuery,
    idempotency: Idempotency,
}

impl FromRequestParts<App> for Maker {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let Query(query) = Query::<CreateQuery>::from_request_parts(parts, app).await?;
        let owner = match query.owner_id.as_deref() {
            None => caller.user.id.clone(),
            Some(id) => users::existing(app, id).await?.id,
        };
        caller.require_account()?;
        if query.owner_id.is_some() {
            caller.require_admin()?;
        }
        let idempotency = Idempotency::from_request_parts(parts, app).await?;
        Ok(Self {
            caller,
            owner,
            query,
            idempotency,
        })
    }
}

/// The backup that is asked for, which an admin may take, or the one who owned its bot when it was made. To others
/// it is not there.
async fn backup_asked(app: &App, caller: &Caller, name: Option<&str>) -> ApiResult<Option<Backup>> {
    let Some(name) = name else {
        return Ok(None);
    };
    let backup = app.core().backup_of_any(name).await?;
    match caller.is_admin() || backup.owner_user_id.as_deref() == Some(caller.user.id.as_str()) {
        true => Ok(Some(backup)),
        false => Err(skep_core::Error::BackupNotFound(format!("backup {name} not found")).into()),
    }
}

fn new_bot(body: CreateBotRequest, owner_user_id: String, with_workspace: bool) -> ApiResult<CreateBot> {
    let name = body.display_name.unwrap_or_default();
    Ok(CreateBot {
        owner_user_id,
        display_name: if name.trim().is_empty() { made_up_name() } else { name },
        avatar_url: body.avatar_url.filter(|text| !text.is_empty()),
        timezone: timezone::checked(body.timezone)?.flatten(),
        is_active: body.is_active,
        metadata: object("metadata", body.metadata)?,
        restore_backup: None,
        with_workspace,
    })
}

/// Told apart from others in a list, and typed on a command line.
fn made_up_name() -> String {
    format!("bot-{:08x}", rand::random::<u32>())
}

fn object(name: &str, value: Option<Value>) -> ApiResult<Option<Map<String, Value>>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(ApiError::invalid_body(format!("{name} must be an object"))),
    }
}

/// One bot.
#[utoipa::path(get, path = "/bots/{bot_id}", tag = "bots", responses((status = 200, body = Bot)))]
async fn get(State(app): State<App>, access: BotAccess<Read>) -> ApiResult<Json<Bot>> {
    Ok(Json(wire::bot(app.core().bot(access.bot_id()).await?)))
}

/// Change a bot; its metadata is replaced as a whole.
#[utoipa::path(put, path = "/bots/{bot_id}", tag = "bots", request_body = UpdateBotRequest,
    responses((status = 200, body = Bot)))]
async fn replace(
    State(app): State<App>,
    Still(access, JsonBody(body)): Still<BotAccess<Manage>, JsonBody<UpdateBotRequest>>,
) -> ApiResult<Json<Bot>> {
    let requester = access.requester();
    let bot = app.core().replace_bot(access.bot_id(), change(body)?, &requester);
    Ok(Json(wire::bot(bot.await?)))
}

/// Change a bot; its metadata is merged (RFC 7396).
#[utoipa::path(patch, path = "/bots/{bot_id}", tag = "bots", request_body = UpdateBotRequest,
    responses((status = 200, body = Bot)))]
async fn patch(
    State(app): State<App>,
    Still(access, JsonBody(body)): Still<BotAccess<Manage>, JsonBody<UpdateBotRequest>>,
) -> ApiResult<Json<Bot>> {
    let requester = access.requester();
    let bot = app.core().patch_bot(access.bot_id(), change(body)?, &requester);
    Ok(Json(wire::bot(bot.await?)))
}

fn change(body: UpdateBotRequest) -> ApiResult<BotChange> {
    if body.display_name.as_ref().is_some_and(|name| name.trim().is_empty()) {
        return Err(ApiError::invalid_argument("display_name must not be empty"));
    }
    Ok(BotChange {
        display_name: body.display_name,
        avatar_url: body.avatar_url.map(|text| Some(text).filter(|text| !text.is_empty())),
        timezone: timezone::checked(body.timezone)?,
        is_active: body.is_active,
        metadata: object("metadata", body.metadata)?,
    })
}

#[derive(Debug, Deserialize, IntoParams)]
struct DeleteQuery {
    /// Keep a backup of its data first.
    #[serde(default)]
    preserve_data: bool,
}

/// Remove a bot with its workspace and everything of it; may be repeated.
#[utoipa::path(delete, path = "/bots/{bot_id}", tag = "bots", params(DeleteQuery),
    responses((status = 202, body = BotDeleting)))]
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
    let (server, id, requester) = (app.clone(), access.bot.id.clone(), access.requester());
    let deleted = app
        .tasks()
        .spawn(async move { server.core().delete_bot(&id, data, &requester).await })
        .await
        .map_err(ApiError::internal)??;
    let body = BotDeleting {
        id: deleted.id.to_string(),
        status: BotStatus::Deleting,
    };
    Ok(with_operation(
        Some(deleted.operation.id()),
        (StatusCode::ACCEPTED, Json(body)).into_response(),
    ))
}

/// Give a bot to another user.
#[utoipa::path(put, path = "/bots/{bot_id}/owner", tag = "bots", request_body = PutOwnerRequest,
    responses((status = 200, body = Bot)))]
async fn put_owner(
    State(app): State<App>,
    Still(BotAdmin(id), JsonBody(body)): Still<BotAdmin, JsonBody<PutOwnerRequest>>,
) -> ApiResult<Json<Bot>> {
    let owner = users::existing(&app, &body.owner_user_id).await?;
    Ok(Json(wire::bot(app.core().set_bot_owner(&id, &owner.id).await?)))
}

/// Probes of the bot, made now.
#[utoipa::path(get, path = "/bots/{bot_id}/checks", tag = "bots", responses((status = 200, body = BotCheckList)))]
async fn checks(State(app): State<App>, access: BotAccess<Read>) -> ApiResult<Json<BotCheckList>> {
    let items = app.core().checks(access.bot_id()).await?;
    Ok(Json(BotCheckList {
        items: items.into_iter().map(wire::bot_check).collect(),
    }))
}
