//! Changes of files as server-sent events.

use std::collections::VecDeque;

use axum::extract::State;
use axum::response::Response;
use futures::Stream;
use serde::Deserialize;
use skep_api::{ChangedFile, ErrorBody, FileEvent};
use skep_core::bridge::{BridgeError, BridgeResult};
use skep_core::files::{self, FileChange, FileChanges, WatchScope, WorkspacePath};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{refused, watched_bridge_of};
use crate::app::App;
use crate::http::access::{BotAccess, Operate};
use crate::http::error::ApiResult;
use crate::http::extract::Query;
use crate::http::routes::exec::{Watch, restarted};
use crate::http::sse;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(watch))
}

#[derive(Debug, Deserialize, IntoParams)]
struct WatchQuery {
    /// A directory or a file; `/data` when absent.
    path: Option<String>,
    /// All below the directory, and not its entries alone.
    recursive: Option<bool>,
    /// Start a stopped workspace.
    start: Option<bool>,
}

/// Changes below a directory, or of a file, as they happen. They are told from the answer's status on, and end with the
/// removal of what is watched or with an `error`. Links and other file systems are not entered; at most 8,192
/// directories.
#[utoipa::path(get, path = "/bots/{bot_id}/container/fs/watch", tag = "files", params(WatchQuery),
    responses((status = 200, body = FileEvent, content_type = "text/event-stream"),
        (status = 400, body = ErrorBody, description = "A path that cannot be; too many directories"),
        (status = 403, body = ErrorBody, description = "The permissions there"),
        (status = 404, body = ErrorBody, description = "No such file or directory"),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 501, body = ErrorBody, description = "The workspace was made by an older version: restart it"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
async fn watch(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<WatchQuery>,
) -> ApiResult<Response> {
    let path = WorkspacePath::parse(query.path.as_deref().unwrap_or("/data")).map_err(refused)?;
    let scope = match query.recursive.unwrap_or(false) {
        true => WatchScope::Tree,
        false => WatchScope::Entries,
    };
    let (bridge, watch) = watched_bridge_of(&app, &access, query.start).await?;
    let changes = files::watch(&bridge, &path, scope).await.map_err(refused)?;
    let following = Following {
        changes,
        watch,
        request_id: access.context.request_id.clone(),
        ready: VecDeque::new(),
        has_ended: false,
    };
    Ok(sse::stream(events(following), sse::Ids::Without))
}

struct Following {
    changes: FileChanges,
    watch: Watch,
    request_id: String,
    ready: VecDeque<FileEvent>,
    has_ended: bool,
}

fn events(following: Following) -> impl Stream<Item = (u64, FileEvent)> + Send {
    futures::stream::unfold(following, |mut following| async move {
        while following.ready.is_empty() && !following.has_ended {
            let changes = following.changes.next().await;
            following.take(changes);
        }
        let event = following.ready.pop_front()?;
        Some(((0, event), following))
    })
}

impl Following {
    fn take(&mut self, changes: BridgeResult<Option<Vec<FileChange>>>) {
        match changes {
            Ok(Some(changes)) => self.ready.extend(changes.into_iter().map(event_of)),
            Ok(None) => self.has_ended = true,
            Err(error) => {
                self.ready.push_back(self.broken(error));
                self.has_ended = true;
            }
        }
    }

    fn broken(&self, error: BridgeError) -> FileEvent {
        let error = match self.watch.was_interrupted() {
            true => restarted(),
            false => refused(error),
        };
        FileEvent::Error {
            message: error.to_string(),
            code: error.code(),
            request_id: self.request_id.clone(),
        }
    }
}

fn event_of(change: FileChange) -> FileEvent {
    match change {
        FileChange::Created(file) => FileEvent::Created(changed(file)),
        FileChange::Modified(file) => FileEvent::Modified(changed(file)),
        FileChange::Removed(file) => FileEvent::Removed(changed(file)),
        FileChange::Renamed { to, from } => FileEvent::Renamed {
            file: changed(to),
            from,
        },
        FileChange::Lost => FileEvent::Lost,
    }
}

fn changed(file: files::ChangedFile) -> ChangedFile {
    ChangedFile {
        path: file.path,
        is_dir: file.is_directory,
    }
}
