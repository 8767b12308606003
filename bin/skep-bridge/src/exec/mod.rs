//! Processes that callers start: how they start, what is kept of them, how they end. Nothing here knows gRPC streams.

mod disk_use;
mod end;
#[cfg(test)]
mod feigned;
mod keeping;
mod listed;
mod output;
mod output_log;
mod pipes;
mod process;
mod record;
mod registry;
mod sessions;
mod start;
mod stored;
mod users;

pub(crate) use end::each_process;
pub(crate) use listed::{Exec, end_of};
pub(crate) use output::{Next, Reader, Which};
pub(crate) use pipes::Pace;
pub(crate) use process::{FirstInput, Holder, Process, Watch};
pub(crate) use registry::{Found, Registry, Request};
pub(crate) use sessions::Sessions;
pub(crate) use start::Program;
