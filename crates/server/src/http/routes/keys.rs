//! API keys: shown once, stored as digests, never wider than the credential that makes them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, SecondsFormat, Utc};
use skep_api::{ApiKeyList, CreateKeyRequest, CreatedKey};
use skep_names::BotId;
use skep_store::NewApiKey;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::{digest, new_api_key};
use crate::http::access::{AccountHolder, Caller, Credential, identity_part};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{JsonBody, Path, Still};
use crate::http::routes::users::renew_admin_key;
use crate::http::wire;

/// Longest name.
const LONGEST_NAME: usize = 128;

/// `/auth/keys`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(delete))
}

/// The caller's keys.
#[utoipa::path(get, path = "/auth/keys", tag = "auth", responses((status = 200, body = ApiKeyList)))]
async fn list(State(app): State<App>, caller: Caller) -> ApiResult<Json<ApiKeyList>> {
    let keys = app.store().api_keys(&caller.user.id).await?;
    Ok(Json(ApiKeyList {
        items: keys.into_iter().map(wire::api_key).collect(),
    }))
}

/// Make a key. This answer is the only time it is shown.
#[utoipa::path(post, path = "/auth/keys", tag = "auth", request_body = CreateKeyRequest,
    responses((status = 201, body = CreatedKey)))]
async fn create(
    State(app): State<App>,
    Still(AccountHolder(caller), JsonBody(body)): Still<AccountHolder, JsonBody<CreateKeyRequest>>,
) -> ApiResult<(StatusCode, Json<CreatedKey>)> {
    let name = body.name.trim().to_owned();
    if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
        return Err(ApiError::invalid_argument(format!(
            "name must be one line of 1 to {LONGEST_NAME} bytes"
        )));
    }
    if body.expires_at.is_some_and(|at| at <= Utc::now()) {
        return Err(ApiError::invalid_argument("expires_at must be in the future"));
    }
    let expires_at = end_of(&caller, body.expires_at)?;
    if let Some(bots) = &body.bots {
        check_bots(&app, &caller, bots).await?;
    }
    let key = new_api_key();
    let row = app
        .store()
        .insert_api_key(NewApiKey {
            id: uuid::Uuid::new_v4().to_string(),
            user_id: caller.user.id.clone(),
            name,
            key_sha256: digest(&key),
            scope: wire::scope_asked(body.scope),
            bots: body.bots,
            expires_at,
        })
        .await?;
    Ok((
        StatusCode::CREATED,
        Json(CreatedKey {
            key,
            info: wire::api_key(row),
        }),
    ))
}

/// A key that a key makes ends no later than that one.
fn end_of(caller: &Caller, asked: Option<DateTime<Utc>>) -> ApiResult<Option<DateTime<Utc>>> {
    let Credential::Key {
        expires_at: Some(end), ..
    } = caller.credential
    else {
        return Ok(asked);
    };
    match asked {
        Some(asked) if asked > end => Err(ApiError::forbidden(format!(
            "this key ends at {}: one that it makes cannot end later",
            end.to_rfc3339_opts(SecondsFormat::Secs, true)
        ))),
        asked => Ok(asked.or(Some(end))),
    }
}

/// A key for bots that its user cannot reach would never work: say so now.
async fn check_bots(app: &App, caller: &Caller, bots: &[String]) -> ApiResult<()> {
    if bots.is_empty() || bots.len() > 1000 {
        return Err(ApiError::invalid_argument(
            "bots must name 1 to 1000 bots, or be left out",
        ));
    }
    for text in bots {
        let id: BotId = text.parse().map_err(|_| ApiError::invalid_id("bot"))?;
        let reachable = match app.store().bot(&id).await? {
            Some(bot) => caller.scope_on(app, &bot).await?.is_some(),
            None => false,
        };
        if !reachable {
            return Err(ApiError::invalid_argument(format!(
                "bots: there is no bot {id} that you may use"
            )));
        }
    }
    Ok(())
}

/// Revoke a key of the caller's.
#[utoipa::path(delete, path = "/auth/keys/{id}", tag = "auth",
    responses((status = 204), (status = 404, description = "No such key")))]
async fn delete(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> ApiResult<StatusCode> {
    let id = identity_part(&id, "key")?;
    let not_found = || ApiError::not_found("API key not found");
    let keys = app.store().api_keys(&caller.user.id).await?;
    keys.iter().find(|key| key.id == id).ok_or_else(not_found)?;
    caller.require_account()?;
    if !app.store().delete_api_key(&caller.user.id, id).await? {
        return Err(not_found());
    }
    renew_admin_key(&app).await;
    Ok(StatusCode::NO_CONTENT)
}
