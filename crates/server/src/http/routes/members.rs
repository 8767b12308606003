//! Who may use a bot beside its owner.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use skep_api::{GuestAccess, Member, MemberList, PutMemberRequest};
use skep_names::BotId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{BotAccess, Manage, Read, identity_part};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{JsonBody, Still, path_part};
use crate::http::wire;

/// `/bots/{bot_id}/members` and `/bots/{bot_id}/guest`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, delete))
        .routes(routes!(guest))
}

/// The bot's members.
#[utoipa::path(get, path = "/bots/{bot_id}/members", tag = "bots", responses((status = 200, body = MemberList)))]
async fn list(State(app): State<App>, access: BotAccess<Read>) -> ApiResult<Json<MemberList>> {
    let members = app.store().members(access.bot_id()).await?;
    Ok(Json(MemberList {
        items: members.into_iter().map(wire::member).collect(),
    }))
}

/// Add a member, or change what one may do.
#[utoipa::path(put, path = "/bots/{bot_id}/members/{user_id}", tag = "bots", request_body = PutMemberRequest,
    responses((status = 200, body = Member), (status = 404, description = "No such bot or user")))]
async fn put(
    State(app): State<App>,
    Still(NewMember(target), JsonBody(body)): Still<NewMember, JsonBody<PutMemberRequest>>,
) -> ApiResult<Json<Member>> {
    let member = app
        .store()
        .put_member(&target.bot, &target.user_id, wire::member_role_asked(body.role))
        .await?;
    Ok(Json(wire::member(member)))
}

/// Remove a member; 204 also when there is none.
#[utoipa::path(delete, path = "/bots/{bot_id}/members/{user_id}", tag = "bots", responses((status = 204)))]
async fn delete(State(app): State<App>, target: MemberOfPath) -> ApiResult<StatusCode> {
    app.store().delete_member(&target.bot, &target.user_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Open the bot's media and tools to every signed-in user, or close them.
#[utoipa::path(put, path = "/bots/{bot_id}/guest", tag = "bots", request_body = GuestAccess,
    responses((status = 200, body = GuestAccess)))]
async fn guest(
    State(app): State<App>,
    Still(access, JsonBody(body)): Still<BotAccess<Manage>, JsonBody<GuestAccess>>,
) -> ApiResult<Json<GuestAccess>> {
    app.store()
        .set_bot_guest(access.bot_id(), body.enabled)
        .await?
        .ok_or_else(|| ApiError::new(skep_api::ErrorCode::BotNotFound, "bot not found"))?;
    Ok(Json(body))
}

/// Bot and user of the route, for a manager of the bot.
struct MemberOfPath {
    bot: BotId,
    user_id: String,
}

impl FromRequestParts<App> for MemberOfPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let access = BotAccess::<Manage>::from_request_parts(parts, app).await?;
        let user_id = path_part(parts, "user_id").await?;
        Ok(Self {
            bot: access.bot.id,
            user_id: identity_part(&user_id, "user")?.to_owned(),
        })
    }
}

/// The same, of a user who exists.
struct NewMember(MemberOfPath);

impl FromRequestParts<App> for NewMember {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let target = MemberOfPath::from_request_parts(parts, app).await?;
        super::users::existing(app, &target.user_id).await?;
        Ok(Self(target))
    }
}
