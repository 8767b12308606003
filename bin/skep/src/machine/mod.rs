//! The half that touches this host.

pub(crate) mod configuration;
