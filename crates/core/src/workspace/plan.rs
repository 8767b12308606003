//! What a create is about, decided before its stream begins: image, devices, snapshotter, and whether all of that
//! is allowed.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use skep_names::{BotId, ImageReference};
use skep_store::{BotRow, ContainerRow};

use super::limits;
use super::request::{CreatePlan, CreateRequest};
use crate::devices::{devices_in, tidy_devices};
use crate::error::{Error, Result};
use crate::requester::Requester;
use crate::skep::Skep;

/// The most environment variables a create may bring, and the most bytes of all of them.
const ENV_LIMITS: (usize, usize) = (256, 64 * 1024);

/// Where the image of a new workspace comes from.
enum Named {
    /// The caller or the bot's metadata: it has to be allowed.
    ByName(ImageReference),
    /// The default, or what the workspace has.
    Given(ImageReference),
}

impl Skep {
    /// Decides on a create for a bot that may have a workspace, or one under way.
    pub(crate) async fn plan_create(
        &self,
        bot: &BotId,
        request: &CreateRequest,
        requester: &Requester,
    ) -> Result<CreatePlan> {
        let bot_row = self.store().bot(bot).await?.ok_or(Error::BotNotFound)?;
        if let Some((_, under_way)) = self.lanes().create_under_way(bot) {
            check_request(request)?;
            differs(
                request,
                &under_way.image,
                &under_way.cdi_devices,
                under_way.snapshotter.as_deref(),
            )?;
            return Ok(under_way);
        }
        if let Some(row) = self.store().container(bot).await? {
            return self.plan_kept(&row, request);
        }
        if let Some(instance) = self.runtime().inspect(bot).await? {
            check_request(request)?;
            differs(
                request,
                &instance.image,
                &instance.cdi_devices,
                Some(&instance.snapshotter),
            )?;
            return Ok(CreatePlan {
                image: instance.image,
                snapshotter: Some(instance.snapshotter),
                cdi_devices: instance.cdi_devices,
                devices_given: false,
                limits: request.limits,
                env: BTreeMap::new(),
                of_new_bot: false,
                preserved: request.restore_data.into(),
            });
        }
        if request.gpu_devices.is_none() {
            // The bot's metadata are its owner's word, whoever asks.
            let remembered = tidy_devices(&devices_in(&bot_row.metadata));
            self.check_devices(&remembered, &self.as_owner_of(&bot_row).await?)
                .await?;
        }
        self.plan_new_workspace(&bot_row.metadata, request, requester).await
    }

    /// A workspace that exists is kept as it is.
    fn plan_kept(&self, row: &ContainerRow, request: &CreateRequest) -> Result<CreatePlan> {
        check_request(request)?;
        differs(request, &row.image, &row.cdi_devices, Some(&row.snapshotter))?;
        Ok(CreatePlan {
            image: row.image.clone(),
            snapshotter: Some(row.snapshotter.clone()),
            cdi_devices: row.cdi_devices.clone(),
            devices_given: false,
            limits: request.limits,
            env: row.env.clone(),
            of_new_bot: false,
            preserved: request.restore_data.into(),
        })
    }

    /// Decides on a create for a bot without a workspace.
    pub(crate) async fn plan_new_workspace(
        &self,
        metadata: &Map<String, Value>,
        request: &CreateRequest,
        requester: &Requester,
    ) -> Result<CreatePlan> {
        let remembered = devices_in(metadata);
        let devices = tidy_devices(request.gpu_devices.as_ref().unwrap_or(&remembered));
        let plan = self.plan_with_devices(metadata, request, (devices, requester))?;
        self.check_devices(&plan.cdi_devices, requester).await?;
        Ok(plan)
    }

    /// Decides anew on the first create of a bot that was let in.
    pub(crate) async fn plan_again(&self, bot: &BotRow) -> Result<CreatePlan> {
        let devices = tidy_devices(&devices_in(&bot.metadata));
        self.check_devices(&devices, &self.as_owner_of(bot).await?).await?;
        let asked = (devices, &Requester::server());
        self.plan_with_devices(&bot.metadata, &CreateRequest::default(), asked)
    }

    /// Decides on what the server itself puts back on a layer that is there: data counts for more than a device, so
    /// whether that is there is not asked.
    pub(crate) async fn plan_for_layer(&self, bot: &BotRow) -> Result<CreatePlan> {
        let devices = self.remembered_devices(bot).await?;
        let asked = (devices, &Requester::server());
        self.plan_with_devices(&bot.metadata, &CreateRequest::default(), asked)
    }

