//! What every handler has at hand.

use std::sync::Arc;

use crate::config::Config;

/// The server's parts; clones share them.
#[derive(Clone)]
pub struct App(Arc<Parts>);

struct Parts {
    config: Arc<Config>,
}

impl App {
    /// Puts the parts together.
    pub fn new(config: Arc<Config>) -> Self {
        Self(Arc::new(Parts { config }))
    }

    /// What is in force.
    pub fn config(&self) -> &Config {
        &self.0.config
    }
}
