//! Versions of a workspace: kept, listed, gone back to, renamed, deleted.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use skep_api::{ErrorBody, RollbackRequest, RollbackResponse, Snapshot, SnapshotList, SnapshotRequest};
use skep_core::Outcome;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{BotAccess, Manage, Read};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{JsonBody, Query, RawJsonBody, path_part};
use crate::http::idempotency::Idempotency;
use crate::http::routes::operations::with_operation;
use crate::http::wire;

/// `/bots/{bot_id}/container/snapshots…`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(take, list))
        .routes(routes!(rollback))
        .routes(routes!(remove, rename))
}

/// Keep the present state as a version. Its processes end with it; a workspace that runs runs again when this is
/// answered, one that is stopped stays stopped.
#[utoipa::path(post, path = "/bots/{bot_id}/container/snapshots", tag = "data", request_body = SnapshotRequest,
    responses((status = 200, body = Snapshot),
        (status = 409, body = ErrorBody, description = "`snapshot_limit`: too many versions are kept"),
        (status = 422, body = ErrorBody, description = "The idempotency key was used with another body"),
        (status = 501, body = ErrorBody, description = "The backend keeps no snapshots")))]
async fn take(
    State(app): State<App>,
    access: BotAccess<Manage>,
    idempotency: Idempotency,
    body: RawJsonBody<SnapshotRequest>,
) -> ApiResult<Response> {
    let requester = idempotency.of(&access.caller, access.requester());
    let (server, bot, asked) = (app.clone(), access.bot.id.clone(), body.value);
    let work = async move {
        let name = asked.snapshot_name.unwrap_or_default();
        let source = asked.source.unwrap_or_default();
        server.core().take_snapshot(&bot, (&name, &source), &requester).await
    };
    let id = idempotency.operation(&app, &access.caller, body.bytes, work).await?;
    let answer = match app.core().operation_outcome(&id).await {
        Ok(Outcome::Snapshot(taken)) => Json(wire::snapshot(taken)).into_response(),
        Ok(_) => ApiError::internal("a snapshot without a version").into_response(),
        Err(error) => ApiError::from(error).into_response(),
    };
    Ok(with_operation(Some(&id), answer))
}

#[derive(Debug, Deserialize, IntoParams)]
struct ListQuery {
    /// Must be the container's.
    snapshotter: Option<String>,
}

/// The layers of the workspace with their lineage, and which of them are versions.
#[utoipa::path(get, path = "/bots/{bot_id}/container/snapshots", tag = "data", params(ListQuery),
    responses((status = 200, body = SnapshotList),
        (status = 400, body = ErrorBody, description = "Another snapshotter than the container's"),
        (status = 501, body = ErrorBody, description = "The backend keeps no snapshots")))]
async fn list(
    State(app): State<App>,
    access: BotAccess<Read>,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<SnapshotList>> {
    let asked = query
        .snapshotter
        .as_deref()
        .map(str::trim)
        .filter(|name| !name.is_empty());
    let list = app.core().snapshots(access.bot_id(), asked).await?;
    Ok(Json(wire::snapshot_list(list)))
}

/// Go back to a version. What is there now is saved as a version first, so this can be undone.
#[utoipa::path(post, path = "/bots/{bot_id}/container/snapshots/rollback", tag = "data",
    request_body = RollbackRequest,
    responses((status = 200, body = RollbackResponse),
        (status = 400, body = ErrorBody, description = "A version that is no positive whole number"),
        (status = 422, body = ErrorBody, description = "The idempotency key was used with another body"),
        (status = 501, body = ErrorBody, description = "The backend keeps no snapshots")))]
