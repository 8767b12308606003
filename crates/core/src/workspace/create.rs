//! The work of a create. What it makes is undone when it fails; what was there before is never touched.

use serde_json::{Map, Value, json};
use skep_names::{DATA_DIRECTORY_INSIDE, ImageReference};
use skep_runtime::{CreateOutcome, ImageRecord, InstanceSpec, LayerOutcome, RuntimeError};
use skep_store::{BotStatus, ContainerRow, ContainerStatus, Desired, LimitsColumn, NewContainer};

use super::limits::{to_column, to_runtime};
use super::plan::{check_is_as_asked, parse_image};
use super::remains::Remains;
use super::request::{Basis, CreatePlan};
use super::state::Event;
use super::work::Work;
use crate::Code;
use crate::bridge::BridgeError;
use crate::checks::CheckType;
use crate::error::stages::{PULL, RESTORE, START};
use crate::error::{Error, Result};
use crate::files::{self, Links, WorkspacePath};
use crate::operations::{CompletedWorkspace, EventBody, Outcome};
use crate::settings::ImagePullPolicy;

/// Note: whether the bot had a layer or a container before this create.
pub(super) const HAD_LAYER: &str = "had_layer";
/// Note: the limits of a workspace whose layer was gone.
const LIMITS: &str = "limits";
/// Warning: a workspace that exists is kept as it is.
const OTHER_ENV: &str = "the workspace keeps the env it has, which is another than this; delete it with \
                         preserve_data=true, then create it anew";

/// Whether the progress of a pull is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullProgress {
    /// As events of a create, before its `creating`.
    Told,
    /// Other operations have no events of a pull.
    Untold,
}

impl Work {
    /// The work of `create`.
    pub(crate) async fn create(&self, plan: &CreatePlan) -> Result<Outcome> {
        self.create_in_stages(plan).await.map_err(|error| match error {
            // It was no stage's fault.
            Error::OperationCancelled(_) => error,
            error => error.at(START),
        })
    }

    async fn create_in_stages(&self, plan: &CreatePlan) -> Result<Outcome> {
        // What nobody recorded, a container or a layer alone, is a workspace that exists, unless this very create made it.
        let begins = self.row().await?.is_none() && self.noted(HAD_LAYER).is_none();
        let saw_nothing = begins && !self.step("adopt", self.adopt_what_is_there()).await?;
        let row = match self.row_to_keep().await? {
            Some(row) => {
                self.check_what_is_kept(plan, &row)?;
                self.keep(plan, &row).await?
            }
            None => {
                self.check_what_is_made(plan)?;
                self.make(plan, saw_nothing).await?
            }
        };
        self.release_put_back().await.map_err(|error| error.at(RESTORE))?;
        self.show_set_up().await?;
        self.bot_is_ready().await?;
        Ok(Outcome::Workspace(self.completed(plan, &row).await?))
    }

    /// What it finds may be another workspace than was asked for, unless it made that itself.
    fn check_what_is_kept(&self, plan: &CreatePlan, row: &ContainerRow) -> Result<()> {
        match self.noted(HAD_LAYER) {
            Some(_) => self.settle(),
            None => check_is_as_asked(plan, row),
        }
    }

