//! A lease for each bot whose layers are changed: what is made in its name is not garbage while it is there.

use std::collections::HashMap;

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{CreateRequest, DeleteRequest, ListRequest};
use skep_names::{BotId, LABEL_DATA_ROOT};
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Request};

use super::ContainerdRuntime;
use super::client::failed;
use crate::{Result, RuntimeError, failpoint};

/// Of the names of our leases; the bot's id follows. A repeat finds the lease of the first try.
const PREFIX: &str = "skep-layers-";

/// A lease that is held.
pub(super) struct Lease {
    id: AsciiMetadataValue,
}

impl Lease {
    /// A request whose work belongs to this lease.
    pub(super) fn under<T>(&self, mut request: Request<T>) -> Request<T> {
        request.metadata_mut().insert("containerd-lease", self.id.clone());
        request
    }
}

impl ContainerdRuntime {
    /// Takes the bot's lease. The caller has the bot's turn, so nobody else uses it.
    pub(super) async fn take_lease(&self, bot: &BotId) -> Result<Lease> {
        let name = format!("{PREFIX}{bot}");
        let operation = || format!("making the lease {name}");
        let request = self.client.request(CreateRequest {
            id: name.clone(),
            labels: HashMap::from([(LABEL_DATA_ROOT.to_owned(), self.config.data_root_id.clone())]),
        });
        match LeasesClient::new(self.client.channel()).create(request).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(failed(operation(), status)),
        }
        if let Err(error) = failpoint::LAYERS_LEASED.passed() {
            self.end_lease(bot).await?;
            return Err(error);
        }
        let id = name.parse().map_err(|error| RuntimeError::other(operation(), error))?;
        Ok(Lease { id })
    }

    /// Lets go of it; everything of ours has a label that keeps it by now.
    pub(super) async fn end_lease(&self, bot: &BotId) -> Result<()> {
        self.end_abandoned_lease(bot).await?;
        failpoint::LAYERS_LEASE_GONE.passed()
    }

    /// Lets go of what a change that was cut off held. The caller has the bot's turn, so no other change is under way.
    pub(super) async fn end_abandoned_lease(&self, bot: &BotId) -> Result<()> {
        self.delete_lease(format!("{PREFIX}{bot}")).await
    }

    async fn delete_lease(&self, id: String) -> Result<()> {
        let operation = format!("removing the lease {id}");
        let request = self.client.request(DeleteRequest { id, sync: false });
        match LeasesClient::new(self.client.channel()).delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(failed(operation, status)),
        }
    }

    /// Removes the leases of servers that died while they changed layers.
    pub(super) async fn sweep_leases(&self) -> Result<()> {
        let filters = vec![format!(
            "labels.\"{LABEL_DATA_ROOT}\"==\"{}\"",
            self.config.data_root_id
        )];
        let request = self.client.request(ListRequest { filters });
        let listed = LeasesClient::new(self.client.channel()).list(request).await;
        let listed = listed.map_err(|status| failed("listing leases", status))?;
        for lease in listed.into_inner().leases {
            let bot = lease.id.strip_prefix(PREFIX).and_then(|bot| bot.parse().ok());
            // One whose bot is worked on just now is in use.
            if let Some(bot) = bot
                && let Some(_turn) = self.turns.try_take(&bot)
            {
                tracing::info!(%bot, "letting go of a lease that a change of layers left");
                self.delete_lease(lease.id).await?;
            }
        }
        Ok(())
    }
}
