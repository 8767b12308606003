//! Whether a process ended because a snapshot, a rollback, an import or a restore ended its workspace's processes.

use skep_api::ErrorCode;
use skep_names::BotId;

use crate::app::App;
use crate::http::error::{ApiError, ApiResult};

/// Of the processes of one bridge.
pub(in crate::http::routes) struct Watch {
    app: App,
    bot: BotId,
    before: u64,
}

impl Watch {
    /// Since so many interruptions of the workspace.
    pub(in crate::http::routes) fn since(app: &App, bot: &BotId, interruptions: u64) -> Self {
        Self {
            before: interruptions,
            app: app.clone(),
            bot: bot.clone(),
        }
    }

    /// The workspace's processes were ended since, and it comes back without them.
    pub(in crate::http::routes) fn was_interrupted(&self) -> bool {
        self.app.core().interruptions_of(&self.bot) != self.before
    }

    /// An end that was not the process's own is none.
    pub(super) fn judge<T>(&self, end: ApiResult<T>) -> ApiResult<T> {
        match self.was_interrupted() {
            true => Err(restarted()),
            false => end,
        }
    }
}

/// What is told in place of an end.
pub(in crate::http::routes) fn restarted() -> ApiError {
    ApiError::new(
        ErrorCode::WorkspaceRestarted,
        "the workspace was started anew for a change of its data, which ended its processes",
    )
}
