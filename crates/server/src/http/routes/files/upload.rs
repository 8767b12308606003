//! Files as they come in: streamed on, never held; an upload that breaks off leaves the old file.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::Deserialize;
use skep_api::{ErrorBody, ErrorCode, UploadedFile, UploadedFiles};
use skep_core::bridge::{BridgeError, BridgeResult};
use skep_core::files::{self, Depth, FileReader, FileWriter, NewFile, RoomyBridge, WorkspacePath};
use tokio::time::timeout;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{octal_mode, refused, required_path, roomy_bridge_of};
use crate::app::App;
use crate::http::access::{BotAccess, Operate};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;

/// Permissions of a new file that is uploaded.
const NEW_FILE_MODE: u32 = 0o644;
/// How long a caller may send nothing.
const NEXT_BYTES_WITHIN: Duration = Duration::from_secs(120);
/// The longest path that a form may name, in bytes.
const LONGEST_PATH: usize = 16 * 1024;
/// The most files of one form.
const MOST_FILES: usize = 10_000;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(upload_form, upload_raw))
        .layer(DefaultBodyLimit::disable())
}

#[derive(Debug, Deserialize, IntoParams)]
struct FormQuery {
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// A form of an upload. With several files, or a path that ends in `/`, the path is their directory.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "describes the form; it is read as a stream")]
struct UploadForm {
    /// Where.
    path: String,
    /// What.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Upload files by a form, its parts in any order.
#[utoipa::path(post, path = "/bots/{bot_id}/container/fs/upload", tag = "files", params(FormQuery),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 200, body = UploadedFile, description = "With several files: `{\"files\": […]}`"),
        (status = 400, body = ErrorBody, description = "Path or file is missing; a directory is in the way"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable"),
        (status = 507, body = ErrorBody, description = "No space, or over the storage limit")))]
async fn upload_form(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<FormQuery>,
    request: Request,
) -> ApiResult<Response> {
    let mut form = Multipart::from_request(request, &app)
        .await
        .map_err(|_| broken_form())?;
    let bridge = roomy_bridge_of(&app, &access, query.start).await?;
    let work = async move {
        let mut upload = FormUpload {
            bridge: &bridge,
            path: None,
            whole: None,
            uploaded: Vec::new(),
            aside: None,
            place: None,
        };
        let outcome = upload.read(&mut form).await;
        upload.remove_aside().await;
        outcome.map(|()| upload.uploaded)
    };
    // A task of its own: a caller that goes away must not leave what was put aside.
    let uploaded = app.tasks().spawn(work).await.map_err(ApiError::internal)??;
    answer(uploaded)
}

#[derive(Debug, Deserialize, IntoParams)]
struct RawQuery {
    /// Where.
    path: Option<String>,
    /// Permissions in octal, as `0644`; absent: those of the existing file, or `0644`.
    mode: Option<String>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// Upload a file as the body.
#[utoipa::path(put, path = "/bots/{bot_id}/container/fs/upload", tag = "files", params(RawQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = UploadedFile),
        (status = 400, body = ErrorBody, description = "The path is missing; a directory is in the way"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable"),
        (status = 507, body = ErrorBody, description = "No space, or over the storage limit")))]
async fn upload_raw(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<RawQuery>,
    body: Body,
) -> ApiResult<Json<UploadedFile>> {
    let path = required_path(query.path.as_deref())?;
    if path.names_directory() {
        return Err(ApiError::new(
            ErrorCode::InvalidPath,
            "path names a directory; add the file's name",
        ));
    }
    let set_mode = query.mode.as_deref().map(octal_mode).transpose()?;
    let bridge = roomy_bridge_of(&app, &access, query.start).await?;
    let size = write(&bridge, &path, set_mode, body_bytes(body))
        .await
        .map_err(refused)?;
    Ok(Json(UploadedFile {
        path: path.as_str().to_owned(),
        size,
    }))
}

/// A request's body as it comes; a caller who sends nothing for two minutes has gone.
pub(in crate::http::routes) fn body_bytes(body: Body) -> impl Stream<Item = BridgeResult<Bytes>> + Send + use<> {
    futures::stream::try_unfold(body.into_data_stream(), |mut body| async move {
        match timeout(NEXT_BYTES_WITHIN, body.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some((bytes, body))),
            Ok(Some(Err(_))) => Err(BridgeError::SourceBroken("the request body broke off".to_owned())),
            Err(_) => Err(BridgeError::SourceBroken("the request body stood still".to_owned())),
        }
    })
}

async fn write(
    bridge: &RoomyBridge,
    path: &WorkspacePath,
    set_mode: Option<u32>,
    source: impl Stream<Item = BridgeResult<Bytes>>,
) -> BridgeResult<u64> {
    send(bridge, path, set_mode, source).await?.finish().await
}

