//! Backups: listed, downloaded, removed, put back. Made by a delete; put back by a create too.

use std::marker::PhantomData;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::header::{
    CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue, IF_MATCH, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use skep_api::{BackupList, ErrorBody, ErrorCode, RestoreRequest, RestoredResponse};
use skep_names::BotId;
use tokio_util::io::ReaderStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{Admin, BotAccess, Caller, Manage, Need, Read};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Path, RawJsonBody, path_part};
use crate::http::idempotency::Idempotency;
use crate::http::routes::operations::with_operation;
use crate::http::wire;

/// Bytes of a file that are read at once.
const PIECE_BYTES: usize = 256 * 1024;

/// `/backups` and `/bots/{bot_id}/backups`.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(download, remove))
        .routes(routes!(list_all))
        .routes(routes!(restore))
}

/// The bot of the route, for a caller who may do `N` with it; one that is gone and has left backups, for an admin.
struct Keeper<N: Need> {
    bot: BotId,
    need: PhantomData<N>,
}

impl<N: Need> FromRequestParts<App> for Keeper<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let need = PhantomData;
        let refused = match BotAccess::<N>::from_request_parts(parts, app).await {
            Ok(access) => {
                return Ok(Self {
                    bot: access.bot.id,
                    need,
                });
            }
            Err(refused) => refused,
        };
        if refused.code() != ErrorCode::BotNotFound {
            return Err(refused);
        }
        let caller = Caller::from_request_parts(parts, app).await?;
        let bot: BotId = path_part(parts, "bot_id")
            .await?
            .parse()
            .map_err(|_| ApiError::invalid_id("bot"))?;
        if !caller.is_admin() || caller.scope < N::SCOPE || app.core().backups(&bot).await?.is_empty() {
            return Err(refused);
        }
        RequestContext::from_request_parts(parts, app).await?.note_bot(&bot);
        Ok(Self { bot, need })
    }
}

/// The backups of a bot, of one that is gone for administrators: the current one first, then older ones, then what did not verify.
#[utoipa::path(get, path = "/bots/{bot_id}/backups", tag = "data", responses((status = 200, body = BackupList)))]
async fn list(State(app): State<App>, keeper: Keeper<Read>) -> ApiResult<Json<BackupList>> {
    let backups = app.core().backups(&keeper.bot).await?;
    Ok(Json(wire::backups(backups)))
}

/// The backups of all bots, those that are gone included.
#[utoipa::path(get, path = "/backups", tag = "data", responses((status = 200, body = BackupList)))]
async fn list_all(State(app): State<App>, _admin: Admin) -> ApiResult<Json<BackupList>> {
    Ok(Json(wire::backups(app.core().all_backups().await?)))
}

#[derive(Debug, Deserialize)]
struct OfPath {
    name: String,
}

/// A backup as it is: a `.tar.gz` with names relative to `/data`.
#[utoipa::path(get, path = "/bots/{bot_id}/backups/{name}", tag = "data",
    responses((status = 200, content_type = "application/gzip", body = Vec<u8>),
        (status = 404, body = ErrorBody, description = "No such bot, or no such backup of it")))]
async fn download(State(app): State<App>, keeper: Keeper<Manage>, Path(of): Path<OfPath>) -> ApiResult<Response> {
    let opened = app.core().open_backup(&keeper.bot, &of.name).await?;
    let (backup, file) = (opened.backup, tokio::fs::File::from_std(opened.file));
    let pieces = ReaderStream::with_capacity(file, PIECE_BYTES);
    let body = Body::from_stream(exactly(pieces.boxed(), backup.size_bytes));
    let mut response = (StatusCode::OK, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(backup.size_bytes));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let disposition = format!("attachment; filename=\"{}\"", backup.name);
    set(headers, CONTENT_DISPOSITION, &disposition)?;
    if let Some(sha256) = &backup.sha256 {
        set(headers, ETAG, &format!("\"{sha256}\""))?;
    }
    Ok(response)
}

