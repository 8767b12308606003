//! What tests share: harnesses for real daemons, the conformance suite, the fake runtime, images made on the spot.

mod containerd_server;

pub use containerd_server::{ContainerdServer, mounts_below, unmount_below};