    /// What was to be kept as it is was removed meanwhile: nobody asked for another one like it, nor whether this
    /// requester may have it.
    fn check_what_is_made(&self, plan: &CreatePlan) -> Result<()> {
        let has_decided = self.noted(HAD_LAYER).or_else(|| self.noted(LIMITS)).is_some();
        match plan.basis {
            Basis::WhatIsThere if !has_decided => Err(Error::OperationCancelled(
                "the end of what it was to keep: a removal, or a create that failed".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Whether there is anything.
    async fn adopt_what_is_there(&self) -> Result<bool> {
        if self.skep().remains(self.bot()).await? == Some(Remains::OfCreate) {
            self.runtime().remove(self.bot()).await?;
        }
        let is_there =
            self.runtime().inspect(self.bot()).await?.is_some() || self.runtime().has_layer(self.bot()).await?;
        if is_there {
            self.note_wanted_before().await?;
            self.adopt(Desired::Running).await?;
        }
        Ok(is_there)
    }

    /// The record of a workspace that is there, or that nothing is kept of elsewhere. One whose layer is gone while
    /// data of it is kept anywhere is made anew: this is the create that decides.
    async fn row_to_keep(&self) -> Result<Option<ContainerRow>> {
        let Some(row) = self.row().await? else {
            return Ok(None);
        };
        let is_there = self.runtime().inspect(self.bot()).await?.is_some() || self.has_layer_among_all().await?;
        if is_there || !self.skep().has_data_elsewhere(self.bot()).await? {
            return Ok(Some(row));
        }
        let limits = serde_json::to_value(row.limits_wanted);
        self.note(
            LIMITS,
            limits.map_err(|error| Error::internal("writing a note", error))?,
        );
        self.step("forget", async {
            Ok(self.store().delete_containers(self.bot()).await?)
        })
        .await?;
        Ok(None)
    }

    /// The bot has a workspace: nothing of it is touched but its limits, and it is started.
    async fn keep(&self, plan: &CreatePlan, row: &ContainerRow) -> Result<ContainerRow> {
        self.tell(EventBody::Pulling {
            image: row.image.clone(),
        })
        .await?;
        if self.runtime().inspect(self.bot()).await?.is_none() {
            let image = parse_image(&row.image)?;
            self.step("pull", self.have_image_again(&image, PullProgress::Told))
                .await
                .map_err(|error| error.at(PULL))?;
        }
        self.tell(EventBody::Creating).await?;
        self.begin_to_want(Desired::Running, None).await?;
        if let Some(asked) = plan.limits {
            self.note_limits(row)?;
            self.step("limits", self.set_limits(asked)).await?;
        }
        let row = self.row().await?.ok_or(Error::ContainerNotFound)?;
        self.bring_up(&row).await?;
        Ok(row)
    }

    /// `saw_nothing`: this create has looked for a layer already, and nobody else makes one meanwhile.
    async fn make(&self, plan: &CreatePlan, saw_nothing: bool) -> Result<ContainerRow> {
        self.tell(EventBody::Pulling {
            image: plan.image.clone(),
        })
        .await?;
        let image = parse_image(&plan.image)?;
        self.note_layer(saw_nothing).await?;
        let record = self
            .step("pull", self.have_image(&image, PullProgress::Told))
            .await
            .map_err(|error| error.at(PULL))?;
        self.tell(EventBody::Creating).await?;
        let spec = self.spec(&image, plan).await?;
        let made = self.step("create", self.create_from_image(&spec)).await?;
        let is_ours = self.noted(HAD_LAYER).and_then(|had| had.as_bool()) == Some(false);
        if is_ours {
            self.put_preserved_back(plan).await?;
        }
        let limits = self.limits(plan);
        let applied = self.start_and_answer(&limits).await?;
        if is_ours {
            self.has_data_directory().await?;
        }
        // From here on it is a workspace that others may use: whoever cancels it comes too late.
        self.settle()?;
        let row = self
            .step("record", self.record(plan, &made, (record, limits, applied)))
            .await?;
        self.skep().observations().wanted(self.bot(), Desired::Running);
        self.skep().observations().happened(self.bot(), &Event::Answered);
        Ok(row)
    }

    /// Those asked for, where nothing is asked those of the workspace whose layer was gone.
    fn limits(&self, plan: &CreatePlan) -> LimitsColumn {
        let noted = self.noted(LIMITS).and_then(|noted| serde_json::from_value(noted).ok());
        plan.limits.unwrap_or_default().onto(noted.unwrap_or_default())
    }

    /// Once more when the image went after it was seen: somebody removed it, or had containerd collect its content.
    async fn create_from_image(&self, spec: &InstanceSpec) -> Result<CreateOutcome> {
        match self.runtime().create(spec).await {
            Err(RuntimeError::ImageNotFound { .. })
                if self.skep().settings().image_pull_policy != ImagePullPolicy::Never =>
            {
                // Its progress is not told: that part of the stream is over.
                self.skep().fetch_image(&spec.image, |_| {}).await?;
                Ok(self.runtime().create(spec).await?)
            }
            other => Ok(other?),
        }
    }

    /// Notes, before anything is made, whether there is a layer: after a crash, the note of the first try counts.
    async fn note_layer(&self, saw_nothing: bool) -> Result<()> {
        if self.noted(HAD_LAYER).is_none() {
            let had = !saw_nothing
                && (self.runtime().inspect(self.bot()).await?.is_some()
                    || self.runtime().has_layer(self.bot()).await?);
            self.note(HAD_LAYER, had);
        }
        Ok(())
    }

    async fn spec(&self, image: &ImageReference, plan: &CreatePlan) -> Result<InstanceSpec> {
        Ok(InstanceSpec {
            bot: self.bot().clone(),
            image: image.clone(),
            snapshotter: plan.snapshotter.clone(),
            env: self.environment(&plan.env).await?,
            cdi_devices: plan.cdi_devices.clone(),
            labels: std::collections::BTreeMap::new(),
        })
    }

    /// The image, fetched when the policy says so.
    pub(crate) async fn have_image(&self, image: &ImageReference, progress: PullProgress) -> Result<ImageRecord> {
        let policy = self.skep().settings().image_pull_policy;
        if policy != ImagePullPolicy::Always
            && let Some(record) = self.runtime().complete_image(image).await?
        {
            return Ok(record);
        }
        if policy == ImagePullPolicy::Never {
            return Err(Error::ImageNotFound(image.to_string()));
        }
        let is_told = progress == PullProgress::Told;
        let tell = |event| {
            if is_told {
                self.hub().tell(event);
            }
        };
        let (record, complete) = self.skep().fetch_image(image, tell).await?;
        if let Some(complete) = complete.filter(|_| is_told) {
            self.tell(complete).await?;
        }
        Ok(record)
    }

    async fn start_and_answer(&self, limits: &LimitsColumn) -> Result<LimitsColumn> {
        let effective = self.skep().settings().effective_limits(&to_runtime(limits));
        self.skep().observations().happened(self.bot(), &Event::Begun);
        self.step("start", self.start_task(&effective)).await?;
        self.step("answer", self.wait_for_bridge()).await?;
        Ok(to_column(&self.runtime().limits_in_force(&effective)))
    }

    /// An image with a file or a dangling link in the place of `/data` would make a workspace that answers and that
    /// nothing can be done in. Only a new layer is asked: one with a tenant's data must stay reachable.
    async fn has_data_directory(&self) -> Result<()> {
        let bridge = self.skep().bridges().bridge(self.bot()).await?;
        let place = WorkspacePath::parse(DATA_DIRECTORY_INSIDE)?;
        match files::stat(&bridge, &place, Links::Followed).await {
            Ok(entry) if entry.is_directory() => Ok(()),
            Ok(_) | Err(BridgeError::NotFound(_)) => Err(Error::ContainerStartFailed {
                reason: format!("the image has something at {DATA_DIRECTORY_INSIDE} that is no directory"),
                source: None,
            }),
            Err(error) => Err(error.into()),
        }
    }

    async fn record(
        &self,
        plan: &CreatePlan,
        made: &CreateOutcome,
        had: (ImageRecord, LimitsColumn, LimitsColumn),
    ) -> Result<ContainerRow> {
        let (image, wanted, applied) = had;
        let remembered = (plan.image.clone(), plan.devices_given.then(|| plan.cdi_devices.clone()));
        self.store()
            .merge_bot_metadata(self.bot(), move |metadata| {
                remember(metadata, &remembered.0, remembered.1)
            })
            .await?;
        let row = self
            .store()
            .put_container(&NewContainer {
                bot_id: self.bot().clone(),
                container_id: made.instance.container_id.clone(),
                image: made.instance.image.clone(),
                image_digest: Some(made.instance.image_digest.clone().unwrap_or(image.digest)),
                snapshotter: made.instance.snapshotter.clone(),
                status: ContainerStatus::Running,
                desired: Desired::Running,
                namespace: made.instance.namespace.clone(),
                cdi_devices: made.instance.cdi_devices.clone(),
                env: plan.env.clone(),
                limits_wanted: wanted,
                limits_applied: Some(applied),
            })
            .await?;
        let kept = made.layer == LayerOutcome::Kept;
        self.lived("create", &json!({ "image": plan.image, "layer_kept": kept }))
            .await?;
        Ok(row)
    }

    /// Undoes what this very create made, and says on the bot why it came to nothing.
    pub(crate) async fn undo_create(&self, plan: &CreatePlan, error: &Error) -> Result<()> {
        let is_recorded = self.row().await?.is_some();
        if is_recorded {
            self.undo_keep(error).await?;
            // It is recorded, so it has run with what was put back, and stays.
            self.release_put_back().await?;
        } else {
            self.undo_make().await?;
        }
        // What is recorded is set up: when the runtime is back, reconcile has it as it should be.
        let is_no_fault = match error.code() {
            Code::OperationCancelled | Code::WorkspaceExists => true,
            Code::RuntimeUnavailable => is_recorded,
            _ => false,
        };
        if !is_no_fault {
            self.store()
                .put_fault(self.bot(), CheckType::ContainerInit.as_str(), &error.to_string())
                .await?;
        }
        if plan.of_new_bot {
            self.bot_is_ready().await?;
        }
        Ok(())
    }

    /// The workspace stays, with the limits it had.
    async fn undo_keep(&self, error: &Error) -> Result<()> {
        let limits = self.put_limits_back().await;
        self.undo_start(error).await?;
        limits
    }

    async fn undo_make(&self) -> Result<()> {
        self.skep().bridges().evict(self.bot());
        match self.noted(HAD_LAYER).and_then(|had| had.as_bool()) {
            // Nothing was made yet.
            None => Ok(()),
            // The layer was there before: it may hold data, so only the processes go.
            Some(true) => self.end_task(std::time::Duration::ZERO).await,
            Some(false) => {
                self.runtime().remove(self.bot()).await?;
                self.skep().observations().happened(self.bot(), &Event::Removed);
                Ok(())
            }
        }
    }

    async fn completed(&self, plan: &CreatePlan, row: &ContainerRow) -> Result<CompletedWorkspace> {
        let mut warnings = self.warnings();
        if !plan.env.is_empty() && plan.env != row.env {
            warnings.push(OTHER_ENV.to_owned());
        }
        Ok(CompletedWorkspace {
            container_id: row.container_id.clone(),
            image: row.image.clone(),
            snapshotter: row.snapshotter.clone(),
            cdi_devices: row.cdi_devices.clone(),
            started: true,
            data_restored: self.was_put_back(),
            has_preserved_data: self.skep().has_preserved_data(self.bot()).await?,
            warnings,
        })
    }

    /// The first set-up is over, well or not; a bot that is being removed stays so.
    async fn bot_is_ready(&self) -> Result<()> {
        Ok(self
            .store()
            .advance_bot_status(self.bot(), BotStatus::Creating, BotStatus::Ready)
            .await?)
    }
}

fn remember(metadata: &mut Map<String, Value>, image: &str, devices: Option<Vec<String>>) {
    let mut workspace = json!({ "image": image });
    if let Some(devices) = devices {
        workspace["gpu"] = json!({ "devices": devices });
    }
    let patch = json!({ "workspace": workspace });
    if let Value::Object(patch) = patch {
        crate::bots::merge_patch(metadata, &patch);
    }
}