fn set(headers: &mut HeaderMap, name: axum::http::HeaderName, value: &str) -> ApiResult<()> {
    let value = HeaderValue::from_str(value).map_err(ApiError::internal)?;
    headers.insert(name, value);
    Ok(())
}

/// As many bytes as were promised; fewer break the transfer.
fn exactly(
    pieces: futures::stream::BoxStream<'static, std::io::Result<bytes::Bytes>>,
    promised: u64,
) -> impl futures::Stream<Item = std::io::Result<bytes::Bytes>> {
    futures::stream::try_unfold((pieces, promised), |(mut pieces, left)| async move {
        match pieces.try_next().await? {
            Some(piece) => {
                let left = left.saturating_sub(piece.len() as u64);
                Ok(Some((piece, (pieces, left))))
            }
            None if left > 0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            None => Ok(None),
        }
    })
}

/// Remove a backup, for good. A new one moves the others on to other names: `If-Match` with the digest, which is the
/// ETag, removes that one or none.
#[utoipa::path(delete, path = "/bots/{bot_id}/backups/{name}", tag = "data",
    params(("If-Match" = Option<String>, Header, description = "The backup's digest, as its ETag")),
    responses((status = 204), (status = 404, body = ErrorBody, description = "No such bot, or no such backup of it"),
        (status = 412, body = ErrorBody, description = "Another backup has that name by now")))]
async fn remove(
    State(app): State<App>,
    keeper: Keeper<Manage>,
    Path(of): Path<OfPath>,
    headers: HeaderMap,
) -> ApiResult<StatusCode> {
    let server = app.clone();
    let sha256 = wanted_digest(&headers);
    let work = async move {
        server
            .core()
            .delete_backup(&keeper.bot, &of.name, sha256.as_deref())
            .await
    };
    app.tasks().spawn(work).await.map_err(ApiError::internal)??;
    Ok(StatusCode::NO_CONTENT)
}

/// `If-Match`, without its quotes; any will do when there is none or it says so. What is no digest is that of no backup.
fn wanted_digest(headers: &HeaderMap) -> Option<String> {
    let value = String::from_utf8_lossy(headers.get(IF_MATCH)?.as_bytes()).into_owned();
    let digest = value.trim().trim_matches('"');
    (digest != "*").then(|| digest.to_owned())
}

/// Put preserved data back into the workspace, all or nothing; it is down meanwhile.
#[utoipa::path(post, path = "/bots/{bot_id}/container/data/restore", tag = "data", request_body = RestoreRequest,
    responses((status = 200, body = RestoredResponse),
        (status = 400, body = ErrorBody, description = "The backup does not verify, or `/data` is not a directory"),
        (status = 404, body = ErrorBody, description = "No such bot, no workspace, or no such backup"),
        (status = 412, body = ErrorBody, description = "The backup has another digest than `sha256`"),
        (status = 507, body = ErrorBody, description = "No space, or over the storage limit; `/data` is as it was")))]
async fn restore(
    State(app): State<App>,
    access: BotAccess<Manage>,
    idempotency: Idempotency,
    RawJsonBody { value, bytes }: RawJsonBody<RestoreRequest>,
) -> ApiResult<Response> {
    let requester = idempotency.of(&access.caller, access.requester());
    let (server, bot) = (app.clone(), access.bot.id.clone());
    let request = skep_core::RestoreRequest {
        name: value.name,
        sha256: value.sha256,
        mode: wire::restore_mode(value.mode.unwrap_or_default()),
    };
    let work = async move { server.core().restore_data(&bot, request, &requester).await };
    let id = idempotency.operation(&app, &access.caller, bytes, work).await?;
    match app.core().operation_outcome(&id).await {
        Ok(_) => Ok(with_operation(Some(&id), Json(RestoredResponse { restored: true }))),
        Err(error) => Ok(with_operation(Some(&id), ApiError::from(error))),
    }
}
