//! Login, refresh, logout and tickets.

use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::Utc;
use skep_api::{ErrorCode, LoginRequest, LoginResponse, TicketRequest, TicketResponse, TicketUse, TokenResponse};
use skep_names::BotId;
use skep_store::{NewTicket, Scope, TicketPurpose, UserRow};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::{Passwords, TICKET_LIFE, Turn, Verdict, digest, new_ticket};
use crate::http::access::{Caller, Credential};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, ApiResult, chain};
use crate::http::extract::{JsonBody, Still};
use crate::http::wire;

/// `/auth`, keys excepted.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(refresh))
        .routes(routes!(logout))
        .routes(routes!(ticket))
}

/// Sign in with name (or email) and password.
#[utoipa::path(post, path = "/auth/login", tag = "auth", request_body = LoginRequest, security(()),
    responses((status = 200, body = LoginResponse), (status = 429, description = "Ten failures in a minute")))]
async fn login(
    State(app): State<App>,
    context: RequestContext,
    JsonBody(body): JsonBody<LoginRequest>,
) -> ApiResult<Json<LoginResponse>> {
    let name = body.username.trim().to_owned();
    if name.is_empty() || body.password.is_empty() {
        return Err(ApiError::invalid_argument("username and password are required"));
    }
    if let Verdict::Slowed(time) = may_try(&app, &name, context.from)? {
        tokio::time::sleep(time).await;
    }
    let is_flooding = app.auth().throttle.is_flooding(context.from);
    let turn = turn(&app.auth().passwords, (!is_flooding).then_some(&context)).await?;
    let attempt = Attempt {
        name,
        password: body.password,
        from: context.from,
    };
    // Goes on to its end when the client goes away: a guess counts also when nobody waits for the answer.
    let user = app
        .tasks()
        .spawn(attempt.judge(app.clone(), turn))
        .await
        .map_err(ApiError::internal)??;
    if !user.is_active {
        return Err(ApiError::unauthorized("user is inactive"));
    }
    context.note_user(&user.id);
    // Signing in goes on while the store cannot be written: an administrator may be needed then.
    if let Err(error) = app.store().note_login(&user.id).await {
        let cause = chain(&error);
        tracing::warn!(user = user.id, cause, "the time of a login is not noted");
    }
    let issued = app.auth().tokens.issue(&user.id, user.token_generation);
    let issued = issued.map_err(ApiError::internal)?;
    Ok(Json(LoginResponse {
        access_token: issued.token,
        token_type: "Bearer".to_owned(),
        expires_at: issued.expires_at,
        user_id: user.id,
        role: wire::role(user.role),
        display_name: user.display_name,
        username: user.username,
        timezone: user.timezone,
    }))
}

/// Waits for a turn. With it the password is tried, and that is told in the audit trail, whoever waits for the answer;
/// who leaves before has tried nothing. `context`: of one that is to be told of though it fails.
async fn turn(passwords: &Passwords, context: Option<&RequestContext>) -> ApiResult<Turn> {
    let turn = passwords.turn().await.map_err(ApiError::internal)?;
    if let Some(context) = context {
        context.note_told();
    }
    Ok(turn)
}

/// Whether a login may be tried, or its result be told, now.
fn may_try(app: &App, name: &str, from: IpAddr) -> ApiResult<Verdict> {
    match app.auth().throttle.ask(name, from) {
        Verdict::Refused(time) => Err(
            ApiError::new(ErrorCode::RateLimited, "too many failed logins; try again later")
                .retry_after(time.as_secs().saturating_add(1)),
        ),
        other => Ok(other),
    }
}

/// One guess at a password.
struct Attempt {
    name: String,
    password: String,
    from: IpAddr,
}

impl Attempt {
    /// The user if the password is right; a wrong one is counted.
    async fn judge(self, app: App, turn: Turn) -> ApiResult<UserRow> {
        let Self { name, password, from } = self;
        let user = check_password(&app, turn, (&name, password)).await?;
        // Others may have failed while this one was looked at: of many tries at once, ten are answered.
        may_try(&app, &name, from)?;
        let throttle = &app.auth().throttle;
        match &user {
            Some(_) => throttle.succeeded(&name, from),
            None => throttle.failed(&name, from),
        }
        user.ok_or_else(|| ApiError::new(ErrorCode::InvalidCredentials, "invalid credentials"))
    }
}

