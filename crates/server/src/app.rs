//! What every handler has at hand.

use std::sync::Arc;

use skep_store::Store;

use crate::auth::Auth;
use crate::config::Config;

/// The server's parts; clones share them.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// What an [`App`] is put together from.
pub struct Parts {
    /// What is in force.
    pub config: Arc<Config>,
    /// Rows.
    pub store: Store,
    /// Credentials.
    pub auth: Auth,
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

    /// Credentials.
    pub fn auth(&self) -> &Auth {
        &self.0.auth
    }
}
