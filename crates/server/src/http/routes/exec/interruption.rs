//! Whether a process ended because a snapshot, a rollback, an import or a restore ended its workspace's processes.

use skep_api::ErrorCode;
use skep_core::Uninterrupted;
use skep_core::exec::{ExecOutcome, ExecStatus};

use crate::http::error::{ApiError, ApiResult};

/// Of the processes of one bridge.
pub(in crate::http::routes) struct Watch(Uninterrupted);

impl Watch {
    pub(in crate::http::routes) fn of(processes: Uninterrupted) -> Self {
        Self(processes)
    }

    /// The workspace's processes were ended since, and it comes back without them.
    pub(in crate::http::routes) fn was_interrupted(&self) -> bool {
        !self.0.goes_on()
    }

    /// This process, which is told to have ended, was among them.
    pub(in crate::http::routes) fn has_ended(&self, status: &ExecStatus) -> bool {
        let end = status.end.as_ref();
        end.is_some_and(|end| self.0.has_ended_one_of(end.finished_at))
    }

    /// An end that was not the process's own is none.
    pub(super) fn judge(&self, end: ApiResult<ExecOutcome>) -> ApiResult<ExecOutcome> {
        let has_ended = match &end {
            Ok(outcome) => self.has_ended(&outcome.status),
            Err(_) => self.was_interrupted(),
        };
        if has_ended { Err(restarted()) } else { end }
    }
}

/// What is told in place of an end.
pub(in crate::http::routes) fn restarted() -> ApiError {
    ApiError::new(
        ErrorCode::WorkspaceRestarted,
        "the workspace was started anew for a change of its data, which ended its processes",
    )
}