/// The user of that name if the password is right; an unknown name takes as long as a wrong password.
async fn check_password(app: &App, turn: Turn, (name, password): (&str, String)) -> ApiResult<Option<UserRow>> {
    let user = app.store().user_by_login(name).await?;
    let hash = user.as_ref().map(|user| user.password_hash.clone());
    let matches = app
        .auth()
        .passwords
        .matches_in(turn, password, hash)
        .await
        .map_err(ApiError::internal)?;
    Ok(user.filter(|_| matches))
}

/// A new token for the user of this one, which goes on to count until its own end.
#[utoipa::path(post, path = "/auth/refresh", tag = "auth", responses((status = 200, body = TokenResponse)))]
async fn refresh(State(app): State<App>, caller: Caller) -> ApiResult<Json<TokenResponse>> {
    token_of(&caller)?;
    let issued = app.auth().tokens.issue(&caller.user.id, caller.user.token_generation);
    let issued = issued.map_err(ApiError::internal)?;
    Ok(Json(TokenResponse {
        access_token: issued.token,
        token_type: "Bearer".to_owned(),
        expires_at: issued.expires_at,
    }))
}

/// Revoke this token.
#[utoipa::path(post, path = "/auth/logout", tag = "auth", responses((status = 204)))]
async fn logout(State(app): State<App>, caller: Caller) -> ApiResult<StatusCode> {
    let (jti, expires_at) = token_of(&caller)?;
    app.store().revoke_token(jti, expires_at).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A key must not become a token, which would outlive it and could do more.
fn token_of(caller: &Caller) -> ApiResult<(&str, chrono::DateTime<Utc>)> {
    match &caller.credential {
        Credential::Token { jti, expires_at } => Ok((jti, *expires_at)),
        Credential::Key { .. } | Credential::Ticket => Err(ApiError::forbidden("this needs a token, not an API key")),
    }
}

/// A ticket for one use within 30 seconds, as `?ticket=` where a browser cannot send a header.
#[utoipa::path(post, path = "/auth/tickets", tag = "auth", request_body = TicketRequest,
    responses((status = 200, body = TicketResponse), (status = 404, description = "No such bot")))]
async fn ticket(
    State(app): State<App>,
    context: RequestContext,
    Still(caller, JsonBody(body)): Still<Caller, JsonBody<TicketRequest>>,
) -> ApiResult<Json<TicketResponse>> {
    let id: BotId = body.bot_id.parse().map_err(|_| ApiError::invalid_id("bot"))?;
    let not_found = || ApiError::new(ErrorCode::BotNotFound, "bot not found");
    let bot = app.store().bot(&id).await?.ok_or_else(not_found)?;
    context.note_bot(&id);
    let granted = caller.scope_on(&app, &bot).await?;
    let as_guest = bot.guest_enabled && body.purpose == TicketUse::Download && caller.is_for(&id);
    if granted.is_none_or(|scope| scope < Scope::Operate) && !as_guest {
        return Err(ApiError::new(ErrorCode::BotAccessDenied, "bot access denied"));
    }
    let ticket = new_ticket();
    let expires_at = Utc::now() + TICKET_LIFE;
    app.store()
        .insert_ticket(NewTicket {
            ticket_sha256: digest(&ticket),
            user_id: caller.user.id.clone(),
            bot_id: id.to_string(),
            purpose: match body.purpose {
                TicketUse::Terminal => TicketPurpose::Terminal,
                TicketUse::Download => TicketPurpose::Download,
                TicketUse::Port => TicketPurpose::Port,
            },
            scope: caller.scope,
            expires_at,
        })
        .await?;
    Ok(Json(TicketResponse { ticket, expires_at }))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_leaves_before_his_turn_is_not_told_of() {
        let passwords = Passwords::default();
        let mut turns = Vec::new();
        while let Some(turn) = passwords.turn().now_or_never() {
            turns.push(turn.unwrap());
        }
        let context = RequestContext::of_nobody();
        assert!(
            turn(&passwords, Some(&context)).now_or_never().is_none(),
            "there is no turn"
        );
        assert!(!context.is_told());
        turns.pop();
        turn(&passwords, Some(&context)).await.unwrap();
        assert!(context.is_told());
    }
}
