//! The work of start, stop and restart, and of bringing a workspace back to what is wanted.

use std::time::Duration;

use serde_json::{Value, json};
use skep_names::{ImageReference, container_id_for};
use skep_runtime::{Instance, InstanceSpec, Limits, RuntimeError, Started, TaskState};
use skep_store::{ContainerRow, ContainerStatus, Desired, NewContainer};
use tokio::time::Instant;

use super::create::PullProgress;
use super::limits::{to_column, to_runtime};
use super::mend::{Mend, mend};
use super::plan::parse_image;
use super::remains::{Remains, half_removed};
use super::request::StopCause;
use super::state::{Event, Retry};
use super::work::Work;
use crate::Code;
use crate::error::{Error, Result};
use crate::operations::Outcome;

/// Note: this operation started the processes; what ran before it is not its to end.
const STARTED: &str = "started";
/// Note: what was wanted of the workspace before this operation.
const WANTED_BEFORE: &str = "wanted_before";
/// How long a bridge may take to answer after its process was started.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at a process whose bridge has not answered.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Work {
    /// The work of `start`.
    pub(crate) async fn start(&self) -> Result<Outcome> {
        self.skep().observations().forgive(self.bot());
        let row = self.begin_to_want(Desired::Running, None).await?;
        self.bring_up(&row).await?;
        Ok(Outcome::Done)
    }

    /// The work of `stop`.
    pub(crate) async fn stop(&self, grace: Option<Duration>, cause: StopCause) -> Result<Outcome> {
        self.begin_to_want(Desired::Stopped, cause.reason()).await?;
        self.take_down(grace, cause).await?;
        Ok(Outcome::Done)
    }

    /// The work of `restart`.
    pub(crate) async fn restart(&self, grace: Option<Duration>) -> Result<Outcome> {
        self.skep().observations().forgive(self.bot());
        let row = self.begin_to_want(Desired::Running, None).await?;
        self.take_down(grace, StopCause::Asked).await?;
        self.bring_up(&row).await?;
        Ok(Outcome::Done)
    }

    /// The work of `recover`: looks, and does what the table of mends says.
    pub(crate) async fn recover(&self) -> Result<Outcome> {
        let row = match self.row_or_adopted().await {
            Ok(row) => row,
            Err(Error::ContainerNotFound) => return Ok(Outcome::Done),
            Err(error) => return Err(error),
        };
        let row = self.name_what_is_there(row).await?;
        let mend = mend(&self.skep().look(&row).await?);
        if matches!(mend, Mend::Rebuild | Mend::LeaveMissing)
            && matches!(self.skep().remains(self.bot()).await?, Some(Remains::OfRemoval { .. }))
        {
            // A success would say that there is a whole workspace. Reconcile has the removal finished.
            return Err(half_removed());
        }
        match mend {
            Mend::Nothing | Mend::Wait => {}
            Mend::RecordRunning | Mend::Start => self.bring_up_with_tries(&row).await?,
            Mend::RecordStopped | Mend::Stop => {
                let cause = StopCause::of(row.reason.as_deref());
                self.take_down(None, cause).await?;
            }
            Mend::PutBack => self.step("container", self.ensure_container(&row)).await?,
            Mend::Rebuild if row.desired == Desired::Running => self.bring_up_with_tries(&row).await?,
            Mend::Rebuild => self.step("container", self.ensure_container(&row)).await?,
            Mend::LeaveMissing => self.skep().observations().happened(self.bot(), &Event::Lost),
        }
        Ok(Outcome::Done)
    }

    /// The row of the workspace; a container or a layer that has none is made one of first.
    pub(super) async fn row_or_adopted(&self) -> Result<ContainerRow> {
        if self.row().await?.is_none() && self.skep().is_there(self.bot()).await? {
            self.step("adopt", async { self.adopt(self.wanted_as_it_is().await?).await })
                .await?;
        }
        self.row().await?.ok_or(Error::ContainerNotFound)
    }

    /// A container without a row is wanted as it was found; of a layer alone nobody knows that it should run.
    async fn wanted_as_it_is(&self) -> Result<Desired> {
        let instance = self.runtime().inspect(self.bot()).await?;
        Ok(match instance.map(|instance| instance.task) {
            Some(TaskState::Running) => Desired::Running,
            _ => Desired::Stopped,
        })
    }

    /// A row whose container is gone while another one of the bot is there: that one is the bot's.
    async fn name_what_is_there(&self, row: ContainerRow) -> Result<ContainerRow> {
        let found = self.runtime().inspect(self.bot()).await?;
        let Some(instance) = found.filter(|found| found.container_id != row.container_id) else {
            return Ok(row);
        };
        tracing::warn!(
            bot = %self.bot(),
            recorded = row.container_id,
            there = instance.container_id,
            "the recorded container is gone; another one of the bot takes its place"
        );
        let corrected = NewContainer {
            bot_id: row.bot_id,
            container_id: instance.container_id,
            image: instance.image,
            image_digest: instance.image_digest,
            snapshotter: instance.snapshotter,
            status: row.status,
            desired: row.desired,
            namespace: instance.namespace,
            cdi_devices: instance.cdi_devices,
            env: row.env,
            limits_wanted: row.limits_wanted,
            limits_applied: row.limits_applied,
        };
        let row = self.store().put_container(&corrected).await?;
        self.store()
            .forget_other_containers(self.bot(), &row.container_id)
            .await?;
        Ok(row)
    }

    /// As often as the count of its deaths allows without a pause.
    async fn bring_up_with_tries(&self, row: &ContainerRow) -> Result<()> {
        loop {
            let Err(error) = self.bring_up(row).await else {
                return Ok(());
            };
            if self.note_not_running(&error).await? != Some(Retry::Now) {
                return Err(error);
            }
        }
    }

    /// Writes what this operation wants of the workspace and why, when nobody asked for it, as its step; what was wanted
    /// before it is noted first.
    pub(crate) async fn begin_to_want(&self, desired: Desired, reason: Option<&str>) -> Result<ContainerRow> {
        self.note_wanted_before().await?;
        self.step("wanted", self.want(desired, reason)).await
    }

    /// The first try's look counts: later ones find what that one wrote.
    pub(crate) async fn note_wanted_before(&self) -> Result<()> {
        if self.noted(WANTED_BEFORE).is_none() {
            let before = match self.row().await? {
                Some(row) => row.desired,
                None => self.wanted_as_it_is().await?,
            };
            self.note(WANTED_BEFORE, before.as_str());
        }
        Ok(())
    }

    /// After a cancel: what was wanted before is wanted again, and what was started against that ends. What should run
    /// and does not is reconcile's.
    pub(crate) async fn want_as_before(&self) -> Result<()> {
        let noted = self.noted(WANTED_BEFORE);
        let Some(before) = noted.as_ref().and_then(Value::as_str).and_then(Desired::parse) else {
            return Ok(());
        };
        let reason = self.row().await?.and_then(|row| row.reason);
        let reason = reason.filter(|_| before == Desired::Stopped);
        if !self.store().set_desired(self.bot(), before, reason.as_deref()).await? {
            return Ok(());
        }
        self.skep().observations().wanted(self.bot(), before);
        if before == Desired::Running {
            return Ok(());
        }
        self.end_task(Duration::ZERO).await?;
        let row = self.row().await?;
        let reason = match row.filter(|row| row.status == ContainerStatus::Stopped) {
            Some(row) => row.reason,
            None => {
                self.store().set_container_stopped(self.bot(), None).await?;
                None
            }
        };
        let event = Event::ended(reason.as_deref());
        self.skep().observations().happened(self.bot(), &event);
        Ok(())
    }

    /// Of a start, a restart or a create of what is there that came to nothing.
    pub(crate) async fn undo_start(&self, error: &Error) -> Result<()> {
        match error.code() {
            Code::OperationCancelled | Code::WorkspaceExists => self.want_as_before().await,
            _ => self.note_not_running(error).await.map(drop),
        }
    }

    /// Of a stop that came to nothing: one that failed is wanted still.
    pub(crate) async fn undo_stop(&self, error: &Error) -> Result<()> {
        match error {
            Error::OperationCancelled(_) => self.want_as_before().await,
            _ => Ok(()),
        }
    }

    /// Writes what is wanted, before anything is done about it. A container that has no row gets one.
    async fn want(&self, desired: Desired, reason: Option<&str>) -> Result<ContainerRow> {
        if !self.store().set_desired(self.bot(), desired, reason).await? {
            self.adopt(desired).await?;
        }
        self.skep().observations().wanted(self.bot(), desired);
        let row = self.row().await?.ok_or(Error::ContainerNotFound)?;
        self.name_what_is_there(row).await
    }

    /// Makes a row for a container or a layer of this bot that the runtime has and the store does not. What an operation
    /// left that failed half-way is no workspace: that of a create is removed, that of a removal refused.
    pub(crate) async fn adopt(&self, desired: Desired) -> Result<()> {
        match self.skep().remains(self.bot()).await? {
            Some(Remains::OfCreate) => self.runtime().remove(self.bot()).await?,
            Some(Remains::OfRemoval { .. }) => return Err(half_removed()),
            None => {}
        }
        let instance = match self.runtime().inspect(self.bot()).await? {
            Some(instance) => instance,
            None => self.container_on_a_layer_alone().await?,
        };
        let running = instance.task == TaskState::Running;
        self.store()
            .put_container(&NewContainer {
                bot_id: self.bot().clone(),
                container_id: instance.container_id,
                image: instance.image,
                image_digest: instance.image_digest,
                snapshotter: instance.snapshotter,
                status: match running {
                    true => ContainerStatus::Running,
                    false => ContainerStatus::Stopped,
                },
                desired,
                namespace: instance.namespace,
                cdi_devices: instance.cdi_devices,
                env: self.skep().owners_environment(self.bot()).await?,
                limits_wanted: skep_store::LimitsColumn::default(),
                limits_applied: None,
            })
            .await?;
        self.lived("adopt", &json!({})).await
    }

    /// Container, task, network, bridge: whatever of them is missing.
    pub(crate) async fn bring_up(&self, row: &ContainerRow) -> Result<()> {
        let wanted = to_runtime(&row.limits_wanted);
        let effective = self.skep().settings().effective_limits(&wanted);
        self.skep().observations().happened(self.bot(), &Event::Begun);
        self.step("container", self.ensure_container(row)).await?;
        let started = self.step("start", self.start_task(&effective)).await?;
        self.step("answer", self.wait_for_bridge()).await?;
        self.step("record", async {
            if !started.already_running || row.status != ContainerStatus::Running {
                // One that was found running may have been started with other limits.
                if started.already_running {
                    self.runtime().apply_limits(self.bot(), &effective).await?;
                }
                let applied = to_column(&self.runtime().limits_in_force(&effective));
                self.store().set_container_running(self.bot(), &applied).await?;
                self.lived("start", &json!({})).await?;
            }
            Ok(())
        })
        .await?;
        self.skep().observations().happened(self.bot(), &Event::Answered);
        Ok(())
    }

    /// A container that is gone is put back on its own layer; an empty one takes its place only when no data of the
    /// bot is anywhere.
    pub(crate) async fn ensure_container(&self, row: &ContainerRow) -> Result<()> {
        if self.runtime().inspect(self.bot()).await?.is_some() {
            return Ok(());
        }
        let has_layer = self.has_layer_among_all().await?;
        if has_layer && matches!(self.skep().remains(self.bot()).await?, Some(Remains::OfRemoval { .. })) {
            return Err(half_removed());
        }
        if !has_layer && self.skep().has_data_elsewhere(self.bot()).await? {
            return Err(Error::Conflict(
                "the workspace's layer is gone and preserved data is kept: a create decides".to_owned(),
            ));
        }
        let image = parse_image(&row.image)?;
        self.have_image_again(&image, PullProgress::Untold).await?;
        let spec = InstanceSpec {
            bot: self.bot().clone(),
            image,
            snapshotter: Some(row.snapshotter.clone()),
            env: self.environment(&row.env).await?,
            cdi_devices: row.cdi_devices.clone(),
            labels: std::collections::BTreeMap::new(),
        };
        let made = match has_layer {
            true => self.put_container_back(&spec).await?,
            false => self.runtime().create(&spec).await?,
        };
        tracing::warn!(bot = %self.bot(), layer = ?made.layer, "its container was gone and was made again");
        self.lived("recover", &json!({ "layer_kept": has_layer })).await
    }

    /// A "no" is asked for twice, the second time of a list of all: something will be made in the layer's place, or removed
    /// without a backup.
    pub(super) async fn has_layer_among_all(&self) -> Result<bool> {
        Ok(
            self.runtime().has_layer(self.bot()).await?
                || self.runtime().bots_with_layers().await?.contains(self.bot()),
        )
    }

    /// The image of a container that is gone.
    pub(crate) async fn have_image_again(&self, image: &ImageReference, progress: PullProgress) -> Result<()> {
        let Err(error) = self.have_image(image, progress).await else {
            return Ok(());
        };
        // The layer stands on what is here. Data counts for more than the image's environment.
        let is_spared = error.code() != Code::RuntimeUnavailable && self.runtime().has_layer(self.bot()).await?;
        if !is_spared {
            return Err(error);
        }
        tracing::warn!(bot = %self.bot(), error = error.with_causes(), "the image of a kept layer cannot be had");
        Ok(())
    }

    /// Puts a container on a layer that has neither container nor row; the layer knows its image.
    async fn container_on_a_layer_alone(&self) -> Result<Instance> {
        if !self.runtime().has_layer(self.bot()).await? {
            return Err(Error::ContainerNotFound);
        }
        let bot = self.store().bot(self.bot()).await?.ok_or(Error::BotNotFound)?;
        let plan = self.skep().plan_for_layer(&bot).await?;
        let spec = InstanceSpec {
            bot: self.bot().clone(),
            image: parse_image(&plan.image)?,
            snapshotter: plan.snapshotter,
            env: self.environment(&plan.env).await?,
            cdi_devices: plan.cdi_devices,
            labels: std::collections::BTreeMap::new(),
        };
        Ok(self.put_container_back(&spec).await?.instance)
    }

    /// Starts process 1, after clearing away a dead one. One that runs is left running.
    pub(crate) async fn start_task(&self, limits: &Limits) -> Result<Started> {
        let task = self.runtime().inspect(self.bot()).await?.map(|instance| instance.task);
        if task == Some(TaskState::Dead) {
            self.end_task(Duration::ZERO).await?;
        }
        if task != Some(TaskState::Running) {
            self.skep().bridges().evict(self.bot());
        }
        let started = self.runtime().start(self.bot(), limits).await.map_err(not_started)?;
        if !started.already_running {
            self.note(STARTED, true);
        }
        Ok(started)
    }

    /// Returns when the bridge answers; at once with the reason when its process ends instead.
    pub(crate) async fn wait_for_bridge(&self) -> Result<()> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let answer = self.skep().bridges().wait_until_answering(self.bot(), deadline);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answered = &mut answer => return Ok(answered.map(|_| ())?),
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            let instance = self.runtime().inspect(self.bot()).await?;
            if instance.is_none_or(|instance| instance.task != TaskState::Running) {
                return Err(Error::ContainerStartFailed {
                    reason: "its first process ended before the bridge answered".to_owned(),
                    source: None,
                });
            }
        }
    }

    async fn take_down(&self, grace: Option<Duration>, cause: StopCause) -> Result<()> {
        let grace = grace.unwrap_or(self.skep().settings().stop_grace);
        self.skep().observations().happened(self.bot(), &Event::Ending);
        self.step("stop", self.end_task(grace)).await?;
        self.step("record", async {
            self.store().set_container_stopped(self.bot(), cause.reason()).await?;
            let payload = cause.reason().map_or(json!({}), |reason| json!({ "reason": reason }));
            self.lived("stop", &payload).await
        })
        .await?;
        let event = Event::ended(cause.reason());
        self.skep().observations().happened(self.bot(), &event);
        Ok(())
    }

    /// Ends every process; a container that is not there has none.
    pub(crate) async fn end_task(&self, grace: Duration) -> Result<()> {
        self.skep().bridges().evict(self.bot());
        let stopped = match self.runtime().stop(self.bot(), grace).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        };
        self.skep().bridges().evict(self.bot());
        stopped
    }

    /// After a start that came to nothing: no half of it stays, and the reason is kept. One that ran before, and runs,
    /// goes on running: its network or its bridge may be back in a moment. What cannot be known while the runtime or the
    /// store is away is left as it is, for reconcile, and has no answer.
    pub(crate) async fn note_not_running(&self, error: &Error) -> Result<Option<Retry>> {
        if error.says_nothing_of_the_workspace() {
            return Ok(None);
        }
        if self.noted(STARTED).is_none() && self.has_run_before().await? {
            return Ok(None);
        }
        let why = error.to_string();
        let event = Event::NotStarted { why: why.clone() };
        self.end_task(Duration::ZERO).await?;
        // It failed before what is wanted was written: it is stopped, as it was.
        if self.row().await?.is_some_and(|row| row.desired == Desired::Stopped) {
            self.store().set_container_stopped(self.bot(), None).await?;
            self.skep().observations().happened(self.bot(), &Event::Ended);
            return Ok(None);
        }
        self.store().set_container_error(self.bot(), &why).await?;
        let retry = self.skep().observations().died(self.bot());
        self.skep().observations().happened(self.bot(), &event);
        Ok(Some(retry))
    }

    /// Whether it is recorded as running and has a process.
    async fn has_run_before(&self) -> Result<bool> {
        let recorded = self
            .row()
            .await?
            .is_some_and(|row| row.status == ContainerStatus::Running);
        let instance = self.runtime().inspect(self.bot()).await?;
        Ok(recorded && instance.is_some_and(|instance| instance.task == TaskState::Running))
    }

    /// Writes a change of the workspace down, for its history.
    pub(crate) async fn lived(&self, event: &str, payload: &Value) -> Result<()> {
        let container = container_id_for(self.bot());
        Ok(self
            .store()
            .insert_lifecycle_event(self.bot(), &container, event, payload)
            .await?)
    }
}

