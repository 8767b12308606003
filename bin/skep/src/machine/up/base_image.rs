//! There is a base image: the default one is pulled, or one is built where no registry answers.

use serde_json::Value;
use skep_names::ImageReference;
use skep_server::config::Config;

use crate::arguments::{BuildArguments, OutputForm};
use crate::client::Client;
use crate::commands::images;
use crate::failure::{Failure, Result, with_causes};
use crate::machine::running::Running;
use crate::output::{tell, text, warn};

/// What the image is built from where it cannot be pulled.
const BUILT_FROM: &str = "debian:bookworm";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was there, or could be pulled.
    There,
    /// It was built here, and counts as default image from the server's next start on.
    BuiltHere,
}

/// # Errors
/// There is no workspace yet, and the image can neither be pulled nor built, or a person chose an image that cannot be
/// pulled: then none other is put in its place.
pub(super) async fn ensure(config: &Config, running: &Running) -> Result<Outcome> {
    let client = &running.client()?;
    let stored = client.all_items("/images").await?;
    match have_default(config, running, (client, &stored)).await {
        // Those that are there need none.
        Err(failure) if stored.iter().any(is_in_use) => {
            warn(format_args!("new workspaces lack their default image: {failure}"));
            Ok(Outcome::There)
        }
        outcome => outcome,
    }
}

async fn have_default(config: &Config, running: &Running, (client, stored): (&Client, &[Value])) -> Result<Outcome> {
    let wanted = running.server.core().settings().default_image.clone();
    if is_stored(stored, wanted.as_str()) {
        tell(format_args!("image {wanted} is there"));
        return Ok(Outcome::There);
    }
    tell(format_args!("pulling image {wanted}"));
    let failure = match images::pull(client, OutputForm::Table, wanted.as_str()).await {
        Ok(_) => return Ok(Outcome::There),
        Err(failure @ (Failure::StreamFailed { .. } | Failure::Refused { status: 502, .. })) => failure,
        Err(other) => return Err(other),
    };
    if !config.workspace.default_image_is_ours {
        return Err(failure);
    }
    tell(format_args!("image {wanted} cannot be pulled ({failure})"));
    tell(format_args!(
        "building one from the packages of {BUILT_FROM} instead; this takes a minute or two"
    ));
    let build = BuildArguments {
        from: BUILT_FROM.into(),
        name: None,
        packages: Vec::new(),
        mirror: None,
        to_file: None,
    };
    let imported = images::build_and_import(client, OutputForm::Table, build).await?;
    let name = imported
        .pointer("/items/0")
        .map(|image| text(image, "name"))
        .unwrap_or_default();
    let built: ImageReference = name.parse().map_err(|error| Failure::Unexpected {
        doing: "storing the image",
        what: format!("{error}"),
    })?;
    running
        .server
        .keep_default_image(&built)
        .await
        .map_err(|error| Failure::Failed(with_causes(&error)))?;
    tell(format_args!(
        "image {built} is built, and the default image of this data root from now on"
    ));
    Ok(Outcome::BuiltHere)
}

fn is_in_use(image: &Value) -> bool {
    image.get("in_use") == Some(&Value::Bool(true))
}

fn is_stored(stored: &[Value], wanted: &str) -> bool {
    stored.iter().any(|image| text(image, "name") == wanted)
}
