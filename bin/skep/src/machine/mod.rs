//! The half that touches this host: runs the server, and all that it needs on one machine.
//!
//! Here the parts are put together (configuration, data root, containerd, backend, server), and here
//! alone; none of the rules is here.

mod backend;
pub(crate) mod configuration;
pub(crate) mod doctor;
pub(crate) mod down;
mod running;
pub(crate) mod serve;
mod sign_in;
pub(crate) mod up;