/// What a start came to nothing by is told as that, with the code that names it: an image or a tenant can make a
/// root file system that nothing can be started on.
fn not_started(error: RuntimeError) -> Error {
    let error = Error::from(error);
    let reason = error.to_string();
    match error {
        Error::Internal { source, .. } => Error::ContainerStartFailed { reason, source },
        // Nobody asked for anything wrong: the host is not as it was, a device of the workspace is gone, say.
        Error::InvalidArgument(reason) => Error::Conflict(reason),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_cannot_be_made_is_a_start_that_failed() {
        let cause = std::io::Error::other("mkdir /run/memoh: Not a directory");
        let error = not_started(RuntimeError::other("creating the task", cause));
        assert_eq!(error.code(), Code::ContainerStartFailed);
        assert_eq!(error.to_string(), "container start failed: creating the task failed");
        assert!(error.with_causes().contains("Not a directory"));
        let error = not_started(RuntimeError::other("mounting /run/skep/x", "busy"));
        assert_eq!(error.to_string(), "container start failed: mounting … failed");
        assert!(error.with_causes().contains("/run/skep/x"), "{}", error.with_causes());
    }

    #[test]
    fn a_runtime_that_is_away_stays_one_that_is_away() {
        let away = RuntimeError::Unavailable {
            runtime: "containerd",
            source: None,
        };
        assert_eq!(not_started(away).code(), Code::RuntimeUnavailable);
    }
}
