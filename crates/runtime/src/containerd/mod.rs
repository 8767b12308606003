//! The containerd backend: the only place that knows its words (lease, shim, snapshotter, chain id).

pub mod daemon;
