//! Devices that a workspace is given beyond the usual: which there are, and who may have which.

use serde_json::{Map, Value};
use skep_runtime::cdi::Device;
use skep_store::{BotRow, UserRole};

use crate::error::{Error, Result};
use crate::requester::Requester;
use crate::skep::Skep;

/// A device of this host, as somebody sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedDevice {
    pub device: Device,
    /// He may use it.
    pub allowed: bool,
}

impl Skep {
    /// The devices of this host, by name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the backend gives none.
    pub async fn devices(&self, requester: &Requester) -> Result<Vec<OfferedDevice>> {
        self.can_give_devices()?;
        let devices = self.runtime().devices().await?;
        let offered = devices.into_iter().map(|device| OfferedDevice {
            allowed: self.may_use(&device.name, requester),
            device,
        });
        Ok(offered.collect())
    }

    /// Whether a workspace that is made now may and can have them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that is not there, with those that are, or that cannot be given here;
    /// [`Error::Forbidden`]; [`Error::Unsupported`] where the backend gives none.
    pub(crate) async fn check_devices(&self, devices: &[String], requester: &Requester) -> Result<()> {
        if devices.is_empty() {
            return Ok(());
        }
        self.can_give_devices()?;
        self.runtime().check_devices(devices).await?;
        self.check_allowed_devices(devices, requester)
    }

    /// Whether he may use them, wherever they are.
    ///
    /// # Errors
    /// [`Error::Forbidden`].
    pub(crate) fn check_allowed_devices(&self, devices: &[String], requester: &Requester) -> Result<()> {
        match devices.iter().find(|device| !self.may_use(device, requester)) {
            Some(device) => Err(Error::Forbidden(format!(
                "the device {device} is for administrators alone here (gpu.allow)"
            ))),
            None => Ok(()),
        }
    }

    /// Administrators may use all, others what the configuration names.
    fn may_use(&self, device: &str, requester: &Requester) -> bool {
        requester.is_admin || self.settings().gpu_allow.iter().any(|allowed| allowed == device)
    }

    fn can_give_devices(&self) -> Result<()> {
        let capabilities = self.capabilities();
        match capabilities.gpu {
            true => Ok(()),
            false => Err(Error::Unsupported(format!(
                "GPU devices are not supported on the {} backend",
                capabilities.backend
            ))),
        }
    }

    /// What the server does on its own for a bot it does as the bot's owner: the bot's metadata are the owner's to
    /// write, and must not give him what he may not have.
    pub(crate) async fn as_owner_of(&self, bot: &BotRow) -> Result<Requester> {
        let owner = self.store().user(&bot.owner_user_id).await?;
        Ok(Requester {
            user_id: Some(bot.owner_user_id.clone()),
            is_admin: owner.is_some_and(|owner| owner.role == UserRole::Admin),
            ..Requester::server()
        })
    }

    /// The devices that a bot's metadata remember, without those its owner may not use. Whether they are there is seen
    /// at the start.
    pub(crate) async fn remembered_devices(&self, bot: &BotRow) -> Result<Vec<String>> {
        let owner = self.as_owner_of(bot).await?;
        let (kept, refused): (Vec<_>, Vec<_>) = tidy_devices(&devices_in(&bot.metadata))
            .into_iter()
            .partition(|device| self.may_use(device, &owner));
        if !refused.is_empty() {
            tracing::warn!(bot = %bot.id, ?refused, "devices that the bot's owner may not use are left out");
        }
        Ok(kept)
    }
}

/// `workspace.gpu.devices` of a bot's metadata.
pub(crate) fn devices_in(metadata: &Map<String, Value>) -> Vec<String> {
    let devices = metadata
        .get("workspace")
        .and_then(|workspace| workspace.get("gpu"))
        .and_then(|gpu| gpu.get("devices"))
        .and_then(Value::as_array);
    let names = devices.into_iter().flatten().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

/// Trimmed, without blank and double ones, in the order given.
pub(crate) fn tidy_devices(devices: &[String]) -> Vec<String> {
    let mut tidy: Vec<String> = Vec::new();
    for device in devices
        .iter()
        .map(|device| device.trim())
        .filter(|device| !device.is_empty())
    {
        if !tidy.iter().any(|there| there == device) {
            tidy.push(device.to_owned());
        }
    }
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_tidied_in_their_order() {
        let given = [" b/x=1 ", "", "a/x=0", "b/x=1"].map(str::to_owned);
        assert_eq!(tidy_devices(&given), ["b/x=1", "a/x=0"]);
    }
}