/// All but the end, with which the file takes its place.
async fn send(
    bridge: &RoomyBridge,
    path: &WorkspacePath,
    set_mode: Option<u32>,
    source: impl Stream<Item = BridgeResult<Bytes>>,
) -> BridgeResult<FileWriter> {
    let file = NewFile {
        mode: NEW_FILE_MODE,
        set_mode,
        if_match: None,
    };
    let mut writer = FileWriter::begin(bridge, path, file).await?;
    tokio::pin!(source);
    while let Some(bytes) = source.next().await.transpose()? {
        writer.write(bytes).await?;
    }
    Ok(writer)
}

/// A form on its way. Files that come before the path wait in the workspace, not in the server.
struct FormUpload<'a> {
    bridge: &'a RoomyBridge,
    path: Option<WorkspacePath>,
    /// The file of a path that names one. It takes its place when the form has ended: another one is refused.
    whole: Option<(WorkspacePath, FileWriter)>,
    uploaded: Vec<UploadedFile>,
    aside: Option<Aside>,
    /// Where they wait, until that is removed.
    place: Option<WorkspacePath>,
}

/// Files that came before the path, one behind the other in one file. It is not finished before the form is: the bridge
/// removes what it has of it when this server dies.
struct Aside {
    writer: FileWriter,
    /// Names and sizes in bytes.
    files: Vec<(String, u64)>,
}

impl FormUpload<'_> {
    async fn read(&mut self, form: &mut Multipart) -> ApiResult<()> {
        while let Some(field) = next_field(form).await? {
            match field.name() {
                Some("path") => {
                    let text = short_text(field).await?;
                    if self.path.is_some() {
                        return Err(ApiError::invalid_body("path is given twice"));
                    }
                    self.path = Some(required_path(Some(&text))?);
                }
                Some("file") => self.take(field).await?,
                _ => {}
            }
        }
        let Some(path) = self.path.clone() else {
            return Err(ApiError::new(ErrorCode::InvalidPath, "path is required"));
        };
        if let Some(aside) = self.aside.take() {
            self.put_in_place(aside, &path).await?;
        }
        if let Some((target, writer)) = self.whole.take() {
            let size = writer.finish().await.map_err(refused)?;
            self.note(&target, size);
        }
        if self.uploaded.is_empty() {
            return Err(ApiError::invalid_body("file is required"));
        }
        Ok(())
    }

    async fn take(&mut self, field: Field<'_>) -> ApiResult<()> {
        let name = field.file_name().unwrap_or_default().to_owned();
        let waiting = self.aside.as_ref().map_or(0, |aside| aside.files.len());
        if self.uploaded.len() + waiting >= MOST_FILES {
            return Err(ApiError::invalid_body("too many files in one form"));
        }
        let Some(path) = self.path.clone() else {
            return self.put_aside(name, field).await;
        };
        if !path.names_directory() && (waiting > 0 || self.whole.is_some()) {
            return Err(several_files());
        }
        let target = target(&path, &name)?;
        let writer = send(self.bridge, &target, None, field_bytes(field))
            .await
            .map_err(refused)?;
        if !path.names_directory() {
            self.whole = Some((target, writer));
            return Ok(());
        }
        let size = writer.finish().await.map_err(refused)?;
        self.note(&target, size);
        Ok(())
    }

    async fn put_aside(&mut self, name: String, field: Field<'_>) -> ApiResult<()> {
        let aside = match &mut self.aside {
            Some(aside) => aside,
            None => {
                let place = format!("/tmp/.skep-upload-{}", uuid::Uuid::new_v4());
                let place = self.place.insert(WorkspacePath::parse(&place).map_err(refused)?);
                // A bridge that is too old for modes makes it as any other file.
                let file = match self.bridge.generation() {
                    0 => NewFile {
                        mode: NEW_FILE_MODE,
                        ..NewFile::default()
                    },
                    _ => NewFile {
                        set_mode: Some(0o600),
                        ..NewFile::default()
                    },
                };
                let writer = FileWriter::begin(self.bridge, place, file).await.map_err(refused)?;
                self.aside.insert(Aside {
                    writer,
                    files: Vec::new(),
                })
            }
        };
        let mut size = 0;
        let bytes = field_bytes(field);
        tokio::pin!(bytes);
        while let Some(bytes) = bytes.next().await.transpose().map_err(refused)? {
            size += bytes.len() as u64;
            aside.writer.write(bytes).await.map_err(refused)?;
        }
        aside.files.push((name, size));
        Ok(())
    }

    async fn put_in_place(&mut self, aside: Aside, path: &WorkspacePath) -> ApiResult<()> {
        if !path.names_directory() && aside.files.len() > 1 {
            return Err(several_files());
        }
        let files = aside.files.iter().map(|(name, size)| Ok((target(path, name)?, *size)));
        let files: Vec<_> = files.collect::<ApiResult<_>>()?;
        aside.writer.finish().await.map_err(refused)?;
        let opened = self.open_aside().await;
        // Without its name it goes with the stream that reads it.
        self.remove_aside().await;
        let (mut content, mut piece) = opened.map_err(refused)?;
        for (target, size) in files {
            let file = NewFile {
                mode: NEW_FILE_MODE,
                ..NewFile::default()
            };
            let mut to = FileWriter::begin(self.bridge, &target, file).await.map_err(refused)?;
            let mut left = size;
            while left > 0 {
                if piece.is_empty() {
                    piece = next_piece(&mut content).await.map_err(refused)?;
                }
                let part = piece.split_to(piece.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
                left -= part.len() as u64;
                to.write(part).await.map_err(refused)?;
            }
            let size = to.finish().await.map_err(refused)?;
            self.note(&target, size);
        }
        Ok(())
    }

    /// What was put aside, with its first bytes: it is open by then also where a bridge tells of a file before it opens it.
    async fn open_aside(&self) -> BridgeResult<(FileReader, Bytes)> {
        let Some(place) = &self.place else {
            return Err(BridgeError::NotFound("nothing was put aside".to_owned()));
        };
        let mut content = files::read(self.bridge, place, 0, 0).await?;
        let first = content.next_piece().await?.unwrap_or_default();
        Ok((content, first))
    }

    fn note(&mut self, path: &WorkspacePath, size: u64) {
        self.uploaded.push(UploadedFile {
            path: path.as_str().to_owned(),
            size,
        });
    }

    async fn remove_aside(&mut self) {
        // Ends a write that was not finished.
        self.aside = None;
        let Some(place) = self.place.take() else { return };
        match files::remove(self.bridge, &place, Depth::EmptyOnly).await {
            // It has its name once it is finished.
            Ok(_) | Err(BridgeError::NotFound(_)) => {}
            Err(error) => tracing::warn!(%error, "an upload's file that was put aside stays in the workspace"),
        }
    }
}

