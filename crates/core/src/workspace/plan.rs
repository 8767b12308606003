//! What a create is about, decided before its stream begins: image, devices, snapshotter, and whether all of that
//! is allowed.

use serde_json::{Map, Value};
use skep_names::{BotId, ImageReference};
use skep_store::{BotRow, ContainerRow};

use super::limits;
use super::remains::Remains;
use super::request::{AskedLimits, Basis, CreatePlan, CreateRequest, PreservedData};
use crate::devices::{devices_in, tidy_devices};
use crate::error::{Error, Result};
use crate::requester::Requester;
use crate::skep::Skep;

/// Begins the names that say where the bridge listens and whom it answers: the host alone sets them.
const ENV_PREFIX_OF_BRIDGE: &str = "BRIDGE_";
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
            return self.plan_beside(bot, request, under_way).await;
        }
        if !self.lanes().is_being_removed(bot)
            && let Some(plan) = self.plan_with_what_is_there(bot, request).await?
        {
            return Ok(plan);
        }
        // What the request names is the caller's word. What the bot's metadata name is its owner's, whoever asks.
        let owner = self.as_owner_of(&bot_row).await?;
        let words = Words {
            image: match asked_image(request) {
                Some(_) => requester,
                None => &owner,
            },
            devices: match request.gpu_devices {
                Some(_) => requester,
                None => &owner,
            },
        };
        self.plan_on_words(&bot_row.metadata, request, words).await
    }

    /// Beside a create that is under way, which is joined when it does all that is asked. Limits that it does not set are
    /// set after it.
    async fn plan_beside(&self, bot: &BotId, request: &CreateRequest, under_way: CreatePlan) -> Result<CreatePlan> {
        check_request(request)?;
        differs(request, &Made::of_plan(&under_way))?;
        let puts_back = under_way.basis == Basis::Nothing && under_way.preserved == PreservedData::PutBack;
        if request.restore_data == Some(false) && puts_back && self.has_preserved_data(bot).await? {
            return Err(Error::WorkspaceExists(
                "a create that puts the preserved data back is under way".to_owned(),
            ));
        }
        let asked = request.limits.filter(|asked| *asked != AskedLimits::default());
        let limits = asked.filter(|asked| Some(*asked) != under_way.limits);
        let has_its_env = request.env.is_empty() || request.env == under_way.env;
        if limits.is_none() && has_its_env {
            return Ok(under_way);
        }
        Ok(CreatePlan {
            limits,
            env: request.env.clone(),
            basis: Basis::WhatIsThere,
            of_new_bot: false,
            ..under_way
        })
    }

    /// A workspace that exists is kept as it is. `None`: there is none.
    async fn plan_with_what_is_there(&self, bot: &BotId, request: &CreateRequest) -> Result<Option<CreatePlan>> {
        let made = match self.store().container(bot).await? {
            Some(row) => Made {
                image: row.image,
                snapshotter: Some(row.snapshotter),
                cdi_devices: row.cdi_devices,
            },
            // What a failed create made goes, and is not kept.
            None if self.lanes().is_a_create_undone(bot) => return Ok(None),
            None if self.remains(bot).await? == Some(Remains::OfCreate) => return Ok(None),
            None => match self.runtime().inspect(bot).await? {
                Some(instance) => Made {
                    image: instance.image,
                    snapshotter: Some(instance.snapshotter),
                    cdi_devices: instance.cdi_devices,
                },
                None => return Ok(None),
            },
        };
        check_request(request)?;
        differs(request, &made)?;
        Ok(Some(CreatePlan {
            image: made.image,
            snapshotter: made.snapshotter,
            cdi_devices: made.cdi_devices,
            devices_given: false,
            image_given: false,
            basis: Basis::WhatIsThere,
            limits: request.limits,
            env: request.env.clone(),
            of_new_bot: false,
            preserved: request.restore_data.into(),
        }))
    }

    /// Decides on the first create of a new bot, whose metadata are the word of the one who makes it.
    pub(crate) async fn plan_first_create(
        &self,
        metadata: &Map<String, Value>,
        requester: &Requester,
    ) -> Result<CreatePlan> {
        let words = Words {
            image: requester,
            devices: requester,
        };
        let mut plan = self.plan_on_words(metadata, &CreateRequest::default(), words).await?;
        plan.of_new_bot = true;
        Ok(plan)
    }

    async fn plan_on_words(
        &self,
        metadata: &Map<String, Value>,
        request: &CreateRequest,
        words: Words<'_>,
    ) -> Result<CreatePlan> {
        let remembered = devices_in(metadata);
        let devices = tidy_devices(request.gpu_devices.as_ref().unwrap_or(&remembered));
        let plan = self.plan_with_devices(metadata, request, (devices, words.image))?;
        self.check_devices(&plan.cdi_devices, words.devices).await?;
        Ok(plan)
    }

    /// Refuses metadata that would have somebody else's bot remember what their writer may not ask for himself: it counts
    /// as the owner's word later. What was remembered before may stay.
    pub(crate) fn check_remembered(
        &self,
        before: &Map<String, Value>,
        after: &Map<String, Value>,
        writer: &Requester,
    ) -> Result<()> {
        let had = devices_in(before);
        let new = devices_in(after).into_iter().filter(|device| !had.contains(device));
        self.check_allowed_devices(&tidy_devices(&new.collect::<Vec<_>>()), writer)?;
        let image = remembered_image(after);
        if image == remembered_image(before) {
            return Ok(());
        }
        // What is no reference is told when it is to be used.
        match image.map(parse_image) {
            Some(Ok(image)) if image != self.settings().default_image => self.check_image_allowed(&image, writer),
            Some(Ok(_) | Err(_)) | None => Ok(()),
        }
    }

    /// Decides anew on the first create of a bot that was let in.
    pub(crate) async fn plan_again(&self, bot: &BotRow) -> Result<CreatePlan> {
        let devices = tidy_devices(&devices_in(&bot.metadata));
        let owner = self.as_owner_of(bot).await?;
        self.check_devices(&devices, &owner).await?;
        let asked = (devices, &owner);
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
        let image = self.image_for(metadata, request, requester)?;
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
            image_given: request.image.as_deref().is_some_and(|image| !image.trim().is_empty()),
            basis: Basis::Nothing,
            limits: request.limits,
            env: request.env.clone(),
            of_new_bot: false,
            preserved: request.restore_data.into(),
        })
    }

    /// The image that is named, if the one whose word that is may have one by its name.
    fn image_for(
        &self,
        metadata: &Map<String, Value>,
        request: &CreateRequest,
        namer: &Requester,
    ) -> Result<ImageReference> {
        match self.named_image(metadata, request)? {
            Named::Given(image) => Ok(image),
            Named::ByName(image) => {
                self.check_image_allowed(&image, namer)?;
                Ok(image)
            }
        }
    }

    fn named_image(&self, metadata: &Map<String, Value>, request: &CreateRequest) -> Result<Named> {
        match asked_image(request).or(remembered_image(metadata)) {
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

/// Whose word it is that a workspace has this image and these devices: he has to be allowed them.
struct Words<'a> {
    image: &'a Requester,
    devices: &'a Requester,
}

/// `workspace.image` of a bot's metadata.
fn remembered_image(metadata: &Map<String, Value>) -> Option<&str> {
    let image = metadata.get("workspace")?.get("image")?.as_str()?.trim();
    (!image.is_empty()).then_some(image)
}

/// The image that a request names.
fn asked_image(request: &CreateRequest) -> Option<&str> {
    let image = request.image.as_deref().map(str::trim);
    image.filter(|image| !image.is_empty())
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
    let bad = |(name, value): &(&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || name.starts_with(ENV_PREFIX_OF_BRIDGE) || value.contains('\0')
    };
    match request.env.iter().find(bad) {
        Some((name, _)) => Err(Error::InvalidArgument(format!("env variable {name:?} cannot be set"))),
        None => Ok(()),
    }
}

/// What a workspace was made from, or is being made from.
struct Made {
    image: String,
    /// `None`: the default one.
    snapshotter: Option<String>,
    cdi_devices: Vec<String>,
}

impl Made {
    fn of_plan(plan: &CreatePlan) -> Self {
        Self {
            image: plan.image.clone(),
            snapshotter: plan.snapshotter.clone(),
            cdi_devices: plan.cdi_devices.clone(),
        }
    }
}

/// Refuses a create that was decided on while there was no workspace and finds another one than it was asked for: one
/// that another create made, that a failed removal left, or of which only the layer was left.
pub(super) fn check_is_as_asked(plan: &CreatePlan, row: &ContainerRow) -> Result<()> {
    if plan.basis == Basis::WhatIsThere || plan.of_new_bot {
        return Ok(());
    }
    let asked = CreateRequest {
        image: plan.image_given.then(|| plan.image.clone()),
        snapshotter: plan.snapshotter.clone(),
        gpu_devices: plan.devices_given.then(|| plan.cdi_devices.clone()),
        ..CreateRequest::default()
    };
    let made = Made {
        image: row.image.clone(),
        snapshotter: Some(row.snapshotter.clone()),
        cdi_devices: row.cdi_devices.clone(),
    };
    differs(&asked, &made)
}

/// Refuses what the workspace that exists, or is being made, is not made from.
fn differs(request: &CreateRequest, made: &Made) -> Result<()> {
    let exists = |what: &str| {
        Error::WorkspaceExists(format!(
            "the bot has a workspace with another {what}; delete it with preserve_data=true, then create it anew"
        ))
    };
    if let Some(asked) = request.image.as_deref().filter(|asked| !asked.trim().is_empty()) {
        // A row of another system may hold a short name.
        let present = made
            .image
            .parse::<ImageReference>()
            .map_or_else(|_| made.image.clone(), |one| one.to_string());
        if parse_image(asked)?.as_str() != present {
            return Err(exists("image"));
        }
    }
    if request
        .gpu_devices
        .as_ref()
        .is_some_and(|asked| tidy_devices(asked) != made.cdi_devices)
    {
        return Err(exists("gpu"));
    }
    match (&request.snapshotter, &made.snapshotter) {
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
            let made = Made {
                image: "docker.io/library/debian:latest".to_owned(),
                snapshotter: None,
                cdi_devices: Vec::new(),
            };
            differs(&request, &made)
        };
        assert!(ask("debian").is_ok());
        assert!(ask("docker.io/library/debian").is_ok());
        assert!(matches!(ask("debian:12"), Err(Error::WorkspaceExists(_))));
        assert!(matches!(ask("NOT VALID"), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn an_environment_that_cannot_be_set_is_refused_without_its_value() {
        for name in ["A=B", "BRIDGE_TCP_ADDR"] {
            let request = CreateRequest {
                env: [(name.to_owned(), "secret".to_owned())].into(),
                ..CreateRequest::default()
            };
            let error = check_request(&request).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains("secret"), "{error}");
        }
    }
}
