//! The main job from outside: the real program over HTTP, on real containerd, runtimes, registry and network.

mod client;
mod cycles;
mod images;
mod inside;
mod installation;
mod lifecycle;
mod load;
mod logs;
