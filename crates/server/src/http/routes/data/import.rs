//! An archive of a client's into `/data`: received and checked whole first, then put in, all or nothing.

use axum::Json;
use axum::extract::multipart::Multipart;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use bytes::Bytes;
use futures::TryStreamExt;
use serde::Deserialize;
use skep_api::{ErrorBody, ImportedResponse, RestoreMode};
use skep_core::transfer::ReceivedArchive;
use skep_core::{Error, Outcome};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{BotAccess, Manage};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;
use crate::http::idempotency::Idempotency;
use crate::http::routes::files::{body_bytes, broken_form, field_bytes, next_field};
use crate::http::routes::operations::with_operation;
use crate::http::wire;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(import))
        .layer(DefaultBodyLimit::disable())
}

#[derive(Debug, Deserialize, IntoParams)]
struct ImportQuery {
    /// `merge` (default): what is in `/data` and not in the archive stays. `replace`: it goes.
    #[param(inline)]
    mode: Option<RestoreMode>,
}

#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "describes the form; it is read as a stream")]
struct ImportForm {
    /// `.tar.gz`, `.tar.zst` or `.tar`; which one is told by its first bytes.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Put an archive into `/data`, all or nothing. The workspace is down only while it is written.
#[utoipa::path(post, path = "/bots/{bot_id}/container/data/import", tag = "data", params(ImportQuery),
    request_body(content((ImportForm = "multipart/form-data"), (Vec<u8> = "application/octet-stream"))),
    responses((status = 200, body = ImportedResponse),
        (status = 400, body = ErrorBody, description = "`archive_refused`: the archive is not one that is taken; nothing was changed"),
        (status = 404, body = ErrorBody, description = "No such bot, or no workspace"),
        (status = 429, body = ErrorBody, description = "Another archive is received for the workspace, or checked"),
        (status = 501, body = ErrorBody, description = "The backend cannot change data from outside, or not those of a container of this kind"),
        (status = 507, body = ErrorBody, description = "No space, or over the storage limit; `/data` is as it was")))]
async fn import(
    State(app): State<App>,
    access: BotAccess<Manage>,
    idempotency: Idempotency,
    Query(query): Query<ImportQuery>,
    request: Request,
) -> ApiResult<Response> {
    let received = receive(&app, &access, request).await?;
    let requester = idempotency.of(&access.caller, access.requester());
    // In place of the body: a repeat is one with the same bytes.
    let digest = Bytes::from(received.sha256().to_owned());
    let mode = wire::restore_mode(query.mode.unwrap_or_default());
    let (server, bot) = (app.clone(), access.bot.id.clone());
    let work = async move { server.core().import_data(&bot, (received, mode), &requester).await };
    let id = idempotency.operation(&app, &access.caller, digest, work).await?;
    match app.core().operation_outcome(&id).await {
        Ok(Outcome::Imported(put)) => Ok(with_operation(Some(&id), Json(wire::imported(put)))),
        Ok(_) => Ok(with_operation(
            Some(&id),
            ApiError::internal("an import without a report"),
        )),
        Err(error) => Ok(with_operation(Some(&id), ApiError::from(error))),
    }
}

/// The archive is the field `file` of a form, or the body itself.
async fn receive(app: &App, access: &BotAccess<Manage>, request: Request) -> ApiResult<ReceivedArchive> {
    let (core, bot) = (app.core(), access.bot_id());
    let media_type = request.headers().get(CONTENT_TYPE);
    let media_type = media_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !media_type
        .trim_start()
        .to_ascii_lowercase()
        .starts_with("multipart/form-data")
    {
        let body = body_bytes(request.into_body()).map_err(Error::from);
        return Ok(core.receive_archive(bot, body).await?);
    }
    let form = Multipart::from_request(request, app).await;
    let mut form = form.map_err(|_| broken_form())?;
    let mut received = None;
    while let Some(field) = next_field(&mut form).await? {
        if field.name() != Some("file") {
            continue;
        }
        if received.is_some() {
            return Err(ApiError::invalid_body("file is given twice"));
        }
        let archive = core.receive_archive(bot, field_bytes(field).map_err(Error::from));
        received = Some(archive.await?);
    }
    received.ok_or_else(|| ApiError::invalid_body("file is required"))
}
