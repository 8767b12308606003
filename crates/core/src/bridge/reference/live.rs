//! The execs of one connection that are followed just now: over that wire input and sizes go the way the output
//! comes, and an exec has no name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_bridge_protocol::bridgepb::ExecInput;
use skep_bridge_protocol::reason;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::metadata::MetadataValue;

/// The way to a process.
#[derive(Clone)]
pub(super) struct Inputs {
    pub(super) sender: mpsc::Sender<ExecInput>,
    pub(super) has_terminal: bool,
}

/// As many as streams that are read: whoever stops to read one lets go of its entry.
#[derive(Clone, Default)]
pub(super) struct LiveExecs(Arc<Mutex<HashMap<String, Inputs>>>);

/// Dropped with the stream of the output: nothing more is written to that process.
pub(super) struct Registration {
    live: LiveExecs,
    id: String,
}

impl LiveExecs {
    pub(super) fn register(&self, id: String, inputs: Inputs) -> Result<Registration, Status> {
        let mut execs = self.lock();
        if execs.contains_key(&id) {
            return Err(Status::unimplemented("following a process twice"));
        }
        execs.insert(id.clone(), inputs);
        Ok(Registration { live: self.clone(), id })
    }

    pub(super) fn find(&self, id: &str) -> Result<Inputs, Status> {
        self.lock().get(id).cloned().ok_or_else(is_over)
    }

    /// Closes its input, as far as nobody else is writing to it.
    pub(super) fn close(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Inputs>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.live.close(&self.id);
    }
}

/// A process that has ended, or that nobody has started here.
pub(super) fn is_over() -> Status {
    let mut status = Status::failed_precondition("the process is over or takes no input");
    let word = MetadataValue::from_static(reason::EXEC_EXITED);
    status.metadata_mut().insert(reason::METADATA_KEY, word);
    status
}
