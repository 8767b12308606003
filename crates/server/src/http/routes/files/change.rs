//! Changes of files and directories.

use axum::Json;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::request::Parts;
use base64::Engine;
use serde::Deserialize;
use skep_api::{
    ChangeModeRequest, CopyFileRequest, DeleteFileRequest, Encoding, ErrorBody, ErrorCode, FileDone, PathRequest,
    RenameFileRequest, WriteFileRequest,
};
use skep_core::bridge::{Bridge, BridgeResult};
use skep_core::files::{self, Depth, FileWriter, ModeChange, NewFile, RoomyBridge, WorkspacePath};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{bridge_of, octal_mode, refused, required_path, roomy_bridge_of};
use crate::app::App;
use crate::http::access::{BotAccess, Operate};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{JsonBody, Query};

/// The largest content of a write; an upload has no limit.
const MOST_WRITTEN_BYTES: usize = 16 * 1024 * 1024;
/// Room for that content in base64, or with some of it escaped.
const MOST_BODY_BYTES: usize = 24 * 1024 * 1024;
/// Permissions of a new file that is written.
const NEW_FILE_MODE: u32 = 0o600;

pub(super) fn router() -> OpenApiRouter<App> {
    let write = OpenApiRouter::new()
        .routes(routes!(write))
        .layer(DefaultBodyLimit::max(MOST_BODY_BYTES));
    OpenApiRouter::new()
        .merge(write)
        .routes(routes!(mkdir))
        .routes(routes!(delete))
        .routes(routes!(rename))
        .routes(routes!(copy))
        .routes(routes!(chmod))
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct StartQuery {
    /// Start a stopped workspace.
    pub(super) start: Option<bool>,
}

/// One change of files, on the bridge of the route's bot.
struct Change {
    app: App,
    access: BotAccess<Operate>,
    start: Option<bool>,
}

impl FromRequestParts<App> for Change {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let access = BotAccess::from_request_parts(parts, app).await?;
        let Query(query) = Query::<StartQuery>::from_request_parts(parts, app).await?;
        Ok(Self {
            app: app.clone(),
            access,
            start: query.start,
        })
    }
}

impl Change {
    /// As [`Change::make`], for what adds to the workspace.
    async fn add(self, change: impl AsyncFnOnce(RoomyBridge) -> BridgeResult<()>) -> ApiResult<Json<FileDone>> {
        let bridge = roomy_bridge_of(&self.app, &self.access, self.start).await?;
        change(bridge).await.map_err(refused)?;
        Ok(Json(FileDone { ok: true }))
    }

    /// Does it, once everything that was asked is known to be well formed.
    async fn make(self, change: impl AsyncFnOnce(Bridge) -> BridgeResult<()>) -> ApiResult<Json<FileDone>> {
        let bridge = bridge_of(&self.app, &self.access, self.start).await?;
        change(bridge).await.map_err(refused)?;
        Ok(Json(FileDone { ok: true }))
    }
}

/// Write a file whole: nobody ever sees half of it.
#[utoipa::path(post, path = "/bots/{bot_id}/container/fs/write", tag = "files", params(StartQuery),
    request_body = WriteFileRequest,
    responses((status = 200, body = FileDone),
        (status = 400, body = ErrorBody, description = "A path or content that cannot be; a directory"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 412, body = ErrorBody, description = "The file is not the one of `if_match`"),
        (status = 413, body = ErrorBody, description = "Over 16 MiB: use upload"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable"),
        (status = 507, body = ErrorBody, description = "No space, or over the storage limit")))]
async fn write(change: Change, JsonBody(body): JsonBody<WriteFileRequest>) -> ApiResult<Json<FileDone>> {
    let path = required_path(Some(&body.path))?;
    let set_mode = body.mode.as_deref().map(octal_mode).transpose()?;
    let content = match body.encoding.unwrap_or(Encoding::Utf8) {
        Encoding::Utf8 => body.content.into_bytes(),
        Encoding::Base64 => base64::engine::general_purpose::STANDARD
            .decode(body.content.trim())
            .map_err(|_| ApiError::invalid_argument("content is not base64"))?,
    };
    if content.len() > MOST_WRITTEN_BYTES {
        return Err(ApiError::new(
            ErrorCode::BodyTooLarge,
            "the content is over 16 MiB: use /fs/upload",
        ));
    }
    let file = NewFile {
        mode: NEW_FILE_MODE,
        set_mode,
        if_match: body.if_match.filter(|tag| !tag.is_empty()),
    };
    change
        .add(async |bridge| {
            let mut writer = FileWriter::begin(&bridge, &path, file).await?;
            writer.write(content.into()).await?;
            writer.finish().await?;
            Ok(())
        })
        .await
}

