//! Images on a real containerd, from real registries and archives.

mod cutting_proxy;
mod imports;
mod pulls;
mod resumed;
mod setting;
mod stored;
mod trouble;
mod trust;
