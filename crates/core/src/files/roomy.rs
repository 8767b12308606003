//! Who may add to a workspace: whatever writes files takes this in the place of a bridge, so that no way in can forget
//! the limit of storage.

use std::ops::Deref;

use crate::bridge::Bridge;

/// The bridge of a workspace within its limit of storage, as [`Skep::roomy_bridge`](crate::Skep::roomy_bridge) gives it.
/// What takes away, or only looks, needs no more than the [`Bridge`].
#[derive(Clone)]
pub struct RoomyBridge(Bridge);

impl RoomyBridge {
    /// Whether there is room is the caller's word.
    pub(crate) fn of(bridge: Bridge) -> Self {
        Self(bridge)
    }
}

impl Deref for RoomyBridge {
    type Target = Bridge;

    fn deref(&self) -> &Bridge {
        &self.0
    }
}
