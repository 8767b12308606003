//! What every handler has at hand.

use std::sync::Arc;

use skep_core::Skep;
use skep_store::Store;
use tokio_util::task::TaskTracker;

use crate::audit::AuditTrail;
use crate::auth::Auth;
use crate::config::Config;
use crate::http::idempotency::Claimed;
use crate::http::room::Rooms;

/// The server's parts; clones share them.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// What an [`App`] is put together from.
pub struct Parts {
    /// What is in force.
    pub config: Arc<Config>,
    /// Rows.
    pub store: Store,
    /// The rules.
    pub core: Skep,
    /// Credentials.
    pub auth: Auth,
    /// Who did what.
    pub audit: AuditTrail,
    /// Work that outlives the request that asked for it; waited for at the end.
    pub tasks: TaskTracker,
    /// Memory for answers that are held whole.
    pub rooms: Rooms,
    /// Idempotency keys whose requests are being worked on.
    pub claimed: Claimed,
}

impl App {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// What is in force.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Rows.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The rules.
    pub fn core(&self) -> &Skep {
        &self.0.core
    }

    /// Credentials.
    pub fn auth(&self) -> &Auth {
        &self.0.auth
    }

    /// Who did what.
    pub fn audit(&self) -> &AuditTrail {
        &self.0.audit
    }

    /// Work that outlives the request that asked for it.
    pub fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    /// Memory for answers that are held whole.
    pub fn rooms(&self) -> &Rooms {
        &self.0.rooms
    }

    /// Idempotency keys whose requests are being worked on.
    pub fn claimed(&self) -> &Claimed {
        &self.0.claimed
    }
}
