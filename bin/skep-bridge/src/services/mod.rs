//! The two gRPC services: they parse, hand work to `files` and `exec`, and carry the answers. No rule lives here.

mod dispatch;
mod forward;
mod input;
mod reference;
mod reference_exec;
mod streams;
mod watch;
mod workspace;
mod workspace_exec;
mod workspace_files;

pub(crate) use dispatch::BothServices;
pub(crate) use reference::Reference;
pub(crate) use workspace::WorkspaceService;

/// The release this bridge belongs to.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
