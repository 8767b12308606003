//! One bot's workspace: what can be asked of it, and the one driver that does it.
//!
//! A request passes `admission` (pure) into its bot's lane (`lanes`), is journaled, and is run by the bot's driver
//! (`driver`) as the work of its kind (`create`, `running`, `versions`, `removal`). What is seen is kept in `observed`;
//! `reconcile` and the runtime's events feed the same lanes.

mod admission;
mod anew;
mod change;
mod create;
mod disk_watch;
mod driver;
mod environment;
mod followers;
mod import;
mod info;
mod infos;
mod interruptions;
mod lanes;
mod limits;
mod log;
mod measured;
mod mend;
mod metrics;
mod observed;
mod plan;
mod preserve;
mod preserved;
mod pull;
mod reconcile;
mod refusals;
mod remains;
mod removal;
mod request;
mod reserve;
mod restore;
mod room;
mod running;
mod short_line;
mod spare;
mod state;
mod storage;
mod usable;
mod versions;
mod weighing;
mod work;

pub use info::{WorkspaceInfo, WorkspaceState, WorkspaceStatus};
pub use interruptions::Uninterrupted;
pub use measured::MeasuredStorage;
pub use metrics::{LiveMetrics, WorkspaceMetrics};
pub use request::{AskedLimits, CreateRequest, DeleteData, RestoreMode, RestoreRequest};
pub use usable::Starter;

pub(crate) use interruptions::Interruptions;
pub(crate) use lanes::{Awaited, Lanes};
pub(crate) use measured::Measurements;
pub(crate) use observed::Observations;
pub(crate) use request::{CreatePlan, ImportPlan, Request, SnapshotPlan};
pub(crate) use room::Room;
pub(crate) use spare::Spare;

use std::time::Duration;

use skep_names::BotId;
use skep_runtime::RuntimeError;
use skep_store::ContainerRow;

use self::remains::{Remains, half_removed};
use self::request::StopCause;
use self::usable::patiently;
use crate::error::{Error, Result};
use crate::operations::OperationHandle;
use crate::requester::Requester;
use crate::skep::Skep;

/// The longest grace of a stop.
pub const LONGEST_GRACE: Duration = Duration::from_secs(300);

impl Skep {
    /// Makes the workspace of a bot, or starts the one it has, which is never touched otherwise. A create of the
    /// same image that is under way is joined.
    ///
    /// # Errors
    /// Everything that can be known before the first event: [`Error::InvalidArgument`], [`Error::ImageNotAllowed`],
    /// [`Error::WorkspaceExists`] for another image, devices or snapshotter than the workspace has,
    /// [`Error::Unsupported`].
    pub async fn create_workspace(
        &self,
        bot: &BotId,
        request: CreateRequest,
        requester: &Requester,
    ) -> Result<OperationHandle> {
        let plan = self.plan_create(bot, &request, requester).await?;
        self.submit(bot, Request::Create(plan), requester).await
    }

    /// Ensures that the workspace runs, and writes down that it should.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`] when the bot has no workspace.
    pub async fn start_workspace(&self, bot: &BotId, requester: &Requester) -> Result<OperationHandle> {
        self.require_workspace(bot).await?;
        self.submit(bot, Request::Start, requester).await
    }

    /// Ends the workspace's processes, with `grace` (`None`: as configured) between SIGTERM and SIGKILL, and writes
    /// down that it should be stopped: it stays so until somebody starts it.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::InvalidArgument`] for a grace over 300 s.
    pub async fn stop_workspace(
        &self,
        bot: &BotId,
        grace: Option<Duration>,
        requester: &Requester,
    ) -> Result<OperationHandle> {
        check_grace(grace)?;
        self.require_workspace(bot).await?;
        let cause = StopCause::Asked;
        self.submit(bot, Request::Stop { grace, cause }, requester).await
    }

    /// Stops and starts the workspace.
    ///
    /// # Errors
    /// As [`Skep::stop_workspace`].
    pub async fn restart_workspace(
        &self,
        bot: &BotId,
        grace: Option<Duration>,
        requester: &Requester,
    ) -> Result<OperationHandle> {
        check_grace(grace)?;
        self.require_workspace(bot).await?;
        self.submit(bot, Request::Restart { grace }, requester).await
    }

    /// Removes the workspace with its layers, overtaking and cancelling what is under way. A bot without one: fine.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for [`DeleteData::Preserve`] on a backend whose layers cannot be read from outside.
    pub async fn delete_workspace(
        &self,
        bot: &BotId,
        data: DeleteData,
        requester: &Requester,
    ) -> Result<OperationHandle> {
        self.store().bot(bot).await?.ok_or(Error::BotNotFound)?;
        self.can_delete_with(data)?;
        let request = Request::Delete {
            data,
            only_remains: false,
        };
        self.submit(bot, request, requester).await
    }

