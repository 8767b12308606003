//! Images on a real containerd, from real registries and archives.

mod imports;
mod pulls;
mod setting;
mod stored;
mod trouble;