    fn plan_with_devices(
        &self,
        metadata: &Map<String, Value>,
        request: &CreateRequest,
        (devices, requester): (Vec<String>, &Requester),
    ) -> Result<CreatePlan> {
        check_request(request)?;
        let image = match self.named_image(metadata, request)? {
            Named::Given(image) => image,
            Named::ByName(image) => {
                self.check_image_allowed(&image, requester)?;
                image
            }
        };
        if let Some(snapshotter) = &request.snapshotter {
            let known = self.capabilities().snapshotters;
            if !known.contains(snapshotter) {
                return Err(Error::InvalidArgument(format!(
                    "snapshotter {snapshotter:?} is not known; there are {}",
                    known.join(", ")
                )));
            }
        }
        Ok(CreatePlan {
            image: image.to_string(),
            snapshotter: request.snapshotter.clone(),
            cdi_devices: devices,
            devices_given: request.gpu_devices.is_some(),
            limits: request.limits,
            env: request.env.clone(),
            of_new_bot: false,
            preserved: request.restore_data.into(),
        })
    }

    fn named_image(&self, metadata: &Map<String, Value>, request: &CreateRequest) -> Result<Named> {
        let asked = request
            .image
            .as_deref()
            .map(str::trim)
            .filter(|image| !image.is_empty());
        let remembered = metadata
            .get("workspace")
            .and_then(|workspace| workspace.get("image"))
            .and_then(Value::as_str)
            .map(str::trim)
            .filter(|image| !image.is_empty());
        match asked.or(remembered) {
            Some(image) => {
                let image = parse_image(image)?;
                if image == self.settings().default_image {
                    return Ok(Named::Given(image));
                }
                Ok(Named::ByName(image))
            }
            None => Ok(Named::Given(self.settings().default_image.clone())),
        }
    }
}

/// A reference as a caller wrote it.
pub(crate) fn parse_image(image: &str) -> Result<ImageReference> {
    image
        .trim()
        .parse()
        .map_err(|error: skep_names::InvalidImageReference| Error::InvalidArgument(error.to_string()))
}

fn check_request(request: &CreateRequest) -> Result<()> {
    if let Some(limits) = &request.limits {
        limits::check(limits)?;
    }
    let bytes: usize = request.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if request.env.len() > ENV_LIMITS.0 || bytes > ENV_LIMITS.1 {
        return Err(Error::InvalidArgument(format!(
            "env may have {} variables and {} bytes",
            ENV_LIMITS.0, ENV_LIMITS.1
        )));
    }
    // The value is not shown: it may be a secret.
    let bad =
        |(name, value): &(&String, &String)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
    match request.env.iter().find(bad) {
        Some((name, _)) => Err(Error::InvalidArgument(format!("env variable {name:?} cannot be set"))),
        None => Ok(()),
    }
}

/// Refuses what the workspace that exists, or is being made, is not made from.
fn differs(request: &CreateRequest, image: &str, devices: &[String], snapshotter: Option<&str>) -> Result<()> {
    let exists = |what: &str| {
        Error::WorkspaceExists(format!(
            "the bot has a workspace with another {what}; delete it with preserve_data=true, then create it anew"
        ))
    };
    if let Some(asked) = request.image.as_deref().filter(|asked| !asked.trim().is_empty()) {
        // A row of another system may hold a short name.
        let present = image
            .parse::<ImageReference>()
            .map_or_else(|_| image.to_owned(), |one| one.to_string());
        if parse_image(asked)?.as_str() != present {
            return Err(exists("image"));
        }
    }
    if request
        .gpu_devices
        .as_ref()
        .is_some_and(|asked| tidy_devices(asked) != devices)
    {
        return Err(exists("gpu"));
    }
    match (&request.snapshotter, snapshotter) {
        (Some(asked), Some(present)) if asked != present => Err(exists("snapshotter")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_image_in_another_form_does_not_differ() {
        let ask = |image: &str| {
            let request = CreateRequest {
                image: Some(image.to_owned()),
                ..CreateRequest::default()
            };
            differs(&request, "docker.io/library/debian:latest", &[], None)
        };
        assert!(ask("debian").is_ok());
        assert!(ask("docker.io/library/debian").is_ok());
        assert!(matches!(ask("debian:12"), Err(Error::WorkspaceExists(_))));
        assert!(matches!(ask("NOT VALID"), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn an_environment_that_cannot_be_set_is_refused_without_its_value() {
        let env = [("A=B".to_owned(), "secret".to_owned())].into();
        let request = CreateRequest {
            env,
            ..CreateRequest::default()
        };
        let error = check_request(&request).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