    /// Puts preserved data into a workspace that is there, all or nothing; it is down meanwhile. What a create would
    /// put back is not kept any more after that; a backup asked for by its name is.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::BackupNotFound`] when nothing is kept, or not under that name;
    /// [`Error::PreconditionFailed`] when it has another digest than the caller says;
    /// [`Error::Unsupported`] on a backend that cannot change layers from outside; [`Error::DiskFull`] over the limit of
    /// storage, and where only the host's reserve is free.
    pub async fn restore_data(
        &self,
        bot: &BotId,
        mut request: RestoreRequest,
        requester: &Requester,
    ) -> Result<OperationHandle> {
        self.can_change_data(bot).await?;
        match (&request.name, &request.sha256) {
            (Some(name), Some(sha256)) => self.check_backup(bot, name, sha256).await?,
            // The one that has the name now is meant, whatever the name comes to mean while this waits.
            (Some(name), None) => request.sha256 = self.backup(bot, name).await?.sha256,
            (None, Some(sha256)) => self.check_current_backup(bot, sha256).await?,
            (None, None) if self.has_preserved_data(bot).await? => {}
            (None, None) => return Err(Error::BackupNotFound("no preserved data found".to_owned())),
        }
        self.require_room(bot).await?;
        self.require_spare().await?;
        self.submit(bot, Request::Restore(request), requester).await
    }

    /// Refuses a change of data from outside before anything is begun.
    pub(crate) async fn can_change_data(&self, bot: &BotId) -> Result<()> {
        self.require_workspace(bot).await?;
        self.layer_access()?;
        match self.changeable_layers()?.list(bot).await {
            // Without its container it is put back on its layer first.
            Ok(_) | Err(RuntimeError::NotFound { .. }) => Ok(()),
            // A container of another kind, say.
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses what this backend cannot do before anything is begun.
    pub(crate) fn can_delete_with(&self, data: DeleteData) -> Result<()> {
        match data {
            DeleteData::Remove => Ok(()),
            DeleteData::Preserve => self.layer_access().map(drop),
        }
    }

    /// Sets the limits of a workspace that are asked for and applies them at once when it runs.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`].
    pub async fn set_workspace_limits(
        &self,
        bot: &BotId,
        limits: AskedLimits,
        requester: &Requester,
    ) -> Result<OperationHandle> {
        limits::check(&limits)?;
        self.require_workspace(bot).await?;
        self.submit(bot, Request::Limits { limits }, requester).await
    }

    /// The bot has a row, a container or a layer; a runtime that does not answer is not asked for what the store
    /// knows already.
    async fn require_workspace(&self, bot: &BotId) -> Result<()> {
        if self.store().container(bot).await?.is_some() || self.lanes().create_under_way(bot).is_some() {
            return Ok(());
        }
        match self.is_there(bot).await? {
            true => Ok(()),
            false => Err(Error::ContainerNotFound),
        }
    }

    /// The row of the bot's workspace. A container or a layer that has none is made one of first, wanted as it is found;
    /// not what is still being made or what a failed operation left, which is no workspace.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::Conflict`] for what a removal left; without a row, also
    /// [`Error::RuntimeUnavailable`], and [`Error::BridgeUnavailable`] after 30 s.
    pub(crate) async fn workspace_row(&self, bot: &BotId) -> Result<ContainerRow> {
        if let Some(row) = self.store().container(bot).await? {
            return Ok(row);
        }
        if self.lanes().create_under_way(bot).is_some() || !self.is_there(bot).await? {
            return Err(Error::ContainerNotFound);
        }
        match self.remains(bot).await? {
            None => {}
            Some(Remains::OfCreate) => return Err(Error::ContainerNotFound),
            Some(Remains::OfRemoval { .. }) => return Err(half_removed()),
        }
        let adopted = self.submit(bot, Request::Recover, &Requester::server()).await?;
        patiently(async { adopted.outcome().await.map(drop) }).await?;
        self.store().container(bot).await?.ok_or(Error::ContainerNotFound)
    }

    /// Whether the runtime has a container or a layer of the bot.
    pub(crate) async fn is_there(&self, bot: &BotId) -> Result<bool> {
        Ok(self.runtime().inspect(bot).await?.is_some() || self.runtime().has_layer(bot).await?)
    }
}

fn check_grace(grace: Option<Duration>) -> Result<()> {
    match grace {
        Some(grace) if grace > LONGEST_GRACE => Err(Error::InvalidArgument(format!(
            "timeout may be 0 to {} seconds",
            LONGEST_GRACE.as_secs()
        ))),
        _ => Ok(()),
    }
}
