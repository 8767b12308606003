//! Operations: what was asked for, how far it is, and calling it off.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use skep_api::{ErrorCode, HEADER_OPERATION_ID, Operation, OperationList, StreamEvent};
use skep_names::BotId;
use skep_store::Scope;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{BotAccess, Caller, Read};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Query, path_part};
use crate::http::{sse, wire};

/// Operations on a page when nobody says.
const PAGE: u32 = 200;
/// Operations on a page at most.
const LARGEST_PAGE: u32 = 500;

/// `/operations` and `/bots/{bot_id}/operations`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(events))
        .routes(routes!(cancel))
}

/// Names the operation that an answer belongs to.
pub fn with_operation(id: Option<&str>, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    if let Some(value) = id.and_then(|id| HeaderValue::from_str(id).ok()) {
        response
            .headers_mut()
            .insert(HeaderName::from_static(HEADER_OPERATION_ID), value);
    }
    response
}

#[derive(Debug, Deserialize, IntoParams)]
struct ListQuery {
    /// How many, 1 to 500; default 200.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// The operations of a bot, newest first.
#[utoipa::path(get, path = "/bots/{bot_id}/operations", tag = "operations", params(ListQuery),
    responses((status = 200, body = OperationList)))]
async fn list(
    State(app): State<App>,
    access: BotAccess<Read>,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<OperationList>> {
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        return Err(ApiError::invalid_argument(format!("limit must be 1 to {LARGEST_PAGE}")));
    }
    let page = app
        .core()
        .operations(access.bot_id(), query.cursor.as_deref(), limit)
        .await?;
    Ok(Json(OperationList {
        items: page
            .operations
            .into_iter()
            .map(wire::operation)
            .collect::<ApiResult<_>>()?,
        next_cursor: page.next_cursor,
    }))
}

/// One operation, also of a bot that is gone.
#[utoipa::path(get, path = "/operations/{operation_id}", tag = "operations",
    responses((status = 200, body = Operation), (status = 404, description = "No such operation")))]
async fn get(State(app): State<App>, access: OperationAccess) -> ApiResult<Json<Operation>> {
    access.require(Scope::Read)?;
    Ok(Json(wire::operation(app.core().operation(&access.id).await?)?))
}

/// Its events as server-sent events, from the start or from `Last-Event-ID`, to its end.
#[utoipa::path(get, path = "/operations/{operation_id}/events", tag = "operations",
    responses((status = 200, body = StreamEvent, content_type = "text/event-stream"),
        (status = 404, description = "No such operation")))]
async fn events(
    State(app): State<App>,
    access: OperationAccess,
    context: RequestContext,
    headers: HeaderMap,
) -> ApiResult<Response> {
    access.require(Scope::Read)?;
    let after = last_event_id(&headers)?;
    let request_id = context.request_id;
    let events = app.core().operation_events(&access.id, after).await?;
    let events = events.map(move |event| (event.id, wire::stream_event(event.body, &request_id)));
    Ok(with_operation(Some(&access.id), sse::stream(events, sse::Ids::With)))
}

/// Call it off, where its kind allows that and its change is not in place yet; answers when it has ended.
#[utoipa::path(post, path = "/operations/{operation_id}/cancel", tag = "operations",
    responses((status = 200, body = Operation), (status = 404, description = "No such operation"),
        (status = 409, description = "It cannot be cancelled")))]
async fn cancel(State(app): State<App>, context: RequestContext, access: OperationAccess) -> ApiResult<Response> {
    access.require(Scope::Manage)?;
    context.note_bot(&access.bot);
    let operation = wire::operation(app.core().cancel_operation(&access.id).await?)?;
    Ok(with_operation(Some(&access.id), Json(operation)))
}

fn last_event_id(headers: &HeaderMap) -> ApiResult<u64> {
    match headers.get("last-event-id") {
        None => Ok(0),
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| ApiError::invalid_argument("Last-Event-ID must be an id of this stream")),
    }
}

/// The operation of the route, for a caller who may see its bot. Of a bot that is gone: for admins,
/// and for whoever asked for it.
struct OperationAccess {
    id: String,
    bot: BotId,
    granted: Scope,
}

impl OperationAccess {
    fn require(&self, scope: Scope) -> ApiResult<()> {
        if self.granted < scope {
            return Err(denied());
        }
        Ok(())
    }
}

fn denied() -> ApiError {
    ApiError::new(ErrorCode::BotAccessDenied, "bot access denied")
}

impl FromRequestParts<App> for OperationAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let id = path_part(parts, "operation_id").await?;
        if !uuid::Uuid::try_parse(&id).is_ok_and(|uuid| uuid.to_string() == id) {
            return Err(ApiError::invalid_id("operation"));
        }
        let not_found = || ApiError::not_found(format!("operation {id} not found"));
        let row = app.store().operation(&id).await?.ok_or_else(not_found)?;
        let for_this_bot = caller.is_for(&row.bot_id);
        let asked_by_caller = row.requested_by.as_deref() == Some(caller.user.id.as_str());
        let granted = match app.store().bot(&row.bot_id).await? {
            Some(bot) => caller.scope_on(app, &bot).await?,
            None => (caller.is_admin() || (asked_by_caller && for_this_bot)).then_some(caller.scope),
        };
        Ok(Self {
            granted: granted.ok_or_else(denied)?,
            bot: row.bot_id,
            id,
        })
    }
}
