//! What tests share: harnesses for real daemons, the conformance suite, the fake runtime, images made on the spot.
//!
//! A tool that is missing here is a loud failure, never a skipped test; everything started is ended
//! when its guard is dropped.

mod call_counter;
pub mod conformance;
pub mod containerd_rig;
mod containerd_server;
pub mod containerd_view;
pub mod fake_runtime;
pub mod host_traces;
pub mod images;
mod reference_bridge;
pub mod registry;
pub mod server;
pub mod trees;
mod unix_proxy;

pub use call_counter::CallCounter;
pub use containerd_rig::{ContainerdRig, RigOptions};
pub use containerd_server::{CONTAINERD_VARIABLE, ContainerdRelease, ContainerdServer, mounts_below, unmount_below};
pub use host_traces::{Expected, HostTraces};
pub use reference_bridge::ReferenceBridge;
pub use unix_proxy::UnixProxy;