fn target(path: &WorkspacePath, name: &str) -> ApiResult<WorkspacePath> {
    match path.names_directory() {
        true => path.join(name).map_err(refused),
        false => Ok(path.clone()),
    }
}

async fn next_piece(content: &mut FileReader) -> BridgeResult<Bytes> {
    let piece = content.next_piece().await?;
    piece.ok_or_else(|| BridgeError::Changed("what was put aside was cut off in the workspace".to_owned()))
}

fn several_files() -> ApiError {
    ApiError::new(ErrorCode::InvalidPath, "several files need a path that ends in /")
}

/// The next part; a caller who sends nothing for two minutes has gone.
pub(in crate::http::routes) async fn next_field(form: &mut Multipart) -> ApiResult<Option<Field<'_>>> {
    match timeout(NEXT_BYTES_WITHIN, form.next_field()).await {
        Ok(field) => field.map_err(|error| broken(&error)),
        Err(_) => Err(ApiError::invalid_body("the request body stood still")),
    }
}

async fn short_text(mut field: Field<'_>) -> ApiResult<String> {
    let mut bytes = Vec::new();
    loop {
        let Ok(piece) = timeout(NEXT_BYTES_WITHIN, field.chunk()).await else {
            return Err(ApiError::invalid_body("the request body stood still"));
        };
        let Some(piece) = piece.map_err(|error| broken(&error))? else {
            break;
        };
        bytes.extend_from_slice(&piece);
        if bytes.len() > LONGEST_PATH {
            return Err(ApiError::new(ErrorCode::InvalidPath, "the path is too long"));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::new(ErrorCode::InvalidPath, "the path is not UTF-8"))
}

/// A part as it comes.
pub(in crate::http::routes) fn field_bytes(field: Field<'_>) -> impl Stream<Item = BridgeResult<Bytes>> {
    futures::stream::try_unfold(field, |mut field| async move {
        match timeout(NEXT_BYTES_WITHIN, field.chunk()).await {
            Ok(Ok(None)) => Ok(None),
            Ok(Ok(Some(bytes))) => Ok(Some((bytes, field))),
            Ok(Err(_)) => Err(BridgeError::SourceBroken("the request body broke off".to_owned())),
            Err(_) => Err(BridgeError::SourceBroken("the request body stood still".to_owned())),
        }
    })
}

/// What is said to be a form and has no boundary.
pub(in crate::http::routes) fn broken_form() -> ApiError {
    ApiError::invalid_body("the Content-Type must be multipart/form-data with a boundary")
}

fn broken(error: &MultipartError) -> ApiError {
    ApiError::invalid_body("the form is broken or not multipart/form-data").caused_by(error.body_text())
}

fn answer(mut uploaded: Vec<UploadedFile>) -> ApiResult<Response> {
    if uploaded.len() == 1 {
        return Ok(Json(uploaded.remove(0)).into_response());
    }
    Ok(Json(UploadedFiles { files: uploaded }).into_response())
}
