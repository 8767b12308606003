//! Images: which may be used, and how they come and go.

use std::sync::Arc;

use futures::stream::BoxStream;
use skep_names::ImageReference;
use skep_runtime::{ImageArchive, ImageRecord, RuntimeError};
use skep_store::ContainerRow;

use crate::error::{Error, Result, stages};
use crate::operations::{EventBody, Hub, OperationEvent, Outcome};
use crate::requester::Requester;
use crate::skep::Skep;

/// An image whose registry has this host may be asked for by name.
fn host_allowed(allow: &[String], host: &str) -> bool {
    allow.iter().any(|allowed| {
        allowed == "*"
            || allowed.eq_ignore_ascii_case(host)
            || allowed
                .strip_prefix("*.")
                .is_some_and(|domain| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')))
    })
}

impl Skep {
    /// Whether this caller may have a workspace of that image, or pull it.
    ///
    /// # Errors
    /// [`Error::ImageNotAllowed`].
    pub(crate) fn check_image_allowed(&self, image: &ImageReference, requester: &Requester) -> Result<()> {
        if !requester.may_manage {
            return Err(Error::ImageNotAllowed(
                "choosing an image needs the right to manage the bot".to_owned(),
            ));
        }
        let settings = self.settings();
        let allowed = match (settings.images_allow.is_empty(), requester.is_admin) {
            (true, true) => true,
            (true, false) => image.host() == settings.default_image.host(),
            (false, _) => host_allowed(&settings.images_allow, image.host()),
        };
        if allowed {
            return Ok(());
        }
        Err(Error::ImageNotAllowed(format!(
            "images of {} are not allowed here (images.allow)",
            image.host()
        )))
    }

    /// Every stored image. One is in use also by a workspace whose container is lost.
    pub async fn images(&self) -> Result<Vec<ImageRecord>> {
        let mut stored = self.runtime().images().await?;
        let used = self.images_of_workspaces().await?;
        for record in &mut stored {
            record.in_use |= used.contains(&record.name);
        }
        Ok(stored)
    }

    /// Of those that are recorded. What is no reference is no stored image's name either.
    async fn images_of_workspaces(&self) -> Result<Vec<ImageReference>> {
        let rows = self.store().containers().await?;
        Ok(rows.iter().filter_map(|row| row.image.parse().ok()).collect())
    }

    /// Fetches an image; the events are those of a create: `Pulling`, `PullProgress`*, then `Complete` or `Error`.
    /// It is finished also when nobody listens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::ImageNotAllowed`].
    pub fn pull_image(&self, image: &str, requester: &Requester) -> Result<BoxStream<'static, OperationEvent>> {
        let image: ImageReference = image
            .trim()
            .parse()
            .map_err(|error: skep_names::InvalidImageReference| Error::InvalidArgument(error.to_string()))?;
        self.check_image_allowed(&image, requester)?;
        let hub = Hub::new(uuid::Uuid::now_v7().to_string(), None, 1);
        let (skep, told, request_id) = (self.clone(), hub.clone(), requester.request_id.clone());
        self.tasks()
            .spawn(async move { skep.pull_to_end(&image, &told, request_id).await });
        Ok(hub.events(0))
    }

    async fn pull_to_end(&self, image: &ImageReference, hub: &Arc<Hub>, request_id: Option<String>) {
        hub.tell(EventBody::Pulling {
            image: image.to_string(),
        });
        let tell = |event| {
            hub.tell(event);
        };
        let pulled = tokio::select! {
            pulled = self.fetch_image(image, tell) => pulled,
            () = self.letting_go().cancelled() => Err(Error::GoingDown),
        };
        let result = pulled
            .map(|(record, complete)| {
                complete.map(tell);
                Outcome::from(&record)
            })
            .map_err(|error| error.at(stages::PULL));
        let last = match &result {
            Ok(outcome) => EventBody::Complete {
                outcome: outcome.clone(),
            },
            Err(error) => {
                tracing::warn!(%image, request_id, error = error.with_causes(), "an image was not pulled");
                EventBody::Error {
                    code: error.code().as_str().to_owned(),
                    message: error.to_string(),
                    request_id,
                }
            }
        };
        let last = hub.last_event(&result, last);
        hub.end(result, last);
    }

    /// Stores the images of an archive, read once from its start; `name` overrides the name in it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an archive that is none; [`Error::DiskFull`] where only the host's reserve is free.
    pub async fn import_image(&self, archive: ImageArchive, name: Option<&str>) -> Result<Vec<ImageRecord>> {
        let name = name
            .map(str::parse::<ImageReference>)
            .transpose()
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let importing = async { Ok(self.runtime().import(archive, name.as_ref()).await?) };
        self.while_spare(importing).await
    }

    /// Removes a stored image.
    ///
    /// # Errors
    /// [`Error::ImageNotFound`]; [`Error::Conflict`] while a workspace uses it, also one whose container is lost.
    pub async fn remove_image(&self, image: &str) -> Result<()> {
        let image: ImageReference = image
            .parse()
            .map_err(|error: skep_names::InvalidImageReference| Error::InvalidArgument(error.to_string()))?;
        // Of all that are stored, the incomplete ones too: those are the ones most worth removing.
        let stored = self.runtime().images().await?;
        if !stored.iter().any(|record| record.name == image) {
            return Err(Error::ImageNotFound(image.to_string()));
        }
        let rows = self.store().containers().await?;
        let is_of_it = |row: &&ContainerRow| row.image.parse().is_ok_and(|used: ImageReference| used == image);
        if let Some(row) = rows.iter().find(is_of_it) {
            return Err(Error::Conflict(format!(
                "the image {image} is used by the workspace of bot {}",
                row.bot_id
            )));
        }
        self.runtime().remove_image(&image).await.map_err(|error| match error {
            RuntimeError::Rejected { reason } => Error::Conflict(reason),
            other => other.into(),
        })
    }

    /// Removes every stored image that no workspace uses, the default image excepted, and what pulls that failed have
    /// fetched. A workspace whose container is lost uses its image all the same. Returns what went.
    pub async fn prune_images(&self) -> Result<Vec<ImageRecord>> {
        let mut kept = vec![self.settings().default_image.clone()];
        kept.extend(self.images_of_workspaces().await?);
        Ok(self.runtime().prune_images(&kept).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_matched_whole() {
        let allow = |pattern: &str, host: &str| host_allowed(&[pattern.to_owned()], host);
        assert!(allow("ghcr.io", "ghcr.io"));
        assert!(allow("*.example.com", "a.example.com"));
        assert!(allow("*", "anything:5000"));
        for (pattern, host) in [
            ("ghcr.io", "ghcr.io.evil.com"),
            ("ghcr.io", "xghcr.io"),
            ("*.example.com", "example.com"),
            ("*.example.com", "evilexample.com"),
            ("127.0.0.1", "127.0.0.1:5000"),
        ] {
            assert!(!allow(pattern, host), "{pattern} let {host} pass");
        }
    }
}
