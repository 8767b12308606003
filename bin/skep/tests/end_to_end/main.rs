//! The main job from outside: the real program over HTTP, on real containerd, runtimes, registry and network.

mod away;
mod browser;
mod client;
mod cycles;
mod deletes;
mod full_disk;
mod images;
mod inside;
mod installation;
mod kept_data;
mod kills;
mod legacy;
mod lifecycle;
mod load;
mod logs;
mod model;
mod model_versions;
mod neighbours;
mod power;
mod reach;
mod shells;
mod transfers;
mod two_roots;
mod versions;
