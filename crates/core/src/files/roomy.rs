//! Who may add to a workspace: whatever writes files takes this in the place of a bridge, so that no way in can forget
//! the limit of storage.

use std::ops::Deref;
use std::sync::Arc;

use crate::bridge::{Bridge, BridgeResult};
use crate::workspace::Room;

/// The bridge of a workspace within its limit of storage, as [`Skep::roomy_bridge`](crate::Skep::roomy_bridge) gives it.
/// What takes away, or only looks, needs no more than the [`Bridge`].
#[derive(Clone)]
pub struct RoomyBridge {
    bridge: Bridge,
    /// `None`: without end.
    room: Option<Arc<Room>>,
}

impl RoomyBridge {
    pub(crate) fn within(bridge: Bridge, room: Room) -> Self {
        Self {
            bridge,
            room: Some(Arc::new(room)),
        }
    }

    /// For what takes no room: it is gone again at once.
    pub(crate) fn endless(bridge: Bridge) -> Self {
        Self { bridge, room: None }
    }

    /// So many bytes are about to be written.
    ///
    /// # Errors
    /// `NoSpace` when the workspace has come to be over its limit meanwhile.
    pub(super) fn take(&self, bytes: usize) -> BridgeResult<()> {
        self.room.as_ref().map_or(Ok(()), |room| room.take(bytes as u64))
    }
}

impl Deref for RoomyBridge {
    type Target = Bridge;

    fn deref(&self) -> &Bridge {
        &self.bridge
    }
}
