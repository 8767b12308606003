//! Shells that outlive the windows on them: each has a name, and is found again by it for as long as it runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;

use super::process::Holder;
use super::registry::{Found, Registry, Request, check_id};

/// Which process has which name.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, String>>);

impl Sessions {
    /// The process of that name, or the one that is asked for when none of that name runs.
    ///
    /// # Errors
    /// InvalidArgument for a bad name or no id; else as [`Registry::open`].
    pub(crate) async fn open(
        &self,
        registry: &Arc<Registry>,
        name: &str,
        request: Request,
    ) -> Result<(Found, Option<Holder>), Status> {
        check_id("name", name)?;
        let new = request.id.clone();
        let new = new.ok_or_else(|| Status::invalid_argument("exec_id is required"))?;
        let id = self.id_of(registry, name, new);
        let own = Request {
            id: Some(id.clone()),
            ..request
        };
        // Whoever comes second, with the first one not even started, starts it under the same id or finds it.
        let found = registry.open(own).await;
        found.inspect_err(|_| self.forget(registry, name, &id))
    }

    fn id_of(&self, registry: &Registry, name: &str, new: String) -> String {
        let mut ids = self.ids();
        // An id given here is the registry's before anything else runs: the bridge has one event loop, and `open` does not
        // wait until it has reserved it.
        ids.retain(|_, id| !registry.is_over(id));
        ids.entry(name.to_owned()).or_insert(new).clone()
    }

    /// Unless another one starts it under that id by now.
    fn forget(&self, registry: &Registry, name: &str, id: &str) {
        let mut ids = self.ids();
        if ids.get(name).is_some_and(|known| known == id) && !registry.is_known(id) {
            ids.remove(name);
        }
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<String, String>> {
        // Every change is a single insert or remove, so a poisoned map is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