/// Make a directory with its parents.
#[utoipa::path(post, path = "/bots/{bot_id}/container/fs/mkdir", tag = "files", params(StartQuery),
    request_body = PathRequest,
    responses((status = 200, body = FileDone),
        (status = 400, body = ErrorBody, description = "Something else is in the way"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable"),
        (status = 507, body = ErrorBody, description = "No space, or over the storage limit")))]
async fn mkdir(change: Change, JsonBody(body): JsonBody<PathRequest>) -> ApiResult<Json<FileDone>> {
    let path = required_path(Some(&body.path))?;
    change
        .add(async |bridge| files::make_directory(&bridge, &path).await)
        .await
}

/// Delete a file or a directory; also good when there is none.
#[utoipa::path(post, path = "/bots/{bot_id}/container/fs/delete", tag = "files", params(StartQuery),
    request_body = DeleteFileRequest,
    responses((status = 200, body = FileDone),
        (status = 400, body = ErrorBody, description = "A path that cannot be"),
        (status = 403, body = ErrorBody, description = "The root directory, or the permissions there"),
        (status = 409, body = ErrorBody, description = "Not empty and not recursive; the workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn delete(change: Change, JsonBody(body): JsonBody<DeleteFileRequest>) -> ApiResult<Json<FileDone>> {
    let path = required_path(Some(&body.path))?;
    if path.is_root() {
        return Err(ApiError::forbidden("cannot delete root directory"));
    }
    let depth = match body.recursive {
        true => Depth::Recursive,
        false => Depth::EmptyOnly,
    };
    change
        .make(async |bridge| files::remove(&bridge, &path, depth).await)
        .await
}

/// Give a file or a directory another name, in the place of what has it.
#[utoipa::path(post, path = "/bots/{bot_id}/container/fs/rename", tag = "files", params(StartQuery),
    request_body = RenameFileRequest,
    responses((status = 200, body = FileDone),
        (status = 400, body = ErrorBody, description = "A path that cannot be; a directory into itself"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 404, body = ErrorBody, description = "No such file"),
        (status = 409, body = ErrorBody, description = "A directory with entries is in the way; the workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable"),
        (status = 507, body = ErrorBody, description = "No room for a copy, where it must be copied")))]
async fn rename(change: Change, JsonBody(body): JsonBody<RenameFileRequest>) -> ApiResult<Json<FileDone>> {
    let (from, to) = both((&body.old_path, &body.new_path), "oldPath and newPath are required")?;
    let by_copy = change.app.core().rename_by_copy(change.access.bot_id()).await?;
    change
        .make(async |bridge| files::rename(&bridge, (&from, &to), by_copy).await)
        .await
}

/// Copy a file, or a directory with all in it but its sockets and devices.
#[utoipa::path(post, path = "/bots/{bot_id}/container/fs/copy", tag = "files", params(StartQuery),
    request_body = CopyFileRequest,
    responses((status = 200, body = FileDone),
        (status = 400, body = ErrorBody, description = "A path that cannot be; a directory into itself"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 404, body = ErrorBody, description = "No such file"),
        (status = 409, body = ErrorBody, description = "Something else is in the way; the workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable"),
        (status = 507, body = ErrorBody, description = "No space, or over the storage limit")))]
async fn copy(change: Change, JsonBody(body): JsonBody<CopyFileRequest>) -> ApiResult<Json<FileDone>> {
    let (from, to) = both((&body.from, &body.to), "from and to are required")?;
    change.add(async |bridge| files::copy(&bridge, &from, &to).await).await
}

/// Set permissions, and owner and group when they are given.
#[utoipa::path(post, path = "/bots/{bot_id}/container/fs/chmod", tag = "files", params(StartQuery),
    request_body = ChangeModeRequest,
    responses((status = 200, body = FileDone),
        (status = 400, body = ErrorBody, description = "A path or mode that cannot be"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 404, body = ErrorBody, description = "No such file"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn chmod(change: Change, JsonBody(body): JsonBody<ChangeModeRequest>) -> ApiResult<Json<FileDone>> {
    let path = required_path(Some(&body.path))?;
    let mode = ModeChange {
        mode: octal_mode(&body.mode)?,
        uid: body.uid,
        gid: body.gid,
    };
    change
        .make(async |bridge| files::change_mode(&bridge, &path, mode).await)
        .await
}

fn both((from, to): (&str, &str), missing: &'static str) -> ApiResult<(WorkspacePath, WorkspacePath)> {
    if from.trim().is_empty() || to.trim().is_empty() {
        return Err(ApiError::new(ErrorCode::InvalidPath, missing));
    }
    Ok((required_path(Some(from))?, required_path(Some(to))?))
}