async fn rollback(
    State(app): State<App>,
    access: BotAccess<Manage>,
    idempotency: Idempotency,
    body: RawJsonBody<RollbackRequest>,
) -> ApiResult<Response> {
    let version = whole(body.value.version)?;
    let requester = idempotency.of(&access.caller, access.requester());
    let (server, bot) = (app.clone(), access.bot.id.clone());
    let work = async move { server.core().roll_back(&bot, version, &requester).await };
    let id = idempotency.operation(&app, &access.caller, body.bytes, work).await?;
    let answer = match app.core().operation_outcome(&id).await {
        Ok(Outcome::RolledBack { version, saved_version }) => Json(RollbackResponse {
            rolled_back_to: version,
            saved_version,
        })
        .into_response(),
        Ok(_) => ApiError::internal("a rollback without a version").into_response(),
        Err(error) => ApiError::from(error).into_response(),
    };
    Ok(with_operation(Some(&id), answer))
}

/// The bot and the version of a route.
struct VersionAccess {
    access: BotAccess<Manage>,
    version: u64,
}

impl FromRequestParts<App> for VersionAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let access = BotAccess::from_request_parts(parts, app).await?;
        let version = number(&path_part(parts, "version").await?)?;
        Ok(Self { access, version })
    }
}

/// Forget a version; the others stay restorable.
#[utoipa::path(delete, path = "/bots/{bot_id}/container/snapshots/{version}", tag = "data",
    responses((status = 204),
        (status = 400, body = ErrorBody, description = "A version that is no positive whole number"),
        (status = 501, body = ErrorBody, description = "The backend keeps no snapshots")))]
async fn remove(State(app): State<App>, VersionAccess { access, version }: VersionAccess) -> ApiResult<Response> {
    let (server, bot, requester) = (app.clone(), access.bot.id.clone(), access.requester());
    let work = async move {
        let handle = server.core().delete_version(&bot, version, &requester).await?;
        let outcome = handle.outcome().await.map(|_| StatusCode::NO_CONTENT);
        Ok(with_operation(Some(handle.id()), outcome.map_err(ApiError::from)))
    };
    app.tasks().spawn(work).await.map_err(ApiError::internal)?
}

/// Give a version another name; an empty one takes it away.
#[utoipa::path(patch, path = "/bots/{bot_id}/container/snapshots/{version}", tag = "data",
    request_body = SnapshotRequest,
    responses((status = 200, body = Snapshot),
        (status = 400, body = ErrorBody, description = "A version that is no positive whole number"),
        (status = 501, body = ErrorBody, description = "The backend keeps no snapshots")))]
async fn rename(
    State(app): State<App>,
    VersionAccess { access, version }: VersionAccess,
    JsonBody(body): JsonBody<SnapshotRequest>,
) -> ApiResult<Json<Snapshot>> {
    let name = body.snapshot_name.unwrap_or_default();
    let renamed = app.core().rename_version(access.bot_id(), version, &name).await?;
    Ok(Json(wire::snapshot(renamed.into())))
}

/// A number too large for any version is one that is not there.
fn whole(number: f64) -> ApiResult<u64> {
    if number.fract() != 0.0 || number < 1.0 {
        return Err(not_a_version());
    }
    // Beyond 2^53 there is no version: whichever of them it becomes is not found.
    Ok(number as u64)
}

fn number(text: &str) -> ApiResult<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || text.bytes().all(|byte| byte == b'0') {
        return Err(not_a_version());
    }
    Ok(text.parse().unwrap_or(u64::MAX))
}

fn not_a_version() -> ApiError {
    ApiError::invalid_argument("version must be >= 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_positive_whole_number() {
        assert_eq!(whole(1.0).unwrap(), 1);
        assert_eq!(number("7").unwrap(), 7);
        assert_eq!(number("99999999999999999999999").unwrap(), u64::MAX);
        assert!(whole(1e300).is_ok(), "too large: not found, not malformed");
        for bad in [0.0, -1.0, 1.5, f64::NAN] {
            assert!(whole(bad).is_err(), "{bad}");
        }
        for bad in ["", "0", "-1", "+1", "1.5", "one", "1 "] {
            assert!(number(bad).is_err(), "{bad:?}");
        }
    }
}
