//! The server over real HTTP: its conventions, who may do what, and that nothing a caller sends is
//! our failure. One binary, so that it is linked once.

mod access;
mod auth;
mod backups;
mod bots;
mod conventions;
mod document;
mod examples;
mod gpus;
mod held;
mod operations;
mod sentences;
mod tickets;
mod users;
mod workspace;

/// How long anything that is waited for may take, on a busy machine; less than the minute after which a server looks at
/// everything by itself.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(50);
