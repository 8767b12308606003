//! A bot whose layer is there and whose container is not: a container is put back on that very layer. Where that
//! cannot be done, the data goes, by way of an archive, into a fresh layer beside it. No layer is taken away: versions
//! stay, and so does what the old layer holds beside `/data`.

use serde_json::json;
use skep_runtime::layer_access::{Apply, ApplyMode, DataPlace, Trust};
use skep_runtime::{CreateOutcome, InstanceSpec, LayerMount, RuntimeError};

use super::work::Work;
use crate::backups::{Partial, file_error};
use crate::error::{Error, Result};
use crate::transfer::chunks_of;

/// The last part of a fresh layer's name.
const FRESH: &str = "fresh";
/// A layer is given up only when a container could not be put on it so often.
const TRIES: u32 = 2;

impl Work {
    /// Puts a container on the bot's newest layer, or on a fresh one with its data.
    pub(super) async fn put_container_back(&self, spec: &InstanceSpec) -> Result<CreateOutcome> {
        let mut tries = 1;
        let error = loop {
            match self.runtime().create(spec).await {
                Err(error) if is_of_the_layer(&error) && tries < TRIES => tries += 1,
                Err(error) if is_of_the_layer(&error) => break Error::from(error),
                made => return Ok(made?),
            }
        };
        tracing::error!(
            bot = %self.bot(),
            error = error.with_causes(),
            "no container can be put on the workspace's layer; its data goes into a fresh one"
        );
        match self.begin_anew(spec).await {
            Ok(made) => Ok(made),
            Err(again) => {
                tracing::error!(bot = %self.bot(), error = again.with_causes(), "nor can a fresh one be made");
                Err(error)
            }
        }
    }

    async fn begin_anew(&self, spec: &InstanceSpec) -> Result<CreateOutcome> {
        let layers = self.skep().changeable_layers()?;
        let present = layers.present(self.bot()).await?.unwrap_or_default();
        if present.ends_with(FRESH) {
            // What keeps a container off that is not the layer: another one would be one too many.
            return Err(Error::Conflict(format!("the layer {present} is a fresh one")));
        }
        let name = self.layer_name(FRESH);
        // First: an image that no layer can be made on is no reason to copy all of the data, again and again.
        let mount = layers.stage_fresh(self.bot(), &name, &spec.image).await?;
        let place = DataPlace::Workspace(self.bot().clone());
        // No backup: the data is in a layer, this one or that. Kept besides, it would come back in some later workspace,
        // and in the place of what the bot has as its backup.
        let copy = match self.skep().copy_for_now(self.bot(), &place).await {
            Ok(copy) => copy,
            Err(error) => {
                layers.discard(self.bot(), &name).await?;
                return Err(error);
            }
        };
        let made = self.move_into_fresh(&copy, (&name, mount), spec).await?;
        self.lived("begin_anew", &json!({ "left": present })).await?;
        Ok(made)
    }

    async fn move_into_fresh(
        &self,
        copy: &Partial,
        (name, mount): (&str, LayerMount),
        spec: &InstanceSpec,
    ) -> Result<CreateOutcome> {
        let layers = self.skep().changeable_layers()?;
        let place = DataPlace::Mounted {
            bot: self.bot().clone(),
            mount,
        };
        if let Err(error) = self.write_copy(&place, copy).await {
            layers.discard(self.bot(), name).await?;
            return Err(error);
        }
        layers.make_newest(self.bot(), name).await?;
        Ok(self.runtime().create(spec).await?)
    }

    async fn write_copy(&self, place: &DataPlace, copy: &Partial) -> Result<()> {
        let file = copy
            .reopen()
            .map_err(|error| file_error("reading a copy of data", error))?;
        let apply = Apply {
            mode: ApplyMode::Replace,
            trust: Trust::Ours,
        };
        let archive = self.skep().sparing(chunks_of(file.into()));
        self.skep().layer_access()?.write_data(place, archive, apply).await?;
        Ok(())
    }
}

/// Neither away nor refused for a reason that any other layer would be refused for too.
fn is_of_the_layer(error: &RuntimeError) -> bool {
    matches!(
        error,
        RuntimeError::Other { .. } | RuntimeError::NotFound { .. } | RuntimeError::Rejected { .. }
    )
}
