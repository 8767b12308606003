//! Files of a workspace.

mod archive;
mod change;
mod content;
mod download;
mod lines;
mod list;
mod media_type;
mod range;
mod read;
mod search;
mod upload;
mod watch;

pub(super) use upload::{body_bytes, broken_form, field_bytes, next_field};

use skep_api::FileInfo;
use skep_core::bridge::{Bridge, BridgeError};
use skep_core::files::{FileEntry, RoomyBridge, WorkspacePath};
use skep_core::{Error, Starter};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;
use crate::http::access::{BotAccess, Need};
use crate::http::error::{ApiError, ApiResult};
use crate::http::routes::exec::Watch;

/// `/bots/{bot_id}/container/fs…`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(read::router())
        .merge(list::router())
        .merge(download::router())
        .merge(search::router())
        .merge(watch::router())
        .merge(change::router())
        .merge(upload::router())
        .merge(archive::router())
}

/// The bridge of a bot's running workspace; `?start=true` starts a stopped one.
pub(super) async fn bridge_of<N: Need>(app: &App, access: &BotAccess<N>, start: Option<bool>) -> ApiResult<Bridge> {
    Ok(watched_bridge_of(app, access, start).await?.0)
}

/// The same, and whether the processes that it is of are ended from now on.
pub(super) async fn watched_bridge_of<N: Need>(
    app: &App,
    access: &BotAccess<N>,
    start: Option<bool>,
) -> ApiResult<(Bridge, Watch)> {
    let starter = starter(access, start);
    let bot = access.bot_id();
    let (bridge, processes) = app.core().watched_bridge(bot, starter.as_ref()).await?;
    Ok((bridge, Watch::of(processes)))
}

/// The same for what adds to the workspace: 507 when that is over its limit of storage.
async fn roomy_bridge_of<N: Need>(app: &App, access: &BotAccess<N>, start: Option<bool>) -> ApiResult<RoomyBridge> {
    let starter = starter(access, start);
    Ok(app.core().roomy_bridge(access.bot_id(), starter.as_ref()).await?)
}

/// Has a stopped workspace started, where that was asked for; the answer names the operation.
fn starter<N: Need>(access: &BotAccess<N>, asked: Option<bool>) -> Option<Starter<'_>> {
    (asked == Some(true)).then(|| Starter {
        requester: access.requester(),
        begun: Box::new(|start| access.context.note_operation(start.id())),
    })
}

/// A bridge's refusal as the API's.
pub(super) fn refused(error: BridgeError) -> ApiError {
    ApiError::from(Error::from(error))
}

/// A path of a query or a body that must be given.
pub(super) fn required_path(text: Option<&str>) -> ApiResult<WorkspacePath> {
    WorkspacePath::parse_given(text).map_err(refused)
}

pub(super) fn file_info(entry: FileEntry) -> FileInfo {
    FileInfo {
        size: entry.size_bytes,
        mode: entry.mode_letters(),
        mod_time: entry.modified_at,
        is_dir: entry.is_directory(),
        is_symlink: entry.is_link(),
        target: entry.link_target,
        target_is_dir: entry.target_is_directory,
        uid: entry.uid,
        gid: entry.gid,
        summary: entry.summary,
        name: entry.name,
        path: entry.path,
    }
}

/// Permissions in octal, as `0644`.
fn octal_mode(text: &str) -> ApiResult<u32> {
    let digits = text.trim().strip_prefix("0o").unwrap_or(text.trim());
    let is_octal = (1..=5).contains(&digits.len()) && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = u32::from_str_radix(digits, 8)
        .ok()
        .filter(|mode| is_octal && *mode <= 0o7777);
    mode.ok_or_else(|| ApiError::invalid_argument("mode must be octal, as in \"0644\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        for (text, mode) in [
            ("644", 0o644),
            ("0755", 0o755),
            ("0o600", 0o600),
            ("4755", 0o4755),
            ("0", 0),
        ] {
            assert_eq!(octal_mode(text).unwrap(), mode);
        }
        for bad in ["", "8", "-1", "+644", "rw-r--r--", "17777", "00000644"] {
            assert!(octal_mode(bad).is_err(), "{bad:?}");
        }
    }
}
